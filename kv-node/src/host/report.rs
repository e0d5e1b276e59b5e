//! A replica's account of itself as the admin API shows it.
//!
//! Not here: the node's own account (node, status).

use kv_proto::ids::Epoch;
use kv_proto::pb::admin::v1::{ReplicaLag, ReplicaStatus};
use kv_raft::types::ReplicaState;

/// With the node it lives on and the epoch the node knows.
#[must_use]
pub fn replica_status(state: &ReplicaState, node: u64, epoch: Epoch) -> ReplicaStatus {
    let lag = |follower: &kv_raft::types::FollowerState| ReplicaLag {
        replica_id: follower.replica.0,
        matched_index: follower.matched,
        lag: follower.lag,
    };
    ReplicaStatus {
        shard_id: state.shard.0,
        replica_id: state.replica.0,
        node_id: node,
        role: state.role.as_str().to_owned(),
        term: state.term,
        leader_replica_id: state.leader.map_or(0, |leader| leader.replica.0),
        last_index: state.last,
        committed_index: state.committed,
        applied_index: state.applied,
        durable_index: state.durable,
        purged_index: state.purged,
        data_bytes: state.data_bytes,
        hibernated: state.hibernated,
        followers: state.followers.iter().map(lag).collect(),
        voter_replica_ids: state.voters.iter().map(|(replica, _)| replica.0).collect(),
        learner_replica_ids: state.learners.iter().map(|(replica, _)| replica.0).collect(),
        epoch: epoch.0,
        quarantined: state.quarantined,
        checked_index: state.checked,
        no_quorum: state.no_quorum,
    }
}
