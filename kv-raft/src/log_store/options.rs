//! RocksDB tuned for a log: written once in order, read from memory, deleted from the front.
//!
//! Not here: the memory of recent entries (shard).

use std::path::Path;

use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, LogLevel, Options};
use rustix::fs::{Mode, OFlags};

use super::layout::{LOG, STATE};

/// Smallest useful budget: below it memtables get so small that flushes dominate.
pub(super) const MEMORY_BYTES_MIN: usize = 16 << 20;
/// Write-ahead files kept for reuse. Writing over allocated blocks spares the fsync the file's metadata (1.2 to 1.45 times
/// the rate); two, since one is being flushed while the other fills.
const RECYCLED_WAL_FILES: usize = 2;
/// Files kept open. A log has few: a flush makes one, a purge removes them.
const OPEN_FILES_MAX: i32 = 256;

/// How a memory budget is divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// One memtable; at most two and a half exist.
    pub(super) memtable: usize,
    /// Blocks of files: only followers far behind and restarts read these.
    pub(super) blocks: usize,
    /// Recent entries.
    pub(super) entries: usize,
}

impl Budget {
    pub(super) fn of(bytes: usize) -> Self {
        let bytes = bytes.max(MEMORY_BYTES_MIN);
        Self { memtable: bytes / 5, blocks: bytes / 16, entries: bytes * 7 / 16 }
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

/// Options of the database; `direct` if flushes and compactions may write past the page cache.
pub(super) fn database(budget: Budget, create: bool, direct: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    // Checksums everywhere, and the engine turns read-only by itself on the first background error.
    options.set_paranoid_checks(true);
    // Up to the first damaged record, so that the torn record of an unfinished write does not stop a restart. It would
    // also drop acknowledged records silently; `wal` and `verify` refuse in that case. The modes that refuse by
    // themselves (absolute consistency, tolerated tail) either refuse every torn write or forbid recycled files.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_recycle_log_file_num(RECYCLED_WAL_FILES);
    // A write-ahead file that is gone or shorter than it was when it was closed refuses to open.
    options.set_track_and_verify_wals_in_manifest(true);
    // The small `state` family must not keep old write-ahead files alive: past this it is flushed.
    options.set_max_total_wal_size(budget.memtable as u64 * 2);
    options.set_db_write_buffer_size(budget.memtable * 5 / 2);
    // Read again only by compactions, restarts and followers far behind: a copy of it in the page cache costs half of a flush's
    // processor time, and writing that back at once holds up the fsyncs of the write-ahead file.
    options.set_use_direct_io_for_flush_and_compaction(direct);
    // Elsewhere files are written out as they grow instead of all at once before an fsync waits for them. The write-ahead file is
    // synced with each batch anyway.
    options.set_bytes_per_sync(1 << 20);
    // One thread writes: the machinery for several only costs.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_pipelined_write(false);
    options.set_max_background_jobs(2);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options
}

/// The column families with their options.
pub(super) fn families(budget: Budget) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(budget.blocks);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&cache);
    blocks.set_block_size(32 << 10);
    // Footer and block checksums bound to their place in the file.
    blocks.set_format_version(6);

    let mut log = Options::default();
    log.set_block_based_table_factory(&blocks);
    // Entries are mostly purged before a compaction could win anything by compressing them.
    log.set_compression_type(DBCompressionType::None);
    log.set_write_buffer_size(budget.memtable);
    log.set_max_write_buffer_number(3);
    log.set_target_file_size_base(budget.memtable as u64);
    log.set_max_bytes_for_level_base(budget.memtable as u64 * 8);
    // Level-0 files of a log barely overlap (keys grow within each shard), so many of them cost reads little, while a stalled write
    // stalls every shard of the node.
    log.set_level_zero_file_num_compaction_trigger(8);
    log.set_level_zero_slowdown_writes_trigger(64);
    log.set_level_zero_stop_writes_trigger(128);
    log.set_level_compaction_dynamic_level_bytes(true);

    let mut state = Options::default();
    state.set_block_based_table_factory(&blocks);
    state.set_compression_type(DBCompressionType::None);
    // The same few keys over and over: small files, merged early.
    state.set_write_buffer_size((budget.memtable / 8).max(1 << 20));
    state.set_level_zero_file_num_compaction_trigger(2);

    vec![
        ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, Options::default()),
        ColumnFamilyDescriptor::new(LOG, log),
        ColumnFamilyDescriptor::new(STATE, state),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_takes_no_direct_writes_is_noticed() {
        assert!(Path::new("/proc/self").is_dir() && !takes_direct_writes(Path::new("/proc/self")));
    }

    #[test]
    fn tables_are_written_directly_where_the_folder_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        let direct = takes_direct_writes(dir.path());
        drop(crate::log_store::tests::open(dir.path()));
        let options = |file: &std::path::PathBuf| file.to_string_lossy().contains("OPTIONS-");
        let file = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).find(options).unwrap();
        let line = format!("use_direct_io_for_flush_and_compaction={direct}");
        assert!(std::fs::read_to_string(file).unwrap().contains(&line), "{line}");
        assert!(!dir.path().join(PROBE).exists());
    }
}
