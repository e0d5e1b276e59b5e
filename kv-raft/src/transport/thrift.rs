//! Which followers get small entries at once, and which a moment later, several in one message.
//!
//! An entry is committed once a majority has it, and while entries are small, sending one costs more than what it carries.
//! So a follower whose answers come after the commit is spared: small entries for it wait for company. EPaxos calls it
//! thrifty to ask no more than a quorum (Moraru, Andersen, Kaminsky: "There is more consensus in egalitarian
//! parliaments", SOSP 2013).
//!
//! The stream to each follower learns this by itself, from what it is told of commits: it need not know how many voters
//! there are, nor which of the others answer.
//!
//! Invariants: a follower that a majority cannot do without is waited for in vain once, and then spared no more.
//!
//! Not here: what is held, and how long (appends).

/// So many entries in a row must be committed before a follower answers, until it is spared. Few, since two equals take turns
/// in being late, and one that is spared wrongly costs one wait.
const LATE_MIN: u32 = 3;

/// What is known of one follower.
#[derive(Debug, Default)]
pub(super) struct Thrift {
    spared: bool,
    late: u32,
}

impl Thrift {
    /// Whether small entries for it may wait.
    pub(super) fn is_spared(&self) -> bool {
        self.spared
    }

    /// Entries were committed before it answered.
    pub(super) fn was_late(&mut self) {
        self.late = self.late.saturating_add(1);
        self.spared |= self.late >= LATE_MIN;
    }

    /// It answered before the entries were committed, perhaps as one of the majority.
    pub(super) fn was_in_time(&mut self) {
        self.late = 0;
    }

    /// Its entries waited as long as they may and were not committed meanwhile.
    pub(super) fn was_missed(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(times: u32) -> Thrift {
        let mut thrift = Thrift::default();
        (0..times).for_each(|_| thrift.was_late());
        thrift
    }

    #[test]
    fn a_follower_is_spared_once_it_was_late_a_few_times_in_a_row() {
        assert!(!late(LATE_MIN - 1).is_spared());
        assert!(late(LATE_MIN).is_spared());
        let mut thrift = late(LATE_MIN - 1);
        thrift.was_in_time();
        (1..LATE_MIN).for_each(|_| thrift.was_late());
        assert!(!thrift.is_spared(), "not in a row");
        thrift.was_late();
        assert!(thrift.is_spared());
    }

    #[test]
    fn one_that_is_missed_is_spared_no_more_until_it_is_late_again() {
        let mut thrift = late(LATE_MIN);
        thrift.was_in_time();
        assert!(thrift.is_spared(), "a large entry that it answered first says nothing of small ones");
        thrift.was_missed();
        assert!(!thrift.is_spared());
        (1..LATE_MIN).for_each(|_| thrift.was_late());
        assert!(!thrift.is_spared());
    }
}
