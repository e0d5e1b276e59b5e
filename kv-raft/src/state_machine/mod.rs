//! What a committed entry does to a replica's state, and how that state travels as a snapshot.
//!
//! Invariants: an entry is applied only after the local log is durable through it, since consensus hands over entries
//! that may not be on this disk yet, and the state must never be ahead of the log; every responder is answered.
//!
//! **Snapshots and purging.** Consensus purges the log up to the snapshot it knows of, so it may only know of state
//! that is on disk. What it learns at run time comes from [`SnapshotBuilder`], which reports the state as of the last
//! flush and holds no data. What it learns at start comes from `get_current_snapshot`, which flushes before it answers.
//! The same call serves a follower that needs a snapshot: it pins a view of the state as applied at that moment and
//! reports exactly that entry, which is at or after everything purged. So a snapshot's meta always names the entry its
//! data belongs to.
//!
//! Not here: where the data lies (data engine); the way over the network (transport).

mod apply;
mod decide;
mod overlay;
#[cfg(test)]
mod scripts;
mod session;
mod sink;
mod snapshot;
mod source;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use kv_proto::ids::ShardId;
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;

use self::apply::{Chunk, Core};
pub use self::sink::{ReceivedSnapshot, SnapshotSink};
pub use self::snapshot::{SnapshotBuilder, SnapshotData, SnapshotView};
pub use self::source::{SnapshotFile, SnapshotSource};
use crate::command::{CHECKSUM_ALGORITHM, CommandBatch, Order};
use crate::data_engine::checksum::{CheckView, NewestView};
use crate::data_engine::{DataEngine, DataError};
use crate::failpoint;
use crate::log_store;
use crate::metrics::{RaftMetrics, Stage};
use crate::types::{LeaderId, LogId, Member, ShardRaft, SnapshotMeta, StoredMembership};

/// Entries of one write: enough to hide its cost, few enough that replies do not wait for each other.
const CHUNK_ENTRIES: usize = 256;

/// Bytes of one write, but for a single larger entry.
const CHUNK_BYTES: usize = 2 << 20;

/// Chunks longer than this leave the async threads: copying them takes about as long as handing them over.
const INLINE_BYTES: usize = 64 << 10;

/// A shard's log, as far as apply must wait for it.
pub trait LogWait: Send + Sync + 'static {
    /// Returns once the local log is durable through `index`; at once if it is already.
    fn wait_durable(&self, index: u64) -> BoxFuture<'_, io::Result<()>>;
}

impl LogWait for log_store::LogWait {
    fn wait_durable(&self, index: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { Self::wait_durable(self, index).await.map_err(io::Error::other) })
    }
}

/// What [`RaftStateMachine`] calls a snapshot.
pub type ShardSnapshot = Snapshot<LeaderId, u64, Member, SnapshotData>;

/// A replica's state machine.
pub struct StateMachine {
    shard: ShardId,
    core: Arc<Mutex<Core>>,
    log: Arc<dyn LogWait>,
    metrics: Arc<RaftMetrics>,
    checks: Option<Arc<NewestView>>,
}

impl DataEngine {
    /// The state machine of a replica held here. Blocking: loads its sessions.
    pub fn state_machine(
        &self,
        shard: ShardId,
        log: Arc<dyn LogWait>,
        metrics: Arc<RaftMetrics>,
    ) -> Result<StateMachine, DataError> {
        let core = Core::load(self.clone(), self.holding(shard)?)?;
        #[cfg(kv_sim)]
        {
            let (replica, applied) = (core.holding().replica, core.holding().progress().applied);
            crate::simulated::saw(shard, crate::simulated::Event::Loaded { replica, applied });
        }
        Ok(StateMachine { shard, core: Arc::new(Mutex::new(core)), log, metrics, checks: None })
    }

    /// Allots an extent for a snapshot that is about to be received, and a folder for its files. What is dropped before
    /// it is installed leaves nothing behind. Blocking now and then.
    pub fn receive_snapshot(&self, shard: ShardId, meta: SnapshotMeta) -> Result<SnapshotSink, DataError> {
        SnapshotSink::new(self.clone(), shard, meta)
    }
}

impl StateMachine {
    /// Where the views come that are to be compared with other replicas'.
    pub(crate) fn checks(&mut self) -> Arc<NewestView> {
        Arc::clone(self.checks.get_or_insert_default())
    }

    /// The entry just applied may ask for a check: the view shows exactly its state.
    fn take_check(&self, batch: Option<&CommandBatch>) -> Result<(), DataError> {
        let Some(checks) = &self.checks else { return Ok(()) };
        let order = batch.and_then(|batch| batch.decode_order().ok()).map(|(_, order)| order);
        if order == Some(Order::Check { algorithm: CHECKSUM_ALGORITHM }) {
            let core = self.core.lock();
            failpoint!("check.view");
            checks.put(off_async_threads(|| CheckView::take(core.engine(), core.holding()))?);
        }
        Ok(())
    }

    async fn apply_chunk(&self, entries: Vec<EntryResponder<ShardRaft>>, bytes: usize) -> io::Result<()> {
        let Some(last) = entries.last().map(|(entry, _)| entry.log_id.index) else { return Ok(()) };
        let started = Instant::now();
        failpoint!("apply.wait");
        self.log.wait_durable(last).await?;
        failpoint!("apply.write");
        let replies = self.decide_and_write(&entries, bytes)?;
        failpoint!("apply.reply");
        #[cfg(kv_sim)]
        for ((entry, _), replies) in entries.iter().zip(&replies) {
            crate::simulated::saw(self.shard, crate::simulated::Event::Applied { entry, replies });
        }
        for ((_, responder), replies) in entries.into_iter().zip(replies) {
            if let Some(responder) = responder {
                responder.send(replies);
            }
        }
        self.metrics.observe(Stage::Apply, started);
        Ok(())
    }

    fn decide_and_write(
        &self,
        entries: &[EntryResponder<ShardRaft>],
        bytes: usize,
    ) -> Result<Vec<crate::command::Replies>, DataError> {
        let chunk = Chunk::decode(self.shard, entries.iter().map(|(entry, _)| entry))?;
        let mut core = self.core.lock();
        let is_full = core.engine().store().unwritten().is_full();
        let blocks = chunk.reads || bytes > INLINE_BYTES || core.holding().keeps_history() || is_full;
        let mut apply = || {
            if is_full {
                core.make_room()?;
            }
            core.apply(&chunk)
        };
        let replies = if blocks { off_async_threads(apply) } else { apply() };
        core.engine().write_out_if_due();
        replies
    }

    async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Core) -> Result<T, DataError> + Send + 'static,
    ) -> io::Result<T> {
        let core = Arc::clone(&self.core);
        let done = crate::blocking::spawn_blocking(move || run(&mut core.lock())).await;
        done.map_err(io::Error::other)?.map_err(io::Error::from)
    }
}

/// Runs what may block so that other tasks go on elsewhere; a runtime of one thread has no elsewhere.
fn off_async_threads<T>(run: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(run),
        Ok(_) | Err(_) => run(),
    }
}

impl RaftStateMachine<ShardRaft> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let progress = self.core.lock().holding().progress();
        Ok((progress.applied, StoredMembership::clone(&progress.membership)))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<ShardRaft>>> + Unpin + OptionalSend,
    {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let mut order = None;
            if let EntryPayload::Normal(batch) = &entry.payload {
                bytes += batch.as_bytes().len();
                order = batch.is_order().then(|| batch.clone());
            }
            chunk.push((entry, responder));
            if chunk.len() >= CHUNK_ENTRIES || bytes >= CHUNK_BYTES || order.is_some() {
                self.apply_chunk(std::mem::take(&mut chunk), bytes).await?;
                self.take_check(order.as_ref())?;
                bytes = 0;
            }
        }
        self.apply_chunk(chunk, bytes).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let core = self.core.lock();
        let deferred = !force && core.holding().durable().applied.is_none();
        (!deferred).then(|| SnapshotBuilder::new(core.engine().clone(), Arc::clone(core.holding()), force))
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let core = self.core.lock();
        SnapshotBuilder::new(core.engine().clone(), Arc::clone(core.holding()), true)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let received = match snapshot {
            SnapshotData::Received(received) => received,
            SnapshotData::View(view) => {
                let engine = self.core.lock().engine().clone();
                let sink = engine.receive_snapshot(self.shard, meta.clone())?;
                sink::copy(view, sink).await?
            }
            SnapshotData::Durable => return Err(DataError::BadSnapshot("it holds no data".to_owned()).into()),
        };
        let expected = meta.clone();
        self.blocking(move |core| core.install(&expected, received)).await?;
        #[cfg(kv_sim)]
        crate::simulated::saw(self.shard, crate::simulated::Event::Installed(meta));
        tracing::info!(shard = %self.shard, %meta, "installed a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<ShardSnapshot>> {
        if self.core.lock().holding().progress().applied.is_none() {
            return Ok(None);
        }
        self.blocking(|core| SnapshotView::take(core.engine(), core.holding())).await.map(|view| Some(view.into()))
    }
}
