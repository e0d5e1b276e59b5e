//! The hybrid logical clock that stamps commands (Kulkarni et al., 2014).
//!
//! Invariants: `now` is strictly ascending; a timestamp observed from elsewhere moves the clock at most the maximum
//! offset ahead of the wall clock, so one node with a wild clock cannot drag the others along.
//!
//! Not here: the order of commits, which is the log's (state machine: max of stamp and last commit + 1).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kv_proto::timestamp::Timestamp;

/// Where wall time comes from.
pub trait WallClock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch; may jump either way.
    fn now_millis(&self) -> u64;
}

/// The system's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl WallClock for SystemClock {
    fn now_millis(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A timestamp too far ahead of this node's wall clock to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timestamp is {ahead_ms} ms ahead of this node's clock, at most {max_ms} ms are followed")]
pub struct TooFarAhead {
    /// By how much, in milliseconds.
    pub ahead_ms: u64,
    /// The maximum offset, in milliseconds.
    pub max_ms: u64,
}

/// A node's clock; clones share it.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn WallClock>,
    /// Invariant: never decreases.
    last: Arc<AtomicU64>,
    max_offset_ms: u64,
}

impl Clock {
    /// A clock over the system's wall clock.
    #[must_use]
    pub fn new(max_offset: Duration) -> Self {
        Self::with_wall(Arc::new(SystemClock), max_offset)
    }

    /// A clock over any source of wall time.
    #[must_use]
    pub fn with_wall(wall: Arc<dyn WallClock>, max_offset: Duration) -> Self {
        let max_offset_ms = u64::try_from(max_offset.as_millis()).unwrap_or(u64::MAX);
        Self { wall, last: Arc::default(), max_offset_ms }
    }

    /// A timestamp after every one this clock gave or observed.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let wall = Timestamp::from_millis(self.wall.now_millis()).0;
        let advance = |last: u64| wall.max(last.saturating_add(1));
        let update = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(advance(last)));
        Timestamp(advance(update.unwrap_or_else(|last| last)))
    }

    /// Moves the clock past a timestamp of another node; refuses one beyond the maximum offset and stays as it is.
    pub fn observe(&self, other: Timestamp) -> Result<(), TooFarAhead> {
        let ahead_ms = other.millis().saturating_sub(self.wall.now_millis());
        if ahead_ms > self.max_offset_ms {
            return Err(TooFarAhead { ahead_ms, max_ms: self.max_offset_ms });
        }
        self.last.fetch_max(other.0, Ordering::AcqRel);
        Ok(())
    }

    /// The wall clock as it is, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall_millis(&self) -> u64 {
        self.wall.now_millis()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("last", &self.last).field("max_offset_ms", &self.max_offset_ms).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Hand(AtomicU64);

    impl WallClock for Hand {
        fn now_millis(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn clock() -> (Arc<Hand>, Clock) {
        let hand = Arc::new(Hand(AtomicU64::new(1000)));
        (Arc::clone(&hand), Clock::with_wall(hand, Duration::from_millis(500)))
    }

    #[test]
    fn timestamps_ascend_while_wall_time_stands_still_and_when_it_jumps_back() {
        let (hand, clock) = clock();
        let first = clock.now();
        assert_eq!(first, Timestamp::from_millis(1000));
        let second = clock.now();
        assert!(first < second);
        hand.0.store(10, Ordering::SeqCst);
        let third = clock.now();
        assert!(second < third);
        hand.0.store(2000, Ordering::SeqCst);
        assert_eq!(clock.now(), Timestamp::from_millis(2000));
    }

    #[test]
    fn a_timestamp_of_another_node_moves_the_clock_only_within_the_maximum_offset() {
        let (_, clock) = clock();
        let near = Timestamp::from_millis(1500);
        clock.observe(near).unwrap();
        assert!(clock.now() > near);
        let far = Timestamp::from_millis(1501);
        assert_eq!(clock.observe(far), Err(TooFarAhead { ahead_ms: 501, max_ms: 500 }));
        assert!(clock.now() < far);
    }

    #[test]
    fn no_two_threads_are_given_the_same_timestamp() {
        let (_, clock) = clock();
        let drawn = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).map(|_| clock.now()).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<std::collections::BTreeSet<_>>()
        });
        assert_eq!(drawn.len(), 4000);
    }
}
