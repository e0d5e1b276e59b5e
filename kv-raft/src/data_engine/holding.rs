//! One replica as the engine holds it: where its data lies and how far it is.
//!
//! Invariants: a [`Progress`] is published after what makes it true can be read, except for its safepoint,
//! whose [`Holding::floor`] rises before; whoever changes a replica holds its writer lock.
//!
//! Not here: how entries change it (state machine, apply).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use kv_proto::ids::{ExtentId, ReplicaId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::timestamp::Timestamp;
use parking_lot::Mutex;
use rocksdb::WriteBatch;
use tokio::sync::watch;

use super::error::DataError;
use super::extents::{Extent, Extents};
use super::keys;
use super::options::Table;
use super::row_cache::Gate;
use super::rows::{self, AppliedRow, LogIdRow, MembershipRow, RecordRow, damaged};
use super::session_clock::SessionClock;
use super::store::Store;
use super::unwritten::Unwritten;
use crate::clock::millis;
use crate::types::{LogId, StoredMembership};

/// What a replica is, for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRecord {
    /// Its shard.
    pub shard: ShardId,
    /// Its id.
    pub replica: ReplicaId,
    /// Where its data lies.
    pub extent: ExtentId,
    /// The encoded keys it holds.
    pub range: KeyRange,
    /// How long overwritten versions stay readable.
    pub retention: Duration,
    /// The last entry applied.
    pub applied: Option<LogId>,
    /// Commit timestamp of the last command applied.
    pub last_commit: Timestamp,
    /// Timestamps before this one are not readable.
    pub safepoint: Timestamp,
}

/// How far a replica is. Invariant: `safepoint <= last_commit`.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) extent: Arc<Extent>,
    pub(crate) range: KeyRange,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: Arc<StoredMembership>,
    pub(crate) last_commit: Timestamp,
    pub(crate) safepoint: Timestamp,
    pub(crate) session_clock: SessionClock,
}

impl Progress {
    pub(crate) fn applied_row(&self) -> AppliedRow {
        AppliedRow {
            applied: self.applied.map(LogIdRow::from),
            last_commit: self.last_commit,
            safepoint: self.safepoint,
            session_clock: self.session_clock,
        }
    }
}

/// A replica held here.
pub(crate) struct Holding {
    pub(crate) shard: ShardId,
    pub(crate) replica: ReplicaId,
    pub(crate) retention: Duration,
    progress: ArcSwap<Progress>,
    /// What is on disk for certain.
    durable: ArcSwap<Progress>,
    floor: AtomicU64,
    /// Index of the check at which the content differed from that of the other replicas.
    quarantined: watch::Sender<Option<u64>>,
    /// Of rows read lately.
    pub(crate) gate: Gate,
    /// Applied, and not in RocksDB.
    pub(crate) unwritten: Unwritten,
    writer: Mutex<Writer>,
}

/// Whoever holds it may change the replica.
pub(crate) struct Writer {
    /// Nothing is written any more.
    pub(crate) destroyed: bool,
}

impl Holding {
    pub(crate) fn new(shard: ShardId, replica: ReplicaId, retention: Duration, progress: Progress) -> Self {
        let progress = Arc::new(progress);
        Self {
            shard,
            replica,
            retention,
            floor: AtomicU64::new(progress.safepoint.0),
            quarantined: watch::Sender::new(None),
            durable: ArcSwap::new(Arc::clone(&progress)),
            progress: ArcSwap::new(progress),
            gate: Gate::default(),
            unwritten: Unwritten::default(),
            writer: Mutex::new(Writer { destroyed: false }),
        }
    }

    /// From the rows of a shard.
    pub(crate) fn load(store: &Store, extents: &Extents, shard: ShardId, record: &[u8]) -> Result<Self, DataError> {
        let row = |key: Vec<u8>| store.checked(store.db().get_cf(store.table(Table::Meta), key));
        let record: RecordRow = rows::decode(record, "replica record")?;
        let applied = row(keys::meta_applied(shard))?.ok_or_else(|| damaged("replica without applied state"))?;
        let applied: AppliedRow = rows::decode(&applied, "applied state")?;
        let membership = row(keys::meta_membership(shard))?.ok_or_else(|| damaged("replica without membership"))?;
        let membership = rows::decode::<MembershipRow>(&membership, "membership")?.restore()?;
        let progress = Progress {
            extent: Arc::new(extents.of_record(ExtentId(record.extent))),
            range: record.range()?,
            applied: applied.applied.map(LogId::from),
            membership: Arc::new(membership),
            last_commit: applied.last_commit,
            safepoint: applied.safepoint,
            session_clock: applied.session_clock,
        };
        let retention = Duration::from_millis(record.retention_ms);
        let holding = Self::new(shard, ReplicaId(record.replica), retention, progress);
        if let Some(checked) = row(keys::meta_quarantine(shard))? {
            let checked = checked.as_slice().try_into().map_err(|_| damaged("quarantine mark"))?;
            holding.quarantine(u64::from_be_bytes(checked));
        }
        Ok(holding)
    }

    pub(crate) fn writer(&self) -> parking_lot::MutexGuard<'_, Writer> {
        self.writer.lock()
    }

    pub(crate) fn progress(&self) -> Arc<Progress> {
        self.progress.load_full()
    }

    pub(crate) fn durable(&self) -> Arc<Progress> {
        self.durable.load_full()
    }

    /// Index of the check at which the content differed from that of the other replicas; it stays for ever.
    pub(crate) fn watch_quarantine(&self) -> watch::Receiver<Option<u64>> {
        self.quarantined.subscribe()
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        self.quarantined.borrow().is_some()
    }

    /// After the mark was written; the first check stays.
    pub(crate) fn quarantine(&self, checked: u64) {
        self.quarantined.send_if_modified(|mark| {
            let first = mark.is_none();
            mark.get_or_insert(checked);
            first
        });
    }

    /// Puts the mark that keeps the replica in quarantine over a restart into a batch.
    pub(crate) fn put_quarantine(&self, store: &Store, checked: u64, batch: &mut WriteBatch) {
        batch.put_cf(store.table(Table::Meta), keys::meta_quarantine(self.shard), checked.to_be_bytes());
    }

    /// Whether old versions are kept.
    pub(crate) fn keeps_history(&self) -> bool {
        !self.retention.is_zero()
    }

    /// The safepoint as of a commit: what is older than the retention, never falling.
    pub(crate) fn safepoint_at(&self, commit: Timestamp, before: Timestamp) -> Timestamp {
        if !self.keeps_history() {
            return commit;
        }
        before.max(Timestamp::from_millis(commit.millis().saturating_sub(millis(self.retention))))
    }

    /// Timestamps before this one are not readable, or may cease to be while they are read.
    pub(crate) fn floor(&self) -> Timestamp {
        Timestamp(self.floor.load(Ordering::Acquire))
    }

    /// Before what moves the safepoint can be read.
    pub(crate) fn raise_floor(&self, safepoint: Timestamp) {
        self.floor.fetch_max(safepoint.0, Ordering::AcqRel);
    }

    /// After what makes it true can be read.
    pub(crate) fn publish(&self, progress: Arc<Progress>) {
        self.progress.store(progress);
    }

    /// After a flush that began when `progress` was published already.
    pub(crate) fn note_durable(&self, progress: Arc<Progress>) {
        self.durable.store(progress);
    }

    pub(crate) fn record(&self) -> ReplicaRecord {
        let progress = self.progress();
        ReplicaRecord {
            shard: self.shard,
            replica: self.replica,
            extent: progress.extent.id(),
            range: progress.range.clone(),
            retention: self.retention,
            applied: progress.applied,
            last_commit: progress.last_commit,
            safepoint: progress.safepoint,
        }
    }

    /// Puts all rows of the replica into a batch.
    pub(crate) fn put_rows(&self, store: &Store, progress: &Progress, batch: &mut WriteBatch) {
        let meta = store.table(Table::Meta);
        let record = RecordRow::new(self.replica, progress.extent.id(), &progress.range, self.retention);
        batch.put_cf(meta, keys::meta_record(self.shard), rows::encode(&record));
        self.put_membership(store, progress, batch);
        self.put_applied(store, progress, batch);
    }

    /// Puts the membership into a batch.
    pub(crate) fn put_membership(&self, store: &Store, progress: &Progress, batch: &mut WriteBatch) {
        let row = MembershipRow::from(progress.membership.as_ref());
        batch.put_cf(store.table(Table::Meta), keys::meta_membership(self.shard), rows::encode(&row));
    }

    /// Puts how far the replica is into a batch.
    pub(crate) fn put_applied(&self, store: &Store, progress: &Progress, batch: &mut WriteBatch) {
        let row = rows::encode(&progress.applied_row());
        batch.put_cf(store.table(Table::Meta), keys::meta_applied(self.shard), row);
    }
}
