//! The hybrid logical clock that stamps commands (Kulkarni et al., 2014).
//!
//! Invariants: `now` is strictly ascending; a timestamp observed from elsewhere moves the clock at most the maximum
//! offset ahead of the wall clock, so one node with a wild clock cannot drag the others along; the clock runs at most
//! the maximum offset ahead of the wall clock at start plus the time that has passed since, so a wall clock that leaps
//! ahead does not drag it along either.
//!
//! Whether a leap was an error or set an error right cannot be told here, and a timestamp too far ahead is never taken
//! back while one too far behind harms nothing: commits are ordered by the log. So after a leap (also over the time a
//! machine was asleep) timestamps stay behind until the process starts anew.
//!
//! Not here: the order of commits, which is the log's (state machine: max of stamp and last commit + 1).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kv_proto::timestamp::Timestamp;

/// Where time comes from.
pub trait TimeSource: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch; may jump either way.
    fn wall_millis(&self) -> u64;
    /// Milliseconds since some moment; never jumps.
    fn elapsed_millis(&self) -> u64;
}

/// The system's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl TimeSource for SystemClock {
    fn wall_millis(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        #[cfg(kv_sim)]
        return millis(since).saturating_add_signed(crate::simulated::clock_offset_ms());
        #[cfg(not(kv_sim))]
        millis(since)
    }

    fn elapsed_millis(&self) -> u64 {
        millis(self.0.elapsed())
    }
}

/// In milliseconds, as far as they go.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
    source: Arc<dyn TimeSource>,
    /// What the wall clock said when `source` had counted nothing yet.
    origin_ms: u64,
    /// Invariant: never decreases.
    last: Arc<AtomicU64>,
    max_offset_ms: u64,
}

impl Clock {
    /// A clock over the system's clocks.
    #[must_use]
    pub fn new(max_offset: Duration) -> Self {
        Self::with_source(Arc::new(SystemClock::default()), max_offset)
    }

    /// A clock over any source of time.
    #[must_use]
    pub fn with_source(source: Arc<dyn TimeSource>, max_offset: Duration) -> Self {
        let origin_ms = source.wall_millis().saturating_sub(source.elapsed_millis());
        Self { source, origin_ms, last: Arc::default(), max_offset_ms: millis(max_offset) }
    }

    /// A timestamp after every one this clock gave or observed. It is never further ahead of the wall clock at start plus
    /// the time since than the maximum offset, unless more than 65,536 are drawn within a millisecond.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let wall = Timestamp::from_millis(self.source.wall_millis().min(self.ceiling_ms())).0;
        let advance = |last: u64| wall.max(last.saturating_add(1));
        let update = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(advance(last)));
        Timestamp(advance(update.unwrap_or_else(|last| last)))
    }

    /// Moves the clock past a timestamp of another node; refuses one beyond the maximum offset and stays as it is.
    pub fn observe(&self, other: Timestamp) -> Result<(), TooFarAhead> {
        let trusted_ms = self.source.wall_millis().min(self.steady_ms());
        let ahead_ms = other.millis().saturating_sub(trusted_ms);
        if ahead_ms > self.max_offset_ms {
            return Err(TooFarAhead { ahead_ms, max_ms: self.max_offset_ms });
        }
        self.last.fetch_max(other.0, Ordering::AcqRel);
        Ok(())
    }

    /// What the wall clock would say had it never been set since the start.
    fn steady_ms(&self) -> u64 {
        self.origin_ms.saturating_add(self.source.elapsed_millis())
    }

    fn ceiling_ms(&self) -> u64 {
        self.steady_ms().saturating_add(self.max_offset_ms)
    }

    /// The wall clock as it is, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall_millis(&self) -> u64 {
        self.source.wall_millis()
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

    struct Hand {
        wall: AtomicU64,
        elapsed: AtomicU64,
    }

    impl Hand {
        /// Both clocks run.
        fn pass(&self, millis: u64) {
            self.wall.fetch_add(millis, Ordering::SeqCst);
            self.elapsed.fetch_add(millis, Ordering::SeqCst);
        }

        fn set(&self, wall: u64) {
            self.wall.store(wall, Ordering::SeqCst);
        }
    }

    impl TimeSource for Hand {
        fn wall_millis(&self) -> u64 {
            self.wall.load(Ordering::SeqCst)
        }

        fn elapsed_millis(&self) -> u64 {
            self.elapsed.load(Ordering::SeqCst)
        }
    }

    fn clock() -> (Arc<Hand>, Clock) {
        let hand = Arc::new(Hand { wall: AtomicU64::new(1000), elapsed: AtomicU64::new(70) });
        let source: Arc<dyn TimeSource> = Arc::<Hand>::clone(&hand);
        (hand, Clock::with_source(source, Duration::from_millis(500)))
    }

    #[test]
    fn timestamps_ascend_while_wall_time_stands_still_and_when_it_jumps_back() {
        let (hand, clock) = clock();
        let first = clock.now();
        assert_eq!(first, Timestamp::from_millis(1000));
        let second = clock.now();
        assert!(first < second);
        hand.set(10);
        let third = clock.now();
        assert!(second < third);
        hand.set(1000);
        hand.pass(1000);
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
    fn a_wall_clock_that_leaps_ahead_is_followed_by_the_maximum_offset_and_time_goes_on() {
        let (hand, clock) = clock();
        hand.pass(100);
        assert_eq!(clock.now(), Timestamp::from_millis(1100));
        hand.set(86_400_000);
        assert_eq!(clock.now(), Timestamp::from_millis(1600));
        hand.pass(10);
        assert_eq!(clock.now(), Timestamp::from_millis(1610));
        let far = Timestamp::from_millis(1611);
        assert_eq!(clock.observe(far), Err(TooFarAhead { ahead_ms: 501, max_ms: 500 }));
        hand.set(1110);
        hand.pass(1000);
        assert_eq!(clock.now(), Timestamp::from_millis(2110), "set right, it is followed as before");
    }

    proptest::proptest! {
        #[test]
        fn whatever_wall_clock_and_other_nodes_say_the_clock_ascends_and_is_never_beyond_its_bound(
            steps in proptest::collection::vec((0u8..4, 0u64..5000), 1..60),
        ) {
            let (hand, clock) = clock();
            let (mut before, mut steady) = (clock.now(), 1000);
            for (kind, millis) in steps {
                match kind {
                    0 => hand.set(millis * 1000),
                    1 => {
                        hand.pass(millis);
                        steady += millis;
                    }
                    2 => {
                        let _ = clock.observe(Timestamp::from_millis(millis));
                    }
                    _ => hand.set(steady),
                }
                let now = clock.now();
                proptest::prop_assert!(now > before);
                proptest::prop_assert!(now.millis() <= steady + 500, "{now:?} when it is {steady}");
                before = now;
            }
        }
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
