//! The file `ACKNOWLEDGED`: how far the log was synced before anything was acknowledged.
//!
//! After each fsync, and before any callback, the writer notes the last record's sequence here. The note itself is
//! not synced each time (that would double the cost of a write): the kernel keeps it when the process dies, and it is
//! synced whenever the writer was idle. A log that ends before what the note says lost acknowledged writes, and does
//! not open; without the note a rotten last record could not be told from a torn one. What remains is a power cut in
//! a busy moment together with rot of exactly the last record.
//!
//! Two slots are written in turn, so that a torn note leaves the one before it.
//!
//! Invariants: never ahead of what is durable; the open file is locked, so a folder has one engine.
//!
//! Not here: damage before the last record (replay).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::error::OpenError;
use super::record::FORMAT;
use super::segment;
use crate::codec;

/// Its name.
pub(super) const FILE: &str = "ACKNOWLEDGED";
/// A file of format 1, which was a RocksDB.
const FORMAT_1: &str = "CURRENT";
/// Distance of the two slots: no sector and no page holds both.
const SLOT_BYTES: u64 = 4096;
/// checksum, turn, sequence.
const NOTE_BYTES: usize = 20;

/// The open, locked file.
#[derive(Debug)]
pub(super) struct Acknowledged {
    file: File,
    path: PathBuf,
    turn: u64,
    sequence: u64,
    synced: bool,
}

impl Acknowledged {
    /// Opens and locks the file of a folder, or creates it in an empty one.
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(FILE);
        let is_old = dir.join(FORMAT_1).try_exists().map_err(OpenError::io(dir))?;
        if is_old {
            return Err(OpenError::Format { dir: dir.to_owned(), found: 1, known: FORMAT });
        }
        let is_empty = segment::segments(dir).map_err(OpenError::io(dir))?.is_empty();
        if !path.try_exists().map_err(OpenError::io(&path))? {
            if !is_empty {
                return Err(OpenError::damaged(&path, "the file is missing beside segments of a log"));
            }
            create(dir, &path).map_err(OpenError::io(&path))?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(OpenError::io(&path))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Locked(dir.to_owned())),
            Err(error) => return Err(OpenError::Io { path, source: error.into() }),
        }
        let newest =
            [0, 1].into_iter().filter_map(|slot| read(&file, slot).transpose()).collect::<io::Result<Vec<_>>>();
        let newest = newest.map_err(OpenError::io(&path))?.into_iter().max();
        let (turn, sequence) = newest.ok_or_else(|| OpenError::damaged(&path, "neither of its two notes is whole"))?;
        if sequence > 0 && is_empty {
            return Err(OpenError::damaged(dir, "it holds no segment, but writes were acknowledged"));
        }
        Ok(Self { file, path, turn, sequence, synced: true })
    }

    /// Everything through the record of this sequence was acknowledged.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that the log is durable through a record. Call between the fsync and the callbacks.
    pub(super) fn note(&mut self, sequence: u64) -> io::Result<()> {
        let turn = self.turn + 1;
        self.file.write_all_at(&encode(turn, sequence), turn % 2 * SLOT_BYTES)?;
        (self.turn, self.sequence, self.synced) = (turn, sequence, false);
        Ok(())
    }

    /// Makes the last note survive a power cut.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if !self.synced {
            self.file.sync_data()?;
            self.synced = true;
        }
        Ok(())
    }
}

fn create(dir: &Path, path: &Path) -> io::Result<()> {
    let unfinished = dir.join("ACKNOWLEDGED.new");
    let file = File::create(&unfinished)?;
    file.write_all_at(&encode(0, 0), 0)?;
    file.write_all_at(&encode(1, 0), SLOT_BYTES)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    segment::sync_dir(dir)
}

fn encode(turn: u64, sequence: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(NOTE_BYTES);
    out.put_u32(0);
    out.put_u64(turn);
    out.put_u64(sequence);
    codec::seal(&mut out, 0);
    out.freeze()
}

/// The note of a slot; None if it is not whole.
fn read(file: &File, slot: u64) -> io::Result<Option<(u64, u64)>> {
    let mut bytes = BytesMut::zeroed(NOTE_BYTES);
    match file.read_exact_at(&mut bytes, slot * SLOT_BYTES) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let note = codec::unseal(bytes.freeze()).ok();
    Ok(note.and_then(|mut note| Some((note.try_get_u64().ok()?, note.try_get_u64().ok()?))))
}
