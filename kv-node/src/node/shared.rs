//! What every service of a node needs: one `Arc` of this is all they take.
//!
//! Not here: who makes these parts and stops them (node).

use std::sync::Arc;

use arc_swap::ArcSwap;
use kv_client::connection::NodePool;
use kv_proto::ids::NodeId;

use super::readiness::Readiness;
use crate::admission::Admission;
use crate::catalog::{CatalogView, Leaders};
use crate::config::Config;
use crate::host::Host;
use crate::identity::Identity;

/// The shared parts of a running node.
pub struct NodeShared {
    /// Who this node is.
    pub identity: Identity,
    /// As it was started.
    pub config: Arc<Config>,
    /// The catalog as this node knows it.
    pub view: Arc<ArcSwap<CatalogView>>,
    /// Who leads each shard, as far as this node knows.
    pub leaders: Arc<Leaders>,
    /// The replicas of this node.
    pub host: Arc<Host>,
    /// Connections to other nodes.
    pub pool: NodePool,
    /// What this node takes on.
    pub admission: Arc<Admission>,
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
}
