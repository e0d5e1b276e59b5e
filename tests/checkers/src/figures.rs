//! How much a history holds and how long its clients waited.
//!
//! Not here: whether it is right (verdict).

use std::fmt;
use std::time::Duration;

use crate::history::{Fate, History, Operation, Outcome};

/// Counts and times of a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// All operations.
    pub operations: usize,
    /// Writes acknowledged.
    pub acknowledged: usize,
    /// Reads answered, refusals included.
    pub read: usize,
    /// Requests that failed and were not applied.
    pub not_applied: usize,
    /// Requests that may be applied.
    pub unknown: usize,
    /// Longest time without any acknowledged write, over all processes.
    pub longest_gap: Duration,
    /// Longest time from the sending of a request to its answer, good or bad.
    pub slowest: Duration,
    /// A few of the reasons of failures.
    pub reasons: Vec<String>,
}

impl Figures {
    /// Of this history.
    #[must_use]
    pub fn of(history: &History) -> Self {
        let operations = || history.operations.iter();
        let fate = |fate| operations().filter(|operation| operation.outcome.fate() == fate).count();
        let written = || operations().filter(|operation| operation.outcome.written().is_some());
        let mut ends: Vec<u64> = written().filter_map(|operation| operation.complete).collect();
        ends.sort_unstable();
        let gaps = ends.iter().zip(ends.iter().skip(1)).map(|(one, next)| next - one);
        let times = operations().filter_map(|operation| Some(operation.complete?.saturating_sub(operation.invoke)));
        Self {
            operations: history.operations.len(),
            acknowledged: ends.len(),
            read: fate(Fate::Applied) - written().count(),
            not_applied: fate(Fate::NotApplied),
            unknown: fate(Fate::Unknown),
            longest_gap: Duration::from_nanos(gaps.max().unwrap_or_default()),
            slowest: Duration::from_nanos(times.max().unwrap_or_default()),
            reasons: reasons(history),
        }
    }
}

fn reasons(history: &History) -> Vec<String> {
    let reason = |operation: &Operation| match &operation.outcome {
        Outcome::NotApplied { reason } | Outcome::Unknown { reason } => Some(reason.clone()),
        Outcome::Written { .. } | Outcome::Refused { .. } | Outcome::Found { .. } | Outcome::Listed { .. } => None,
    };
    let mut reasons: Vec<String> = history.operations.iter().filter_map(reason).collect();
    reasons.sort();
    reasons.dedup();
    reasons.truncate(5);
    reasons
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations: {} writes acknowledged, {} reads, {} not applied, {} unknown; longest gap {:?}, slowest {:?}",
            self.operations,
            self.acknowledged,
            self.read,
            self.not_applied,
            self.unknown,
            self.longest_gap,
            self.slowest
        )?;
        self.reasons.iter().try_for_each(|reason| write!(f, "\n  failed: {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Call;

    #[test]
    fn the_longest_gap_counts_acknowledged_writes_of_all_processes() {
        let at = |time: u64, outcome| Operation {
            process: time,
            shard: None,
            invoke: time - 1,
            complete: Some(time),
            call: Call::Write { key: format!("k{time}"), value: "v".into() },
            outcome,
        };
        let done = || Outcome::Written { version: 1 };
        let failed = Outcome::NotApplied { reason: "x".into() };
        let operations = vec![at(10, done()), at(400, failed), at(900, done()), at(20, done())];
        let figures = Figures::of(&History { operations, ..History::default() });
        assert_eq!(figures.longest_gap, Duration::from_nanos(880));
        assert_eq!(figures.slowest, Duration::from_nanos(1));
        assert_eq!((figures.acknowledged, figures.read, figures.not_applied, figures.unknown), (3, 0, 1, 0));
    }
}
