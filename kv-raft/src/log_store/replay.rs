//! Opens a log folder only if everything it ever acknowledged is there as it was written.
//!
//! All segments are read and every record's operations are done again, oldest first, before anything is written: a refusal
//! leaves the folder as it was found.
//!
//! What is refused, and what notices it:
//! - a damaged record that a whole one follows: its checksum, and that of the later one;
//! - a lost, cut or rotten end of the last segment: the sequence in `ACKNOWLEDGED`;
//! - a missing segment: the numbers in a row, the sequences, and entries that are in none;
//! - an entry, vote or pointer that is not what was written: the record's checksum, and an entry's own;
//! - an entry missing anywhere, or a log that lost its end: indexes in a row, and the pointers at the head of each segment,
//!   which must be what the records before came to.
//!
//! What is not: a rotten last record after a power cut in a busy moment (acknowledged); the oldest segment gone when no
//! entry in it is needed.
//!
//! Invariants: nothing is written before all is verified; what a shard's log is found to hold is on the disk, not only in the
//! kernel's memory, before it is told.
//!
//! Not here: what is done with a refused folder (the operator decides: docs/operations.md).

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::ids::ShardId;
use parking_lot::Mutex;

use super::acknowledged::Acknowledged;
use super::buffer::Buffer;
use super::disk::{Found, SPARES_MAX};
use super::error::OpenError;
use super::kept::Kept;
use super::options::Sizes;
use super::places::{At, Live, Places};
use super::read::Files;
use super::record::{self, BLOCK_BYTES, Entries, FirstBlock, Header, Operation, Record};
use super::segment::{self, Active, Segment};
use super::shard::State;
use crate::codec;
use crate::failpoint;
use crate::types::LogId;

/// A segment that was read.
struct Read {
    header: Header,
    path: PathBuf,
    /// Where the first record begins that may not have been acknowledged; the segment itself, if all of it.
    unsure: u64,
    end: u64,
}

/// What the records of a folder came to.
#[derive(Default)]
struct Replay {
    kept: BTreeMap<ShardId, Kept>,
    live: Live,
    /// The last record's; none before the first segment.
    sequence: Option<u64>,
    segments: Vec<Read>,
    /// The newest file, if its segment was not begun.
    unbegun: Option<PathBuf>,
}

/// What each shard's log is, and where its entries lie.
pub(super) type Shards = BTreeMap<ShardId, (State, Arc<Mutex<Places>>)>;

/// An open, verified folder: the disk side of it, and the shards.
pub(super) fn open(dir: &Path, sizes: Sizes, files: &Files) -> Result<(Found, Shards), OpenError> {
    std::fs::create_dir_all(dir).map_err(OpenError::io(dir))?;
    let acknowledged = Acknowledged::open(dir)?;
    let replay = Replay::of(dir, acknowledged.sequence())?;
    let shards =
        replay.kept.iter().map(|(shard, kept)| (*shard, (State::found(kept), Arc::clone(&kept.places)))).collect();
    let sizes = sizes.for_folder(dir);
    tracing::debug!(direct = sizes.direct, "how the log is written");
    failpoint!("log.open");
    let found = replay.resume(dir, acknowledged, sizes, files)?;
    failpoint!("log.opened");
    Ok((found, shards))
}

impl Replay {
    fn of(dir: &Path, acknowledged: u64) -> Result<Self, OpenError> {
        let mut replay = Self::default();
        let listed = segment::segments(dir).map_err(OpenError::io(dir))?;
        let newest = listed.last().map(|(number, _)| *number);
        for (number, path) in &listed {
            replay.segment(path, *number, newest == Some(*number), acknowledged)?;
        }
        let last = replay.sequence.unwrap_or(0);
        if last < acknowledged {
            let file = listed.last().map_or(dir, |(_, path)| path);
            let what = format!("the log ends at record {last}, but records through {acknowledged} were acknowledged");
            return Err(OpenError::damaged(file, what));
        }
        for (shard, kept) in &replay.kept {
            if let Some(index) = kept.missing() {
                return Err(OpenError::damaged(
                    dir,
                    format!("entry {index} of shard {shard} is in none of its segments"),
                ));
            }
        }
        Ok(replay)
    }

    fn segment(&mut self, path: &Path, number: u64, is_newest: bool, acknowledged: u64) -> Result<(), OpenError> {
        let damaged = |what: String| OpenError::damaged(path, what);
        let bytes = Bytes::from(std::fs::read(path).map_err(OpenError::io(path))?);
        let header = match FirstBlock::of(&bytes) {
            FirstBlock::Header(header) if header.number == number => header,
            FirstBlock::Format(found) => {
                return Err(OpenError::Format { dir: path.to_owned(), found, known: record::FORMAT });
            }
            FirstBlock::Header(_) | FirstBlock::Damaged if is_newest => {
                self.unbegun = Some(path.to_owned());
                return Ok(());
            }
            FirstBlock::Header(_) | FirstBlock::Damaged => return Err(damaged("its header is damaged".to_owned())),
        };
        let last = self.segments.last().map(|last| last.header.number);
        if let Some(last) = last.filter(|last| last + 1 != number) {
            return Err(OpenError::damaged(
                &segment::path(path.parent().unwrap_or(path), last + 1),
                "the segment is missing",
            ));
        }
        let expected = self.sequence.map_or(header.first, |sequence| sequence + 1);
        if header.first != expected {
            return Err(damaged(format!(
                "its first record is {}, but those before it end at {}",
                header.first,
                expected - 1
            )));
        }
        let (mut at, mut next, mut unsure) = (BLOCK_BYTES, header.first, 0);
        while let Some(record) =
            Record::parse(&bytes.slice(at.min(bytes.len())..), header.salt).filter(|record| record.sequence == next)
        {
            let place = At { segment: number, offset: at as u64, operation: 0 };
            let length = record.bytes();
            self.record(record, place, next == header.first)
                .map_err(|what| damaged(format!("the record at byte {at}: {what}")))?;
            // Past the file's end, if the zeros that fill the last block are not there.
            at += length;
            if next <= acknowledged {
                unsure = at;
            }
            next += 1;
        }
        if record::continues(&bytes.slice(at.min(bytes.len())..), next, header.salt) {
            return Err(damaged(format!("the record at byte {at} is damaged, but later ones are whole")));
        }
        if next == header.first {
            if !is_newest {
                return Err(damaged("it holds no whole record".to_owned()));
            }
            self.unbegun = Some(path.to_owned());
            return Ok(());
        }
        self.sequence = Some(next - 1);
        let (unsure, end) = (unsure as u64, at as u64);
        self.segments.push(Read { header, path: path.to_owned(), unsure, end });
        Ok(())
    }

    fn record(&mut self, record: Record, at: At, is_first: bool) -> Result<(), String> {
        let mut operations = record.operations;
        let all = operations.len();
        let mut pointers = BTreeMap::new();
        loop {
            let at = At { operation: all - operations.len(), ..at };
            let next = record::next_operation(&mut operations).map_err(|error| error.to_string())?;
            let Some((shard, operation)) = next else { break };
            if let Operation::Pointers(of) = operation {
                pointers.insert(shard, of);
            } else {
                self.operation(shard, operation, at).map_err(|what| format!("shard {shard}: {what}"))?;
            }
        }
        if !is_first {
            return if pointers.is_empty() { Ok(()) } else { Err("pointers amid a segment".to_owned()) };
        }
        if self.segments.is_empty() {
            self.kept = pointers.into_iter().map(|(shard, of)| (shard, Kept::begin(of))).collect();
            return Ok(());
        }
        if self.kept.iter().map(|(shard, kept)| (*shard, kept.pointers)).eq(pointers) {
            return Ok(());
        }
        Err("it tells other ends of logs than the records before it".to_owned())
    }

    fn operation(&mut self, shard: ShardId, operation: Operation, at: At) -> Result<(), String> {
        let live = &mut self.live;
        let kept = self.kept.entry(shard).or_default();
        match operation {
            Operation::Append(entries) => {
                let entries = verified(entries)?;
                let next = entries.first().map_or(kept.next(), |(first, _)| first.index);
                if next != kept.next() {
                    return Err(format!("it goes on with entry {next}, expected was {}", kept.next()));
                }
                kept.append(entries.into_iter(), at, live);
            }
            Operation::Move(entries) => {
                let entries = verified(entries)?;
                let (Some((first, _)), Some((last, _))) = (entries.first(), entries.last()) else { return Ok(()) };
                let range = first.index..last.index + 1;
                if range.start < kept.first() || range.end > kept.next() {
                    return Err(format!("entries {range:?} are moved, which it does not hold"));
                }
                kept.relocate(&range, entries.iter().map(|(_, bytes)| *bytes as u64).sum(), at, live);
            }
            Operation::Truncate { start, tail } => {
                if start > kept.next() || start < kept.first() {
                    return Err(format!("it is truncated from {start} on, but ends at {}", kept.next()));
                }
                kept.truncate(start, tail, live);
            }
            Operation::Purge(upto) => kept.purge(upto, live),
            Operation::Vote(vote) => kept.pointers.vote = Some(vote),
            Operation::Committed(committed) => kept.pointers.committed = committed,
            Operation::Owner(owner) => kept.pointers.owner = Some(owner),
            Operation::Destroy => {
                kept.destroy(live);
                self.kept.remove(&shard);
            }
            Operation::Pointers(_) => {}
        }
        Ok(())
    }

    /// Makes what was read durable, and goes on where it ends.
    fn resume(
        self,
        dir: &Path,
        mut acknowledged: Acknowledged,
        sizes: Sizes,
        files: &Files,
    ) -> Result<Found, OpenError> {
        if let Some(path) = &self.unbegun {
            std::fs::remove_file(path).map_err(OpenError::io(path))?;
        }
        let spares = spares(dir, sizes).map_err(OpenError::io(dir))?;
        let Some(sequence) = self.sequence else {
            let found = Found::begin(dir, acknowledged, spares, sizes).map_err(OpenError::io(dir))?;
            files.add(Arc::clone(&found.active.segment));
            return Ok(found);
        };
        let mut sealed = VecDeque::new();
        let mut active = None;
        for Read { header, path, unsure, end } in self.segments {
            let segment = Arc::new(Segment::open(path.clone(), header).map_err(OpenError::io(&path))?);
            files.add(Arc::clone(&segment));
            sealed.push_back((header.number, end));
            active = Some((segment, unsure, end));
        }
        sealed.pop_back();
        let (segment, unsure, end) = active.ok_or_else(|| OpenError::damaged(dir, "a sequence without a segment"))?;
        let path = segment.path.clone();
        let active = Active::resume(segment, (unsure, end), sizes, &mut Buffer::default());
        let active = active.map_err(OpenError::io(&path))?;
        segment::sync_dir(dir).map_err(OpenError::io(dir))?;
        let noted = acknowledged.note(sequence).and_then(|()| acknowledged.sync());
        noted.map_err(OpenError::io(acknowledged.path()))?;
        Ok(Found {
            sizes,
            acknowledged,
            active,
            sealed,
            spares,
            sequence: sequence + 1,
            kept: self.kept,
            live: self.live,
        })
    }
}

/// The files to be used again; more of them, and those longer than a segment, are removed.
fn spares(dir: &Path, sizes: Sizes) -> std::io::Result<Vec<PathBuf>> {
    let mut spares = Vec::new();
    for path in segment::spares(dir)? {
        if spares.len() < SPARES_MAX && std::fs::metadata(&path)?.len() <= sizes.segment {
            spares.push(path);
        } else {
            std::fs::remove_file(path)?;
        }
    }
    Ok(spares)
}

/// The log ids of entries in a row, which must be whole, each with its bytes.
fn verified(entries: Entries) -> Result<Vec<(LogId, usize)>, String> {
    let mut found: Vec<(LogId, usize)> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| error.to_string())?;
        let bytes = entry.len();
        let log_id = codec::decode_entry(entry).map_err(|error| format!("after {:?}: {error}", found.last()))?.log_id;
        if let Some((last, _)) = found.last().filter(|(last, _)| last.index + 1 != log_id.index) {
            return Err(format!("entry {} follows entry {}", log_id.index, last.index));
        }
        found.push((log_id, bytes));
    }
    Ok(found)
}
