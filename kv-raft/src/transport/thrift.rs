//! Which followers get a lone caller's entries at once, and which a moment later, several in one message.
//!
//! An entry is committed once a majority has it, and for an entry of a command or two, sending it costs more than what it
//! carries. So a follower whose answers come after the commit is spared: such entries for it wait for company. EPaxos calls it
//! thrifty to ask no more than a quorum (Moraru, Andersen, Kaminsky: "There is more consensus in egalitarian
//! parliaments", SOSP 2013).
//!
//! The stream to each follower learns this by itself, from what it is told of commits: it need not know how many voters
//! there are, nor which of the others answer.
//!
//! Invariants: a follower without which nothing is committed is not spared after the first entries that waited in vain; nobody is
//! spared for longer than [`TURNS`] without being as fast as it can once more.
//!
//! Not here: what is held, and how long (appends).

/// So many entries in a row must be committed before a follower answers, until it is spared. Few, since two equals take turns
/// in being late, and one that is spared wrongly costs one wait.
const LATE: u32 = 3;

/// So many times entries for it wait until it takes part again like everybody: those that are not spared may have become
/// slow, though not so slow that it is missed. A second's worth.
const TURNS: u32 = 100;

/// What is known of one follower.
#[derive(Debug, Default)]
pub(super) struct Thrift {
    late: u32,
    turns: u32,
}

impl Thrift {
    /// Whether a lone caller's entries for it may wait.
    pub(super) fn is_spared(&self) -> bool {
        self.late >= LATE
    }

    /// Such an entry was sent at once, and committed before it answered.
    pub(super) fn was_late(&mut self) {
        self.late += u32::from(!self.is_spared());
    }

    /// It answered before the entry was committed, perhaps as one of the majority.
    pub(super) fn was_in_time(&mut self) {
        if !self.is_spared() {
            self.late = 0;
        }
    }

    /// Entries for it have waited; `committed` says whether they are, without it.
    pub(super) fn has_waited(&mut self, committed: bool) {
        self.turns += 1;
        if !committed || self.turns >= TURNS {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spared() -> Thrift {
        let mut thrift = Thrift::default();
        (0..LATE).for_each(|_| thrift.was_late());
        assert!(thrift.is_spared());
        thrift
    }

    #[test]
    fn a_follower_is_spared_once_it_was_late_a_few_times_in_a_row() {
        let mut thrift = Thrift::default();
        (1..LATE).for_each(|_| thrift.was_late());
        assert!(!thrift.is_spared());
        thrift.was_in_time();
        (1..LATE).for_each(|_| thrift.was_late());
        assert!(!thrift.is_spared(), "not in a row");
        thrift.was_late();
        assert!(thrift.is_spared());
        thrift.was_in_time();
        assert!(thrift.is_spared(), "what was on its way when it was spared says nothing of later");
    }

    #[test]
    fn one_that_is_missed_is_spared_no_more_until_it_is_late_again() {
        let mut thrift = spared();
        thrift.has_waited(true);
        assert!(thrift.is_spared());
        thrift.has_waited(false);
        assert!(!thrift.is_spared());
        (1..LATE).for_each(|_| thrift.was_late());
        assert!(!thrift.is_spared());
    }

    #[test]
    fn one_that_was_spared_for_long_takes_part_again() {
        let mut thrift = spared();
        (1..TURNS).for_each(|_| thrift.has_waited(true));
        assert!(thrift.is_spared());
        thrift.has_waited(true);
        assert!(!thrift.is_spared());
    }
}
