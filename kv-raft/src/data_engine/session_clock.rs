//! The clock that sessions age by.
//!
//! It belongs to the state: it goes by the stamps of the entries applied, so every replica reads the same. One entry
//! moves it by at most [`STEP_MAX_MS`], so a leader whose wall clock leaps forward does not make sessions old at once;
//! it follows stamps as they are rather than commit timestamps, which stand still until the time leapt over has passed.
//!
//! Invariants: never runs backward; no entry moves it by more than a step; depends on the entries applied only.
//!
//! Not here: how old a session may get (state machine, session).

use bincode::{Decode, Encode};
use kv_proto::timestamp::Timestamp;

/// By how much one entry moves the clock at most. A shard written to less often ages its sessions more slowly.
pub(crate) const STEP_MAX_MS: u64 = 10_000;

/// A reading of the clock: milliseconds since the shard began, less what was leapt over or nobody wrote in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct SessionTime(pub(crate) u64);

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SessionClock {
    now: SessionTime,
    /// The stamp of the last entry, in milliseconds.
    last_stamp: u64,
}

impl SessionClock {
    pub(crate) fn now(&self) -> SessionTime {
        self.now
    }

    /// An entry stamped so by its leader is applied.
    pub(crate) fn advance(&mut self, stamp: Timestamp) {
        let step = stamp.millis().saturating_sub(self.last_stamp).min(STEP_MAX_MS);
        self.now.0 = self.now.0.saturating_add(step);
        self.last_stamp = stamp.millis();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_leap_counts_as_one_step_and_time_goes_on_after_it_is_taken_back() {
        let mut clock = SessionClock::default();
        for stamp in [0, 4000, 3_600_000, 3_600_001, 8000, 9000] {
            clock.advance(Timestamp::from_millis(stamp));
        }
        assert_eq!(clock.now(), SessionTime(4000 + STEP_MAX_MS + 1 + 1000));
    }

    proptest! {
        #[test]
        fn no_stamp_moves_the_clock_backward_or_by_more_than_a_step(
            stamps in proptest::collection::vec(any::<u64>(), 1..40),
        ) {
            let mut clock = SessionClock::default();
            for stamp in stamps {
                let before = clock.now();
                clock.advance(Timestamp(stamp));
                prop_assert!(clock.now() >= before);
                prop_assert!(clock.now().0 - before.0 <= STEP_MAX_MS);
            }
        }
    }
}
