//! Property: a scan finds every key that existed throughout, once, no key that did not exist at any time of it, and
//! of each key a value that was not replaced before the scan began.
//!
//! Invariants: writes and deletes of unknown outcome excuse what they could explain, and no more.
//!
//! Not here: scans at a commit timestamp, but for repeated keys (consistent_cut judges the rest).

use std::collections::HashMap;

use crate::history::{Call, Fate, History, Mode, Operation, Outcome};
use crate::known_writes::{KnownWrite, KnownWrites};
use crate::violation::Violation;

const PROPERTY: &str = "complete_scans";

/// The time of a scan.
#[derive(Clone, Copy)]
struct Span {
    /// What was acknowledged before counts; None if the scan may be however old.
    begin: Option<u64>,
    end: u64,
}

/// Judges all scans; how many entries they listed, and what is wrong.
#[must_use]
pub fn check(history: &History) -> (usize, Vec<Violation>) {
    let known = KnownWrites::of(history);
    let mut violations = vec![];
    let mut listed = 0;
    for operation in &history.operations {
        let (Call::Scan { prefix, mode }, Outcome::Listed { entries }) = (&operation.call, &operation.outcome) else {
            continue;
        };
        listed += entries.len();
        let place = format!("scan of {prefix:?} at {}", operation.invoke);
        let faults = repeated(operation).into_iter().chain(judge(operation, prefix, *mode, &known));
        violations.extend(faults.map(|what| Violation::new(PROPERTY, format!("{place}: {what}"))));
    }
    (listed, violations)
}

fn repeated(operation: &Operation) -> Vec<String> {
    let mut times: HashMap<&str, usize> = HashMap::new();
    for seen in operation.seen() {
        *times.entry(seen.key).or_default() += 1;
    }
    let mut twice: Vec<&str> = times.into_iter().filter(|(_, times)| *times > 1).map(|(key, _)| key).collect();
    twice.sort_unstable();
    twice.into_iter().map(|key| format!("{key} is repeated")).collect()
}

fn judge(operation: &Operation, prefix: &str, mode: Mode, known: &KnownWrites<'_>) -> Vec<String> {
    let found: HashMap<&str, (&str, u64)> =
        operation.seen().into_iter().filter_map(|seen| Some((seen.key, seen.entry?))).collect();
    let mut faults: Vec<String> = operation
        .seen()
        .into_iter()
        .filter(|seen| !known.is_counter(seen.key))
        .filter(|seen| !seen.key.starts_with(prefix) || known.of_key(seen.key).is_empty())
        .map(|seen| format!("{} was never written or was not asked for", seen.key))
        .collect();
    if matches!(mode, Mode::Snapshot { .. }) {
        return faults;
    }
    let span =
        Span { begin: mode.looks_back().map(|back| operation.invoke.saturating_sub(back)), end: operation.over() };
    for (key, writes) in known.keys_with(prefix) {
        let fault = match found.get(key) {
            Some(&(value, version)) => span.wrong(writes, value, version),
            None => span.missing(writes),
        };
        faults.extend(fault.map(|fault| format!("{key} {fault}")));
    }
    faults
}

impl Span {
    /// Why this key should have been found.
    fn missing(self, writes: &[KnownWrite<'_>]) -> Option<String> {
        let begin = self.begin?;
        let written = writes.iter().any(|write| write.value.is_some() && write.acknowledged_before(begin));
        let deleted = writes.iter().any(|write| write.value.is_none() && write.possible_before(self.end));
        (written && !deleted).then(|| "existed throughout and is missing".to_owned())
    }

    /// Why this key should not have been found with this value.
    fn wrong(self, writes: &[KnownWrite<'_>], value: &str, version: u64) -> Option<String> {
        let mut sources = writes.iter().filter(|write| write.value == Some(value));
        if !sources.clone().any(|write| write.fate != Fate::NotApplied) {
            return Some(format!("holds {:?}, which was not written", value.trim()));
        }
        if !sources.any(|write| write.possible_before(self.end)) {
            return Some(format!("holds {:?} before it was written", value.trim()));
        }
        let begin = self.begin?;
        let replaced = |write: &&KnownWrite<'_>| {
            write.acknowledged_before(begin) && version > 0 && write.version.is_some_and(|later| later > version)
        };
        let later = writes.iter().find(replaced)?;
        let by = later.value.map_or("its deletion".to_owned(), |value| format!("{:?}", value.trim()));
        Some(format!("holds {:?}, replaced by {by} before the scan began", value.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Entry;
    use crate::planted::{broken, judged};

    fn operation(at: u64, call: Call, outcome: Outcome) -> Operation {
        Operation { process: 0, shard: None, invoke: at, complete: Some(at + 1), call, outcome }
    }

    fn write(at: u64, key: &str, value: &str, outcome: Outcome) -> Operation {
        operation(at, Call::Write { key: key.into(), value: value.into() }, outcome)
    }

    fn done(at: u64, key: &str, value: &str) -> Operation {
        write(at, key, value, Outcome::Written { version: at })
    }

    fn delete(at: u64, key: &str, outcome: Outcome) -> Operation {
        operation(at, Call::Delete { key: key.into() }, outcome)
    }

    fn unknown() -> Outcome {
        Outcome::Unknown { reason: String::new() }
    }

    fn scan_as(mode: Mode, at: u64, entries: &[(&str, &str, u64)]) -> Operation {
        let entry = |(key, value, version): &(&str, &str, u64)| Entry {
            key: (*key).into(),
            value: (*value).into(),
            version: *version,
        };
        let call = Call::Scan { prefix: "k".into(), mode };
        operation(at, call, Outcome::Listed { entries: entries.iter().map(entry).collect() })
    }

    fn scan(at: u64, entries: &[(&str, &str, u64)]) -> Operation {
        scan_as(Mode::Linearizable, at, entries)
    }

    #[test]
    fn a_scan_that_finds_all_passes() {
        let other = done(1, "other", "x");
        assert!(
            judged(
                check,
                vec![done(1, "k1", "a"), done(3, "k2", "b"), other, scan(5, &[("k1", "a", 1), ("k2", "b", 3)])]
            )
            .is_empty()
        );
    }

    #[test]
    fn what_is_written_during_the_scan_may_be_there_or_not() {
        let late = Operation { complete: Some(9), ..done(4, "k1", "a") };
        assert!(judged(check, vec![late.clone(), scan(5, &[])]).is_empty());
        assert!(judged(check, vec![late, scan(5, &[("k1", "a", 4)])]).is_empty());
    }

    #[test]
    fn a_missing_key_is_caught() {
        broken(
            check,
            vec![done(1, "k1", "a"), done(3, "k2", "b"), scan(5, &[("k2", "b", 3)])],
            "k1 existed throughout",
        );
        let lease = scan_as(Mode::Lease, 5, &[]);
        broken(check, vec![done(1, "k1", "a"), lease], "k1 existed throughout");
    }

    #[test]
    fn a_repeated_key_is_caught_also_at_a_timestamp() {
        for mode in [Mode::Linearizable, Mode::Snapshot { at: 9 }, Mode::Stale { max_ms: 0 }] {
            let twice = scan_as(mode, 5, &[("k1", "a", 1), ("k1", "a", 1)]);
            broken(check, vec![done(1, "k1", "a"), twice], "repeated");
        }
    }

    #[test]
    fn a_key_from_nowhere_or_from_later_is_caught() {
        broken(check, vec![done(1, "k1", "a"), scan(5, &[("k1", "a", 1), ("k9", "z", 2)])], "never written");
        broken(check, vec![done(1, "k1", "a"), scan(5, &[("k1", "z", 1)])], "not written");
        broken(check, vec![scan(5, &[("k1", "a", 9)]), done(9, "k1", "a")], "before it was written");
        let failed = write(1, "k1", "a", Outcome::NotApplied { reason: String::new() });
        broken(check, vec![failed, scan(5, &[("k1", "a", 1)])], "not written");
    }

    #[test]
    fn a_key_that_was_not_asked_for_is_caught() {
        broken(check, vec![done(1, "other", "a"), scan(5, &[("other", "a", 1)])], "not asked for");
    }

    #[test]
    fn an_old_value_is_caught() {
        broken(check, vec![done(1, "k1", "a"), done(3, "k1", "b"), scan(5, &[("k1", "a", 1)])], "replaced by");
    }

    #[test]
    fn a_deleted_key_that_comes_back_is_caught_and_one_that_may_be_deleted_is_excused() {
        let deleted = delete(3, "k1", Outcome::Written { version: 3 });
        broken(check, vec![done(1, "k1", "a"), deleted.clone(), scan(5, &[("k1", "a", 1)])], "its deletion");
        assert!(judged(check, vec![done(1, "k1", "a"), deleted, scan(5, &[])]).is_empty());
        for found in [&[][..], &[("k1", "a", 1)][..]] {
            assert!(judged(check, vec![done(1, "k1", "a"), delete(3, "k1", unknown()), scan(5, found)]).is_empty());
        }
    }

    #[test]
    fn a_write_of_unknown_outcome_may_be_found_or_not() {
        for found in [&[][..], &[("k1", "a", 1)][..]] {
            assert!(judged(check, vec![write(1, "k1", "a", unknown()), scan(5, found)]).is_empty());
        }
    }

    #[test]
    fn a_stale_scan_may_be_old_but_shows_only_what_was_written() {
        let stale = |entries| scan_as(Mode::Stale { max_ms: 0 }, 5, entries);
        assert!(judged(check, vec![done(1, "k1", "a"), stale(&[])]).is_empty());
        assert!(judged(check, vec![done(1, "k1", "a"), done(3, "k1", "b"), stale(&[("k1", "a", 1)])]).is_empty());
        broken(check, vec![done(1, "k1", "a"), stale(&[("k1", "z", 1)])], "not written");
    }
}
