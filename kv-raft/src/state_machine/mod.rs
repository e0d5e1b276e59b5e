//! What a committed entry does to a replica's state.

#![allow(clippy::unused_self, clippy::unused_async, clippy::missing_errors_doc)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use kv_proto::ids::{ExtentId, ShardId};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{OptionalSend, RaftSnapshotBuilder};

use crate::data_engine::{DataEngine, DataError};
use crate::metrics::RaftMetrics;
use crate::types::{LeaderId, LogId, Member, ShardRaft, SnapshotMeta, StoredMembership};

/// A shard's log, as far as apply must wait for it.
pub trait LogWait: Send + Sync + 'static {
    /// Whether the log is durable through `index` already. May say no when it is.
    fn is_durable(&self, index: u64) -> bool;
    /// Returns once the local log is durable through `index`.
    fn wait_durable(&self, index: u64) -> BoxFuture<'_, io::Result<()>>;
}

/// A replica's state machine.
pub struct StateMachine;

impl DataEngine {
    /// The state machine of a replica held here. Blocking: loads its sessions.
    pub fn state_machine(
        &self,
        _shard: ShardId,
        _log: Arc<dyn LogWait>,
        _metrics: Arc<RaftMetrics>,
    ) -> Result<StateMachine, DataError> {
        Ok(StateMachine)
    }

    /// Allots an extent for a snapshot that is about to be received, and a folder for its files. What is dropped before
    /// it is installed leaves nothing behind. Blocking.
    pub fn receive_snapshot(&self, shard: ShardId, _meta: SnapshotMeta) -> Result<SnapshotSink, DataError> {
        Err(DataError::NotHeld(shard))
    }
}

/// What openraft hands around as a snapshot: cheap, holds no data in memory.
pub enum SnapshotData {
    /// A consistent view of a replica held here; to be sent by a [`SnapshotSource`].
    View(SnapshotView),
    /// Files received by a [`SnapshotSink`]; to be installed.
    Received(ReceivedSnapshot),
    /// Says only up to where the state is durable.
    Durable,
}

/// A replica's state at one applied entry, pinned until dropped.
pub struct SnapshotView;

/// All files of a snapshot, checked, on this node's disk.
pub struct ReceivedSnapshot;

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Position, from 0.
    pub file: u32,
    /// "latest", "history", "changes" or "meta".
    pub table: &'static str,
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// CRC32C of the whole file.
    pub checksum: u32,
}

/// Writes a view as SST files for the receiver's extent, one at a time.
pub struct SnapshotSource;

impl SnapshotSource {
    /// Files are made in a scratch folder of the engine, each deleted when the next one is asked for.
    pub fn new(_view: SnapshotView, _extent: ExtentId) -> Result<Self, DataError> {
        Ok(Self)
    }
    /// The next file; None after the last. Runs on a blocking thread.
    pub async fn next_file(&mut self) -> Result<Option<SnapshotFile>, DataError> {
        Ok(None)
    }
    /// The folder files are made in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        Path::new("")
    }
}

/// Takes the files of a snapshot into a scratch folder of the engine.
pub struct SnapshotSink;

impl SnapshotSink {
    /// The extent the files' keys must lie under.
    #[must_use]
    pub fn extent(&self) -> ExtentId {
        ExtentId(0)
    }
    /// Begins a file; files come in order.
    pub async fn begin_file(&mut self, _file: u32, _table: &str, _bytes: u64, _checksum: u32) -> Result<(), DataError> {
        Ok(())
    }
    /// Appends to the file begun last; refuses gaps and altered data.
    pub async fn write_chunk(
        &mut self,
        _file: u32,
        _offset: u64,
        _data: Bytes,
        _checksum: u32,
    ) -> Result<(), DataError> {
        Ok(())
    }
    /// Ends the snapshot: the number of files must be what came, each complete.
    pub async fn finish(self, _files: u32) -> Result<SnapshotData, DataError> {
        Ok(SnapshotData::Durable)
    }
}

/// Reports up to where the state is durable, so that the log before it may be purged.
pub struct SnapshotBuilder;

impl RaftSnapshotBuilder<ShardRaft> for SnapshotBuilder {
    type SnapshotData = SnapshotData;
    async fn build_snapshot(&mut self) -> io::Result<Snapshot<LeaderId, u64, Member, SnapshotData>> {
        Err(io::Error::other("nothing is durable yet"))
    }
}

impl RaftStateMachine<ShardRaft> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((None, StoredMembership::default()))
    }
    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<ShardRaft>>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            entry?;
        }
        Ok(())
    }
    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder
    }
    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, _snapshot: SnapshotData) -> io::Result<()> {
        Ok(())
    }
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot<LeaderId, u64, Member, SnapshotData>>> {
        Ok(None)
    }
}
