//! Looks for damage in RocksDB's write-ahead files that its recovery would cut off without a word.
//!
//! Every write to the log database is synced before the next begins. So a crash tears at most the last record of a file, and
//! a damaged record with a whole one after it in the same file was acknowledged and rotted.
//!
//! The format read here is RocksDB's: blocks of 32 KiB; fragments of checksum (4), length (2), type (1), for recycled
//! files also the file's number (4), and payload. The checksum is a masked CRC32C from the type on.
//!
//! Invariants: only reads; a file this code cannot make sense of is left to RocksDB to judge.
//!
//! Not here: a damaged last record (acknowledged).

use std::path::{Path, PathBuf};

use super::error::OpenError;

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
const RECYCLED_HEADER_BYTES: usize = 11;
/// Types that begin a record: whole and first fragment, and both in recycled files.
const BEGINNINGS: [u8; 4] = [1, 2, 5, 6];
/// Types of data in recycled files.
const RECYCLED: std::ops::RangeInclusive<u8> = 5..=8;
/// RocksDB's own notes: compression type, timestamp sizes, the file before.
const NOTES: [u8; 3] = [9, 10, 130];
const RECYCLED_NOTES: [u8; 2] = [11, 131];
/// RocksDB adds this to rotated checksums, so that checksums of data with embedded checksums stay good.
const MASK_DELTA: u32 = 0xa282_ead8;

/// Refuses a folder one of whose write-ahead files has a damaged record before a whole one.
pub(super) fn verify(dir: &Path) -> Result<(), OpenError> {
    for (number, path) in files(dir)? {
        let bytes = std::fs::read(&path).map_err(OpenError::io(&path))?;
        if let Some(offset) = damage(&bytes, number) {
            return Err(OpenError::damaged(
                &path,
                format!("the record at byte {offset} is damaged, but later ones are whole"),
            ));
        }
    }
    Ok(())
}

/// The write-ahead files of a folder with their numbers.
fn files(dir: &Path) -> Result<Vec<(u32, PathBuf)>, OpenError> {
    let mut files = Vec::new();
    for item in std::fs::read_dir(dir).map_err(OpenError::io(dir))? {
        let path = item.map_err(OpenError::io(dir))?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".log"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The write-ahead file written last.
pub(super) fn newest(dir: &Path) -> Result<Option<PathBuf>, OpenError> {
    Ok(files(dir)?.pop().map(|(_, path)| path))
}

/// A fragment whose checksum is right.
struct Fragment {
    kind: u8,
    end: usize,
}

/// Offset of a damaged record that a whole one follows.
fn damage(bytes: &[u8], number: u32) -> Option<usize> {
    let mut at = 0;
    loop {
        let block_end = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
        if block_end - at < HEADER_BYTES || is_padding(bytes.get(at..block_end)) {
            at = block_end;
        } else if let Some(fragment) = fragment(bytes, at, number) {
            at = fragment.end;
        } else {
            break;
        }
        if at >= bytes.len() {
            return None;
        }
    }
    begins_later(bytes, at, number).then_some(at)
}

/// The end of a block that has no room for another header.
fn is_padding(rest: Option<&[u8]>) -> bool {
    rest.is_some_and(|rest| rest.len() < RECYCLED_HEADER_BYTES && rest.iter().all(|byte| *byte == 0))
}

/// Whether a whole record begins after a damaged one at `damaged`: anywhere behind it in its block, whose lengths cannot
/// be trusted, or along the fragments of a later block.
fn begins_later(bytes: &[u8], damaged: usize, number: u32) -> bool {
    let is_beginning = |fragment: &Fragment| BEGINNINGS.contains(&fragment.kind);
    let block_end = (damaged / BLOCK_BYTES + 1) * BLOCK_BYTES;
    if (damaged + 1..block_end.min(bytes.len()))
        .any(|at| fragment(bytes, at, number).is_some_and(|found| is_beginning(&found)))
    {
        return true;
    }
    let mut at = block_end;
    while at < bytes.len() {
        match fragment(bytes, at, number) {
            Some(found) if is_beginning(&found) => return true,
            Some(found) => at = found.end,
            None => at = (at / BLOCK_BYTES + 1) * BLOCK_BYTES,
        }
    }
    false
}

/// The fragment at an offset, if one of this file is there and whole.
fn fragment(bytes: &[u8], at: usize, number: u32) -> Option<Fragment> {
    let rest = bytes.get(at..)?;
    let (header, _) = rest.split_first_chunk::<HEADER_BYTES>()?;
    let [c0, c1, c2, c3, l0, l1, kind] = *header;
    let is_recycled = RECYCLED.contains(&kind) || RECYCLED_NOTES.contains(&kind);
    if !is_recycled && !(1..=4).contains(&kind) && !NOTES.contains(&kind) {
        return None;
    }
    let header_bytes = if is_recycled { RECYCLED_HEADER_BYTES } else { HEADER_BYTES };
    let length = header_bytes + usize::from(u16::from_le_bytes([l0, l1]));
    if at % BLOCK_BYTES + length > BLOCK_BYTES {
        return None;
    }
    let whole = rest.get(..length)?;
    if is_recycled && whole.get(HEADER_BYTES..RECYCLED_HEADER_BYTES)? != number.to_le_bytes() {
        return None;
    }
    let checksum = crc32c::crc32c(whole.get(HEADER_BYTES - 1..)?);
    let masked = checksum.rotate_right(15).wrapping_add(MASK_DELTA);
    (masked == u32::from_le_bytes([c0, c1, c2, c3])).then_some(Fragment { kind, end: at + length })
}
