//! What openraft hands around as a snapshot, and installing one.
//!
//! Invariants: a view's meta names exactly the entry its data belongs to; a snapshot is installed under an extent of
//! its own and takes effect with one write, after which the old extent goes.
//!
//! Not here: files on their way out (source) and in (sink).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use openraft::RaftSnapshotBuilder;
use rocksdb::{IngestExternalFileOptions, WriteBatch};

use super::ShardSnapshot;
use super::apply::Core;
use super::sink::ReceivedSnapshot;
use crate::data_engine::rows::{self, SummaryRow};
use crate::data_engine::{DataEngine, DataError, Held, Holding, Pinned, Progress, Store, Table, keys};
use crate::failpoint;
use crate::types::{LogId, ShardRaft, SnapshotMeta, StoredMembership};

/// What openraft hands around as a snapshot: cheap, holds no data in memory.
pub enum SnapshotData {
    /// A consistent view of a replica held here; to be sent by a [`SnapshotSource`](super::SnapshotSource).
    View(SnapshotView),
    /// Files received by a [`SnapshotSink`](super::SnapshotSink); to be installed.
    Received(ReceivedSnapshot),
    /// Says only up to where the state is durable.
    Durable,
}

/// A replica's state at one applied entry, pinned until dropped: what it shows takes disk space until then.
pub struct SnapshotView {
    pub(super) pinned: Pinned,
    pub(super) progress: Arc<Progress>,
    pub(super) scratch: PathBuf,
    /// The replica's content is known to be wrong: nobody must get it.
    pub(super) quarantined: bool,
    /// Dropped after the view.
    _held: Held,
}

impl SnapshotView {
    /// Pins the state as applied now and makes it durable. Blocking.
    pub(super) fn take(engine: &DataEngine, holding: &Holding) -> Result<Self, DataError> {
        failpoint!("snapshot.view");
        let (pinned, progress, held) = engine.pin(holding)?;
        engine.flush_through(holding, progress.applied)?;
        let quarantined = holding.is_quarantined();
        Ok(Self { pinned, progress, scratch: engine.scratch(), quarantined, _held: held })
    }

    /// What it covers.
    #[must_use]
    pub fn meta(&self) -> SnapshotMeta {
        meta_of(&self.progress)
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        self.pinned.borrow_owner()
    }
}

impl From<SnapshotView> for ShardSnapshot {
    fn from(view: SnapshotView) -> Self {
        Self { meta: view.meta(), snapshot: SnapshotData::View(view) }
    }
}

fn meta_of(progress: &Progress) -> SnapshotMeta {
    SnapshotMeta { last_log_id: progress.applied, last_membership: StoredMembership::clone(&progress.membership) }
}

/// Reports up to where the state is durable, so that the log before it may be purged.
pub struct SnapshotBuilder {
    engine: DataEngine,
    holding: Arc<Holding>,
    /// Whether everything applied is asked for, so that a flush is worth it.
    everything: bool,
}

impl SnapshotBuilder {
    pub(super) fn new(engine: DataEngine, holding: Arc<Holding>, everything: bool) -> Self {
        Self { engine, holding, everything }
    }
}

impl RaftSnapshotBuilder<ShardRaft> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<ShardSnapshot> {
        if !self.everything {
            return Ok(ShardSnapshot { meta: meta_of(&self.holding.durable()), snapshot: SnapshotData::Durable });
        }
        let (engine, holding) = (self.engine.clone(), Arc::clone(&self.holding));
        let view = crate::blocking::spawn_blocking(move || SnapshotView::take(&engine, &holding)).await;
        Ok(view.map_err(io::Error::other)??.into())
    }
}

impl Core {
    /// Puts a received snapshot in the place of the replica's state; durable when this returns. Blocking.
    pub(super) fn install(&mut self, meta: &SnapshotMeta, received: ReceivedSnapshot) -> Result<(), DataError> {
        let holding = Arc::clone(self.holding());
        received.check_announced(holding.shard, meta)?;
        let store = Arc::clone(self.engine().store());
        failpoint!("snapshot.ingest");
        ingest(&store, &received)?;
        failpoint!("snapshot.ingested");
        let summary_key = keys::meta_summary(received.extent().id());
        let before = holding.progress();
        let progress =
            Progress { extent: Arc::clone(received.extent()), ..announced(&store, &summary_key, &before, meta)? };
        let writer = holding.writer();
        if writer.destroyed {
            return Err(DataError::NotHeld(holding.shard));
        }
        // For those that still read the old extent, and lest it is written after this.
        holding.write_out(&store)?;
        let mut batch = WriteBatch::default();
        holding.put_rows(&store, &progress, &mut batch);
        batch.delete_cf(store.table(Table::Meta), summary_key);
        holding.raise_floor(progress.safepoint);
        store.write(batch)?;
        failpoint!("snapshot.switched");
        let applied = progress.applied;
        holding.publish(Arc::new(progress));
        drop(writer);
        self.engine().flush_through(&holding, applied)?;
        failpoint!("snapshot.flushed");
        received.extent().keep();
        before.extent.doom();
        drop((before, received));
        failpoint!("snapshot.installed");
        self.reload_sessions()?;
        self.engine().collect_extents()
    }
}

/// Takes the files into the tables, under an extent that nothing names yet.
pub(super) fn ingest(store: &Store, received: &ReceivedSnapshot) -> Result<(), DataError> {
    let mut options = IngestExternalFileOptions::default();
    options.set_move_files(true);
    for table in Table::ALL {
        let files: Vec<PathBuf> = received.files_of(table);
        if !files.is_empty() {
            store.checked(store.db().ingest_external_file_cf_opts(store.table(table), &options, files))?;
        }
    }
    Ok(())
}

/// The progress a snapshot's summary tells, if that is what was announced and fits the replica.
fn announced(store: &Store, key: &[u8], before: &Progress, meta: &SnapshotMeta) -> Result<Progress, DataError> {
    let refuse = |what: &str| DataError::BadSnapshot(what.to_owned());
    let row = store.checked(store.db().get_cf(store.table(Table::Meta), key))?;
    let row = row.ok_or_else(|| refuse("its summary is missing"))?;
    let summary: SummaryRow = rows::decode(&row, "snapshot summary")?;
    let applied = summary.state.applied.map(LogId::from);
    let membership = summary.membership.restore()?;
    if applied != meta.last_log_id || membership != meta.last_membership {
        return Err(refuse("it covers another entry or membership than announced"));
    }
    if summary.start != *before.range.start() || summary.end != *before.range.end() {
        return Err(refuse("it covers another key range than the replica"));
    }
    Ok(Progress {
        applied,
        membership: Arc::new(membership),
        last_commit: summary.state.last_commit,
        safepoint: summary.state.safepoint,
        session_clock: summary.state.session_clock,
        ..before.clone()
    })
}
