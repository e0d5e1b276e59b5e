//! A change of several records that applies as a whole or not at all.
//!
//! Invariants: every record a change writes, and every one it was decided from ([`Change::watch`]), is a condition: it
//! must still be as it was read. So a change is never applied to a catalog it was not planned from.
//!
//! Not here: what to change (edits, controller); how it is proposed (store).

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::timestamp::Timestamp;

use super::records::{Record, RecordKey, Records};

/// Records to write and delete, with what they depend on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    writes: BTreeMap<RecordKey, Option<Record>>,
    watched: BTreeSet<RecordKey>,
}

impl Change {
    /// Writes a record, new or not.
    pub fn put(&mut self, record: Record) -> &mut Self {
        self.writes.insert(record.key(), Some(record));
        self
    }

    /// Deletes a record.
    pub fn delete(&mut self, key: RecordKey) -> &mut Self {
        self.writes.insert(key, None);
        self
    }

    /// Makes the change depend on a record that it does not write.
    pub fn watch(&mut self, key: RecordKey) -> &mut Self {
        self.watched.insert(key);
        self
    }

    /// The same, depending on one more record.
    #[must_use]
    pub fn with_watch(mut self, key: RecordKey) -> Self {
        self.watch(key);
        self
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// What is written, in key order; None deletes.
    pub fn writes(&self) -> impl Iterator<Item = (RecordKey, Option<&Record>)> {
        self.writes.iter().map(|(key, record)| (*key, record.as_ref()))
    }

    /// What must hold: when each record was last written, or that it does not exist.
    #[must_use]
    pub fn conditions(&self, base: &Records) -> Vec<(RecordKey, Option<Timestamp>)> {
        let keys: BTreeSet<RecordKey> = self.writes.keys().chain(&self.watched).copied().collect();
        keys.into_iter().map(|key| (key, base.commits.get(&key).copied())).collect()
    }

    /// The records as the change would leave them; for plans that build on each other, and for tests.
    #[must_use]
    pub fn applied_to(&self, base: &Records, commit: Timestamp) -> Records {
        let mut records = base.clone();
        for (key, record) in self.writes() {
            match record {
                Some(record) => records.insert(record.clone(), commit),
                None => records.remove(key),
            }
        }
        records.version = records.version.max(commit.0);
        records
    }
}
