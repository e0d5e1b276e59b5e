//! When the operations of an open loop are due.
//!
//! Invariants: the operation numbered n is due n / rate after the start, whatever was answered until then.
//!
//! Not here: who does it and how long it takes (driver).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Least sleep of the pacing thread: at high rates it lets several operations go at once instead of costing a wake-up
/// for each.
const SLEEP_MIN: Duration = Duration::from_micros(100);

/// Lets operations go when they are due. A thread of its own does, since timers of the async runtime are a millisecond
/// coarse: longer than many an answer takes.
#[derive(Debug)]
pub(crate) struct Pacer {
    start: Instant,
    each: Duration,
    end: Instant,
    due: Semaphore,
    taken: AtomicU64,
}

impl Pacer {
    /// `rate` operations a second from `start` to `end`.
    pub(crate) fn start(rate: f64, start: Instant, end: Instant) -> Arc<Self> {
        let each = Duration::from_secs_f64(1.0 / rate);
        let pacer = Arc::new(Self { start, each, end, due: Semaphore::new(0), taken: AtomicU64::new(0) });
        let shared = Arc::clone(&pacer);
        // Ends by itself at `end`.
        thread::spawn(move || shared.release());
        pacer
    }

    fn release(&self) {
        let mut released = 0;
        while Instant::now() < self.end {
            let now_due = due_by(Instant::now().duration_since(self.start), self.each);
            self.due.add_permits(usize::try_from(now_due - released).unwrap_or(0));
            released = now_due;
            let next = self.due_at(released).min(self.end);
            thread::sleep(next.saturating_duration_since(Instant::now()).max(SLEEP_MIN));
        }
        self.due.close();
    }

    fn due_at(&self, number: u64) -> Instant {
        self.start + nanos(self.each, number)
    }

    /// Waits for the next operation to be due; when it was. None at the end of the run.
    pub(crate) async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        Some(self.due_at(self.taken.fetch_add(1, Ordering::Relaxed)))
    }

    /// Operations that were due before the end and that no client had time for.
    pub(crate) fn unsent(&self) -> u64 {
        due_by(self.end.duration_since(self.start), self.each).saturating_sub(self.taken.load(Ordering::Relaxed))
    }
}

/// How many operations are due after this long.
fn due_by(elapsed: Duration, each: Duration) -> u64 {
    u64::try_from(elapsed.as_nanos() / each.as_nanos().max(1)).unwrap_or(u64::MAX)
}

fn nanos(each: Duration, number: u64) -> Duration {
    Duration::from_nanos(u64::try_from(each.as_nanos()).unwrap_or(u64::MAX).saturating_mul(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_due_evenly() {
        let each = Duration::from_millis(4);
        assert_eq!(due_by(Duration::ZERO, each), 0);
        assert_eq!(due_by(Duration::from_millis(3), each), 0);
        assert_eq!(due_by(Duration::from_millis(1002), each), 250);
        assert_eq!(nanos(each, 250), Duration::from_secs(1));
    }

    #[tokio::test]
    async fn what_is_not_taken_in_time_is_counted_as_unsent() {
        let start = Instant::now();
        let pacer = Pacer::start(1000.0, start, start + Duration::from_millis(100));
        for number in 0..10 {
            assert_eq!(pacer.next().await, Some(start + Duration::from_millis(number)));
        }
        while !pacer.due.is_closed() {
            tokio::task::yield_now().await;
        }
        assert_eq!(pacer.next().await, None, "a run that is over sends nothing more");
        assert_eq!(pacer.unsent(), 90);
    }
}
