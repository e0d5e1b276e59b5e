//! The log engine of a node: opens and verifies the folder, hands out the logs of replicas, fails for good, closes.
//!
//! Invariants: one engine per folder; a failure is sticky and wakes everyone who waits.
//!
//! Not here: the calls openraft makes (store).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kv_proto::ids::{ReplicaId, ShardId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::disk::Disk;
use super::error::{LogError, OpenError};
use super::metrics::LogMetrics;
use super::options::Sizes;
use super::queue::{Action, Change, Done, Due, Queue, Space};
use super::read::Files;
use super::replay;
use super::shard::{ShardLog, State};
use super::store::LogStore;
use super::writer::{Running, Writer};
use crate::failpoint;
use crate::failure::Failure;
use crate::metrics::{RaftMetrics, Stage};

/// How a log engine is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Memory for recent entries, what is written and where entries lie, together, in bytes; at least 1 MiB is taken.
    pub memory_bytes: usize,
    /// Where it counts.
    pub metrics: Arc<LogMetrics>,
}

/// The logs of all replicas of a node. Clones share one engine.
#[derive(Clone)]
pub struct LogEngine(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    shared: Arc<Shared>,
    writer: Mutex<Option<Running>>,
}

/// What the handles and the writer share.
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) metrics: Arc<LogMetrics>,
    pub(super) cached: Cached,
    shards: Mutex<BTreeMap<ShardId, Arc<ShardLog>>>,
    pub(super) files: Arc<Files>,
    failure: Failure,
    #[cfg(test)]
    pub(super) fault: Arc<super::tests::Fault>,
    #[cfg(test)]
    pub(super) syncs: Arc<AtomicUsize>,
}

/// Bytes of recent entries in memory, over all shards.
#[derive(Debug)]
pub(super) struct Cached {
    bytes: AtomicUsize,
    budget: usize,
}

impl Cached {
    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn over_budget(&self) -> bool {
        self.bytes() > self.budget
    }
}

impl Shared {
    /// Why nothing is accepted any more, if so.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.reason()
    }

    /// Fails for good; the first reason stays.
    pub(super) fn poison(&self, reason: &str) {
        if self.failure.set(reason) {
            tracing::error!(reason, "log engine failed: the process must end and recover from disk");
        }
        self.shards.lock().values().for_each(|shard| shard.wake());
    }

    pub(super) fn check(&self) -> Result<(), LogError> {
        self.failure().map_or(Ok(()), |failure| Err(LogError::Poisoned(failure)))
    }

    fn shard(&self, shard: ShardId) -> Option<Arc<ShardLog>> {
        self.shards.lock().get(&shard).cloned()
    }

    /// Queues a change that has an answer and waits for it.
    pub(super) async fn answered<'q>(
        &'q self,
        shard: &Arc<ShardLog>,
        queue: impl FnOnce(Done, Space<'_>) -> Result<Due<'q>, LogError>,
    ) -> Result<(), LogError> {
        self.check()?;
        let space = self.queue.reserve(0).await?;
        let (done, answer) = oneshot::channel();
        drop(queue(done, space)?);
        let answer = answer.await;
        answer.unwrap_or_else(|_| self.check().and(Err(LogError::NoLog(shard.shard))))
    }

    /// Waits until the log of a shard is durable through an index.
    async fn durable(&self, shard: &ShardLog, index: u64) -> Result<(), LogError> {
        while shard.durable_end() <= index {
            let changed = shard.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.check()?;
            if shard.is_destroyed() {
                return Err(LogError::NoLog(shard.shard));
            }
            if self.files.is_closed() {
                return Err(LogError::Closed);
            }
            if shard.durable_end() <= index {
                changed.await;
            }
        }
        Ok(())
    }
}

impl LogEngine {
    /// Opens a folder, creating it if it does not exist, and verifies it. Blocking: reads the whole log once.
    pub fn open(dir: &Path, options: LogOptions) -> Result<Self, OpenError> {
        let sizes = Sizes::of(options.memory_bytes);
        Self::open_sized(dir, options, sizes)
    }

    pub(super) fn open_sized(dir: &Path, options: LogOptions, sizes: Sizes) -> Result<Self, OpenError> {
        let files = Arc::new(Files::default());
        let (found, shards) = replay::open(dir, sizes, &files)?;
        let log = |(shard, (state, places))| (shard, Arc::new(ShardLog::new(shard, state, places)));
        let disk = Disk::new(dir, Arc::clone(&files), found);
        let shared = Arc::new(Shared {
            queue: Queue::new(),
            metrics: options.metrics,
            cached: Cached { bytes: AtomicUsize::new(0), budget: sizes.entries },
            shards: Mutex::new(shards.into_iter().map(log).collect()),
            files,
            failure: Failure::default(),
            #[cfg(test)]
            fault: Arc::default(),
            #[cfg(test)]
            syncs: Arc::clone(&disk.syncs),
        });
        let writer = Writer::new(Arc::clone(&shared), disk).start().map_err(OpenError::io(dir))?;
        #[cfg(kv_sim)]
        shared.shards.lock().values().for_each(|shard| shard.tell());
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), shared, writer: Mutex::new(Some(writer)) })))
    }

    /// The log of a replica: the one on disk if it is this replica's, else an empty one. Refused while the log of
    /// another incarnation of the replica lies there.
    pub fn store(&self, shard: ShardId, replica: ReplicaId) -> Result<LogStore, LogError> {
        let shared = &self.0.shared;
        shared.check()?;
        let mut shards = shared.shards.lock();
        let log =
            shards.entry(shard).or_insert_with(|| Arc::new(ShardLog::new(shard, State::default(), Arc::default())));
        let log = Arc::clone(log);
        drop(shards);
        let mut state = log.lock_live()?;
        let _due = match state.owner {
            Some(held) if held != replica => return Err(LogError::OtherReplica { shard, held, asked: replica }),
            Some(_) => None,
            None => {
                // Nobody waits for it: it is durable with the first vote or entry, before which there is nothing to own.
                let due = shared.queue.push(Change::unhurried(&log, Action::SaveOwner(replica)))?;
                state.owner = Some(replica);
                Some(due)
            }
        };
        drop(state);
        Ok(LogStore::new(self.clone(), log))
    }

    /// The shards whose logs this folder holds, with the replicas they belong to.
    #[must_use]
    pub fn shards(&self) -> BTreeMap<ShardId, ReplicaId> {
        let shards = self.0.shared.shards.lock();
        shards.iter().filter_map(|(shard, log)| Some((*shard, log.lock().owner?))).collect()
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The index through which a shard's log must be purged to hold about this many bytes; None if it holds no more.
    #[must_use]
    pub fn excess(&self, shard: ShardId, budget: u64) -> Option<u64> {
        self.0.shared.shard(shard)?.lock().excess(budget)
    }

    /// Waits until the log of a shard is durable through an index. An atomic load when it is.
    pub async fn wait_durable(&self, shard: ShardId, index: u64) -> Result<(), LogError> {
        let log = self.0.shared.shard(shard).ok_or(LogError::NoLog(shard))?;
        self.0.shared.durable(&log, index).await
    }

    /// The same for one shard, without looking it up each time.
    pub fn log_wait(&self, shard: ShardId) -> Result<LogWait, LogError> {
        let log = self.0.shared.shard(shard).ok_or(LogError::NoLog(shard))?;
        Ok(LogWait { shared: Arc::clone(&self.0.shared), log })
    }

    /// Erases the log and the state of a shard; durable when it returns. Harmless for a shard without a log.
    pub async fn destroy(&self, shard: ShardId) -> Result<(), LogError> {
        let shared = &self.0.shared;
        let Some(log) = shared.shard(shard) else { return Ok(()) };
        let destroyed = shared.answered(&log, |done, space| {
            let mut shards = shared.shards.lock();
            shared.cached.remove(log.destroy());
            // A new log of the shard queues behind this.
            shards.remove(&shard);
            shared.queue.push(Change::new(&log, Action::Destroy { done }, space.take()))
        });
        let destroyed = destroyed.await;
        log.wake();
        destroyed
    }

    /// Waits until everything queued for a shard before is durable, also what nobody else waits for.
    pub async fn flush(&self, shard: ShardId) -> Result<(), LogError> {
        let shared = &self.0.shared;
        let log = shared.shard(shard).ok_or(LogError::NoLog(shard))?;
        shared
            .answered(&log, |done, space| shared.queue.push(Change::new(&log, Action::Barrier { done }, space.take())))
            .await
    }

    /// Counts synced writes among the stages of a request as well.
    pub(crate) fn share_metrics(&self, metrics: &RaftMetrics) {
        self.0.shared.metrics.share(metrics.stage(Stage::Fsync));
    }

    /// Completes once storage has failed, with the reason: the process must end.
    pub async fn failed(&self) -> String {
        self.0.shared.failure.wait().await
    }

    /// Why storage failed, if it has.
    #[must_use]
    pub fn poisoned(&self) -> Option<String> {
        self.0.shared.failure()
    }

    /// Writes what waits and closes the files; later calls are refused. Idempotent.
    pub async fn close(&self) {
        failpoint!("log.close");
        #[cfg(kv_sim)]
        self.0.write_out().await;
        let inner = Arc::clone(&self.0);
        // The thread only ends after its last write; a panic in it has poisoned the engine already.
        let _ = crate::blocking::spawn_blocking(move || inner.shut()).await;
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    #[cfg(test)]
    pub(crate) fn fault(&self) -> &super::tests::Fault {
        &self.0.shared.fault
    }
}

impl Inner {
    /// Waits for the writer, which ends by itself here.
    #[cfg(kv_sim)]
    async fn write_out(&self) {
        self.shared.queue.close();
        let writer = self.writer.lock().take();
        if let Some(Running(task)) = writer {
            let _ = task.await;
        }
    }

    fn shut(&self) {
        self.shared.queue.close();
        if let Some(writer) = self.writer.lock().take() {
            writer.wait();
        }
        self.shared.files.close();
        self.shared.shards.lock().values().for_each(|shard| shard.wake());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shut();
    }
}

impl fmt::Debug for LogEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogEngine").field("failure", &self.poisoned()).finish_non_exhaustive()
    }
}

/// Waits for one shard's log to be durable.
#[derive(Clone)]
pub struct LogWait {
    shared: Arc<Shared>,
    log: Arc<ShardLog>,
}

impl LogWait {
    /// Waits until the log is durable through an index. An atomic load when it is.
    pub async fn wait_durable(&self, index: u64) -> Result<(), LogError> {
        self.shared.durable(&self.log, index).await
    }
}

impl fmt::Debug for LogWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWait").field("shard", &self.log.shard).finish_non_exhaustive()
    }
}

impl Change {
    pub(super) fn new(shard: &Arc<ShardLog>, action: Action, kib: usize) -> Self {
        Self { shard: Arc::clone(shard), action, queued: Instant::now(), kib }
    }

    /// Takes no space: there is at most one per shard.
    pub(super) fn unhurried(shard: &Arc<ShardLog>, action: Action) -> Self {
        Self::new(shard, action, 0)
    }
}
