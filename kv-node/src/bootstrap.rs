//! The first node of a cluster makes it: shard 1 with itself as the only voter, and the first records.
//!
//! Invariants: each stage can be cut short and begun again: the cluster id and the instance id are drawn once and kept
//! in the identity, the group begins only if its log is empty, and the records are written only if there are none.
//!
//! Not here: every other node (join).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::ids::{NodeId, ReplicaId, SYSTEM_KEYSPACE, SYSTEM_SHARD};
use kv_proto::keys;
use kv_proto::pb::admin::v1::{Node, NodeState};
use kv_raft::replica::{Replica, ReplicaSpec, StartError};

use crate::catalog::edits::bootstrap::first_records;
use crate::catalog::store::{self, StoreError};
use crate::config::Config;
use crate::controller::run::now_ms;
use crate::host::Host;
use crate::identity::Identity;

/// The node that begins a cluster.
pub const FIRST_NODE: NodeId = NodeId(1);

const FIRST_REPLICA: ReplicaId = ReplicaId(1);

/// Between looks at what is not there yet.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a cluster was not made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Shard 1 does not start.
    #[error("shard 1 does not start")]
    Start(#[from] StartError),
    /// Its records cannot be written.
    #[error("the first records cannot be written")]
    Store(#[from] StoreError),
    /// The records there are of another cluster.
    #[error("shard 1 in this data folder belongs to cluster {found}, the identity says {ours}; nothing was changed")]
    Foreign {
        /// In the records.
        found: String,
        /// In the identity.
        ours: String,
    },
}

/// Begins shard 1 and writes the first records; does what is left to do of it.
pub async fn bootstrap(host: &Arc<Host>, identity: &Identity, config: &Config) -> Result<(), BootstrapError> {
    let replica = match host.replica(SYSTEM_SHARD) {
        Some(replica) => replica,
        None => host.start(first_replica()).await?,
    };
    loop {
        match write(&replica, identity, config).await {
            Ok(()) => return Ok(()),
            Err(BootstrapError::Store(StoreError::NotLeader(_) | StoreError::Changed | StoreError::OutcomeUnknown)) => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Shard 1's first replica, which begins its group.
#[must_use]
pub fn first_replica() -> ReplicaSpec {
    ReplicaSpec {
        shard: SYSTEM_SHARD,
        replica: FIRST_REPLICA,
        range: keys::keyspace_range(SYSTEM_KEYSPACE),
        retention: Duration::ZERO,
        initialize: Some(BTreeMap::from([(FIRST_REPLICA, FIRST_NODE)])),
    }
}

async fn write(replica: &Replica, identity: &Identity, config: &Config) -> Result<(), BootstrapError> {
    let records = store::read(replica).await?;
    if let Some(cluster) = &records.cluster {
        let (found, ours) = (cluster.cluster_id.clone(), identity.cluster_id.clone());
        return if found == ours { Ok(()) } else { Err(BootstrapError::Foreign { found, ours }) };
    }
    let node = Node {
        node_id: identity.node().0,
        address: config.advertise.clone(),
        http_address: config.http_advertise.clone(),
        state: NodeState::Active.into(),
        instance_id: identity.instance_bytes().into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        joined_ms: now_ms(),
    };
    let change = first_records(&identity.cluster_id, node, config.bootstrap_nodes(), config.default_shards());
    store::apply(replica, &records, &change).await?;
    tracing::info!(cluster = identity.cluster_id, "cluster created");
    Ok(())
}
