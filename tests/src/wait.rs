//! Waiting on conditions, with a deadline and the last reason why not.
//!
//! Not here: pauses; no test sleeps for a time it guessed.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks; a process on two cores needs its time for itself.
const LOOK_INTERVAL: Duration = Duration::from_millis(30);

/// Looks until `look` succeeds; fails after `within` with the last reason.
pub async fn until<T, F, Fut>(what: &str, within: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + within;
    let mut last = anyhow::anyhow!("no look finished");
    while Instant::now() < deadline {
        match timeout_at(deadline, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(reason)) => last = reason,
            Err(_) => break,
        }
        sleep(LOOK_INTERVAL).await;
    }
    Err(last).with_context(|| format!("waited {within:?} for: {what}"))
}
