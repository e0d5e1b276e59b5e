//! Why something failed for good: the first reason stays, and whoever waits for it is told.
//!
//! Not here: what fails, and what follows from it (log_store, data_engine, replica).

use tokio::sync::watch;

/// Empty until the first failure.
#[derive(Debug)]
pub(crate) struct Failure(watch::Sender<Option<String>>);

impl Default for Failure {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Failure {
    /// True if this is the first.
    pub(crate) fn set(&self, reason: &str) -> bool {
        self.0.send_if_modified(|first| {
            let new = first.is_none();
            first.get_or_insert_with(|| reason.to_owned());
            new
        })
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Completes with the reason of the first failure.
    pub(crate) async fn wait(&self) -> String {
        let mut failure = self.0.subscribe();
        // The reason is taken out before anything is awaited: the channel's guard must not cross an await.
        let reason = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn the_first_reason_stays_and_is_told() {
        let failure = Failure::default();
        assert_eq!(failure.wait().now_or_never(), None);
        assert!(failure.set("the disk is gone"));
        assert!(!failure.set("so is the rest"));
        assert_eq!(failure.reason().as_deref(), Some("the disk is gone"));
        assert_eq!(failure.wait().now_or_never().as_deref(), Some("the disk is gone"));
    }
}
