//! The first records of a cluster.

use kv_proto::ids::{SYSTEM_KEYSPACE, SYSTEM_SHARD};
use kv_proto::keys;
use kv_proto::pb::admin::v1::{Cluster, Keyspace, KeyspaceKind, KeyspaceState, Node, Replica, ReplicaRole, Shard};

use crate::catalog::change::Change;
use crate::catalog::records::{FORMAT, Record};

/// Name of the catalog's own keyspace.
pub const SYSTEM_NAME: &str = "system";

/// Name of the keyspace that every cluster has.
pub const DEFAULT_NAME: &str = "default";

/// Id kept for [`DEFAULT_NAME`], so that a keyspace made before it does not take its place.
pub const DEFAULT_KEYSPACE_ID: u32 = 2;

/// Voters the catalog itself should have.
pub const SYSTEM_REPLICAS: u32 = 3;

/// The catalog of a cluster of one node: that node, the system keyspace, shard 1 with one voter.
#[must_use]
pub fn first_records(cluster_id: &str, node: Node, bootstrap_nodes: u32, default_shards: u32) -> Change {
    let range = keys::keyspace_range(SYSTEM_KEYSPACE);
    let voter = Replica { replica_id: 1, node_id: node.node_id, role: ReplicaRole::Voter.into() };
    let mut change = Change::default();
    change.put(Record::Cluster(Cluster {
        format: FORMAT,
        cluster_id: cluster_id.to_owned(),
        next_node_id: node.node_id + 1,
        next_keyspace_id: DEFAULT_KEYSPACE_ID + 1,
        next_shard_id: SYSTEM_SHARD.0 + 1,
        next_action_id: 1,
        bootstrap_nodes,
        default_shards,
    }));
    change.put(Record::Keyspace(Keyspace {
        keyspace_id: SYSTEM_KEYSPACE.0,
        name: SYSTEM_NAME.to_owned(),
        kind: KeyspaceKind::Range.into(),
        replicas: SYSTEM_REPLICAS,
        retention_seconds: 0,
        state: KeyspaceState::Ready.into(),
        epoch: 1,
    }));
    change.put(Record::Shard(Shard {
        shard_id: SYSTEM_SHARD.0,
        keyspace_id: SYSTEM_KEYSPACE.0,
        start: range.start().clone(),
        end: range.end().clone(),
        epoch: 1,
        replicas: vec![voter],
        next_replica_id: 2,
        preferred_leader_replica_id: 1,
        creating: false,
    }));
    change.put(Record::Node(node));
    change
}
