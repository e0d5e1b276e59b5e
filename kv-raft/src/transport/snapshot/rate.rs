//! How fast a node sends snapshots.
//!
//! Not here: how many at once (send).

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A rate in bytes per second that everyone who asks shares.
pub(super) struct Rate {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Rate {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until that many bytes may pass.
    pub(super) async fn pass(&self, bytes: usize) {
        let wait = self.reserve(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    fn reserve(&self, bytes: usize, now: Instant) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let taken = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock();
        let starts = (*free_at).max(now);
        *free_at = starts + taken;
        starts.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_shared_and_does_not_save_up() {
        let rate = Rate::new(1000);
        let now = Instant::now() + Duration::from_secs(100);
        assert_eq!(rate.reserve(500, now), Duration::ZERO);
        assert_eq!(rate.reserve(500, now), Duration::from_millis(500));
        assert_eq!(rate.reserve(1, now), Duration::from_secs(1));
        assert_eq!(Rate::new(0).reserve(usize::MAX, now), Duration::ZERO);
    }
}
