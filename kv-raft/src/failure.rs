//! Why something failed for good: the first reason stays, and whoever waits for it is told.
//!
//! Not here: what fails, and what follows from it (log_store, data_engine, replica).

use std::sync::OnceLock;

use tokio::sync::Notify;

/// Empty until the first failure. Looking at it costs next to nothing: every write does.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    first: OnceLock<String>,
    told: Notify,
}

impl Failure {
    /// True if this is the first.
    pub(crate) fn set(&self, reason: &str) -> bool {
        let is_first = self.first.set(reason.to_owned()).is_ok();
        if is_first {
            self.told.notify_waiters();
        }
        is_first
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.first.get().cloned()
    }

    /// Completes with the reason of the first failure.
    pub(crate) async fn wait(&self) -> String {
        loop {
            // Listens before it looks, or it would miss what fails in between.
            let told = self.told.notified();
            if let Some(reason) = self.reason() {
                return reason;
            }
            told.await;
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
