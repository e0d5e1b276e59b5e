//! The disk side of the log: writes gathered changes as one record with one fsync, begins segments, and cleans up old ones.
//!
//! A segment goes as soon as it is the oldest and holds no entry that is needed; its file is kept for a later one. Shards that
//! are idle would hold old segments for ever: when segments take much more than the entries that are needed, the oldest one's
//! are written once more, some with each record, and it goes.
//!
//! Invariants:
//! - Nothing is told of a record ([`Kept`], places) before it is synced and noted.
//! - Segments go oldest first, so those that are left are numbered in a row.
//!
//! Not here: when to write and whom to answer (writer); what is read at start (replay).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::ids::ShardId;

use super::acknowledged::Acknowledged;
use super::buffer::Buffer;
use super::kept::Kept;
use super::options::Sizes;
use super::places::{At, Live};
use super::queue::{Action, Change};
use super::read::{Files, Stretch};
use super::record;
use super::segment::{self, Active};
use crate::codec;
use crate::failpoint;

/// Files kept to be used again: a purge frees some for each flush of the data, which come every 64 MiB of entries.
pub(super) const SPARES_MAX: usize = 12;
/// So many bytes of entries are written once more with a record, or as many as its changes take, and no more stretches than this:
/// each is a read.
const MOVED: (usize, usize) = (256 << 10, 32);
/// Segments may take this many times the bytes of the entries that are needed, and so many segments more, before the oldest is
/// cleaned. Entries of a lone caller take a block each, which is many times their bytes.
const SLACK: (u64, u64) = (4, 16);
/// What a shard's pointers take, about.
const POINTERS_BYTES: usize = 160;

/// See the module.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    sizes: Sizes,
    acknowledged: Acknowledged,
    files: Arc<Files>,
    active: Active,
    /// Number and bytes of the segments before it, oldest first.
    sealed: VecDeque<(u64, u64)>,
    /// Bytes of all of them.
    sealed_bytes: u64,
    spares: Vec<PathBuf>,
    /// Of the next record.
    sequence: u64,
    kept: BTreeMap<ShardId, Kept>,
    live: Live,
    buffer: Buffer,
    /// Shards with entries in the segment that is cleaned.
    cleaning: Vec<ShardId>,
    /// Fsyncs of segments.
    #[cfg(test)]
    pub(super) syncs: Arc<std::sync::atomic::AtomicUsize>,
}

/// What was found in a folder, or begun in an empty one.
pub(super) struct Found {
    pub(super) sizes: Sizes,
    pub(super) acknowledged: Acknowledged,
    pub(super) active: Active,
    pub(super) sealed: VecDeque<(u64, u64)>,
    pub(super) spares: Vec<PathBuf>,
    pub(super) sequence: u64,
    pub(super) kept: BTreeMap<ShardId, Kept>,
    pub(super) live: Live,
}

/// Entries of the oldest segment that are written once more.
struct Moved {
    shard: ShardId,
    entries: Range<u64>,
    bytes: u64,
    operation: usize,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> String + '_ {
    move |error| format!("{}: {error}", path.display())
}

impl Disk {
    pub(super) fn new(dir: &Path, files: Arc<Files>, found: Found) -> Self {
        let Found { sizes, acknowledged, active, sealed, spares, sequence, kept, live } = found;
        Self {
            dir: dir.to_owned(),
            sizes,
            acknowledged,
            files,
            active,
            sealed_bytes: sealed.iter().map(|(_, bytes)| bytes).sum(),
            sealed,
            spares,
            sequence,
            kept,
            live,
            buffer: Buffer::default(),
            cleaning: Vec::new(),
            #[cfg(test)]
            syncs: Arc::default(),
        }
    }

    /// Writes changes in order, synced and noted when it returns; the bytes written. After an error nobody knows what the
    /// disk holds.
    pub(super) fn write(&mut self, changes: &[Change]) -> Result<usize, String> {
        let kib: usize = changes.iter().map(|change| change.kib).sum();
        self.buffer.begin_record(kib << 10);
        // Before the changes, since it is of what the shard holds before them.
        let moved = self.put_moved(kib << 10)?;
        let mut operations = Vec::with_capacity(changes.len());
        for change in changes {
            operations.push(self.buffer.operations());
            record::put_action(self.buffer.out(), change.shard.shard, &change.action);
        }
        let bytes = self.buffer.blocks();
        if bytes > record::BYTES_MAX {
            return Err(format!("a record of {bytes} bytes is larger than any may be"));
        }
        if self.active.is_full(bytes, self.sizes) {
            self.begin_segment()?;
        }
        let at = self.write_record()?;
        self.sync()?;
        failpoint!("log.synced");
        self.note()?;
        for Moved { shard, entries, bytes, operation } in moved {
            if let Some(kept) = self.kept.get_mut(&shard) {
                kept.relocate(&entries, bytes, At { operation, ..at }, &mut self.live);
            }
        }
        for (change, operation) in changes.iter().zip(operations) {
            self.tell(change, At { operation, ..at });
        }
        self.drop_dead()?;
        Ok(bytes)
    }

    /// Makes the last note survive a power cut.
    pub(super) fn sync_note(&mut self) -> Result<(), String> {
        failpoint!("log.note");
        self.acknowledged.sync().map_err(failed(self.acknowledged.path()))
    }

    fn note(&mut self) -> Result<(), String> {
        self.acknowledged.note(self.sequence - 1).map_err(failed(self.acknowledged.path()))
    }

    /// Writes the record in the buffer; where its first operation is.
    fn write_record(&mut self) -> Result<At, String> {
        let header = self.active.segment.header;
        self.buffer.seal(self.sequence, header.salt);
        let at = At { segment: header.number, offset: self.active.end, operation: 0 };
        self.active.write(self.buffer.finish(), self.sizes).map_err(failed(&self.active.segment.path))?;
        self.sequence += 1;
        Ok(at)
    }

    fn sync(&self) -> Result<(), String> {
        #[cfg(test)]
        self.syncs.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        self.active.sync().map_err(failed(&self.active.segment.path))
    }

    /// The next segment, beginning with the pointers of all shards. The record in the buffer stays.
    fn begin_segment(&mut self) -> Result<(), String> {
        let waiting = std::mem::take(&mut self.buffer);
        let (number, spare) = (self.active.segment.header.number + 1, self.spares.pop());
        let begun = Active::begin(&self.dir, (number, self.sequence), spare.as_deref(), self.sizes, &mut self.buffer);
        let next = begun.map_err(failed(&segment::path(&self.dir, number)))?;
        failpoint!("log.segment");
        let full = std::mem::replace(&mut self.active, next);
        self.sealed.push_back((full.segment.header.number, full.end));
        self.sealed_bytes += full.end;
        self.buffer.begin_record(self.kept.len() * POINTERS_BYTES);
        for (shard, kept) in &self.kept {
            record::put_pointers(self.buffer.out(), *shard, &kept.pointers);
        }
        self.write_record()?;
        // A record is whole on the disk before the next one is written.
        self.sync()?;
        // Also after a power cut: a segment whose header rots would be taken for one that was not begun.
        self.note()?;
        self.sync_note()?;
        self.files.add(Arc::clone(&self.active.segment));
        self.buffer = waiting;
        Ok(())
    }

    /// What a change that is durable did.
    fn tell(&mut self, Change { shard: log, action, .. }: &Change, at: At) {
        let live = &mut self.live;
        if let Action::Destroy { .. } = action {
            if let Some(kept) = self.kept.remove(&log.shard) {
                kept.destroy(live);
            }
            return;
        }
        if let Action::Barrier { .. } = action {
            return;
        }
        let kept = self.kept.entry(log.shard).or_insert_with(|| Kept::new(Arc::clone(&log.places)));
        match action {
            Action::Append { entries, .. } => {
                kept.append(entries.iter().map(|entry| (entry.log_id, codec::entry_bytes(entry))), at, live);
            }
            Action::Truncate { start, tail, .. } => kept.truncate(*start, *tail, live),
            Action::Purge { upto, .. } => kept.purge(*upto, live),
            Action::SaveVote { vote, .. } => kept.pointers.vote = Some(*vote),
            Action::SaveCommitted(committed) => kept.pointers.committed = *committed,
            Action::SaveOwner(owner) => kept.pointers.owner = Some(*owner),
            Action::Destroy { .. } | Action::Barrier { .. } => {}
        }
    }

    /// The oldest segments go while nothing in them is needed.
    fn drop_dead(&mut self) -> Result<(), String> {
        while let Some((number, bytes)) = self.sealed.front().copied().filter(|(number, _)| self.live.is_dead(*number))
        {
            self.sealed.pop_front();
            self.sealed_bytes -= bytes;
            failpoint!("log.recycle");
            self.live.forget(number);
            self.cleaning.clear();
            let path = segment::path(&self.dir, number);
            let unread = self.files.remove(number).is_some();
            let reusable = unread && self.spares.len() < SPARES_MAX && bytes <= self.sizes.segment;
            let gone = if reusable {
                let spare = segment::spare_path(&self.dir, number);
                std::fs::rename(&path, &spare).map(|()| self.spares.push(spare))
            } else {
                std::fs::remove_file(&path)
            };
            gone.map_err(failed(&path))?;
        }
        Ok(())
    }

    /// Puts entries of the oldest segment into the record, beside changes of so many bytes, if that segment must go.
    fn put_moved(&mut self, changed: usize) -> Result<Vec<Moved>, String> {
        let (mut moved, mut stretches) = (Vec::new(), 0);
        let Some((oldest, _)) = self.sealed.front().copied().filter(|_| self.takes_too_much()) else {
            return Ok(moved);
        };
        if self.cleaning.is_empty() {
            let holds = |(shard, kept): (&ShardId, &Kept)| {
                kept.places.lock().iter().any(|place| place.at.segment == oldest).then_some(*shard)
            };
            self.cleaning = self.kept.iter().filter_map(holds).collect();
        }
        let (bytes_max, stretches_max) = (MOVED.0.max(changed), MOVED.1);
        while self.buffer.operations() < bytes_max && stretches < stretches_max {
            let Some(shard) = self.cleaning.last().copied() else { break };
            let done = moved.iter().filter(|moved: &&Moved| moved.shard == shard).map(|moved| moved.entries.end).max();
            let row = self.row_in(shard, oldest, done.unwrap_or(0), stretches_max - stretches);
            let (Some(first), Some(last)) = (row.first(), row.last()) else {
                self.cleaning.pop();
                continue;
            };
            let (mut entries, mut bytes) = (Vec::<Bytes>::new(), 0);
            for stretch in &row {
                let read = stretch.read(|_, entry| {
                    bytes += entry.len() as u64;
                    entries.push(entry);
                    Ok(true)
                });
                read.map_err(|error| error.to_string())?;
            }
            stretches += row.len();
            moved.push(Moved {
                shard,
                entries: first.entries.start..last.entries.end,
                bytes,
                operation: self.buffer.operations(),
            });
            record::put_moved(self.buffer.out(), shard, &entries);
        }
        Ok(moved)
    }

    fn takes_too_much(&self) -> bool {
        self.sealed_bytes > self.live.bytes() * SLACK.0 + self.sizes.segment * SLACK.1
    }

    /// The first stretches in a row of a shard in a segment, of entries from an index on.
    fn row_in(&self, shard: ShardId, number: u64, from: u64, most: usize) -> Vec<Stretch> {
        let Some((kept, segment)) = self.kept.get(&shard).zip(self.files.get(number)) else { return Vec::new() };
        let stretches = kept.places.lock().in_segment(number, from..kept.next(), most);
        let stretch = |(at, entries)| Stretch { shard, segment: Arc::clone(&segment), at, entries };
        stretches.into_iter().map(stretch).collect()
    }
}

impl Found {
    /// An empty log in an empty folder, durably.
    pub(super) fn begin(
        dir: &Path,
        mut acknowledged: Acknowledged,
        spares: Vec<PathBuf>,
        sizes: Sizes,
    ) -> io::Result<Self> {
        let mut buffer = Buffer::default();
        let mut active = Active::begin(dir, (1, 1), None, sizes, &mut buffer)?;
        buffer.begin_record(0);
        buffer.seal(1, active.segment.header.salt);
        active.write(buffer.finish(), sizes)?;
        active.sync()?;
        acknowledged.note(1)?;
        acknowledged.sync()?;
        let (sealed, kept, live) = Default::default();
        Ok(Self { sizes, acknowledged, active, sealed, spares, sequence: 2, kept, live })
    }
}
