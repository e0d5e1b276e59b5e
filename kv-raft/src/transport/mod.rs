//! Raft messages of all shards between two nodes, over one long-lived stream per ordered node pair.
//!
//! A node sends requests on the stream it opened and gets the answers on the same stream. A message carries whatever
//! frames wait at that moment, of whichever shards; no frame ever waits to be joined by more (what nobody waits for may wait before it
//! becomes one: appends). Snapshots have connections of their own, so that they never stand before a heartbeat.
//!
//! Invariants: every queue is bounded, and a full one fails the new call, so a peer that hangs costs its own link's
//! memory and no other peer's time; frames of one shard to one peer keep their order; a stream of another cluster,
//! for another node or of an unknown format is refused before any frame is read; every call ends within its time.
//!
//! Not here: what a frame means to a replica (replica, inbound); which nodes there are (kv-node, directory).

mod service;

mod network;

mod appends;

mod thrift;

mod snapshot;

mod link;

mod registry;

mod peers;

mod messages;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_proto::ids::NodeId;
use kv_proto::limits::{BATCH_BYTES_MAX, MESSAGE_BYTES_MAX};
use kv_proto::pb::raft::v1::Hello;
use kv_proto::pb::raft::v1::transport_service_server::TransportServiceServer;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::link::CallError;
pub(crate) use self::messages::{
    Checked, Hibernate, decode_agreement, decode_append, decode_checked, decode_hibernate, decode_index,
    decode_transfer, decode_vote_alone, decode_vote_request, encode_agreement, encode_appended, encode_checked,
    encode_hibernate, encode_index, encode_transferred, encode_vote_alone, encode_vote_response,
};
#[cfg(test)]
pub(crate) use self::messages::{decode_vote_response, encode_vote_request};
pub(crate) use self::network::{Network, Outbound, ReplicaAddress};
pub use self::peers::{Alive, PeerState};
pub use self::registry::Registry;
pub(crate) use self::registry::{Inbound, Origin};
pub use self::service::Service;

use self::link::Link;
use self::peers::Peers;
use self::snapshot::Transfers;
use crate::clock::Clock;
use crate::metrics::RaftMetrics;
use crate::timing::Timing;

/// What this node speaks; a peer refuses what it does not know.
pub const TRANSPORT_FORMAT: u32 = 1;

/// A message is sent once its frames reach this size: large enough that the cost of a message does not count, small
/// enough that the heartbeats behind it do not wait long.
pub(crate) const MESSAGE_BYTES_TARGET: usize = 1 << 20;

/// Largest message either way: one frame that begins below the target and holds a largest append request, which is
/// one full read of the log or one largest batch.
pub(crate) const TRANSPORT_MESSAGE_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;

const _: () = assert!(MESSAGE_BYTES_TARGET + BATCH_BYTES_MAX + (4 << 20) < TRANSPORT_MESSAGE_BYTES_MAX);

/// Where nodes are.
pub trait Directory: Send + Sync + 'static {
    /// `host:port` of a node's gRPC door; None if the node is not known.
    fn address(&self, node: NodeId) -> Option<String>;
}

/// Who this node is and how fast it must be.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Streams of other clusters are refused.
    pub cluster_id: String,
    /// This node.
    pub node: NodeId,
    /// Identifies this process start: a random number, or the start time.
    pub incarnation: u64,
    /// Heartbeats and time limits.
    pub timing: Timing,
}

/// The node's end of all links; clones share it.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: TransportConfig,
    directory: Arc<dyn Directory>,
    registry: Registry,
    clock: Clock,
    metrics: Arc<RaftMetrics>,
    peers: Peers,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
    snapshots: Transfers,
    /// Whether this node's disk is nearly full, which its peers are told.
    full: AtomicBool,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Transport {
    /// Opens no link yet: that happens when a node is named by [`Transport::set_members`] or first written to.
    #[must_use]
    pub fn new(
        config: TransportConfig,
        directory: Arc<dyn Directory>,
        registry: Registry,
        clock: Clock,
        metrics: Arc<RaftMetrics>,
    ) -> Self {
        let inner = Arc::new(Inner {
            snapshots: Transfers::new(&config.timing),
            config,
            directory,
            registry,
            clock,
            metrics,
            peers: Peers::new(),
            links: Mutex::default(),
            full: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        });
        inner.tasks.spawn(sweep(Arc::clone(&inner)));
        Self { inner }
    }

    /// The service other nodes call; to be added to the node's gRPC server.
    #[must_use]
    pub fn service(&self) -> TransportServiceServer<Service> {
        TransportServiceServer::new(Service::new(Arc::clone(&self.inner)))
            .max_decoding_message_size(TRANSPORT_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(TRANSPORT_MESSAGE_BYTES_MAX)
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.config.node
    }

    /// The replicas messages are delivered to.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// Keeps links to exactly these nodes; this node itself is left out.
    pub fn set_members(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let wanted: std::collections::BTreeSet<NodeId> =
            nodes.into_iter().filter(|node| *node != self.node()).collect();
        let mut gone = Vec::new();
        self.inner.links.lock().retain(|node, link| {
            let keep = wanted.contains(node);
            if !keep {
                link.close();
                gone.push(*node);
            }
            keep
        });
        for node in gone {
            self.inner.peers.forget(node);
        }
        for node in wanted {
            self.inner.link(node);
        }
    }

    /// All nodes this one heard of, in order of their id.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerState> {
        self.inner.peers.states()
    }

    /// How long ago anything came from a node.
    #[must_use]
    pub fn last_heard(&self, node: NodeId) -> Option<Duration> {
        self.inner.peers.last_heard(node)
    }

    /// Whether a node was heard of lately; this node always is.
    #[must_use]
    pub fn alive(&self, node: NodeId) -> bool {
        node == self.node() || self.last_heard(node).is_some_and(|heard| heard <= self.inner.config.timing.silence())
    }

    /// Whether a node is alive and has room on its disk, as far as it said.
    #[must_use]
    pub fn has_room(&self, node: NodeId) -> bool {
        let is_full = if node == self.node() { self.is_full() } else { self.inner.peers.is_full(node) };
        !is_full && self.alive(node)
    }

    /// Tells the peers, with the next heartbeat, whether this node's disk is nearly full.
    pub(crate) fn set_full(&self, full: bool) {
        self.inner.full.store(full, Ordering::Relaxed);
    }

    fn is_full(&self) -> bool {
        self.inner.full.load(Ordering::Relaxed)
    }

    /// The living nodes with their incarnations, whenever that changes.
    #[must_use]
    pub fn watch_alive(&self) -> watch::Receiver<Alive> {
        self.inner.peers.watch()
    }

    /// Closes all links and waits until their tasks have ended.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Inner {
    /// The link to a node, set up if it is new.
    pub(crate) fn link(self: &Arc<Self>, node: NodeId) -> Arc<Link> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(&node) {
            return Arc::clone(link);
        }
        let (link, queue) = Link::new(node, self.cancel.child_token());
        links.insert(node, Arc::clone(&link));
        self.tasks.spawn(link::run(Arc::clone(self), Arc::clone(&link), queue));
        link
    }

    fn hello(&self, to: NodeId) -> Hello {
        Hello {
            cluster_id: self.config.cluster_id.clone(),
            from_node_id: self.config.node.0,
            to_node_id: to.0,
            format: TRANSPORT_FORMAT,
            wall_ms: self.clock.wall_millis(),
            incarnation: self.config.incarnation,
            full: self.full.load(Ordering::Relaxed),
        }
    }

    /// Takes a peer's introduction in, or says why it is not accepted; `expected` is who it must be, where that is known.
    fn check_hello(&self, hello: &Hello, expected: Option<NodeId>) -> Result<NodeId, String> {
        let from = NodeId(hello.from_node_id);
        if hello.format != TRANSPORT_FORMAT {
            return Err(format!("transport format {} is not known, only {TRANSPORT_FORMAT}", hello.format));
        }
        if hello.cluster_id != self.config.cluster_id {
            return Err(format!(
                "cluster id is {:?}, this node belongs to {:?}",
                hello.cluster_id, self.config.cluster_id
            ));
        }
        if NodeId(hello.to_node_id) != self.config.node {
            return Err(format!("meant for node {}, this is node {}", hello.to_node_id, self.config.node));
        }
        if from == NodeId(0) || from == self.config.node {
            return Err(format!("node {from} cannot be the sender"));
        }
        if expected.is_some_and(|expected| expected != from) {
            return Err(format!("node {from} answered in place of another"));
        }
        self.peers.cell(from).set_full(hello.full);
        Ok(from)
    }
}

/// Says who is alive, once per heartbeat.
async fn sweep(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(inner.config.timing.heartbeat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while inner.cancel.run_until_cancelled(ticks.tick()).await.is_some() {
        inner.peers.sweep(inner.config.timing.silence());
    }
}
