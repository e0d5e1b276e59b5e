//! How RocksDB is set up. All memory comes from one budget.
//!
//! Not here: what the tables hold (keys, rows).

use std::io;
use std::sync::Arc;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionPri, DBCompressionType, Env,
    Options,
};

use super::collect::{CollectorFactory, Safepoints};
use crate::background;

/// How much the engine may use.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Memory for what is read: blocks, indexes and filters included, and rows; in bytes.
    pub cache_bytes: usize,
    /// Memory for what is written and not flushed, in bytes.
    pub write_buffer_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_threads: u16,
    /// Bytes per second that flushes and compactions may write together; 0 is unlimited.
    pub background_bytes_per_second: u64,
    /// If all tables together are at most this long, every block is checked at open, in bytes.
    pub verify_bytes: u64,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 128 << 20,
            write_buffer_bytes: 64 << 20,
            background_threads: 2,
            background_bytes_per_second: 0,
            verify_bytes: 128 << 20,
        }
    }
}

/// The part of the cache for rows. A row found there spares a point read the search, but brings none of its neighbours
/// along, and no filter.
const ROW_CACHE_PART: usize = 4;

/// The part of the memory for what is written that is for rows on their way to RocksDB.
const UNWRITTEN_PART: usize = 4;

/// And at most so much: a third of it is one write, for which others wait, and more of it gains nothing.
const UNWRITTEN_BYTES_MAX: usize = 24 << 20;

/// Write buffers of one table before its writers wait: one that fills, three that are flushed.
const WRITE_BUFFERS: u16 = 4;

/// Files of the first level before they are merged. Each merge writes what they overlap in the next level again, so twice
/// the usual number halves that; a point read asks their filters, which are in memory.
pub(super) const FIRST_LEVEL_FILES: i32 = 8;

/// Below this a flush makes files so small that compaction cannot keep up.
const WRITE_BUFFER_BYTES_MIN: usize = 1 << 20;

/// Blocks of point reads: small enough to read one in one disk access, large enough to compress.
const BLOCK_BYTES: usize = 8 << 10;

/// Bits per key of a filter as good as a bloom filter of this many: one read in a hundred touches a file in vain.
const FILTER_BITS: f64 = 10.0;

/// Files of this length keep a terabyte below [`OPEN_FILES_MAX`] times four.
const TABLE_FILE_BYTES: u64 = 64 << 20;

/// File handles kept open; below the usual limit of a service.
const OPEN_FILES_MAX: i32 = 4096;

/// Dirty pages are written back in steps of this length, so that a sync at the end has little left to wait for.
const BYTES_PER_SYNC: u64 = 1 << 20;

/// Files are written in pieces of this length, or of a block if that is longer. Without full preemption the kernel copies a piece without
/// letting go of the processor: one of a megabyte keeps whoever was woken there waiting for a millisecond.
const WRITE_BYTES: u64 = 64 << 10;

/// The same for direct writes, which nobody copies: the log waits behind one for the disk.
const DIRECT_WRITE_BYTES: u64 = 256 << 10;

/// Refill period of the rate limiter and the share of low-priority requests in it: RocksDB's defaults.
const RATE_REFILL_MICROS: i64 = 100_000;
const RATE_FAIRNESS: i32 = 10;

/// The tables, one column family each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Latest,
    History,
    Changes,
    Meta,
}

impl Table {
    pub(crate) const ALL: [Self; 4] = [Self::Latest, Self::History, Self::Changes, Self::Meta];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::History => "history",
            Self::Changes => "changes",
            Self::Meta => "meta",
        }
    }

    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

/// Options of the whole database, in a folder that may take direct writes.
pub(crate) fn database(options: &DataOptions, create: bool, direct: bool) -> Options {
    let mut db = Options::default();
    db.create_if_missing(create);
    db.create_missing_column_families(create);
    db.set_paranoid_checks(true);
    // The applied log id and the data it belongs to reach the disk together or not at all.
    db.set_atomic_flush(true);
    db.set_db_write_buffer_size(write_buffers(options));
    // Shards that apply at once: one of them writes for all, and the others sleep meanwhile. Several threads in one
    // memtable are slower than one (441,000 against 214,000 puts/s on two cores), and waiting by spinning takes the
    // processor from whoever could go on.
    db.set_allow_concurrent_memtable_write(false);
    db.set_enable_write_thread_adaptive_yield(false);
    db.set_max_background_jobs(background_jobs(options));
    db.set_max_open_files(OPEN_FILES_MAX);
    db.set_bytes_per_sync(BYTES_PER_SYNC);
    // What is flushed or merged is read from the caches above, if at all; through the kernel's it would take up to a tenth of the
    // processor time of a lone caller's batches, and the disk in bursts.
    db.set_use_direct_io_for_flush_and_compaction(direct);
    db.set_writable_file_max_buffer_size(if direct { DIRECT_WRITE_BYTES } else { WRITE_BYTES });
    // Two info logs of bounded length; what matters is in our own log.
    db.set_keep_log_file_num(2);
    db.set_max_log_file_size(1 << 20);
    db.set_stats_dump_period_sec(0);
    if let Ok(rate @ 1..) = i64::try_from(options.background_bytes_per_second) {
        db.set_ratelimiter(rate, RATE_REFILL_MICROS, RATE_FAIRNESS);
    }
    // Dropping the engine is a crash there: what was not flushed is lost.
    #[cfg(kv_sim)]
    let db = db.get_options_from_string("avoid_flush_during_shutdown=true").expect("RocksDB knows the option");
    db
}

/// Starts the threads that all databases of a process share, in the background: as many of each kind as RocksDB would, which would
/// leave them the share of whoever opens the first.
pub(crate) fn start_threads(options: &DataOptions) -> io::Result<()> {
    let flushes = (background_jobs(options) / 4).max(1);
    let compactions = (background_jobs(options) - flushes).max(1);
    let started = background::run(move || {
        let mut env = Env::new()?;
        env.set_high_priority_background_threads(flushes);
        env.set_background_threads(compactions);
        Ok(())
    })?;
    started.map_err(|error: rocksdb::Error| io::Error::other(error))
}

fn background_jobs(options: &DataOptions) -> i32 {
    i32::from(options.background_threads.max(2))
}

/// The column families with their options; one block cache serves all.
pub(crate) fn tables(options: &DataOptions, safepoints: &Arc<Safepoints>) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(options.cache_bytes - row_cache_bytes(options));
    let describe =
        |table: Table| ColumnFamilyDescriptor::new(table.name(), of_table(table, options, &cache, safepoints));
    let mut all = vec![ColumnFamilyDescriptor::new("default", Options::default())];
    all.extend(Table::ALL.map(describe));
    all
}

/// Options of files that are written to be ingested elsewhere.
pub(crate) fn snapshot_file(table: Table) -> Options {
    let mut out = Options::default();
    out.set_block_based_table_factory(&blocks(table));
    out.set_compression_type(DBCompressionType::Lz4);
    out
}

fn of_table(table: Table, options: &DataOptions, cache: &Cache, safepoints: &Arc<Safepoints>) -> Options {
    let mut blocks = blocks(table);
    blocks.set_block_cache(cache);
    let mut out = Options::default();
    out.set_block_based_table_factory(&blocks);
    out.set_write_buffer_size(write_buffers(options) / usize::from(WRITE_BUFFERS / 2));
    out.set_max_write_buffer_number(i32::from(WRITE_BUFFERS));
    // lz4 costs next to nothing where files are rewritten often; nine tenths of the data lie in the bottom level, where
    // zstd halves it once more.
    out.set_compression_type(DBCompressionType::Lz4);
    out.set_bottommost_compression_type(DBCompressionType::Zstd);
    out.set_target_file_size_base(TABLE_FILE_BYTES);
    out.set_level_zero_file_num_compaction_trigger(FIRST_LEVEL_FILES);
    out.set_level_zero_slowdown_writes_trigger(FIRST_LEVEL_FILES * 3);
    out.set_level_zero_stop_writes_trigger(FIRST_LEVEL_FILES * 5);
    // Files that overlap least below first: least rewriting per byte written.
    out.set_compaction_pri(CompactionPri::MinOverlappingRatio);
    out.set_level_compaction_dynamic_level_bytes(true);
    // Until the folder is checked: see Store::open.
    out.set_disable_auto_compactions(true);
    match table {
        Table::History | Table::Changes => {
            // What nothing overwrites is collected all the same, once a day.
            out.set_periodic_compaction_seconds(24 * 3600);
            out.set_compaction_filter_factory(CollectorFactory::new(Arc::clone(safepoints)));
        }
        Table::Latest | Table::Meta => {}
    }
    out
}

fn blocks(table: Table) -> BlockBasedOptions {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_format_version(5);
    blocks.set_block_size(BLOCK_BYTES);
    // Indexes and filters of data larger than memory do not fit either: they are cut up and cached like data, with
    // their top level pinned.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_top_level_index_and_filter(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    match table {
        // Point reads. A ribbon filter is a third smaller than a bloom filter; fresh files, which live shortly, get
        // the bloom filter that is cheaper to make.
        Table::Latest | Table::Meta => {
            blocks.set_hybrid_ribbon_filter(FILTER_BITS, 1);
            blocks.set_whole_key_filtering(true);
        }
        // Read by seeking only: a filter would never be asked.
        Table::History | Table::Changes => {}
    }
    blocks
}

/// Memory for rows read lately, in bytes.
pub(super) fn row_cache_bytes(options: &DataOptions) -> usize {
    options.cache_bytes / ROW_CACHE_PART
}

/// Memory for what is applied and not written to RocksDB, in bytes.
pub(super) fn unwritten_bytes(options: &DataOptions) -> usize {
    // In the simulation so little that it fills up again and again.
    let bytes_max = if cfg!(kv_sim) { 8 << 10 } else { UNWRITTEN_BYTES_MAX };
    (options.write_buffer_bytes / UNWRITTEN_PART).min(bytes_max)
}

fn write_buffers(options: &DataOptions) -> usize {
    let left = options.write_buffer_bytes - unwritten_bytes(options);
    left.max(WRITE_BUFFER_BYTES_MIN * usize::from(WRITE_BUFFERS))
}
