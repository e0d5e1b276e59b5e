//! What this node heard from others, and when: the liveness that stands in for sleeping shards.
//!
//! Invariants: a node counts as alive only if something came from it within the silence limit; a node that restarted
//! shows another incarnation, so that a quick restart is not mistaken for an unbroken life.
//!
//! Not here: how messages travel (link, service).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kv_proto::ids::NodeId;
use parking_lot::RwLock;
use tokio::sync::watch;

/// The living nodes with their incarnations.
pub type Alive = BTreeMap<NodeId, u64>;

/// What is known of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// The node.
    pub node: NodeId,
    /// Whether our link to it is up.
    pub connected: bool,
    /// How long ago anything came from it; None if nothing ever did.
    pub last_heard: Option<Duration>,
    /// By how much its wall clock is ahead of ours, in milliseconds, give or take half a round trip.
    pub clock_offset_ms: i64,
    /// Its process start; 0 if it never said.
    pub incarnation: u64,
}

/// One node's cell; written by links and streams, read by everyone.
pub(super) struct PeerCell {
    origin: Instant,
    /// Milliseconds since `origin`, plus one; 0 is never.
    heard: AtomicU64,
    offset_ms: AtomicI64,
    incarnation: AtomicU64,
    connected: AtomicBool,
    full: AtomicBool,
}

impl PeerCell {
    pub(super) fn heard(&self) {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.heard.fetch_max(now + 1, Ordering::Relaxed);
    }

    pub(super) fn introduced(&self, incarnation: u64) {
        self.incarnation.store(incarnation, Ordering::Relaxed);
        self.heard();
    }

    pub(super) fn measured_offset(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub(super) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    fn last_heard(&self) -> Option<Duration> {
        let heard = self.heard.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.origin.elapsed().saturating_sub(Duration::from_millis(heard)))
    }
}

/// The cells of all nodes.
pub(super) struct Peers {
    origin: Instant,
    cells: RwLock<HashMap<NodeId, Arc<PeerCell>>>,
    alive: watch::Sender<Alive>,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), cells: RwLock::default(), alive: watch::Sender::default() }
    }

    pub(super) fn cell(&self, node: NodeId) -> Arc<PeerCell> {
        if let Some(cell) = self.cells.read().get(&node) {
            return Arc::clone(cell);
        }
        let new = || PeerCell {
            origin: self.origin,
            heard: AtomicU64::new(0),
            offset_ms: AtomicI64::new(0),
            incarnation: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            full: AtomicBool::new(false),
        };
        Arc::clone(self.cells.write().entry(node).or_insert_with(|| Arc::new(new())))
    }

    pub(super) fn forget(&self, node: NodeId) {
        self.cells.write().remove(&node);
    }

    pub(super) fn last_heard(&self, node: NodeId) -> Option<Duration> {
        self.cells.read().get(&node)?.last_heard()
    }

    /// Whether it last said that its disk is nearly full.
    pub(super) fn is_full(&self, node: NodeId) -> bool {
        self.cells.read().get(&node).is_some_and(|cell| cell.full.load(Ordering::Relaxed))
    }

    /// All nodes, in order of their id.
    pub(super) fn states(&self) -> Vec<PeerState> {
        let mut states: Vec<_> = self
            .cells
            .read()
            .iter()
            .map(|(node, cell)| PeerState {
                node: *node,
                connected: cell.connected.load(Ordering::Relaxed),
                last_heard: cell.last_heard(),
                clock_offset_ms: cell.offset_ms.load(Ordering::Relaxed),
                incarnation: cell.incarnation.load(Ordering::Relaxed),
            })
            .collect();
        states.sort_by_key(|state| state.node);
        states
    }

    /// Publishes who is alive, if that changed.
    pub(super) fn sweep(&self, silence: Duration) {
        let alive: Alive = self
            .states()
            .into_iter()
            .filter(|state| state.last_heard.is_some_and(|heard| heard <= silence))
            .map(|state| (state.node, state.incarnation))
            .collect();
        self.alive.send_if_modified(|published| {
            let changed = *published != alive;
            if changed {
                *published = alive;
            }
            changed
        });
    }

    pub(super) fn watch(&self) -> watch::Receiver<Alive> {
        self.alive.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_alive_while_it_is_heard_and_a_restart_shows_as_another_incarnation() {
        let peers = Peers::new();
        let watch = peers.watch();
        peers.sweep(Duration::from_secs(60));
        assert!(watch.borrow().is_empty());
        peers.cell(NodeId(2)).introduced(7);
        peers.sweep(Duration::from_secs(60));
        assert_eq!(*watch.borrow(), Alive::from([(NodeId(2), 7)]));
        peers.cell(NodeId(2)).introduced(8);
        peers.sweep(Duration::from_secs(60));
        assert_eq!(*watch.borrow(), Alive::from([(NodeId(2), 8)]));
        peers.forget(NodeId(2));
        peers.sweep(Duration::from_secs(60));
        assert!(watch.borrow().is_empty());
    }
}
