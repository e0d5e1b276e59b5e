//! Reads entries that are no longer in memory: the stretches that hold them, record by record.
//!
//! Invariants: a segment that is read is not written over meanwhile (its file is only used again when nobody holds it).
//!
//! Not here: which entries are in memory (shard); the bytes of a record (record).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf as _, Bytes};
use kv_proto::ids::ShardId;
use parking_lot::Mutex;

use super::error::LogError;
use super::places::{At, Places};
use super::record::{self, Operation, RECORD_HEADER_BYTES, Record};
use super::segment::Segment;
use crate::codec;
use crate::types::{Entry, LogId};

/// Read at once where small records lie in a row.
const WINDOW_BYTES: usize = 64 << 10;

/// The segments of a folder, for those who read.
#[derive(Debug, Default)]
pub(super) struct Files {
    segments: Mutex<BTreeMap<u64, Arc<Segment>>>,
    closed: AtomicBool,
}

impl Files {
    pub(super) fn add(&self, segment: Arc<Segment>) {
        self.segments.lock().insert(segment.header.number, segment);
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Segment>> {
        self.segments.lock().get(&number).cloned()
    }

    /// Takes a segment out; it is returned if nobody reads it.
    pub(super) fn remove(&self, number: u64) -> Option<Segment> {
        self.segments.lock().remove(&number).and_then(Arc::into_inner)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Nothing is read any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.segments.lock().clear();
    }

    /// What must be read for the entries of a range, up to so many bytes and at least one stretch.
    pub(super) fn stretches(
        &self,
        shard: ShardId,
        places: &Mutex<Places>,
        range: &Range<u64>,
        bytes: u64,
    ) -> Result<Vec<Stretch>, LogError> {
        // Both locked, so that no segment goes between: its entries are told to be elsewhere before it does.
        let places = places.lock();
        let segments = self.segments.lock();
        if self.is_closed() {
            return Err(LogError::Closed);
        }
        let stretch = |(at, entries): (At, Range<u64>)| {
            let segment = segments.get(&at.segment).cloned();
            let segment = segment.ok_or_else(|| failed(shard, format!("segment {} is gone", at.segment)))?;
            Ok(Stretch { shard, segment, at, entries })
        };
        places.covering(range, bytes).into_iter().map(stretch).collect()
    }
}

fn failed(shard: ShardId, reason: impl Into<String>) -> LogError {
    LogError::Read { shard, reason: reason.into() }
}

/// Entries of a shard in a row, in one segment.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) shard: ShardId,
    pub(super) segment: Arc<Segment>,
    /// The operation that the first of them is in.
    pub(super) at: At,
    pub(super) entries: Range<u64>,
}

impl Stretch {
    fn failed(&self, reason: &dyn std::fmt::Display) -> LogError {
        failed(self.shard, format!("{}: {reason}", self.segment.path.display()))
    }

    /// Its entries as they are encoded; `take` says when it is enough.
    pub(super) fn read(&self, mut take: impl FnMut(u64, Bytes) -> Result<bool, LogError>) -> Result<(), LogError> {
        let mut window = Window { segment: &self.segment, offset: self.at.offset, bytes: Bytes::new() };
        let mut next = self.entries.start;
        let mut skipped = self.at.operation;
        while next < self.entries.end {
            let mut operations = match window.record() {
                Ok(Some(record)) => record.operations,
                Ok(None) => return Err(self.failed(&format!("entry {next} is missing"))),
                Err(error) => return Err(self.failed(&error)),
            };
            operations.advance(std::mem::take(&mut skipped).min(operations.len()));
            while let Some((shard, operation)) = record::next_operation(&mut operations).map_err(|e| self.failed(&e))? {
                let (true, Operation::Append(entries) | Operation::Move(entries)) = (shard == self.shard, operation)
                else {
                    continue;
                };
                for entry in entries {
                    let entry = entry.map_err(|error| self.failed(&error))?;
                    let is_next = next < self.entries.end && index(&entry) == Some(next);
                    if is_next {
                        next += 1;
                        if !take(next - 1, entry)? {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The index of an encoded entry, unverified.
fn index(entry: &Bytes) -> Option<u64> {
    let mut log_id = entry.get(4..).map(|_| entry.slice(4..))?;
    codec::decode_log_id(&mut log_id).ok().map(|log_id: LogId| log_id.index)
}

/// Decodes the entries of a range, up to so many bytes, at least one.
pub(super) fn entries(stretches: &[Stretch], range: &Range<u64>, bytes: usize) -> Result<Vec<Entry>, LogError> {
    let mut found: Vec<Entry> = Vec::new();
    let mut taken = 0_usize;
    let mut enough = false;
    for stretch in stretches {
        stretch.read(|index, encoded| {
            if index < range.start {
                return Ok(true);
            }
            taken = taken.saturating_add(encoded.len());
            enough = taken > bytes && !found.is_empty();
            if !enough {
                // A copy, since the slice would hold all of what was read.
                let entry =
                    codec::decode_entry(Bytes::copy_from_slice(&encoded)).map_err(|error| stretch.failed(&error))?;
                let expected = range.start + found.len() as u64;
                if entry.log_id.index != expected {
                    return Err(stretch.failed(&format!("entry {expected} is missing")));
                }
                found.push(entry);
            }
            Ok(!enough)
        })?;
        if enough {
            break;
        }
    }
    Ok(found)
}

/// Records in a row.
struct Window<'a> {
    segment: &'a Segment,
    /// Where the next record begins.
    offset: u64,
    /// What lies there, as far as it was read.
    bytes: Bytes,
}

impl Window<'_> {
    fn record(&mut self) -> std::io::Result<Option<Record>> {
        if self.bytes.len() < RECORD_HEADER_BYTES {
            self.bytes = self.segment.read(self.offset, WINDOW_BYTES)?;
        }
        let claimed = record::claimed(&self.bytes).map_or(0, |(length, _)| RECORD_HEADER_BYTES.saturating_add(length));
        if claimed > self.bytes.len() && claimed <= record::BYTES_MAX {
            self.bytes = self.segment.read(self.offset, claimed)?;
        }
        let Some(record) = Record::parse(&self.bytes, self.segment.header.salt) else { return Ok(None) };
        let bytes = record.bytes();
        self.offset += bytes as u64;
        self.bytes = self.bytes.slice(bytes.min(self.bytes.len())..);
        Ok(Some(record))
    }
}
