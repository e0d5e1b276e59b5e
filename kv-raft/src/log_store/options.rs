//! How large the parts of a log are, and whether the folder takes direct writes.
//!
//! Not here: the memory of recent entries (shard).

use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::record::BLOCK_BYTES;

/// Smallest budget.
const MEMORY_BYTES_MIN: usize = 1 << 20;
/// A segment is an eighth of the budget, within these bounds: beginning one costs a few syncs, and it is kept as long as
/// anything in it.
const SEGMENT_BYTES: std::ops::RangeInclusive<usize> = 256 << 10..=16 << 20;

/// Sizes of a log, and how it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Bytes of recent entries in memory.
    pub(super) entries: usize,
    /// Bytes of a segment, whole blocks; only a record that is larger makes it longer.
    pub(super) segment: u64,
    /// Whether the page cache is passed by: what is written is read again only at start and by followers far behind, a copy of
    /// it costs processor time, and an fsync has less to look for.
    pub(super) direct: bool,
}

impl Sizes {
    /// Of a memory budget in bytes. What is not for entries is for the writer's buffer and the places of entries on disk.
    pub(super) fn of(memory_bytes: usize) -> Self {
        let bytes = memory_bytes.max(MEMORY_BYTES_MIN);
        let segment = (bytes / 8).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end()) / BLOCK_BYTES * BLOCK_BYTES;
        Self { entries: bytes * 5 / 8, segment: segment as u64, direct: false }
    }

    /// The same, with what the folder takes.
    pub(super) fn for_folder(self, dir: &Path) -> Self {
        Self { direct: takes_direct_writes(dir), ..self }
    }
}

/// A file of this name is written and removed when a folder is opened.
const PROBE: &str = "direct.probe";

/// What one direct write needs on any disk: a page, aligned.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// Whether files of a folder can be written past the page cache. If it cannot be told, they are not.
pub(super) fn takes_direct_writes(dir: &Path) -> bool {
    let probe = dir.join(PROBE);
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let written = rustix::fs::open(&probe, flags, Mode::RUSR | Mode::WUSR)
        .and_then(|file| rustix::io::write(file, &Page([0; 4096]).0));
    // It is only in the way of nobody; the next one writes it again.
    let _ = std::fs::remove_file(&probe);
    written.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_takes_no_direct_writes_is_noticed() {
        assert!(Path::new("/proc/self").is_dir() && !takes_direct_writes(Path::new("/proc/self")));
    }

    #[test]
    fn a_segment_is_whole_blocks_whatever_the_budget() {
        for bytes in [0, 1 << 20, 7_812_500, 62_500_000, 64 << 20, 12_345_678_901] {
            let segment = Sizes::of(bytes).segment;
            let bounds = *SEGMENT_BYTES.start() as u64..=*SEGMENT_BYTES.end() as u64;
            assert!(bounds.contains(&segment) && segment.is_multiple_of(BLOCK_BYTES as u64), "{bytes}: {segment}");
        }
    }

    #[test]
    fn nothing_is_left_of_the_probe() {
        let dir = tempfile::tempdir().unwrap();
        takes_direct_writes(dir.path());
        assert!(!dir.path().join(PROBE).exists());
    }
}
