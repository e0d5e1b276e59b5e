//! The files of the log: how one is begun, over an old one if there is one to spare, and written at its end.
//!
//! Blocks that were written before are written over with a third to a half less latency than new ones, whose allocation the
//! file system journals. So segments that are no longer needed are kept for the next ones, and a file that is new is
//! filled with zeros ahead of what is written, by and by.
//!
//! Invariants: a segment is written only at its end, and by one owner; the folder knows its name before anything in it is
//! acknowledged.
//!
//! Not here: what is written (record), and when (disk).

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::buffer::Buffer;
use super::options::Sizes;
use super::record::{BLOCK_BYTES, Header};

/// A file is filled this far ahead at first, then as far as it is long, up to the second.
const FILL_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 20;

const SEGMENT: &str = "segment-";
const SPARE: &str = "spare-";
const SUFFIX: &str = ".log";

fn named(dir: &Path, kind: &str, number: u64) -> PathBuf {
    dir.join(format!("{kind}{number:016}{SUFFIX}"))
}

/// The name of a segment.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    named(dir, SEGMENT, number)
}

/// The name of a segment that is kept to be used again.
pub(super) fn spare_path(dir: &Path, number: u64) -> PathBuf {
    named(dir, SPARE, number)
}

/// Numbers and paths of a folder's segments, or of its spare files, ascending.
fn listed(dir: &Path, kind: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(dir)? {
        let path = item?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix(kind)?.strip_suffix(SUFFIX)?.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort_unstable();
    Ok(found)
}

/// A folder's segments, oldest first.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    listed(dir, SEGMENT)
}

/// Its spare files.
pub(super) fn spares(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(listed(dir, SPARE)?.into_iter().map(|(_, path)| path).collect())
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A segment for those who read it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    file: File,
}

impl Segment {
    pub(super) fn open(path: PathBuf, header: Header) -> io::Result<Self> {
        let file = File::open(&path)?;
        Ok(Self { path, header, file })
    }

    /// Fewer bytes than asked for only at the file's end.
    pub(super) fn read(&self, offset: u64, bytes: usize) -> io::Result<bytes::Bytes> {
        let mut out = bytes::BytesMut::zeroed(bytes);
        let mut read = 0;
        while let Some(rest) = out.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out.truncate(read);
        Ok(out.freeze())
    }
}

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    file: File,
    /// Where the next record begins.
    pub(super) end: u64,
    /// The file's blocks below it were written before.
    filled: u64,
}

fn open_to_write(path: &Path, sizes: Sizes) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    if sizes.direct {
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    }
    options.open(path)
}

/// Nobody outside can tell it in advance.
fn salt() -> u32 {
    let drawn = std::hash::RandomState::new().build_hasher().finish();
    (drawn ^ drawn >> 32) as u32
}

impl Active {
    /// Begins a segment, in a spare file if there is one. Durable with the first sync of it.
    pub(super) fn begin(
        dir: &Path,
        (number, first): (u64, u64),
        spare: Option<&Path>,
        sizes: Sizes,
        buffer: &mut Buffer,
    ) -> io::Result<Self> {
        let path = path(dir, number);
        if let Some(spare) = spare {
            std::fs::rename(spare, &path)?;
        }
        let file = open_to_write(&path, sizes)?;
        // Before it is written to: under its old name it would be a damaged one.
        sync_dir(dir)?;
        let filled = file.metadata()?.len() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let header = Header { number, first, salt: salt() };
        buffer.begin(BLOCK_BYTES);
        header.encode(buffer.out());
        file.write_all_at(buffer.finish(), 0)?;
        let end = BLOCK_BYTES as u64;
        let segment = Arc::new(Segment::open(path, header)?);
        Ok(Self { segment, file, end, filled: filled.max(end) })
    }

    /// Goes on where the last record ends, and makes sure that what was read is on the disk: what was not acknowledged, from
    /// `unsure` on, is written again, since the kernel takes what a failed sync left in its memory for written.
    pub(super) fn resume(
        segment: Arc<Segment>,
        (unsure, end): (u64, u64),
        sizes: Sizes,
        buffer: &mut Buffer,
    ) -> io::Result<Self> {
        let file = open_to_write(&segment.path, sizes)?;
        let again = segment.read(unsure, usize::try_from(end - unsure).unwrap_or(usize::MAX))?;
        buffer.begin(again.len());
        buffer.out().extend_from_slice(&again);
        file.write_all_at(buffer.finish(), unsure)?;
        file.sync_all()?;
        let filled = file.metadata()?.len() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        Ok(Self { segment, file, end, filled: filled.max(end) })
    }

    /// Whether so many bytes more are better written to the next segment.
    pub(super) fn is_full(&self, bytes: usize, sizes: Sizes) -> bool {
        self.end > BLOCK_BYTES as u64 && self.end + bytes as u64 > sizes.segment
    }

    /// Writes whole blocks at the end; durable with the next sync.
    pub(super) fn write(&mut self, blocks: &[u8], sizes: Sizes) -> io::Result<()> {
        self.file.write_all_at(blocks, self.end)?;
        self.end += blocks.len() as u64;
        if self.end > self.filled {
            match self.fill(sizes) {
                // What was written has found its place.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
                filled => filled?,
            }
            self.filled = self.filled.max(self.end);
        }
        Ok(())
    }

    fn fill(&mut self, sizes: Sizes) -> io::Result<()> {
        let ahead = self.end.clamp(*FILL_BYTES.start(), *FILL_BYTES.end());
        let filled = (self.end + ahead).min(sizes.segment).max(self.end);
        let zeros = Zeros::new();
        while self.end.max(self.filled) < filled {
            let from = self.end.max(self.filled);
            let bytes = usize::try_from(filled - from).unwrap_or(usize::MAX).min(zeros.blocks().len());
            self.file.write_all_at(zeros.blocks().get(..bytes).unwrap_or_default(), from)?;
            self.filled = from + bytes as u64;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Zeros where direct writes want them.
struct Zeros(Buffer);

impl Zeros {
    fn new() -> Self {
        let mut buffer = Buffer::default();
        let bytes = 256 << 10;
        buffer.begin(bytes);
        bytes::BufMut::put_bytes(buffer.out(), 0, bytes);
        buffer.finish();
        Self(buffer)
    }

    fn blocks(&self) -> &[u8] {
        self.0.written()
    }
}
