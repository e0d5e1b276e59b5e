//! Which replicas this node holds, for messages that arrive.
//!
//! Invariants: at most one replica per shard; a message for a replica id that is not held never reaches another one.
//!
//! Not here: what a node should hold (kv-node, host); what a replica does with a message (replica, inbound).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_proto::pb::raft::v1::FrameKind;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::state_machine::{SnapshotData, SnapshotSink};
use crate::types::{SnapshotMeta, Vote};

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) node: NodeId,
    pub(crate) replica: ReplicaId,
}

/// A replica, as messages see it.
pub(crate) trait Inbound: Send + Sync + 'static {
    /// The only id it answers to.
    fn replica(&self) -> ReplicaId;

    /// Handles a message; frames of one stream are given in order, and each must be handed over at the first poll.
    /// An error refuses the message before Raft saw it.
    fn handle(self: Arc<Self>, from: Origin, kind: FrameKind, body: Bytes)
    -> BoxFuture<'static, Result<Bytes, String>>;

    /// Cancelled once it stops: nothing is kept for it then.
    fn stopping(&self) -> CancellationToken;

    /// Makes room for a snapshot. Blocking.
    fn begin_snapshot(&self, meta: SnapshotMeta) -> Result<SnapshotSink, String>;

    /// Hands a received snapshot to consensus and answers with its vote.
    fn install_snapshot(
        self: Arc<Self>,
        vote: Vote,
        meta: SnapshotMeta,
        data: SnapshotData,
    ) -> BoxFuture<'static, Result<Vote, String>>;
}

/// The replicas held by this node; clones share it.
#[derive(Clone, Default)]
pub struct Registry {
    held: Arc<RwLock<HashMap<ShardId, Arc<dyn Inbound>>>>,
}

impl Registry {
    /// None held.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many replicas are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.read().len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// False if another replica of the shard is held.
    #[must_use]
    pub(crate) fn insert(&self, shard: ShardId, replica: Arc<dyn Inbound>) -> bool {
        let mut held = self.held.write();
        let free = !held.contains_key(&shard);
        if free {
            held.insert(shard, replica);
        }
        free
    }

    pub(crate) fn remove(&self, shard: ShardId, replica: ReplicaId) {
        let mut held = self.held.write();
        if held.get(&shard).is_some_and(|held| held.replica() == replica) {
            held.remove(&shard);
        }
    }

    /// The process has ended.
    #[cfg(kv_sim)]
    pub(crate) fn clear(&self) {
        let held = std::mem::take(&mut *self.held.write());
        drop(held);
    }

    /// The replica a message is for, or why there is none.
    pub(crate) fn find(&self, shard: ShardId, replica: ReplicaId) -> Result<Arc<dyn Inbound>, String> {
        match self.held.read().get(&shard) {
            None => Err(format!("shard {shard} has no replica here")),
            Some(held) if held.replica() != replica => {
                Err(format!("shard {shard} has replica {} here, not {replica}", held.replica()))
            }
            Some(held) => Ok(Arc::clone(held)),
        }
    }
}
