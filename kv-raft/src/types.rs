//! The openraft type configuration, and the names the rest of the crate uses for its types.
//!
//! Invariants: a group's member id is the [`ReplicaId`](kv_proto::ids::ReplicaId), never the node id, so a replica
//! that is created again is another member and messages to its earlier incarnation never reach it.

use std::fmt;

use kv_proto::ids::{NodeId, ReplicaId, ShardId};

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

/// The leader of a shard as a replica knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderInfo {
    /// The replica that leads.
    pub replica: ReplicaId,
    /// The node it lives on.
    pub node: NodeId,
    /// The term it leads in; a larger one is newer.
    pub term: u64,
}

/// What a replica is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Leads.
    Leader,
    /// Votes and follows.
    Follower,
    /// Stands for election.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Its consensus has ended.
    Down,
}

impl Role {
    /// As the admin API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Down => "down",
        }
    }
}

/// How far another replica is, as the leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerState {
    /// Which.
    pub replica: ReplicaId,
    /// Where; 0 if the membership no longer says.
    pub node: NodeId,
    /// Last index it is known to have on disk.
    pub matched: u64,
    /// Entries behind the leader's last.
    pub lag: u64,
}

/// A replica's account of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<LeaderInfo>,
    /// Last index in its log; 0 if none.
    pub last: u64,
    /// Committed index.
    pub committed: u64,
    /// Applied index.
    pub applied: u64,
    /// Applied index that would survive a power cut without the log.
    pub durable: u64,
    /// Index up to which the log was dropped.
    pub purged: u64,
    /// On the leader: the others, in order of their id.
    pub followers: Vec<FollowerState>,
    /// Voters with their nodes, in order of their id.
    pub voters: Vec<(ReplicaId, NodeId)>,
    /// Learners with their nodes, in order of their id.
    pub learners: Vec<(ReplicaId, NodeId)>,
    /// Whether a change of voters is half done (joint consensus).
    pub joint: bool,
    /// It leads, and no majority of the voters answers it.
    pub no_quorum: bool,
    /// Whether it sleeps.
    pub hibernated: bool,
    /// Index of the last entry at which its content was compared with its peers', since the process began.
    pub checked: u64,
    /// Its content differs from that of the majority: it serves nothing until it is replaced.
    pub quarantined: bool,
    /// Bytes of data, estimated.
    pub data_bytes: u64,
}
