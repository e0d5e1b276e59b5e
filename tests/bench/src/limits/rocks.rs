//! What RocksDB alone makes durable: one process, no network, no replication.
//!
//! Not here: how our engines are set up (kv-raft).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rocksdb::{DB, Options, WriteBatch, WriteOptions};

use crate::record::Limit;
use crate::shapes::{KEYS, VALUE_BYTES};

use super::Watch;

const THREADS: u64 = 64;
const BATCH: u32 = 64;
const VALUE: [u8; VALUE_BYTES] = [7; VALUE_BYTES];

/// Each thread waits for its own write; RocksDB joins those that wait into one sync.
pub(super) fn threads(each: Duration) -> Result<Limit> {
    let (_folder, db) = open()?;
    let mut all = Watch::start(each)?;
    thread::scope(|scope| {
        let db = &db;
        let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || write(db, number, each))).collect();
        for thread in threads {
            let joined = thread.join().ok().context("a thread panicked")??;
            all.latency += joined.latency;
        }
        anyhow::Ok(())
    })?;
    Ok(all.limit(1))
}

fn write(db: &DB, thread: u64, each: Duration) -> Result<Watch> {
    let synced = synced();
    let mut watch = Watch::start(each)?;
    for number in 0.. {
        if !watch.goes_on() {
            break;
        }
        let began = Instant::now();
        db.put_opt(key(number * THREADS + thread), VALUE, &synced)?;
        watch.record(began);
    }
    Ok(watch)
}

/// One thread that has always a batch to write.
pub(super) fn batches(each: Duration) -> Result<Limit> {
    let (_folder, db) = open()?;
    let synced = synced();
    let mut watch = Watch::start(each)?;
    for number in 0_u64.. {
        if !watch.goes_on() {
            break;
        }
        let began = Instant::now();
        let mut batch = WriteBatch::default();
        for entry in 0..u64::from(BATCH) {
            batch.put(key(number * u64::from(BATCH) + entry), VALUE);
        }
        db.write_opt(batch, &synced)?;
        watch.record(began);
    }
    Ok(watch.limit(BATCH))
}

fn open() -> Result<(tempfile::TempDir, DB)> {
    let folder = tempfile::tempdir()?;
    let mut options = Options::default();
    options.create_if_missing(true);
    // As our log does: written blocks are used again, which spares the sync the file's metadata.
    options.set_recycle_log_file_num(2);
    let db = DB::open(&options, folder.path().join("db"))?;
    Ok((folder, db))
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

/// Spread over the keys of the load shapes, without order.
fn key(number: u64) -> String {
    format!("k{:015}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS)
}
