//! Property: every key is linearizable: a register with writes, deletes and compare-and-sets, whose reads, lease reads
//! and refusals see what the last write before them left. Linearizability is local, so keys are judged one by one.
//!
//! A read of bounded staleness may look back by its bound: it is judged as if it had begun that much earlier.
//!
//! Invariants: a write of unknown outcome takes effect at some time after its begin, or never; one that was not applied
//! never does.
//!
//! Not here: counters (exactly_once), reads at a commit timestamp (consistent_cut), scans (complete_scans).

pub mod wgl;
pub mod zones;

use std::collections::BTreeMap;

use crate::history::{Call, Fate, History, Operation, Outcome, Versioned};
use crate::violation::{UNDECIDED, Violation};

const PROPERTY: &str = "linearizability";

/// Steps of the search for one key before it counts as undecided; some seconds.
const STEPS_MAX: usize = 2_000_000;

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<'h> {
    /// When it began.
    pub invoke: i64,
    /// When it was over; [`i64::MAX`] if its answer never came.
    pub complete: i64,
    /// What it did.
    pub action: Action<'h>,
    /// What is known about it.
    pub fate: Fate,
}

/// What a step did to a register; None is the absent key, which every register begins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'h> {
    /// Saw this.
    Read(Option<&'h str>),
    /// Left this.
    Write(Option<&'h str>),
    /// Was refused although the register was as expected: no state explains it.
    Never,
    /// Saw the first and left the second, at one moment.
    Swap(Option<&'h str>, &'h str),
}

/// How many steps were judged and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Steps on keys, over all keys.
    pub steps: usize,
    /// Sorted by key.
    pub violations: Vec<Violation>,
}

/// Judges every key.
#[must_use]
pub fn check(history: &History) -> Judgement {
    let keys = by_key(history);
    let mut judgement = Judgement::default();
    for (key, steps) in keys {
        judgement.steps += steps.len();
        if let Err(why) = check_key(&steps) {
            judgement.violations.push(Violation::new(PROPERTY, format!("key {key}: {why}")));
        }
    }
    judgement
}

/// By the fast algorithm where values are unique and nothing is deleted, by search otherwise.
fn check_key(steps: &[Step<'_>]) -> Result<(), String> {
    match zones::check(steps) {
        Err(zones::Fault::Unfit) => match wgl::check(steps, STEPS_MAX) {
            wgl::Answer::Linearizable => Ok(()),
            wgl::Answer::Not => Err(format!("no order of its {} operations explains the answers", steps.len())),
            wgl::Answer::Undecided => Err(format!("{UNDECIDED} after {STEPS_MAX} steps of the search")),
        },
        Err(zones::Fault::Violated(why)) => Err(why),
        Ok(()) => Ok(()),
    }
}

/// The steps on each register. Counters are left out: two increments may both have tried to write the same number.
fn by_key(history: &History) -> BTreeMap<&str, Vec<Step<'_>>> {
    let mut keys: BTreeMap<&str, Vec<Step<'_>>> = BTreeMap::new();
    for operation in &history.operations {
        for (key, step) in steps(operation) {
            keys.entry(key).or_default().push(step);
        }
    }
    for operation in &history.operations {
        if let Call::Increment { key, .. } = &operation.call {
            keys.remove(key.as_str());
        }
    }
    keys
}

fn steps(operation: &Operation) -> Vec<(&str, Step<'_>)> {
    match &operation.call {
        Call::Read { key, mode } => {
            let (Outcome::Found { entry }, Some(back)) = (&operation.outcome, mode.looks_back()) else { return vec![] };
            vec![(key, read(operation, value(entry.as_ref()), back))]
        }
        Call::ReadMany { keys, mode } => {
            let (Outcome::Listed { entries }, Some(back)) = (&operation.outcome, mode.looks_back()) else {
                return vec![];
            };
            let found = |key: &String| entries.iter().find(|entry| entry.key == *key);
            let seen = |key: &String| found(key).map(|entry| entry.value.as_str());
            keys.iter().map(|key| (key.as_str(), read(operation, seen(key), back))).collect()
        }
        Call::Write { key, value } => vec![(key, write(operation, Action::Write(Some(value))))],
        Call::Delete { key } => vec![(key, write(operation, Action::Write(None)))],
        Call::WriteMany { entries } => {
            entries.iter().map(|(key, value)| (key.as_str(), write(operation, Action::Write(Some(value))))).collect()
        }
        Call::CompareAndSet { key, expect, set } => {
            let step = if let Outcome::Refused { current } = &operation.outcome {
                refusal(operation, value(current.as_ref()), expect.as_deref())
            } else {
                write(operation, Action::Swap(expect.as_deref(), set))
            };
            vec![(key, step)]
        }
        Call::Scan { .. } | Call::Increment { .. } => vec![],
    }
}

fn value(entry: Option<&Versioned>) -> Option<&str> {
    entry.map(|entry| entry.value.as_str())
}

fn read<'h>(operation: &Operation, seen: Option<&'h str>, back: u64) -> Step<'h> {
    let step = write(operation, Action::Read(seen));
    Step { invoke: step.invoke.saturating_sub_unsigned(back), ..step }
}

/// A refusal is a read. One that saw just what was expected is no read of any state: it can be of none.
fn refusal<'h>(operation: &Operation, seen: Option<&'h str>, expected: Option<&str>) -> Step<'h> {
    let step = read(operation, seen, 0);
    if seen == expected { Step { action: Action::Never, ..step } } else { step }
}

fn write<'h>(operation: &Operation, action: Action<'h>) -> Step<'h> {
    let time = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
    Step { invoke: time(operation.invoke), complete: time(operation.over()), action, fate: operation.outcome.fate() }
}

#[cfg(test)]
mod tests;
