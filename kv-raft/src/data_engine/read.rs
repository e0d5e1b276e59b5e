//! Reading what is applied: the latest state, or the state at a timestamp.
//!
//! The version of a key at T is the latest one if that was committed by T, else the one in history whose end is the
//! first after T, if it began by T. A point read of the latest state is one Get behind a filter; one at a timestamp is
//! at most one Seek more.
//!
//! Invariants: each call reads one consistent state; a read at a timestamp fails if what it needs may have been
//! collected, also while it ran.
//!
//! Not here: whether the state is recent enough for the caller (replica, read).

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::key_range::KeyRange;
use kv_proto::timestamp::Timestamp;
use rocksdb::{DBPinnableSlice, DBRawIterator, ErrorKind, ReadOptions, ReadTier, Snapshot};

use super::error::DataError;
use super::holding::{Holding, Progress};
use super::keys;
use super::options::Table;
use super::rows::{damaged, read_version, to_versioned};
use super::store::Store;
use crate::command::Versioned;
use crate::types::LogId;

/// What a scan returns.
#[derive(Clone, Debug)]
pub struct ScanSpec {
    /// Encoded keys; cut to the replica's range.
    pub range: KeyRange,
    /// Most entries of the page; at least one is returned if there is one.
    pub limit_entries: usize,
    /// The page ends once keys and values reach this many bytes.
    pub limit_bytes: usize,
    /// Leaves values empty.
    pub keys_only: bool,
    /// The state at this timestamp instead of the latest.
    pub at: Option<Timestamp>,
    /// From the end of the range down.
    pub reverse: bool,
}

/// One key of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanEntry {
    /// Encoded key.
    pub key: Bytes,
    /// Its value and when it was written.
    pub versioned: Versioned,
}

/// One page of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// In key order, descending if the scan is reverse.
    pub entries: Vec<ScanEntry>,
    /// Bound of what is left: the next range's start, or its (exclusive) end if the scan is reverse. None if nothing
    /// is left.
    pub next: Option<Bytes>,
}

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
        self.within(key)?;
        let row = self.store.db().get_pinned_cf(self.store.table(Table::Latest), self.latest_key(key));
        self.store.checked(row)?.map(|row| to_versioned(&row)).transpose()
    }

    /// The same if memory tells, which never blocks; None if the disk must be asked.
    pub fn get_cached(&self, key: &[u8]) -> Result<Option<Option<Versioned>>, DataError> {
        self.within(key)?;
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        let table = self.store.table(Table::Latest);
        match self.store.db().get_pinned_cf_opt(table, self.latest_key(key), &options) {
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
            row => self.store.checked(row)?.map(|row| to_versioned(&row)).transpose().map(Some),
        }
    }

    /// The version of a key at a timestamp.
    pub fn get_at(&self, key: &[u8], at: Timestamp) -> Result<Option<Versioned>, DataError> {
        self.within(key)?;
        self.readable(at)?;
        let snapshot = self.store.db().snapshot();
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
        let snapshot = self.store.db().snapshot();
        let read = |key: &&[u8]| match at {
            Some(at) => self.version_at(&snapshot, key, at),
            None => self.latest(&snapshot, key)?.map(|row| to_versioned(&row)).transpose(),
        };
        let (mut found, mut bytes) = (Vec::with_capacity(keys.len()), 0);
        for key in keys {
            let version = read(key)?;
            bytes += version.as_ref().map_or(0, |version| version.value.len());
            if bytes > bytes_max {
                break;
            }
            found.push(version);
        }
        at.map_or(Ok(()), |at| self.readable(at))?;
        Ok(found)
    }

    /// One page.
    pub fn scan(&self, spec: &ScanSpec) -> Result<ScanPage, DataError> {
        let Some(range) = spec.range.intersection(&self.progress.range) else { return Ok(ScanPage::default()) };
        let snapshot = self.store.db().snapshot();
        let mut page = Page { spec, bytes: 0, page: ScanPage::default() };
        match spec.at {
            None => self.scan_latest(&snapshot, &range, &mut page)?,
            Some(at) => {
                self.readable(at)?;
                self.scan_at(&snapshot, &range, at, &mut page)?;
                self.readable(at)?;
            }
        }
        Ok(page.page)
    }

    fn scan_latest(&self, snapshot: &Snapshot<'_>, range: &KeyRange, page: &mut Page<'_>) -> Result<(), DataError> {
        let bounds = keys::latest_range(self.progress.extent.id(), range);
        let mut rows = self.cursor(snapshot, Table::Latest, bounds, page.spec.reverse);
        while let (Some(key), Some(row)) = (rows.key(), rows.value()) {
            let (commit, value) = read_version(row)?;
            let key = keys::decode_latest(key).ok_or_else(|| damaged("key"))?;
            if !page.add(key, commit, value) {
                return Ok(());
            }
            step(&mut rows, page.spec.reverse);
        }
        self.store.checked(rows.status())
    }

    /// Walks both tables side by side; the next key is the nearer of the two.
    fn scan_at(
        &self,
        snapshot: &Snapshot<'_>,
        range: &KeyRange,
        at: Timestamp,
        page: &mut Page<'_>,
    ) -> Result<(), DataError> {
        let extent = self.progress.extent.id();
        let reverse = page.spec.reverse;
        let mut latest = self.cursor(snapshot, Table::Latest, keys::latest_range(extent, range), reverse);
        let mut old = self.cursor(snapshot, Table::History, keys::history_range(extent, range), reverse);
        loop {
            let newest = latest.key().map(|key| keys::decode_latest(key).ok_or_else(|| damaged("key"))).transpose()?;
            let ended = old.key().map(|key| keys::decode_history(key).ok_or_else(|| damaged("old key"))).transpose()?;
            let ended = ended.map(|(key, _)| Bytes::from(key));
            let Some(key) = nearer(newest.clone(), ended.clone(), reverse) else { break };
            let mut seen = None;
            if newest.as_ref() == Some(&key) {
                let (commit, value) = read_version(latest.value().unwrap_or_default())?;
                seen = (commit <= at).then(|| (commit, Bytes::copy_from_slice(value)));
                step(&mut latest, reverse);
            }
            if ended.as_ref() == Some(&key) {
                let found = visible_in(&mut old, &key, at, reverse)?;
                seen = seen.or(found);
            }
            if let Some((commit, value)) = seen
                && !page.add(key, commit, &value)
            {
                return Ok(());
            }
        }
        self.store.checked(latest.status())?;
        self.store.checked(old.status())
    }

    fn version_at(&self, snapshot: &Snapshot<'_>, key: &[u8], at: Timestamp) -> Result<Option<Versioned>, DataError> {
        if let Some(row) = self.latest(snapshot, key)?
            && read_version(&row)?.0 <= at
        {
            return to_versioned(&row).map(Some);
        }
        let extent = self.progress.extent.id();
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
        keys::latest(self.progress.extent.id(), key)
    }

    fn cursor<'s>(
        &self,
        snapshot: &'s Snapshot<'_>,
        table: Table,
        (start, end): (Vec<u8>, Vec<u8>),
        reverse: bool,
    ) -> DBRawIterator<'s> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        let mut rows = snapshot.raw_iterator_cf_opt(self.store.table(table), options);
        if reverse {
            rows.seek_to_last()
        } else {
            rows.seek_to_first()
        }
        rows
    }

    fn within(&self, key: &[u8]) -> Result<(), DataError> {
        let outside = || DataError::OutsideRange { key: key.escape_ascii().to_string() };
        if self.progress.range.contains(key) { Ok(()) } else { Err(outside()) }
    }

    fn readable(&self, at: Timestamp) -> Result<(), DataError> {
        let oldest = self.holding.floor();
        if at < oldest { Err(DataError::TooOld { asked: at, oldest }) } else { Ok(()) }
    }
}

/// A page being filled.
struct Page<'a> {
    spec: &'a ScanSpec,
    bytes: usize,
    page: ScanPage,
}

impl Page<'_> {
    /// False once the page is full; the entry is then what comes next.
    fn add(&mut self, key: Bytes, commit: Timestamp, value: &[u8]) -> bool {
        let entries = &mut self.page.entries;
        let full = entries.len() >= self.spec.limit_entries || self.bytes >= self.spec.limit_bytes;
        if full && let Some(last) = entries.last() {
            self.page.next = Some(if self.spec.reverse { last.key.clone() } else { key });
            return false;
        }
        let value = if self.spec.keys_only { Bytes::new() } else { Bytes::copy_from_slice(value) };
        self.bytes += key.len() + value.len();
        entries.push(ScanEntry { key, versioned: Versioned { commit, value } });
        true
    }
}

/// Moves the history cursor over all versions of a key and returns the one visible at a timestamp.
fn visible_in(
    rows: &mut DBRawIterator<'_>,
    key: &[u8],
    at: Timestamp,
    reverse: bool,
) -> Result<Option<(Timestamp, Bytes)>, DataError> {
    let mut seen = None;
    while let (Some(found), Some(row)) = (rows.key(), rows.value()) {
        let (found, end) = keys::decode_history(found).ok_or_else(|| damaged("old key"))?;
        if found != key {
            break;
        }
        let (start, value) = read_version(row)?;
        if start <= at && at < end {
            seen = Some((start, Bytes::copy_from_slice(value)));
        }
        step(rows, reverse);
    }
    Ok(seen)
}

fn nearer(left: Option<Bytes>, right: Option<Bytes>, reverse: bool) -> Option<Bytes> {
    match (left, right) {
        (Some(left), Some(right)) => Some(if reverse { left.max(right) } else { left.min(right) }),
        (left, right) => left.or(right),
    }
}

fn step(rows: &mut DBRawIterator<'_>, reverse: bool) {
    if reverse { rows.prev() } else { rows.next() }
}
