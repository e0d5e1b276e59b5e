//! A replica's account of itself.
//!
//! Not here: how it is shown (kv-node).

use std::sync::atomic::Ordering;

use kv_proto::ids::{NodeId, ReplicaId};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use openraft::metrics::RaftMetrics;

use super::Replica;
use crate::types::{FollowerState, LeaderInfo, Membership, ReplicaState, Role, ShardRaft, Vote};

/// The leader a vote names, if a majority granted it and it is a member.
pub(super) fn leader(vote: &Vote, membership: &Membership) -> Option<LeaderInfo> {
    let replica = vote.leader_id.node_id;
    let member = membership.get_node(&replica).filter(|_| vote.committed)?;
    Some(LeaderInfo { replica: ReplicaId(replica), node: NodeId(member.node), term: vote.leader_id.term })
}

impl Replica {
    /// What it is and how far.
    #[must_use]
    pub fn status(&self) -> ReplicaState {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let data_bytes = self.context.data.estimated_bytes(self.shard);
        ReplicaState { data_bytes, ..self.status_of(&metrics) }
    }

    /// The same but for the data's size, for which tables are looked up.
    #[must_use]
    pub fn standing(&self) -> ReplicaState {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        self.status_of(&metrics)
    }

    /// The same of metrics at hand.
    pub(super) fn status_of(&self, metrics: &RaftMetrics<ShardRaft>) -> ReplicaState {
        let membership = metrics.membership_config.membership();
        let index = |id: &Option<crate::types::LogId>| id.map_or(0, |id| id.index);
        let last = metrics.last_log_index.unwrap_or(0);
        let node = |replica: &u64| NodeId(membership.get_node(replica).map_or(0, |member| member.node));
        let named = |replica: u64| (ReplicaId(replica), node(&replica));
        let followers = metrics.replication.iter().flatten().filter(|(replica, _)| **replica != self.replica.0);
        let followers = followers.map(|(replica, matched)| {
            let matched = index(matched);
            let replica = ReplicaId(*replica);
            FollowerState { replica, node: node(&replica.0), matched, lag: last.saturating_sub(matched) }
        });
        ReplicaState {
            shard: self.shard,
            replica: self.replica,
            role: role(metrics),
            term: metrics.current_term,
            leader: leader(&metrics.vote, membership),
            last,
            committed: index(&metrics.local_committed).max(index(&metrics.cluster_committed).min(last)),
            applied: index(&metrics.last_applied),
            durable: self.durable.load(Ordering::Acquire),
            purged: index(&metrics.purged),
            followers: followers.collect(),
            voters: membership.voter_ids().map(named).collect(),
            learners: membership.learner_ids().map(named).collect(),
            joint: membership.get_joint_config().len() > 1,
            no_quorum: self.lacks_quorum(metrics),
            hibernated: self.is_hibernated(),
            checked: self.checks.last_index(),
            quarantined: self.is_quarantined(),
            data_bytes: 0,
        }
    }
}

fn role(metrics: &RaftMetrics<ShardRaft>) -> Role {
    if metrics.running_state.is_err() {
        return Role::Down;
    }
    match metrics.state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        ServerState::Shutdown => Role::Down,
    }
}
