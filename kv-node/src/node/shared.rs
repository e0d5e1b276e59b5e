//! What every service of a node needs: one `Arc` of this is all they take.
//!
//! Not here: who makes these parts and stops them (node).

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use kv_client::connection::NodePool;
use kv_proto::ids::NodeId;
use kv_raft::clock::Clock;
use tokio::sync::Semaphore;

use super::readiness::Readiness;
use crate::admission::Admission;
use crate::catalog::current::CurrentCatalog;
use crate::catalog::{CatalogView, Leaders};
use crate::config::Config;
use crate::editor::Editor;
use crate::host::Host;
use crate::identity::Identity;
use crate::peers::Peers;

/// Reads that wait for the disk at once. Far fewer than the threads of the runtime's pool (512), since consensus must
/// always find one there.
pub(super) const DISK_READS_MAX: usize = 128;

/// The shared parts of a running node.
pub struct NodeShared {
    /// Who this node is.
    pub identity: Identity,
    /// As it was started.
    pub config: Arc<Config>,
    /// When this process began.
    pub started: Instant,
    /// The catalog as this node knows it.
    pub view: Arc<ArcSwap<CatalogView>>,
    /// The same, to wait for newer versions.
    pub current: Arc<CurrentCatalog>,
    /// Who leads each shard, as far as this node knows.
    pub leaders: Arc<Leaders>,
    /// The replicas of this node.
    pub host: Arc<Host>,
    /// Connections to other nodes.
    pub pool: NodePool,
    /// What this node takes on.
    pub admission: Arc<Admission>,
    /// Places for reads that wait for the disk.
    pub disk_reads: Arc<Semaphore>,
    /// Questions to other nodes.
    pub peers: Peers,
    /// Changes of the catalog.
    pub editor: Editor,
    /// This node's clock.
    pub clock: Clock,
    /// What keeps this node from being ready.
    pub readiness: Arc<Readiness>,
}

impl NodeShared {
    /// This node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.identity.node()
    }

    /// The cluster's id.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.identity.cluster_id
    }

    /// Whether this node takes no writes for lack of disk space.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.admission.read_only().is_some()
    }
}
