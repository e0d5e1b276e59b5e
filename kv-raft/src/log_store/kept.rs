//! What the disk holds of one shard: its pointers, and where its entries lie.
//!
//! The same steps are taken when a record was written and when it is read again at the next start, so both come to the same.
//!
//! Invariants: only what is durable is told here.
//!
//! Not here: what memory holds, which is ahead (shard).

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::places::{At, Live, Places};
use super::record::Pointers;
use crate::types::LogId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) pointers: Pointers,
    /// Shared with those who read.
    pub(super) places: Arc<Mutex<Places>>,
    /// Entries of the log that lie in none of the segments read so far.
    missing: Vec<Range<u64>>,
}

fn after(last: Option<LogId>) -> u64 {
    last.map_or(0, |last| last.index + 1)
}

impl Kept {
    pub(super) fn new(places: Arc<Mutex<Places>>) -> Self {
        Self { places, ..Self::default() }
    }

    /// What a segment says that no segment before it is known of.
    pub(super) fn begin(pointers: Pointers) -> Self {
        let entries = after(pointers.purged)..after(pointers.last);
        Self {
            pointers,
            missing: Some(entries).into_iter().filter(|range| !range.is_empty()).collect(),
            ..Self::default()
        }
    }

    /// Index the next entry has.
    pub(super) fn next(&self) -> u64 {
        after(self.pointers.last)
    }

    /// Index the first entry has, if there is one.
    pub(super) fn first(&self) -> u64 {
        after(self.pointers.purged)
    }

    /// An entry that was in none of the segments.
    pub(super) fn missing(&self) -> Option<u64> {
        self.missing.first().map(|range| range.start)
    }

    /// Forgets that the entries of a range are missing.
    fn found(&mut self, range: &Range<u64>) {
        let rest = |missing: &Range<u64>| {
            [missing.start..missing.end.min(range.start), missing.start.max(range.end)..missing.end]
        };
        self.missing = self.missing.iter().flat_map(rest).filter(|range| !range.is_empty()).collect();
    }

    /// Entries follow, each with its encoded bytes.
    pub(super) fn append(&mut self, entries: impl Iterator<Item = (LogId, usize)>, at: At, live: &mut Live) {
        let mut places = self.places.lock();
        for (log_id, bytes) in entries {
            self.pointers.last = Some(log_id);
            places.append(log_id.index, bytes as u64, at, live);
        }
    }

    pub(super) fn relocate(&mut self, range: &Range<u64>, bytes: u64, at: At, live: &mut Live) {
        self.found(range);
        self.places.lock().relocate(range, bytes, at, live);
    }

    pub(super) fn truncate(&mut self, start: u64, tail: Option<LogId>, live: &mut Live) {
        self.found(&(start..u64::MAX));
        self.pointers.last = tail;
        self.places.lock().truncate(start, live);
    }

    pub(super) fn purge(&mut self, upto: LogId, live: &mut Live) {
        let start = upto.index + 1;
        self.found(&(0..start));
        self.pointers.purged = Some(upto);
        if self.next() <= start {
            self.pointers.last = Some(upto);
        }
        self.places.lock().purge(start, self.next(), live);
    }

    pub(super) fn destroy(&self, live: &mut Live) {
        self.places.lock().clear(live);
    }
}
