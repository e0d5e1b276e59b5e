//! Property: commit timestamps of a shard rise with its log. A write that begins after another answer of its shard
//! gets a later timestamp than that answer told; no two writes share one; and a value keeps the timestamp it was
//! acknowledged with.
//!
//! Invariants: where the shard of an operation is not known, the property is judged for its key alone.
//!
//! Not here: what a read at a timestamp sees (consistent_cut).

use std::collections::{BTreeMap, HashMap};

use crate::history::{Call, Fate, History, Operation, Outcome};
use crate::violation::Violation;

const PROPERTY: &str = "monotonic_commits";

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Log<'h> {
    Shard(u64),
    Key(&'h str),
}

#[derive(Clone, Copy)]
struct Commit {
    invoke: u64,
    over: u64,
    version: u64,
    is_write: bool,
}

/// Judges every shard; how many acknowledged writes were looked at, and what is wrong.
#[must_use]
pub fn check(history: &History) -> (usize, Vec<Violation>) {
    let mut faults = kept(history);
    let logs = logs(history);
    let mut writes = 0;
    for (log, mut commits) in logs {
        let name = match log {
            Log::Shard(shard) => format!("shard {shard}"),
            Log::Key(key) => format!("key {key}"),
        };
        writes += commits.iter().filter(|commit| commit.is_write).count();
        faults.extend(shared(&mut commits).into_iter().chain(back(&mut commits)).map(|what| format!("{name}: {what}")));
    }
    (writes, faults.into_iter().map(|what| Violation::new(PROPERTY, what)).collect())
}

fn logs(history: &History) -> BTreeMap<Log<'_>, Vec<Commit>> {
    let mut logs: BTreeMap<Log<'_>, Vec<Commit>> = BTreeMap::new();
    for operation in &history.operations {
        let log = match (operation.shard, operation.call.key()) {
            (Some(shard), _) => Log::Shard(shard),
            (None, Some(key)) => Log::Key(key),
            (None, None) => continue,
        };
        let commit = |version, is_write| Commit { invoke: operation.invoke, over: operation.over(), version, is_write };
        let told = operation.outcome.written().map(|version| commit(version, true));
        let seen = operation.seen().into_iter().filter_map(|seen| Some(commit(seen.entry?.1, false)));
        logs.entry(log).or_default().extend(told.into_iter().chain(seen).filter(|commit| commit.version > 0));
    }
    logs
}

/// Timestamps that two writes share.
fn shared(commits: &mut [Commit]) -> Vec<String> {
    commits.sort_by_key(|commit| commit.version);
    let writes: Vec<&Commit> = commits.iter().filter(|commit| commit.is_write).collect();
    let pairs = writes.iter().zip(writes.iter().skip(1));
    let equal = pairs.filter(|(one, next)| one.version == next.version);
    equal.map(|(one, _)| format!("two writes were acknowledged with timestamp {}", one.version)).collect()
}

/// Writes with a timestamp not above one that was told before they began.
fn back(commits: &mut [Commit]) -> Vec<String> {
    commits.sort_by_key(|commit| commit.over);
    let by_end = commits.to_vec();
    commits.sort_by_key(|commit| commit.invoke);
    let (mut ended, mut told) = (by_end.into_iter().peekable(), 0);
    let mut faults = vec![];
    for commit in commits.iter().filter(|commit| commit.is_write) {
        while let Some(before) = ended.next_if(|before| before.over < commit.invoke) {
            told = told.max(before.version);
        }
        if commit.version <= told {
            faults
                .push(format!("a write got timestamp {} at {}, after {told} was told", commit.version, commit.invoke));
        }
    }
    faults
}

/// Values that were acknowledged with one timestamp and seen with another.
fn kept(history: &History) -> Vec<String> {
    let mut versions: HashMap<(&str, &str), u64> = HashMap::new();
    let mut faults = vec![];
    let told = history.operations.iter().flat_map(acknowledged);
    let seen = history.operations.iter().flat_map(|operation| {
        operation.seen().into_iter().filter_map(|seen| seen.entry.map(|(value, version)| (seen.key, value, version)))
    });
    for (key, value, version) in told.chain(seen).filter(|(_, _, version)| *version > 0) {
        let first = *versions.entry((key, value)).or_insert(version);
        if first != version {
            faults.push(format!("key {key}: {:?} had timestamp {first} and then {version}", value.trim()));
        }
    }
    faults
}

fn acknowledged(operation: &Operation) -> Vec<(&str, &str, u64)> {
    let Outcome::Written { version } = operation.outcome else { return vec![] };
    debug_assert!(operation.outcome.fate() == Fate::Applied);
    match &operation.call {
        Call::Write { key, value } | Call::CompareAndSet { key, set: value, .. } => vec![(key, value, version)],
        Call::WriteMany { entries } => {
            entries.iter().map(|(key, value)| (key.as_str(), value.as_str(), version)).collect()
        }
        Call::Read { .. }
        | Call::ReadMany { .. }
        | Call::Scan { .. }
        | Call::Delete { .. }
        | Call::Increment { .. } => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Versioned;
    use crate::planted::{broken, judged};

    fn operation(shard: Option<u64>, at: u64, call: Call, outcome: Outcome) -> Operation {
        Operation { process: 0, shard, invoke: at, complete: Some(at + 1), call, outcome }
    }

    fn write(shard: Option<u64>, at: u64, key: &str, version: u64) -> Operation {
        let call = Call::Write { key: key.into(), value: format!("value {at}") };
        operation(shard, at, call, Outcome::Written { version })
    }

    fn read(shard: Option<u64>, at: u64, written: u64, version: u64) -> Operation {
        let entry = Some(Versioned { value: format!("value {written}"), version });
        operation(shard, at, Call::read("a"), Outcome::Found { entry })
    }

    const ONE: Option<u64> = Some(1);

    #[test]
    fn timestamps_that_rise_pass_in_any_order_of_concurrent_writes() {
        assert!(judged(check, vec![write(ONE, 1, "a", 10), write(ONE, 3, "b", 11), read(ONE, 5, 1, 10)]).is_empty());
        assert!(judged(check, vec![write(ONE, 1, "a", 11), write(ONE, 1, "b", 10)]).is_empty());
        assert!(judged(check, vec![write(ONE, 1, "a", 11), write(Some(2), 3, "b", 10)]).is_empty(), "another shard");
    }

    #[test]
    fn a_timestamp_that_goes_back_is_caught() {
        broken(check, vec![write(ONE, 1, "a", 10), write(ONE, 3, "b", 9)], "after 10 was told");
        broken(check, vec![write(None, 1, "a", 10), write(None, 3, "a", 9)], "after 10 was told");
        let unknown = Outcome::Unknown { reason: String::new() };
        let call = Call::Write { key: "a".into(), value: "value 1".into() };
        broken(check, vec![operation(ONE, 1, call, unknown), read(ONE, 3, 1, 10), write(ONE, 5, "b", 9)], "after 10");
    }

    #[test]
    fn a_timestamp_given_twice_is_caught() {
        broken(check, vec![write(ONE, 1, "a", 10), write(ONE, 1, "b", 10)], "two writes");
    }

    #[test]
    fn a_value_that_changes_its_timestamp_is_caught() {
        broken(check, vec![write(ONE, 1, "a", 10), read(ONE, 3, 1, 11)], "had timestamp 10 and then 11");
        broken(check, vec![read(ONE, 3, 1, 10), read(ONE, 5, 1, 11)], "had timestamp 10 and then 11");
    }

    #[test]
    fn a_write_of_unknown_outcome_has_no_timestamp_to_judge() {
        let unknown = Outcome::Unknown { reason: String::new() };
        let call = Call::Write { key: "a".into(), value: "value 3".into() };
        let operations = vec![write(ONE, 1, "a", 10), operation(ONE, 3, call, unknown), read(ONE, 5, 3, 12)];
        assert!(judged(check, operations).is_empty());
    }
}
