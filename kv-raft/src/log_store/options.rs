//! How large the parts of a log are, and whether the folder takes direct writes.
//!
//! Not here: the memory of recent entries (shard).

use std::path::Path;

use super::record::BLOCK_BYTES;
use crate::direct::takes_direct_writes;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_whole_blocks_whatever_the_budget() {
        for bytes in [0, 1 << 20, 7_812_500, 62_500_000, 64 << 20, 12_345_678_901] {
            let segment = Sizes::of(bytes).segment;
            let bounds = *SEGMENT_BYTES.start() as u64..=*SEGMENT_BYTES.end() as u64;
            assert!(bounds.contains(&segment) && segment.is_multiple_of(BLOCK_BYTES as u64), "{bytes}: {segment}");
        }
    }
}
