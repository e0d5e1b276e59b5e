//! Property: what is read together from one shard is one point of its history; what is read at a commit timestamp is
//! the state at that timestamp, today and in every later read at it.
//!
//! Commit timestamps order a shard's history. So a read at T must show of every key the last write at or before T, and
//! a read of several keys without a timestamp must do so for the latest timestamp that it saw.
//!
//! Invariants: a write whose timestamp nothing tells demands nothing.
//!
//! Not here: whether that point is recent enough (linearizability, complete_scans).

use crate::history::{Call, Fate, History, Mode, Operation, Outcome, Seen};
use crate::known_writes::{KnownWrite, KnownWrites};
use crate::violation::Violation;

const PROPERTY: &str = "consistent_cut";

/// Judges all reads at a timestamp and all reads of several keys; how many, and what is wrong.
#[must_use]
pub fn check(history: &History) -> (usize, Vec<Violation>) {
    let known = KnownWrites::of(history);
    let mut violations = vec![];
    let mut judged = 0;
    for operation in &history.operations {
        let Some(at) = moment(operation) else { continue };
        judged += 1;
        let faults = covered(operation, &known).into_iter().filter_map(|seen| judge(operation, at, seen, &known));
        violations.extend(faults.map(|what| Violation::new(PROPERTY, what)));
    }
    (judged, violations)
}

/// The timestamp whose state it must show; None if it is no such read, was not answered, or says nothing.
fn moment(operation: &Operation) -> Option<u64> {
    let (mode, together) = match &operation.call {
        Call::Read { mode, .. } | Call::Scan { mode, .. } => (*mode, false),
        Call::ReadMany { mode, .. } => (*mode, true),
        Call::Write { .. }
        | Call::Delete { .. }
        | Call::CompareAndSet { .. }
        | Call::Increment { .. }
        | Call::WriteMany { .. } => return None,
    };
    if !matches!(operation.outcome, Outcome::Found { .. } | Outcome::Listed { .. }) {
        return None;
    }
    match mode {
        Mode::Snapshot { at } => Some(at),
        Mode::Linearizable | Mode::Lease | Mode::Stale { .. } if together => {
            operation.seen().into_iter().filter_map(|seen| Some(seen.entry?.1)).max()
        }
        Mode::Linearizable | Mode::Lease | Mode::Stale { .. } => None,
    }
}

/// What it says of every key it is about; of a scan also the keys it did not find.
fn covered<'h>(operation: &'h Operation, known: &KnownWrites<'h>) -> Vec<Seen<'h>> {
    let mut seen = operation.seen();
    if let Call::Scan { prefix, .. } = &operation.call {
        let found: std::collections::HashSet<&str> = seen.iter().map(|seen| seen.key).collect();
        let missing = known.keys_with(prefix).filter(|(key, _)| !found.contains(key));
        seen.extend(missing.map(|(key, _)| Seen { key, entry: None }));
    }
    seen
}

fn judge(operation: &Operation, at: u64, seen: Seen<'_>, known: &KnownWrites<'_>) -> Option<String> {
    let Seen { key, entry } = seen;
    let place = || format!("key {key} at timestamp {at}, read at {}", operation.invoke);
    if let Some((value, version)) = entry.filter(|(_, version)| *version > at) {
        return Some(format!("{}: {:?} is of {version}, later", place(), value.trim()));
    }
    let writes = known.of_key(key);
    let last = writes.iter().filter(|write| write.version.is_some_and(|version| version <= at));
    let last: &KnownWrite<'_> = last.max_by_key(|write| write.version)?;
    let shown = entry.map(|(value, _)| value);
    if shown == last.value {
        return None;
    }
    // What a delete of unknown outcome did, nothing tells.
    let perhaps = writes.iter().any(|write| write.value.is_none() && write.fate == Fate::Unknown);
    if shown.is_none() && perhaps {
        return None;
    }
    let text = |value: Option<&str>| value.map_or("nothing".to_owned(), |value| format!("{:?}", value.trim()));
    let version = last.version.unwrap_or_default();
    Some(format!("{}: shows {}, but {} was written at {version}", place(), text(shown), text(last.value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Entry, Versioned};

    fn operation(at: u64, call: Call, outcome: Outcome) -> Operation {
        Operation { process: 0, shard: Some(1), invoke: at, complete: Some(at + 1), call, outcome }
    }

    fn write(at: u64, key: &str, value: &str, version: u64) -> Operation {
        operation(at, Call::Write { key: key.into(), value: value.into() }, Outcome::Written { version })
    }

    fn unknown(at: u64, call: Call) -> Operation {
        operation(at, call, Outcome::Unknown { reason: String::new() })
    }

    fn listed(entries: &[(&str, &str, u64)]) -> Outcome {
        let entry = |(key, value, version): &(&str, &str, u64)| Entry {
            key: (*key).into(),
            value: (*value).into(),
            version: *version,
        };
        Outcome::Listed { entries: entries.iter().map(entry).collect() }
    }

    fn many(at: u64, mode: Mode, entries: &[(&str, &str, u64)]) -> Operation {
        operation(at, Call::ReadMany { keys: vec!["a".into(), "b".into()], mode }, listed(entries))
    }

    fn scan(at: u64, snapshot: u64, entries: &[(&str, &str, u64)]) -> Operation {
        operation(at, Call::Scan { prefix: String::new(), mode: Mode::Snapshot { at: snapshot } }, listed(entries))
    }

    fn get(at: u64, snapshot: u64, entry: Option<(&str, u64)>) -> Operation {
        let entry = entry.map(|(value, version)| Versioned { value: value.into(), version });
        operation(at, Call::Read { key: "a".into(), mode: Mode::Snapshot { at: snapshot } }, Outcome::Found { entry })
    }

    fn history() -> Vec<Operation> {
        vec![write(1, "a", "a1", 10), write(3, "b", "b1", 20), write(5, "a", "a2", 30), write(7, "b", "b2", 40)]
    }

    fn judged(last: Operation) -> Vec<String> {
        let mut operations = history();
        operations.push(last);
        crate::planted::judged(check, operations)
    }

    #[test]
    fn states_that_were_there_pass() {
        for shown in [
            many(9, Mode::Stale { max_ms: 0 }, &[("a", "a1", 10)]),
            many(9, Mode::Linearizable, &[("a", "a1", 10), ("b", "b1", 20)]),
            many(9, Mode::Linearizable, &[("a", "a2", 30), ("b", "b2", 40)]),
            many(9, Mode::Snapshot { at: 35 }, &[("a", "a2", 30), ("b", "b1", 20)]),
            many(9, Mode::Snapshot { at: 5 }, &[]),
            scan(9, 20, &[("a", "a1", 10), ("b", "b1", 20)]),
            scan(9, 19, &[("a", "a1", 10)]),
            get(9, 29, Some(("a1", 10))),
            get(9, 9, None),
        ] {
            assert_eq!(judged(shown), Vec::<String>::new());
        }
    }

    #[test]
    fn a_mixture_of_two_states_is_caught() {
        assert_eq!(judged(many(9, Mode::Linearizable, &[("a", "a1", 10), ("b", "b2", 40)])).len(), 1);
        assert_eq!(judged(many(9, Mode::Stale { max_ms: 0 }, &[("b", "b2", 40)])).len(), 1);
    }

    #[test]
    fn a_state_later_than_asked_for_is_caught() {
        assert_eq!(judged(get(9, 20, Some(("a2", 30)))).len(), 1);
        assert_eq!(judged(scan(9, 20, &[("a", "a1", 10), ("b", "b2", 40)])).len(), 1);
    }

    #[test]
    fn a_state_earlier_than_asked_for_is_caught() {
        assert_eq!(judged(get(9, 30, Some(("a1", 10)))).len(), 1);
        assert_eq!(judged(get(9, 10, None)).len(), 1);
        assert_eq!(judged(scan(9, 40, &[("a", "a2", 30)])).len(), 1, "a key is missing");
    }

    #[test]
    fn a_state_that_changes_afterwards_is_caught() {
        // The write is told only afterwards, with a timestamp that was read already.
        let mut operations = vec![get(1, 50, None), write(3, "a", "late", 45)];
        let (_, violations) = check(&History { operations: operations.clone(), ..History::default() });
        assert_eq!(violations.len(), 1);
        operations.reverse();
        let (_, violations) = check(&History { operations, ..History::default() });
        assert_eq!(violations.len(), 1, "in any order of lines");
    }

    #[test]
    fn half_a_batch_of_unknown_outcome_is_caught_once_it_was_seen() {
        let batch = |at| {
            let entries = vec![("a".into(), "a9".into()), ("b".into(), "b9".into())];
            unknown(at, Call::WriteMany { entries })
        };
        let both = many(11, Mode::Linearizable, &[("a", "a9", 50), ("b", "b9", 50)]);
        let half = many(11, Mode::Linearizable, &[("a", "a9", 50), ("b", "b2", 40)]);
        let judged = |operations: Vec<Operation>| check(&History { operations, ..History::default() }).1.len();
        assert_eq!(judged([history(), vec![batch(9), both.clone()]].concat()), 0);
        assert_eq!(judged([history(), vec![batch(9), half, both]].concat()), 1);
    }

    #[test]
    fn writes_of_unknown_outcome_that_nobody_saw_demand_nothing() {
        let write = unknown(8, Call::Write { key: "a".into(), value: "a9".into() });
        let delete = unknown(8, Call::Delete { key: "a".into() });
        for operation in [write, delete.clone()] {
            let operations = [history(), vec![operation, get(9, 50, Some(("a2", 30)))]].concat();
            assert_eq!(check(&History { operations, ..History::default() }).1, vec![]);
        }
        let operations = [history(), vec![delete, get(9, 50, None)]].concat();
        assert_eq!(check(&History { operations, ..History::default() }).1, vec![]);
    }
}
