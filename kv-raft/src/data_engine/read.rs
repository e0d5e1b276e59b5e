//! Reading keys of what is applied: the latest state, or the state at a timestamp.
//!
//! The version of a key at T is the latest one if that was committed by T, else the one in history whose end is the
//! first after T, if it began by T. A point read of the latest state finds its row unwritten or remembered, or is one Get
//! behind a filter; one at a timestamp is at most one Seek more.
//!
//! Invariants: each call reads one consistent state; a read at a timestamp fails if what it needs may have been
//! collected, also while it ran.
//!
//! Not here: many keys in order (scan); whether the state is recent enough for the caller (replica, read).

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::ids::ExtentId;
use kv_proto::key_range::KeyRange;
use kv_proto::timestamp::Timestamp;
use rocksdb::{DBPinnableSlice, ErrorKind, ReadOptions, ReadTier, Snapshot};

use super::error::DataError;
use super::holding::{Holding, Progress};
use super::keys;
use super::options::Table;
use super::rows::{read_version, to_shared, to_versioned};
use super::store::Store;
use crate::command::Versioned;
use crate::types::LogId;

/// A replica's applied state to read from; cheap to clone. Each call reads one consistent state, which is the one at
/// [`ReadView::applied`] or a later one. All calls but [`ReadView::get_cached`] block on disk if the cache misses.
#[derive(Clone)]
pub struct ReadView {
    store: Arc<Store>,
    holding: Arc<Holding>,
    progress: Arc<Progress>,
}

impl ReadView {
    pub(crate) fn new(store: Arc<Store>, holding: Arc<Holding>) -> Self {
        let progress = holding.progress();
        Self { store, holding, progress }
    }

    /// The last entry applied when the view was taken.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.progress.applied
    }

    /// Commit timestamp of the last command applied when the view was taken.
    #[must_use]
    pub fn last_commit(&self) -> Timestamp {
        self.progress.last_commit
    }

    /// The oldest timestamp that was readable when the view was taken.
    #[must_use]
    pub fn safepoint(&self) -> Timestamp {
        self.progress.safepoint
    }

    /// The encoded keys the replica holds.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.progress.range
    }

    /// The latest version of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Versioned>, DataError> {
        Ok(self.latest_row(key, &ReadOptions::default())?.flatten())
    }

    /// The same if memory tells, which never blocks; None if the disk must be asked.
    pub fn get_cached(&self, key: &[u8]) -> Result<Option<Option<Versioned>>, DataError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        self.latest_row(key, &options)
    }

    /// The row that is not written yet, or the one that is remembered, or what RocksDB finds; None if the options keep it from asking the disk.
    fn latest_row(&self, key: &[u8], options: &ReadOptions) -> Result<Option<Option<Versioned>>, DataError> {
        self.within(key)?;
        let key = self.latest_key(key);
        let unwritten = self.holding.unwritten.read().get(&key);
        if let Some(row) = unwritten {
            return row.map(to_shared).transpose().map(Some);
        }
        if let Some(row) = self.store.rows().get(&key) {
            return Ok(Some(Some(row)));
        }
        let ticket = self.holding.gate.ticket();
        let row = match self.store.db().get_pinned_cf_opt(self.store.table(Table::Latest), &key, options) {
            Err(error) if error.kind() == ErrorKind::Incomplete => return Ok(None),
            row => self.store.checked(row)?.map(|row| to_versioned(&row)).transpose()?,
        };
        if let Some(row) = &row {
            self.store.rows().remember(&self.holding.gate, ticket, &key, row);
        }
        Ok(Some(row))
    }

    /// The version of a key at a timestamp.
    pub fn get_at(&self, key: &[u8], at: Timestamp) -> Result<Option<Versioned>, DataError> {
        self.within(key)?;
        self.readable(at)?;
        let snapshot = self.snapshot()?;
        let found = self.version_at(&snapshot, key, at)?;
        self.readable(at)?;
        Ok(found)
    }

    /// Several keys of one state, the latest or that at a timestamp, in the order asked. Reading stops once the values
    /// are larger than `bytes_max` together, which leaves the answer shorter than `keys`.
    pub fn get_many(
        &self,
        keys: &[&[u8]],
        at: Option<Timestamp>,
        bytes_max: usize,
    ) -> Result<Vec<Option<Versioned>>, DataError> {
        keys.iter().try_for_each(|key| self.within(key))?;
        at.map_or(Ok(()), |at| self.readable(at))?;
        let (snapshot, unwritten) = match at {
            Some(_) => (self.snapshot()?, Vec::new()),
            None => self.latest_state(keys),
        };
        let read = |key: &[u8], unwritten: Option<Option<Bytes>>| match (at, unwritten) {
            (Some(at), _) => self.version_at(&snapshot, key, at),
            (None, Some(row)) => row.map(to_shared).transpose(),
            (None, None) => self.latest(&snapshot, key)?.map(|row| to_versioned(&row)).transpose(),
        };
        let (mut found, mut bytes) = (Vec::with_capacity(keys.len()), 0);
        let mut unwritten = unwritten.into_iter();
        for key in keys {
            let version = read(key, unwritten.next().flatten())?;
            bytes += version.as_ref().map_or(0, |version| version.value.len());
            if bytes > bytes_max {
                break;
            }
            found.push(version);
        }
        at.map_or(Ok(()), |at| self.readable(at))?;
        Ok(found)
    }

    /// RocksDB with all that was applied before.
    pub(super) fn snapshot(&self) -> Result<Snapshot<'_>, DataError> {
        self.holding.write_out(&self.store)?;
        Ok(self.store.db().snapshot())
    }

    /// RocksDB, and what of these keys it may not hold yet, of one moment: nothing is added before both are taken, and a row
    /// leaves only when RocksDB holds it.
    fn latest_state(&self, keys: &[&[u8]]) -> (Snapshot<'_>, Vec<Option<Option<Bytes>>>) {
        let unwritten = self.holding.unwritten.read();
        let rows = keys.iter().map(|key| unwritten.get(&self.latest_key(key))).collect();
        (self.store.db().snapshot(), rows)
    }

    fn version_at(&self, snapshot: &Snapshot<'_>, key: &[u8], at: Timestamp) -> Result<Option<Versioned>, DataError> {
        if let Some(row) = self.latest(snapshot, key)?
            && read_version(&row)?.0 <= at
        {
            return to_versioned(&row).map(Some);
        }
        let extent = self.extent();
        let mut rows = snapshot.raw_iterator_cf_opt(self.store.table(Table::History), ReadOptions::default());
        rows.seek(keys::history(extent, key, at.next()));
        self.store.checked(rows.status())?;
        let prefix = keys::history_prefix(extent, key);
        match (rows.key(), rows.value()) {
            (Some(found), Some(row)) if found.starts_with(&prefix) => {
                let version = to_versioned(row)?;
                Ok((version.commit <= at).then_some(version))
            }
            (Some(_) | None, Some(_) | None) => Ok(None),
        }
    }

    fn latest<'s>(&self, snapshot: &'s Snapshot<'_>, key: &[u8]) -> Result<Option<DBPinnableSlice<'s>>, DataError> {
        self.store.checked(snapshot.get_pinned_cf(self.store.table(Table::Latest), self.latest_key(key)))
    }

    fn latest_key(&self, key: &[u8]) -> Vec<u8> {
        keys::latest(self.extent(), key)
    }

    fn within(&self, key: &[u8]) -> Result<(), DataError> {
        let outside = || DataError::OutsideRange { key: key.escape_ascii().to_string() };
        if self.progress.range.contains(key) { Ok(()) } else { Err(outside()) }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn extent(&self) -> ExtentId {
        self.progress.extent.id()
    }

    pub(super) fn readable(&self, at: Timestamp) -> Result<(), DataError> {
        let oldest = self.holding.floor();
        if at < oldest { Err(DataError::TooOld { asked: at, oldest }) } else { Ok(()) }
    }
}
