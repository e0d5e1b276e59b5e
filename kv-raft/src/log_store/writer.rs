//! The one thread that writes: gathers what waits, has it written as one record with one fsync, then answers.
//!
//! Invariants: callbacks run after the fsync and after the note, in order; after one failure every callback gets it.
//!
//! Not here: when a change is queued (store); how it is written (disk).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::disk::Disk;
use super::engine::Shared;
use super::error::LogError;
use super::queue::{Action, Change, Gathered};
use super::shard::ShardLog;
use crate::failpoint;

/// Writes whose entries are remembered for eviction; the oldest are evicted early beyond it, so the list stays small when entries are tiny.
const EVICTIONS_MAX: usize = 1 << 16;

/// See the module.
pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Disk,
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

    pub(super) fn new(shared: Arc<Shared>, disk: Disk) -> Self {
        Self { shared, disk, evictable: VecDeque::new() }
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
        if let Err(failure) = self.disk.sync_note() {
            self.shared.poison(&failure);
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
        let mut entries = 0;
        for Change { action, queued, .. } in changes {
            if let Action::Append { entries: appended, .. } = action {
                entries += appended.len() as u64;
                self.shared.metrics.queue.observe(started.saturating_duration_since(*queued).as_secs_f64());
            }
        }
        self.shared.metrics.batch_entries.observe(entries as f64);
        if changes.iter().all(|change| matches!(change.action, Action::Barrier { .. })) {
            // Everything before them is synced.
            return Ok(());
        }
        let started = Instant::now();
        let written = self.commit(changes);
        let metrics = &self.shared.metrics;
        metrics.synced(started.elapsed());
        metrics.entries.inc_by(entries);
        if let Ok(bytes) = &written {
            metrics.batch_bytes.observe(*bytes as f64);
        }
        #[cfg(kv_sim)]
        if written.is_ok() {
            changes.iter().for_each(Change::tell);
        }
        written.map(|_| ()).map_err(|failure| {
            self.shared.poison(&failure);
            LogError::Poisoned(failure)
        })
    }

    /// One record and its fsync.
    fn commit(&mut self, changes: &[Change]) -> Result<usize, String> {
        #[cfg(test)]
        self.shared.fault.before_write()?;
        failpoint!("log.write", "a failpoint".to_owned());
        self.disk.write(changes)
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
