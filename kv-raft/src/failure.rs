//! Why something failed for good: the first reason stays, and whoever waits for it is told.
//!
//! Not here: what fails, and what follows from it (log_store, data_engine, replica).

use tokio::sync::SetOnce;

/// Empty until the first failure. Looking at it costs next to nothing: every write does.
#[derive(Debug, Default)]
pub(crate) struct Failure(SetOnce<String>);

impl Failure {
    /// True if this is the first.
    pub(crate) fn set(&self, reason: &str) -> bool {
        self.0.set(reason.to_owned()).is_ok()
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.0.get().cloned()
    }

    /// Completes with the reason of the first failure.
    pub(crate) async fn wait(&self) -> String {
        self.0.wait().await.clone()
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
