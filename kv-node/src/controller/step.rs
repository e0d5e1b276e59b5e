//! What a plan is made of.
//!
//! Not here: how steps are carried out (run).

use std::collections::BTreeSet;
use std::fmt;

use crate::catalog::change::Change;

/// One conditional step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A change of the catalog.
    Catalog {
        /// What to write.
        change: Change,
        /// In one line, for the log.
        why: String,
        /// Must be seen from the group's leader right before.
        check: Option<GroupCheck>,
    },
    /// A step on a group's membership.
    Group(GroupStep),
}

/// Replicas that the group's committed membership must not name any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCheck {
    /// The shard.
    pub shard: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The node to ask.
    pub leader_node: u64,
    /// Neither voters nor learners.
    pub gone: BTreeSet<u64>,
}

/// A step the leader of a group takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStep {
    /// The shard.
    pub shard: u64,
    /// The epoch the step was planned from.
    pub epoch: u64,
    /// The node that leads, as observed.
    pub leader_node: u64,
    /// What it does.
    pub kind: GroupStepKind,
}

/// See [`GroupStep`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupStepKind {
    /// Adds a replica as a learner.
    AddLearner {
        /// Its id.
        replica: u64,
        /// Where it is.
        node: u64,
    },
    /// Joint consensus to exactly these voters.
    ChangeVoters {
        /// Replica ids.
        voters: BTreeSet<u64>,
    },
    /// Drops a learner.
    RemoveLearner {
        /// Its id.
        replica: u64,
    },
    /// Hands leadership over.
    TransferLeader {
        /// To whom.
        replica: u64,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalog { why, .. } => f.write_str(why),
            Self::Group(step) => step.fmt(f),
        }
    }
}

impl fmt::Display for GroupStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, epoch, leader_node, kind } = self;
        write!(f, "shard {shard} epoch {epoch} at node {leader_node}: ")?;
        match kind {
            GroupStepKind::AddLearner { replica, node } => write!(f, "add learner {replica} on node {node}"),
            GroupStepKind::ChangeVoters { voters } => write!(f, "change voters to {voters:?}"),
            GroupStepKind::RemoveLearner { replica } => write!(f, "remove learner {replica}"),
            GroupStepKind::TransferLeader { replica } => write!(f, "transfer leadership to replica {replica}"),
        }
    }
}
