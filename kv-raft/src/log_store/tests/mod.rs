//! The promises of the log engine: conformance to openraft, order and acknowledgement, crashes and damage.

pub(crate) mod conformance;
mod crash;
mod damage;
mod files;
mod order;
mod random;

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kv_proto::ids::{ReplicaId, ShardId};
use kv_proto::timestamp::Timestamp;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, RaftLogReader};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::options::Sizes;
use super::record::{BLOCK_BYTES, FirstBlock, Record};
use super::{LogEngine, LogMetrics, LogOptions, LogStore, OpenError};
use crate::command::{Command, CommandBatch, EncodedCommand, Operation};
use crate::types::{Entry, LeaderId, LogId, ShardRaft, Vote};

/// Longest wait for anything that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Holds up or fails the writer.
#[derive(Debug, Default)]
pub(crate) struct Fault {
    /// Writes that may still pass while the gate is held.
    held: Mutex<Option<usize>>,
    released: Condvar,
    fails: AtomicBool,
    panics: AtomicBool,
    writes: AtomicUsize,
}

impl Fault {
    /// The writer stops before its next write until the guard is dropped.
    pub(crate) fn hold(&self) -> Held<'_> {
        *self.held.lock() = Some(0);
        Held(self)
    }

    /// The next write fails as a disk would, and only that one.
    pub(crate) fn fail_next(&self) {
        self.fails.store(true, Ordering::Release);
    }

    /// The next append panics, in whichever task makes it: that of consensus.
    pub(crate) fn panic_next_append(&self) {
        self.panics.store(true, Ordering::Release);
    }

    pub(crate) fn before_append(&self) {
        assert!(!self.panics.swap(false, Ordering::AcqRel), "injected: consensus panics");
    }

    /// Writes that were begun.
    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::Acquire)
    }

    pub(crate) fn before_write(&self) -> Result<(), String> {
        self.writes.fetch_add(1, Ordering::AcqRel);
        let mut held = self.held.lock();
        self.released.wait_while(&mut held, |held| *held == Some(0));
        *held = held.map(|passes| passes - 1);
        drop(held);
        if self.fails.swap(false, Ordering::AcqRel) { Err("injected: the disk is gone".to_owned()) } else { Ok(()) }
    }
}

/// Lets the writer go on when dropped.
pub(crate) struct Held<'a>(&'a Fault);

impl Held<'_> {
    /// Lets one write pass.
    fn pass(&self) {
        *self.0.held.lock() = Some(1);
        self.0.released.notify_all();
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.held.lock() = None;
        self.0.released.notify_all();
    }
}

pub(crate) fn options() -> LogOptions {
    LogOptions { memory_bytes: 16 << 20, metrics: LogMetrics::unregistered() }
}

pub(crate) fn open(dir: &Path) -> LogEngine {
    LogEngine::open(dir, options()).unwrap()
}

fn try_open(dir: &Path) -> Result<LogEngine, OpenError> {
    LogEngine::open(dir, options())
}

fn store(engine: &LogEngine, shard: u64) -> LogStore {
    engine.store(ShardId(shard), ReplicaId(shard * 10)).unwrap()
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let value = vec![u8::try_from(index % 251).unwrap(); bytes];
    let command = Command {
        session: None,
        conditions: Vec::new(),
        operations: vec![Operation::Put { key: b"k", value: &value }],
    };
    let batch = CommandBatch::new(Timestamp(term), &[EncodedCommand::new(&command)]);
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(batch) }
}

pub(crate) fn entries(term: u64, range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(|index| entry(term, index, 20)).collect()
}

pub(crate) fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: 1 }, committed: false }
}

type Answer = oneshot::Receiver<Result<(), std::io::Error>>;

/// Appends and returns what the callback will say.
async fn submit(store: &mut LogStore, entries: Vec<Entry>) -> Answer {
    let (tx, rx) = ShardRaft::oneshot();
    store.append(entries, IOFlushed::signal(tx)).await.unwrap();
    rx
}

/// Appends and waits for the acknowledgement.
pub(crate) async fn append(store: &mut LogStore, entries: Vec<Entry>) {
    submit(store, entries).await.await.unwrap().unwrap();
}

async fn read(store: &LogStore) -> Vec<Entry> {
    store.clone().get_log_reader().await.try_get_log_entries(..).await.unwrap()
}

/// What a restart would find.
async fn reopened(dir: &Path, shard: u64) -> Vec<Entry> {
    let engine = open(dir);
    let found = read(&store(&engine, shard)).await;
    engine.close().await;
    found
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// Segments so small that a few writes fill one.
const SMALL: Sizes = Sizes { entries: 0, segment: 48 << 10, direct: false };

/// An engine with small segments and no entries in memory.
fn open_small(dir: &Path) -> LogEngine {
    LogEngine::open_sized(dir, options(), SMALL).unwrap()
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn is_segment(path: &Path) -> bool {
    name(path).starts_with("segment-")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|item| item.unwrap().path()).collect();
    files.sort();
    files
}

/// Copies a folder in use as a crash would leave it: the note first, and each segment from its end to its beginning, since it is
/// written from the beginning to the end.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for path in files(from) {
        let (source, target) = (std::fs::File::open(&path)?, std::fs::File::create(to.join(name(&path)))?);
        let length = source.metadata()?.len();
        target.set_len(length)?;
        let mut bytes = vec![0; 64 << 10];
        for at in (0..length).step_by(bytes.len()).collect::<Vec<_>>().into_iter().rev() {
            let read = source.read_at(&mut bytes, at)?;
            target.write_all_at(&bytes[..read], at)?;
        }
    }
    Ok(())
}

/// Files of a folder with what they hold.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files(dir).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Where the last record of a segment begins and ends.
fn last_record(bytes: &[u8]) -> std::ops::Range<usize> {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    let FirstBlock::Header(header) = FirstBlock::of(&bytes) else { panic!("no header") };
    let (mut last, mut at) = (0..0, BLOCK_BYTES);
    while let Some(record) = Record::parse(&bytes.slice(at..), header.salt) {
        last = at..at + record.bytes();
        at = last.end.min(bytes.len());
    }
    last
}
