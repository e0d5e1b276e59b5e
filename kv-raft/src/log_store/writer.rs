//! The one thread that writes: gathers what waits, writes it as one batch with one fsync, notes it, then answers.
//!
//! Invariants: callbacks run after the fsync and after the note, in order; after one failure every callback gets it.
//!
//! Not here: when a change is queued (store).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use kv_proto::ids::ShardId;
use rocksdb::{DB, WriteBatch, WriteOptions};

use super::acknowledged::Acknowledged;
use super::engine::Shared;
use super::error::LogError;
use super::layout::{self, Item};
use super::queue::{Action, Change, Gathered};
use super::shard::ShardLog;
use crate::codec;
use crate::failpoint;
use crate::types::LogId;

/// Truncations up to this many entries delete each: a range tombstone at the log's end would slow every later read there.
const TRUNCATE_SINGLY_MAX: u64 = 1024;
/// Writes whose entries are remembered for eviction; the oldest are evicted early beyond it, so the list stays small when entries are tiny.
const EVICTIONS_MAX: usize = 1 << 16;

/// See the module.
pub(super) struct Writer {
    shared: Arc<Shared>,
    database: Arc<DB>,
    acknowledged: Acknowledged,
    options: WriteOptions,
    scratch: BytesMut,
    /// What was written, oldest first: a shard and its last index.
    evictable: VecDeque<(Arc<ShardLog>, u64)>,
}

/// Poisons the engine if the thread ends by a panic, so that nobody waits for ever.
struct Unwinding<'a>(&'a Shared);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poison("the log writer panicked");
        }
    }
}

/// The writer at work.
#[cfg(not(kv_sim))]
pub(super) struct Running(std::thread::JoinHandle<()>);

/// The writer at work, as a task.
#[cfg(kv_sim)]
pub(super) struct Running(pub(super) tokio::task::JoinHandle<()>);

#[cfg(not(kv_sim))]
impl Running {
    /// Until it has written what waits; the queue must be closed.
    pub(super) fn wait(self) {
        let _ = self.0.join();
    }
}

#[cfg(kv_sim)]
impl Running {
    /// A crash: what waits is not written.
    pub(super) fn wait(self) {
        self.0.abort();
    }
}

impl Writer {
    #[cfg(not(kv_sim))]
    pub(super) fn start(self) -> io::Result<Running> {
        std::thread::Builder::new().name("log-writer".to_owned()).spawn(move || self.run()).map(Running)
    }

    #[cfg(kv_sim)]
    #[expect(clippy::disallowed_methods, reason = "the engine owns it, as it owns the thread")]
    pub(super) fn start(self) -> io::Result<Running> {
        Ok(Running(tokio::spawn(self.run())))
    }

    pub(super) fn new(shared: Arc<Shared>, database: Arc<DB>, acknowledged: Acknowledged) -> Self {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Self { shared, database, acknowledged, options, scratch: BytesMut::new(), evictable: VecDeque::new() }
    }

    /// Until the queue is closed and empty.
    #[cfg(not(kv_sim))]
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _unwinding = Unwinding(&shared);
        loop {
            match shared.queue.gather() {
                Gathered::Batch(changes) => {
                    let result = self.write_all(&changes);
                    self.answer_all(changes, &result);
                }
                Gathered::Idle => self.sync_note(),
                Gathered::Closed => break,
            }
        }
        self.sync_note();
    }

    /// The same as a task, with a disk that takes its time.
    #[cfg(kv_sim)]
    pub(super) async fn run(mut self) {
        use crate::simulated::{Disk, disk};
        let shared = Arc::clone(&self.shared);
        let _unwinding = Unwinding(&shared);
        loop {
            match shared.queue.gather().await {
                Gathered::Batch(changes) => {
                    disk(Disk::BeforeWrite).await;
                    let result = self.write_all(&changes);
                    disk(Disk::BeforeAnswer).await;
                    self.answer_all(changes, &result);
                }
                Gathered::Idle => self.sync_note(),
                Gathered::Closed => break,
            }
        }
        self.sync_note();
    }

    fn sync_note(&mut self) {
        failpoint!("log.note");
        if let Err(error) = self.acknowledged.sync() {
            self.shared.poison(&format!("cannot sync {}: {error}", self.acknowledged.path().display()));
        }
    }

    fn write_all(&mut self, changes: &[Change]) -> Result<(), LogError> {
        let started = Instant::now();
        match self.shared.failure() {
            Some(failure) => Err(LogError::Poisoned(failure)),
            None => self.write(changes, started),
        }
    }

    fn answer_all(&mut self, changes: Vec<Change>, result: &Result<(), LogError>) {
        let kib = changes.iter().map(|change| change.kib).sum();
        failpoint!("log.answer");
        for change in changes {
            self.answer(change, result.clone());
        }
        self.shared.queue.release(kib);
        self.evict();
    }

    fn write(&mut self, changes: &[Change], started: Instant) -> Result<(), LogError> {
        let (batch, entries) = self.batch(changes, started)?;
        let metrics = &self.shared.metrics;
        metrics.batch_entries.observe(entries as f64);
        metrics.batch_bytes.observe(batch.size_in_bytes() as f64);
        metrics.entries.inc_by(entries);
        if batch.is_empty() {
            // Only barriers: everything before them is synced.
            return Ok(());
        }
        let started = Instant::now();
        let written = self.commit(batch).and_then(|()| {
            failpoint!("log.synced");
            let sequence = self.database.latest_sequence_number();
            self.acknowledged.note(sequence).map_err(|error| format!("{}: {error}", self.acknowledged.path().display()))
        });
        self.shared.metrics.synced(started.elapsed());
        #[cfg(kv_sim)]
        if written.is_ok() {
            changes.iter().for_each(Change::tell);
        }
        written.map_err(|failure| {
            self.shared.poison(&failure);
            LogError::Poisoned(failure)
        })
    }

    /// One write and its fsync.
    fn commit(&self, batch: WriteBatch) -> Result<(), String> {
        #[cfg(test)]
        self.shared.fault.before_write()?;
        failpoint!("log.write", "a failpoint".to_owned());
        self.database.write_opt(batch, &self.options).map_err(|error| error.to_string())
    }

    /// All changes in order, and for each shard its last committed log id and its log's end once.
    fn batch(&mut self, changes: &[Change], started: Instant) -> Result<(WriteBatch, u64), LogError> {
        let database = Arc::clone(&self.database);
        let families = database.cf_handle(layout::LOG).zip(database.cf_handle(layout::STATE));
        let (log, state) = families.ok_or(LogError::Closed)?;
        let kib: usize = changes.iter().map(|change| change.kib).sum();
        let mut batch = WriteBatch::with_capacity_bytes(kib << 10);
        let mut tails: BTreeMap<ShardId, Option<LogId>> = BTreeMap::new();
        let mut committed: BTreeMap<ShardId, Option<LogId>> = BTreeMap::new();
        let mut written = 0;
        for Change { shard, action, queued, .. } in changes {
            let shard = shard.shard;
            match action {
                Action::Append { entries, .. } => {
                    for entry in entries {
                        self.scratch.clear();
                        codec::encode_entry(entry, &mut self.scratch);
                        batch.put_cf(log, layout::log_key(shard, entry.log_id.index), &self.scratch);
                    }
                    written += entries.len() as u64;
                    if let Some(last) = entries.last() {
                        tails.insert(shard, Some(last.log_id));
                    }
                    self.shared.metrics.queue.observe(started.saturating_duration_since(*queued).as_secs_f64());
                }
                Action::Truncate { start, end, tail, .. } => {
                    failpoint!("log.truncate");
                    if end - start <= TRUNCATE_SINGLY_MAX {
                        (*start..*end).for_each(|index| batch.delete_cf(log, layout::log_key(shard, index)));
                    } else {
                        batch.delete_range_cf(log, layout::log_key(shard, *start), layout::log_key(shard, *end));
                    }
                    tails.insert(shard, *tail);
                }
                Action::Purge { upto, tail, .. } => {
                    failpoint!("log.purge");
                    batch.delete_range_cf(log, layout::log_key(shard, 0), layout::log_key(shard, upto.index + 1));
                    batch.put_cf(state, layout::state_key(shard, Item::Purged), layout::encode_pointer(Some(upto)));
                    tails.insert(shard, *tail);
                }
                Action::SaveVote { vote, .. } => {
                    failpoint!("log.vote");
                    batch.put_cf(state, layout::state_key(shard, Item::Vote), layout::encode_vote(vote));
                }
                Action::SaveCommitted(log_id) => {
                    committed.insert(shard, *log_id);
                }
                Action::SaveOwner(replica) => {
                    batch.put_cf(state, layout::state_key(shard, Item::Owner), layout::encode_owner(*replica));
                }
                Action::Destroy { .. } => {
                    failpoint!("log.destroy");
                    batch.delete_range_cf(log, &layout::log_key(shard, 0)[..], &layout::log_end(shard)[..]);
                    for item in [Item::Owner, Item::Vote, Item::Committed, Item::Purged, Item::Tail] {
                        batch.delete_cf(state, layout::state_key(shard, item));
                    }
                    tails.remove(&shard);
                    committed.remove(&shard);
                }
                Action::Barrier { .. } => {}
            }
        }
        for (item, pointers) in [(Item::Tail, &tails), (Item::Committed, &committed)] {
            for (shard, log_id) in pointers {
                batch.put_cf(state, layout::state_key(*shard, item), layout::encode_pointer(log_id.as_ref()));
            }
        }
        Ok((batch, written))
    }

    fn answer(&mut self, change: Change, result: Result<(), LogError>) {
        let Change { shard, action, .. } = change;
        let durable = result.is_ok();
        match action {
            Action::Append { entries, generation, callback } => {
                if let (true, Some(last)) = (durable, entries.last()) {
                    shard.completed(generation, last.log_id.index + 1);
                    self.evictable.push_back((shard, last.log_id.index));
                }
                callback.io_completed(result.map_err(io::Error::from));
            }
            Action::Truncate { start, generation, .. } if durable => shard.completed(generation, start),
            Action::Purge { upto, generation, .. } if durable => shard.completed(generation, upto.index + 1),
            Action::SaveVote { done, .. } | Action::Destroy { done } | Action::Barrier { done } => {
                // Whoever no longer waits needs no answer.
                let _ = done.send(result);
            }
            Action::Truncate { .. } | Action::Purge { .. } | Action::SaveCommitted(_) | Action::SaveOwner(_) => {}
        }
    }

    /// Oldest writes first, over all shards, until what is cached fits its budget.
    fn evict(&mut self) {
        while self.shared.cached.over_budget() || self.evictable.len() > EVICTIONS_MAX {
            let Some((shard, through)) = self.evictable.pop_front() else { break };
            self.shared.cached.remove(shard.evict(through));
        }
        self.shared.metrics.cache_bytes.set(i64::try_from(self.shared.cached.bytes()).unwrap_or(i64::MAX));
    }
}
