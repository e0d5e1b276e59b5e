//! The data of all replicas of a node in one RocksDB without a write-ahead log: the committed Raft log is the log.
//!
//! What is applied gathers in memory and is written to RocksDB many rows at once (unwritten). After a crash every table
//! is as of the last flush, together with the applied log id of each replica, and consensus applies the rest of the log
//! again. Each replica's data lies under an extent of its own; a snapshot is installed under a new one.
//!
//! Invariants: tables are flushed together; a replica is durable when `create` returns, and a destroyed replica's id
//! never comes back; what no record names is deleted at open; after the first failure nothing is written.
//!
//! Not here: what an entry does (state machine); the log (log store).

pub(crate) mod checksum;
mod collect;
mod error;
mod extents;
mod holding;
pub(crate) mod keys;
mod options;
mod read;
mod row_cache;
pub(crate) mod rows;
mod scan;
pub(crate) mod session_clock;
mod store;
mod unwritten;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kv_proto::ids::{ReplicaId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::timestamp::Timestamp;
use parking_lot::{Mutex, RwLock};
use rocksdb::{Direction, IteratorMode, WriteBatch};

use self::checksum::CheckView;
use self::collect::Safepoints;
use self::extents::Extents;
use self::rows::damaged;
use self::session_clock::SessionClock;
use crate::{background, failpoint};

pub(crate) use self::collect::Held;
pub use self::error::{CreateError, DataError, OpenError};
pub(crate) use self::extents::Extent;
pub use self::holding::ReplicaRecord;
pub(crate) use self::holding::{Holding, Progress};
pub use self::options::DataOptions;
pub(crate) use self::options::{Table, snapshot_file};
pub use self::read::ReadView;
pub use self::scan::{ScanEntry, ScanPage, ScanSpec, Turn};
pub(crate) use self::store::{Pinned, Store};
pub(crate) use self::unwritten::{Changed, LatestRow};
use crate::types::{LogId, StoredMembership};

/// Files on their way in or out lie here, and go at open.
const SCRATCH: &str = "scratch";

/// What a new replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewReplica {
    /// Its shard.
    pub shard: ShardId,
    /// Its id.
    pub replica: ReplicaId,
    /// The encoded keys it holds.
    pub range: KeyRange,
    /// How long overwritten versions stay readable; zero keeps none.
    pub retention: Duration,
}

/// The engine; clones share it.
#[derive(Clone)]
pub struct DataEngine(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    safepoints: Arc<Safepoints>,
    extents: Extents,
    holdings: RwLock<BTreeMap<ShardId, Arc<Holding>>>,
    /// One creation or destruction at a time.
    roster: Mutex<()>,
    /// One flush at a time; those that wait find their work done.
    flushing: Mutex<()>,
    /// Writes out what all replicas gathered.
    background: background::Thread,
    /// Held while that is asked of it or goes on; closed with the engine.
    writing_out: Arc<tokio::sync::Semaphore>,
}

impl DataEngine {
    /// Opens or creates the folder. Deletes what no replica record names. Blocking.
    pub fn open(dir: &Path, options: DataOptions) -> Result<Self, OpenError> {
        let safepoints = Arc::<Safepoints>::default();
        let store = Arc::new(Store::open(dir, &options, &safepoints)?);
        let io = |source| OpenError::Io { dir: dir.to_owned(), source };
        let damaged = |error: DataError| OpenError::Damaged { dir: dir.to_owned(), what: error.to_string() };
        let extents = Extents::open(&store).map_err(damaged)?;
        let holdings = load_holdings(&store, &extents).map_err(damaged)?;
        let named: Vec<_> = holdings.values().map(|holding| holding.progress().extent.id()).collect();
        let deleted = extents::delete_unnamed(&store, &named).map_err(damaged)?;
        if deleted > 0 {
            tracing::info!(extents = deleted, "deleted what unfinished snapshots and destroyed replicas left behind");
        }
        let scratch = dir.join(SCRATCH);
        let cleared = if scratch.exists() { std::fs::remove_dir_all(&scratch) } else { Ok(()) };
        cleared.and_then(|()| std::fs::create_dir(&scratch)).map_err(io)?;
        let background = background::Thread::start().map_err(io)?;
        failpoint!("data.open");
        let engine = Self(Arc::new(Inner {
            store,
            safepoints,
            extents,
            holdings: RwLock::new(holdings),
            roster: Mutex::new(()),
            flushing: Mutex::new(()),
            background,
            writing_out: Arc::new(tokio::sync::Semaphore::new(1)),
        }));
        engine.publish_safepoints();
        Ok(engine)
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        self.0.store.dir()
    }

    /// The replicas held here, by shard.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaRecord> {
        self.0.holdings.read().values().map(|holding| holding.record()).collect()
    }

    /// Creates an empty replica; it is durable when this returns. Blocking.
    pub fn create(&self, new: NewReplica) -> Result<ReplicaRecord, CreateError> {
        let NewReplica { shard, replica, range, retention } = new;
        failpoint!("data.create");
        let _roster = self.0.roster.lock();
        if let Some(present) = self.0.holdings.read().get(&shard) {
            return Err(CreateError::Exists { shard, replica: present.replica });
        }
        if let Some(destroyed) = self.tombstone(shard)?.filter(|destroyed| replica <= *destroyed) {
            return Err(CreateError::Destroyed { shard, replica, destroyed });
        }
        let extent = self.0.extents.allot(&self.0.store)?;
        let progress = Progress {
            extent: Arc::clone(&extent),
            range,
            applied: None,
            membership: Arc::new(StoredMembership::default()),
            last_commit: Timestamp(0),
            safepoint: Timestamp(0),
            session_clock: SessionClock::default(),
        };
        let holding = Arc::new(Holding::new(shard, replica, retention, progress));
        let mut batch = WriteBatch::default();
        holding.put_rows(&self.0.store, &holding.progress(), &mut batch);
        self.0.store.write(batch)?;
        self.0.store.flush()?;
        failpoint!("data.created");
        extent.keep();
        let record = holding.record();
        self.0.holdings.write().insert(shard, holding);
        Ok(record)
    }

    /// Destroys the replica and leaves a tombstone; both are durable when this returns. Its data goes once nobody
    /// reads it. Blocking.
    pub fn destroy(&self, shard: ShardId) -> Result<(), DataError> {
        let _roster = self.0.roster.lock();
        let holding = self.holding(shard)?;
        let destroyed = self.tombstone(shard)?.map_or(holding.replica, |before| before.max(holding.replica));
        let mut writer = holding.writer();
        // For those that still read it, and lest it is written after this.
        holding.write_out(&self.0.store)?;
        let meta = self.0.store.table(Table::Meta);
        let mut batch = WriteBatch::default();
        batch.put_cf(meta, keys::meta_tombstone(shard), destroyed.0.to_be_bytes());
        batch.delete_cf(meta, keys::meta_record(shard));
        batch.delete_cf(meta, keys::meta_applied(shard));
        batch.delete_cf(meta, keys::meta_membership(shard));
        batch.delete_cf(meta, keys::meta_quarantine(shard));
        self.0.store.write(batch)?;
        failpoint!("data.destroy");
        writer.destroyed = true;
        drop(writer);
        self.0.store.flush()?;
        failpoint!("data.destroyed");
        self.0.holdings.write().remove(&shard);
        holding.progress().extent.doom();
        drop(holding);
        self.0.extents.collect(&self.0.store)
    }

    /// The highest replica of the shard that was destroyed here.
    pub(crate) fn tombstone(&self, shard: ShardId) -> Result<Option<ReplicaId>, DataError> {
        let store = &self.0.store;
        let row = store.checked(store.db().get_cf(store.table(Table::Meta), keys::meta_tombstone(shard)))?;
        let decode = |row: Vec<u8>| row.as_slice().try_into().map(u64::from_be_bytes).map_err(|_| damaged("tombstone"));
        row.map(decode).transpose().map(|id| id.map(ReplicaId))
    }

    /// Makes everything applied so far durable and tells up to where that is, for each shard that applied anything.
    pub async fn flush(&self) -> Result<BTreeMap<ShardId, LogId>, DataError> {
        let engine = self.clone();
        let flushed = crate::blocking::spawn_blocking(move || engine.flush_now()).await;
        flushed.unwrap_or_else(|stopped| Err(DataError::Failed(stopped.to_string())))
    }

    /// As [`DataEngine::flush`]. Blocking.
    pub(crate) fn flush_now(&self) -> Result<BTreeMap<ShardId, LogId>, DataError> {
        let _turn = self.0.flushing.lock();
        self.flush_in_turn()
    }

    /// Flushes unless the replica's state is durable through `applied` already. Those that wait for one another's
    /// flush need none of their own. Blocking.
    pub(crate) fn flush_through(&self, holding: &Holding, applied: Option<LogId>) -> Result<(), DataError> {
        let _turn = self.0.flushing.lock();
        if holding.durable().applied < applied { self.flush_in_turn().map(|_| ()) } else { Ok(()) }
    }

    fn flush_in_turn(&self) -> Result<BTreeMap<ShardId, LogId>, DataError> {
        self.0.extents.collect(&self.0.store)?;
        let holdings = self.holdings();
        let reached: Vec<_> = holdings.iter().map(|holding| holding.progress()).collect();
        holdings.iter().try_for_each(|holding| holding.write_out(&self.0.store))?;
        self.0.store.flush()?;
        let mut durable = BTreeMap::new();
        failpoint!("data.flushed");
        for (holding, progress) in holdings.iter().zip(reached) {
            if let Some(applied) = progress.applied {
                durable.insert(holding.shard, applied);
            }
            holding.note_durable(progress);
        }
        self.publish_safepoints();
        Ok(durable)
    }

    /// Whenever something was applied: writes out what all replicas gathered, in the background, if that is due and not
    /// under way. Its failure is the engine's.
    pub(crate) fn write_out_if_due(&self) {
        if !self.0.store.unwritten().is_due() {
            return;
        }
        let Ok(turn) = Arc::clone(&self.0.writing_out).try_acquire_owned() else { return };
        let engine = self.clone();
        let begins = self.0.background.run(move || {
            engine.write_out_while_due();
            drop((engine, turn));
        });
        if !begins {
            self.0.store.fail("the thread that writes out what is applied has panicked".to_owned());
        }
    }

    fn write_out_while_due(&self) {
        let store = &self.0.store;
        while store.unwritten().is_due() {
            let written = self.holdings().iter().try_for_each(|holding| holding.write_out(store));
            if let Err(error) = written {
                tracing::error!(%error, "what is applied cannot be written");
                break;
            }
        }
    }

    /// Nothing is written out in the background until this is dropped. None while it is, or once the engine is closed.
    #[cfg(test)]
    pub(crate) fn hold_write_out(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.0.writing_out).try_acquire_owned().ok()
    }

    fn holdings(&self) -> Vec<Arc<Holding>> {
        self.0.holdings.read().values().cloned().collect()
    }

    fn publish_safepoints(&self) {
        let holdings = self.0.holdings.read();
        let durable = holdings.values().map(|holding| holding.durable());
        self.0.safepoints.publish(durable.map(|durable| (durable.extent.id(), durable.safepoint)).collect());
    }

    /// What is applied, to read from.
    pub fn view(&self, shard: ShardId) -> Result<ReadView, DataError> {
        Ok(ReadView::new(Arc::clone(&self.0.store), self.holding(shard)?))
    }

    /// A deterministic digest of the replica's state and the entry it belongs to: replicas that applied the same
    /// entries have the same. Blocking; reads everything.
    pub fn checksum(&self, shard: ShardId) -> Result<(Option<LogId>, u64), DataError> {
        let holding = self.holding(shard)?;
        let view = CheckView::take(self, &holding)?;
        let digest = view.digest(&mut |_| true)?;
        Ok((view.progress.applied, digest.ok_or(DataError::NotHeld(shard))?))
    }

    /// A view of the whole database with the progress it shows, and what keeps old versions in it.
    pub(crate) fn pin(&self, holding: &Holding) -> Result<(Pinned, Arc<Progress>, Held), DataError> {
        let _writer = holding.writer();
        holding.write_out(&self.0.store)?;
        let progress = holding.progress();
        let held = self.0.safepoints.hold(progress.extent.id(), progress.safepoint);
        Ok((Pinned::take(&self.0.store), progress, held))
    }

    /// Bytes on disk of the replica's data, roughly; 0 if it is not held here.
    #[must_use]
    pub fn estimated_bytes(&self, shard: ShardId) -> u64 {
        let Ok(holding) = self.holding(shard) else { return 0 };
        let progress = holding.progress();
        let (extent, store) = (progress.extent.id(), &self.0.store);
        let size = |table, (start, end): (Vec<u8>, Vec<u8>)| -> u64 {
            let range = rocksdb::Range::new(&start, &end);
            store.db().get_approximate_sizes_cf(store.table(table), &[range]).into_iter().sum()
        };
        let whole = || (keys::extent_start(extent), keys::extent_end(extent));
        size(Table::Latest, keys::latest_range(extent, &progress.range))
            + size(Table::History, keys::history_range(extent, &progress.range))
            + size(Table::Changes, whole())
    }

    /// Waits until the engine failed and says why: the process must end.
    pub async fn failed(&self) -> String {
        self.0.store.failed().await
    }

    /// Flushes and stops background work. Call when nothing applies any more.
    pub async fn close(&self) {
        failpoint!("data.close");
        if let Err(error) = self.flush().await {
            tracing::error!(%error, "the last flush failed: what it lacks is applied again from the log");
        }
        // What is under way ends first, and nothing more begins: the process may end at any time after this.
        drop(self.0.writing_out.acquire().await);
        self.0.writing_out.close();
        let engine = self.clone();
        let stopped =
            crate::blocking::spawn_blocking(move || engine.0.store.db().cancel_all_background_work(true)).await;
        if let Err(error) = stopped {
            tracing::warn!(%error, "background work did not stop");
        }
    }

    pub(crate) fn holding(&self, shard: ShardId) -> Result<Arc<Holding>, DataError> {
        self.0.holdings.read().get(&shard).cloned().ok_or(DataError::NotHeld(shard))
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// A new extent, doomed until it is kept.
    pub(crate) fn allot_extent(&self) -> Result<Arc<Extent>, DataError> {
        self.0.extents.allot(&self.0.store)
    }

    /// Deletes extents nobody holds any more.
    pub(crate) fn collect_extents(&self) -> Result<(), DataError> {
        self.0.extents.collect(&self.0.store)
    }

    /// Where files on their way in or out lie.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.0.store.dir().join(SCRATCH)
    }
}

fn load_holdings(store: &Store, extents: &Extents) -> Result<BTreeMap<ShardId, Arc<Holding>>, DataError> {
    let mut holdings = BTreeMap::new();
    let first = keys::meta_record(ShardId(0));
    for row in store.db().iterator_cf(store.table(Table::Meta), IteratorMode::From(&first, Direction::Forward)) {
        let (key, value) = store.checked(row)?;
        let Some(shard) = keys::decode_record(&key) else { break };
        holdings.insert(shard, Arc::new(Holding::load(store, extents, shard, &value)?));
    }
    Ok(holdings)
}
