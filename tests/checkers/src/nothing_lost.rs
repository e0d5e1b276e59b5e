//! Property: an acknowledged write is there. A key that was written and never deleted is found by every read that
//! begins after the acknowledgement, with its value if it was written only once; a write that failed as not applied is
//! never seen by anyone.
//!
//! Invariants: a key that was acknowledged must be read afterwards, or nothing is proved.
//!
//! Not here: which of several values is right (linearizability).

use std::collections::HashMap;

use crate::history::{Call, Fate, History, Operation};
use crate::known_writes::{KnownWrite, KnownWrites};
use crate::violation::Violation;

const PROPERTY: &str = "nothing_lost";

/// What one answer said of a key.
struct Sight<'h> {
    invoke: u64,
    /// Whether it had to see all that was acknowledged before.
    fresh: bool,
    value: Option<&'h str>,
}

/// Judges every key but counters; how many acknowledged writes were found, and what is wrong.
#[must_use]
pub fn check(history: &History) -> (usize, Vec<Violation>) {
    let known = KnownWrites::of(history);
    let sights = sights(history);
    let mut violations = vec![];
    let mut found = 0;
    for (key, writes) in known.keys() {
        let seen = sights.get(key).map(Vec::as_slice).unwrap_or_default();
        match judge(writes, seen) {
            Ok(acknowledged) => found += acknowledged,
            Err(fault) => violations.push(Violation::new(PROPERTY, format!("key {key}: {fault}"))),
        }
    }
    (found, violations)
}

fn sights(history: &History) -> HashMap<&str, Vec<Sight<'_>>> {
    let mut sights: HashMap<&str, Vec<Sight<'_>>> = HashMap::new();
    for operation in &history.operations {
        let fresh = is_fresh(operation);
        for seen in operation.seen() {
            let value = seen.entry.map(|(value, _)| value);
            sights.entry(seen.key).or_default().push(Sight { invoke: operation.invoke, fresh, value });
        }
    }
    sights
}

fn is_fresh(operation: &Operation) -> bool {
    match &operation.call {
        Call::Read { mode, .. } | Call::ReadMany { mode, .. } | Call::Scan { mode, .. } => mode.looks_back() == Some(0),
        Call::CompareAndSet { .. } => true,
        Call::Write { .. } | Call::Delete { .. } | Call::Increment { .. } | Call::WriteMany { .. } => false,
    }
}

/// How many writes were acknowledged and found again.
fn judge(writes: &[KnownWrite<'_>], seen: &[Sight<'_>]) -> Result<usize, String> {
    for write in writes.iter().filter(|write| write.fate == Fate::NotApplied && write.value.is_some()) {
        let same = writes.iter().any(|other| other.value == write.value && other.fate != Fate::NotApplied);
        if !same && seen.iter().any(|sight| sight.value == write.value) {
            return Err(format!("{} failed as not applied and was seen", name(write.value)));
        }
    }
    let acknowledged: Vec<&KnownWrite<'_>> = writes.iter().filter(|write| write.fate == Fate::Applied).collect();
    let Some(first) = acknowledged.iter().map(|write| write.over).min() else { return Ok(0) };
    if writes.iter().any(|write| write.value.is_none()) {
        return Ok(0);
    }
    let possible = writes.iter().filter(|write| write.fate != Fate::NotApplied).count();
    let only = acknowledged.first().filter(|_| possible == 1);
    for sight in seen.iter().filter(|sight| sight.fresh && sight.invoke > first) {
        match (sight.value, only) {
            (None, _) => return Err(format!("was acknowledged at {first} and is not there at {}", sight.invoke)),
            (Some(value), Some(only)) if only.value != Some(value) => {
                return Err(format!("holds {value:?}, written was {}", name(only.value)));
            }
            (Some(_), _) => {}
        }
    }
    let last = acknowledged.iter().map(|write| write.over).max().unwrap_or(first);
    if !seen.iter().any(|sight| sight.fresh && sight.invoke > last) {
        return Err("was acknowledged and never read afterwards".to_owned());
    }
    Ok(acknowledged.len())
}

fn name(value: Option<&str>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| format!("{:?}", value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Entry, Mode, Outcome, Versioned};
    use crate::planted::{broken, judged};

    fn operation(at: u64, call: Call, outcome: Outcome) -> Operation {
        Operation { process: 0, shard: None, invoke: at, complete: Some(at + 1), call, outcome }
    }

    fn write(at: u64, value: &str, outcome: Outcome) -> Operation {
        operation(at, Call::Write { key: "k".into(), value: value.into() }, outcome)
    }

    fn done(at: u64, value: &str) -> Operation {
        write(at, value, Outcome::Written { version: at })
    }

    fn unknown() -> Outcome {
        Outcome::Unknown { reason: String::new() }
    }

    fn not_applied() -> Outcome {
        Outcome::NotApplied { reason: String::new() }
    }

    fn read(at: u64, value: &str) -> Operation {
        let entry = (!value.is_empty()).then(|| Versioned { value: value.into(), version: 1 });
        operation(at, Call::read("k"), Outcome::Found { entry })
    }

    #[test]
    fn a_kept_promise_passes() {
        assert!(judged(check, vec![done(1, "a"), read(3, "a")]).is_empty());
        assert!(judged(check, vec![read(1, ""), done(1, "a"), read(3, "a")]).is_empty());
        let (found, _) = check(&History { operations: vec![done(1, "a"), read(3, "a")], ..History::default() });
        assert_eq!(found, 1);
    }

    #[test]
    fn a_lost_acknowledged_write_is_caught() {
        broken(check, vec![done(1, "a"), read(3, "")], "is not there");
        broken(check, vec![done(1, "a"), done(3, "b"), read(5, "")], "is not there");
    }

    #[test]
    fn another_value_than_written_is_caught() {
        broken(check, vec![done(1, "a"), read(3, "b")], "holds \"b\"");
    }

    #[test]
    fn a_write_of_unknown_outcome_may_be_there_or_not() {
        for found in ["a", ""] {
            assert!(judged(check, vec![write(1, "a", unknown()), read(3, found)]).is_empty());
        }
        assert!(judged(check, vec![done(1, "a"), write(3, "b", unknown()), read(5, "b")]).is_empty());
    }

    #[test]
    fn a_write_that_said_not_applied_and_is_there_is_caught() {
        broken(check, vec![write(1, "a", not_applied()), read(3, "a")], "failed as not applied");
        let call = Call::Read { key: "k".into(), mode: Mode::Stale { max_ms: 0 } };
        let stale = operation(3, call, Outcome::Found { entry: Some(Versioned { value: "a".into(), version: 1 }) });
        broken(check, vec![write(1, "a", not_applied()), stale], "failed as not applied");
    }

    #[test]
    fn an_acknowledged_write_that_nobody_reads_proves_nothing() {
        broken(check, vec![done(1, "a")], "never read");
        broken(check, vec![read(0, ""), done(5, "a")], "never read");
    }

    #[test]
    fn an_old_state_of_a_stale_read_is_no_loss() {
        let call = Call::Read { key: "k".into(), mode: Mode::Stale { max_ms: 0 } };
        let stale = operation(3, call, Outcome::Found { entry: None });
        assert!(judged(check, vec![done(1, "a"), stale, read(5, "a")]).is_empty());
    }

    #[test]
    fn a_deleted_key_is_not_lost_and_a_scan_counts_as_a_read() {
        let delete = operation(3, Call::Delete { key: "k".into() }, Outcome::Written { version: 3 });
        assert!(judged(check, vec![done(1, "a"), delete, read(5, "")]).is_empty());
        let entries = vec![Entry { key: "k".into(), value: "a".into(), version: 1 }];
        let call = Call::Scan { prefix: String::new(), mode: Mode::Linearizable };
        assert!(judged(check, vec![done(1, "a"), operation(3, call, Outcome::Listed { entries })]).is_empty());
    }
}
