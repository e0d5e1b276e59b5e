//! What a history tells about the writes to each key: which values were written when, and at which commit timestamp.
//!
//! A timestamp is known from the acknowledgement, or from any answer that saw the value.
//!
//! Invariants: counters are left out, since two increments may both have tried to write the same number.
//!
//! Not here: any judgement.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::history::{Call, Fate, History, Operation, Seen};

/// One write of a value to a key, or its deletion.
#[derive(Clone, Debug)]
pub struct KnownWrite<'h> {
    /// None: it deletes.
    pub value: Option<&'h str>,
    /// When it began.
    pub invoke: u64,
    /// When it was over.
    pub over: u64,
    /// What became of it.
    pub fate: Fate,
    /// Its commit timestamp, if anything tells.
    pub version: Option<u64>,
}

impl KnownWrite<'_> {
    /// Whether it was acknowledged before this time.
    #[must_use]
    pub fn acknowledged_before(&self, time: u64) -> bool {
        self.fate == Fate::Applied && self.over < time
    }

    /// Whether it may have taken effect before this time.
    #[must_use]
    pub fn possible_before(&self, time: u64) -> bool {
        self.fate != Fate::NotApplied && self.invoke <= time
    }
}

/// By key.
#[derive(Clone, Debug, Default)]
pub struct KnownWrites<'h> {
    keys: BTreeMap<&'h str, Vec<KnownWrite<'h>>>,
    counters: HashSet<&'h str>,
}

impl<'h> KnownWrites<'h> {
    /// Of this history.
    #[must_use]
    pub fn of(history: &'h History) -> Self {
        let mut known = Self::default();
        for operation in &history.operations {
            if let Call::Increment { key, .. } = &operation.call {
                known.counters.insert(key);
            }
        }
        for operation in &history.operations {
            for (key, value) in written(operation) {
                let write = KnownWrite {
                    value,
                    invoke: operation.invoke,
                    over: operation.over(),
                    fate: operation.outcome.fate(),
                    version: operation.outcome.written(),
                };
                known.keys.entry(key).or_default().push(write);
            }
        }
        known.complete(history);
        known.keys.retain(|key, _| !known.counters.contains(key));
        known
    }

    /// Takes timestamps from answers that saw a value.
    fn complete(&mut self, history: &'h History) {
        let mut versions: HashMap<(&str, &str), u64> = HashMap::new();
        for Seen { key, entry } in history.operations.iter().flat_map(Operation::seen) {
            if let Some((value, version)) = entry.filter(|(_, version)| *version > 0) {
                versions.insert((key, value), version);
            }
        }
        for (key, writes) in &mut self.keys {
            for write in writes.iter_mut().filter(|write| write.version.is_none()) {
                write.version = write.value.and_then(|value| versions.get(&(*key, value)).copied());
            }
        }
    }

    /// Every key that was written, in order, but for counters.
    pub fn keys(&self) -> impl Iterator<Item = (&'h str, &[KnownWrite<'h>])> {
        self.keys.iter().map(|(key, writes)| (*key, writes.as_slice()))
    }

    /// The same, of keys that begin so.
    pub fn keys_with(&self, prefix: &str) -> impl Iterator<Item = (&'h str, &[KnownWrite<'h>])> {
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        let range = self.keys.range::<str, _>(from).take_while(move |(key, _)| key.starts_with(prefix));
        range.map(|(key, writes)| (*key, writes.as_slice()))
    }

    /// All writes to one key.
    #[must_use]
    pub fn of_key(&self, key: &str) -> &[KnownWrite<'h>] {
        self.keys.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether it is a counter, of which nothing is known here.
    #[must_use]
    pub fn is_counter(&self, key: &str) -> bool {
        self.counters.contains(key)
    }
}

/// What an operation writes if it takes effect. A refusal writes nothing.
fn written(operation: &Operation) -> Vec<(&str, Option<&str>)> {
    let refused = matches!(operation.outcome, crate::history::Outcome::Refused { .. });
    match &operation.call {
        _ if refused => vec![],
        Call::Write { key, value } => vec![(key, Some(value))],
        Call::CompareAndSet { key, set, .. } => vec![(key, Some(set))],
        Call::Delete { key } => vec![(key, None)],
        Call::WriteMany { entries } => {
            entries.iter().map(|(key, value)| (key.as_str(), Some(value.as_str()))).collect()
        }
        Call::Read { .. } | Call::ReadMany { .. } | Call::Scan { .. } | Call::Increment { .. } => vec![],
    }
}
