//! The openraft type configuration, and the names the rest of the crate uses for its types.
//!
//! Invariants: a group's member id is the [`ReplicaId`](kv_proto::ids::ReplicaId), never the node id, so a replica
//! that is created again is another member and messages to its earlier incarnation never reach it.

use std::fmt;

use crate::command::{CommandBatch, Replies};

/// The node a member lives on; openraft carries it in the membership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// See [`kv_proto::ids::NodeId`].
    pub node: u64,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.node)
    }
}

openraft::declare_raft_types!(
    /// One shard's Raft group.
    pub ShardRaft:
        D = CommandBatch,
        R = Replies,
        NodeId = u64,
        Node = Member,
);

/// A term and the replica that leads it.
pub type LeaderId = openraft::alias::LeaderIdOf<ShardRaft>;
/// Position of an entry in a log: leader and index.
pub type LogId = openraft::alias::LogIdOf<ShardRaft>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<ShardRaft>;
/// A vote as it is stored and sent.
pub type Vote = openraft::alias::VoteOf<ShardRaft>;
/// Voters and learners, with the log id that made them so.
pub type StoredMembership = openraft::alias::StoredMembershipOf<ShardRaft>;
/// Voters and learners.
pub type Membership = openraft::Membership<u64, Member>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<ShardRaft>;
