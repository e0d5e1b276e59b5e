//! Reading what is applied in key order, page by page: the latest state, or the state at a timestamp.
//!
//! One walk serves a page however many stretches of keys it takes: where keys lie that are not wanted, it seeks over
//! them, so stretches that never held any cost nothing.
//!
//! Invariants: those of reads; a page shows one state.
//!
//! Not here: which keys are wanted (kv-node, scan).

use std::ops::ControlFlow;

use bytes::Bytes;
use kv_proto::key_range::KeyRange;
use kv_proto::timestamp::Timestamp;
use rocksdb::{DBRawIterator, ReadOptions, Snapshot};

use super::error::DataError;
use super::keys;
use super::options::Table;
use super::read::ReadView;
use super::rows::{damaged, read_version};
use crate::command::Versioned;

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
    /// Bound of what may be left: the next range's start, or its (exclusive) end if the scan is reverse. None if nothing
    /// is left.
    pub next: Option<Bytes>,
}

/// What a scan does at a key that it comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Returns it.
    Take,
    /// Leaves out all keys from it to this bound, which must lie further on: the first key to look at, or in a reverse
    /// scan the key after the first to look at.
    Skip(Bytes),
    /// Ends the page; the next one begins at this bound, which is as one to skip to, or the key itself.
    Pause(Bytes),
    /// Leaves out all that is left.
    End,
}

impl ReadView {
    /// One page of all keys in the range.
    pub fn scan(&self, spec: &ScanSpec) -> Result<ScanPage, DataError> {
        self.scan_some(spec, &mut |_| Turn::Take)
    }

    /// One page of the keys that `turn` takes. It is asked for keys in scan order, some of which the state may not hold.
    pub fn scan_some(&self, spec: &ScanSpec, turn: &mut dyn FnMut(&Bytes) -> Turn) -> Result<ScanPage, DataError> {
        let Some(range) = spec.range.intersection(self.range()) else { return Ok(ScanPage::default()) };
        let snapshot = self.snapshot()?;
        let mut page = Page { spec, turn, bytes: 0, page: ScanPage::default() };
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
        let mut rows = self.cursor(snapshot, Table::Latest, range, page.spec.reverse);
        while let (Some(key), Some(row)) = (rows.rows.key(), rows.rows.value()) {
            let key = keys::decode_latest(key).ok_or_else(|| damaged("key"))?;
            match page.turn(&key) {
                ControlFlow::Continue(None) => {
                    let (commit, value) = read_version(row)?;
                    page.add(key, commit, value);
                    rows.step();
                }
                ControlFlow::Continue(Some(to)) => rows.skip(&keys::latest(self.extent(), &to)),
                ControlFlow::Break(()) => break,
            }
        }
        self.store().checked(rows.rows.status())
    }

    /// Walks both tables side by side; the next key is the nearer of the two.
    fn scan_at(
        &self,
        snapshot: &Snapshot<'_>,
        range: &KeyRange,
        at: Timestamp,
        page: &mut Page<'_>,
    ) -> Result<(), DataError> {
        let reverse = page.spec.reverse;
        let mut latest = self.cursor(snapshot, Table::Latest, range, reverse);
        let mut old = self.cursor(snapshot, Table::History, range, reverse);
        loop {
            let newest = latest.rows.key().map(|key| keys::decode_latest(key).ok_or_else(|| damaged("key")));
            let ended = old.rows.key().map(|key| keys::decode_history(key).ok_or_else(|| damaged("old key")));
            let (newest, ended) = (newest.transpose()?, ended.transpose()?.map(|(key, _)| Bytes::from(key)));
            let Some(key) = nearer(newest.clone(), ended.clone(), reverse) else { break };
            match page.turn(&key) {
                ControlFlow::Continue(None) => {}
                ControlFlow::Continue(Some(to)) => {
                    latest.skip(&keys::latest(self.extent(), &to));
                    old.skip(&keys::history_bound(self.extent(), &to));
                    continue;
                }
                ControlFlow::Break(()) => break,
            }
            let mut seen = None;
            if newest.as_ref() == Some(&key) {
                let (commit, value) = read_version(latest.rows.value().unwrap_or_default())?;
                seen = (commit <= at).then(|| (commit, Bytes::copy_from_slice(value)));
                latest.step();
            }
            if ended.as_ref() == Some(&key) {
                let found = old.visible(&key, at)?;
                seen = seen.or(found);
            }
            if let Some((commit, value)) = seen {
                page.add(key, commit, &value);
            }
        }
        // Also of a page that ended before them: the other table may have gone on alone after one failed.
        self.store().checked(latest.rows.status())?;
        self.store().checked(old.rows.status())
    }

    fn cursor<'s>(&self, snapshot: &'s Snapshot<'_>, table: Table, range: &KeyRange, reverse: bool) -> Cursor<'s> {
        let (start, end) = match table {
            Table::History => keys::history_range(self.extent(), range),
            Table::Latest | Table::Changes | Table::Meta => keys::latest_range(self.extent(), range),
        };
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        let mut rows = snapshot.raw_iterator_cf_opt(self.store().table(table), options);
        if reverse {
            rows.seek_to_last()
        } else {
            rows.seek_to_first()
        }
        Cursor { rows, reverse }
    }
}

/// A place in a table, in scan order.
struct Cursor<'s> {
    rows: DBRawIterator<'s>,
    reverse: bool,
}

impl Cursor<'_> {
    fn step(&mut self) {
        if self.reverse { self.rows.prev() } else { self.rows.next() }
    }

    /// To the first row at or after a bound, or the last one before it; stays where it is if that is beyond the bound.
    fn skip(&mut self, bound: &[u8]) {
        match (self.rows.key(), self.reverse) {
            (Some(key), false) if key < bound => self.rows.seek(bound),
            (Some(key), true) if key >= bound => {
                self.rows.seek_for_prev(bound);
                if self.rows.key() == Some(bound) {
                    self.rows.prev();
                }
            }
            (Some(_) | None, false | true) => {}
        }
    }

    /// Moves over all old versions of a key and returns the one visible at a timestamp.
    fn visible(&mut self, key: &[u8], at: Timestamp) -> Result<Option<(Timestamp, Bytes)>, DataError> {
        let mut seen = None;
        while let (Some(found), Some(row)) = (self.rows.key(), self.rows.value()) {
            let (found, end) = keys::decode_history(found).ok_or_else(|| damaged("old key"))?;
            if found != key {
                break;
            }
            let (start, value) = read_version(row)?;
            if start <= at && at < end {
                seen = Some((start, Bytes::copy_from_slice(value)));
            }
            self.step();
        }
        Ok(seen)
    }
}

/// A page being filled.
struct Page<'a> {
    spec: &'a ScanSpec,
    turn: &'a mut dyn FnMut(&Bytes) -> Turn,
    bytes: usize,
    page: ScanPage,
}

impl Page<'_> {
    /// What to do at a key: take it, go on at a bound, or end.
    fn turn(&mut self, key: &Bytes) -> ControlFlow<(), Option<Bytes>> {
        let reverse = self.spec.reverse;
        match (self.turn)(key) {
            Turn::Take if self.is_full() => self.end(if reverse { after(key) } else { key.clone() }),
            Turn::Take => ControlFlow::Continue(None),
            Turn::Skip(to) if self.is_full() => self.end(to),
            Turn::Skip(to) => {
                assert!(if reverse { to <= *key } else { to > *key }, "a scan moves on");
                ControlFlow::Continue(Some(to))
            }
            Turn::Pause(at) => self.end(at),
            Turn::End => ControlFlow::Break(()),
        }
    }

    /// Ends the page; the next one begins here.
    fn end(&mut self, next: Bytes) -> ControlFlow<(), Option<Bytes>> {
        self.page.next = Some(next);
        ControlFlow::Break(())
    }

    fn is_full(&self) -> bool {
        let entries = self.page.entries.len();
        entries > 0 && (entries >= self.spec.limit_entries || self.bytes >= self.spec.limit_bytes)
    }

    fn add(&mut self, key: Bytes, commit: Timestamp, value: &[u8]) {
        let value = if self.spec.keys_only { Bytes::new() } else { Bytes::copy_from_slice(value) };
        self.bytes += key.len() + value.len();
        self.page.entries.push(ScanEntry { key, versioned: Versioned { commit, value } });
    }
}

/// The first of all keys after a key.
fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

fn nearer(left: Option<Bytes>, right: Option<Bytes>, reverse: bool) -> Option<Bytes> {
    match (left, right) {
        (Some(left), Some(right)) => Some(if reverse { left.max(right) } else { left.min(right) }),
        (left, right) => left.or(right),
    }
}
