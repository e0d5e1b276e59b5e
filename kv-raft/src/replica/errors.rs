//! Why a replica did not do what it was asked.
//!
//! Invariants: of all errors of a proposal only [`ProposeError::OutcomeUnknown`], and [`ProposeError::TimedOut`] of one
//! that was proposed, leave open whether it applies; after any other one it never does.
//!
//! Not here: refusals of commands, which are replies (command); what a client is told (kv-proto, errors).

use std::path::PathBuf;

use kv_proto::ids::{NodeId, ReplicaId, ShardId};

use crate::clock::TooFarAhead;
use crate::data_engine::{CreateError, DataError};
use crate::log_store::LogError;
use crate::types::LeaderInfo;

/// Why a proposal has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another replica leads, or none is known to. Not applied.
    #[error("this replica does not lead its shard")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<LeaderInfo>,
    },
    /// This replica leads but hears from no majority. Not applied.
    #[error("the shard's leader has no majority")]
    NoQuorum,
    /// It was handed over, then leadership or the replica was lost: it may apply, now or later, or never.
    #[error("whether the proposal applies is not known")]
    OutcomeUnknown,
    /// Its caller's time ran out.
    #[error("the deadline passed {}", if *.proposed { "after it was proposed" } else { "before it was proposed" })]
    TimedOut {
        /// Whether it was handed over before, so that it may apply; otherwise it never does.
        proposed: bool,
    },
    /// Too much waits already. Not applied.
    #[error("{queue} is full")]
    Overloaded {
        /// Which queue.
        queue: &'static str,
    },
    /// The replica stops. Not applied.
    #[error("the replica stops")]
    Stopped,
    /// Consensus or storage of this replica failed; the process ends. Not applied.
    #[error("the replica failed: {0}")]
    Fatal(String),
}

/// Why a read has no view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another replica leads, or none is known to.
    #[error("this replica does not lead its shard")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<LeaderInfo>,
    },
    /// This replica leads but hears from no majority.
    #[error("the shard's leader has no majority")]
    NoQuorum,
    /// The timestamp lies further ahead than clocks may differ.
    #[error(transparent)]
    TooFarAhead(#[from] TooFarAhead),
    /// Too many reads wait already.
    #[error("{queue} is full")]
    Overloaded {
        /// Which queue.
        queue: &'static str,
    },
    /// The replica stops.
    #[error("the replica stops")]
    Stopped,
    /// Consensus or storage of this replica failed; the process ends.
    #[error("the replica failed: {0}")]
    Fatal(String),
}

impl From<ProposeError> for ReadError {
    /// For the barrier that a snapshot read may propose: it writes nothing, so its outcome does not matter.
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader } => Self::NotLeader { leader },
            ProposeError::NoQuorum => Self::NoQuorum,
            ProposeError::OutcomeUnknown | ProposeError::TimedOut { .. } => Self::NotLeader { leader: None },
            ProposeError::Overloaded { queue } => Self::Overloaded { queue },
            ProposeError::Stopped => Self::Stopped,
            ProposeError::Fatal(reason) => Self::Fatal(reason),
        }
    }
}

/// Why a replica does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It runs already.
    #[error("shard {0} has a running replica on this node")]
    Running(ShardId),
    /// This node holds another replica of the shard.
    #[error("shard {shard} is held here by replica {held}, not {asked}")]
    OtherReplica {
        /// The shard.
        shard: ShardId,
        /// What is held.
        held: ReplicaId,
        /// What was to start.
        asked: ReplicaId,
    },
    /// It cannot be created.
    #[error("the replica cannot be created")]
    Create(#[from] CreateError),
    /// Its data cannot be read.
    #[error("the replica's data cannot be read")]
    Data(#[from] DataError),
    /// Its log cannot be read.
    #[error("the replica's log cannot be read")]
    Log(#[from] LogError),
    /// The node holds data of the replica that came through a log, but not that log: votes and entries it
    /// acknowledged are lost, and with a new log it could vote twice in a term. Nothing was changed.
    #[error(
        "replica {replica} of shard {shard} has data, but its log is not in folder {}, which holds {}",
        .folder.display(),
        .found.map_or_else(|| "none of this shard".to_owned(), |found| format!("that of replica {found}"))
    )]
    LogLost {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// Of the logs.
        folder: PathBuf,
        /// Whose log of the shard lies there.
        found: Option<ReplicaId>,
    },
    /// The node holds a log of a replica whose data is not there although it was never destroyed: what it acknowledged may
    /// be in that log alone. Nothing was changed.
    #[error(
        "folder {} holds a log of replica {replica} of shard {shard}, but data folder {} not its data, which was never \
         destroyed: the data was removed, or its MANIFEST file is cut",
        .folder.display(),
        .data.display()
    )]
    DataLost {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// Of the logs.
        folder: PathBuf,
        /// Of the data.
        data: PathBuf,
    },
    /// The timing contradicts itself, or consensus refuses what the log and the data say together.
    #[error("consensus does not start: {0}")]
    Consensus(String),
}

/// Why a step on the membership was not taken, or not finished.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Another replica leads, or none is known to. Nothing changed.
    #[error("this replica does not lead its shard")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<LeaderInfo>,
    },
    /// This replica leads but hears from no majority. Nothing changed.
    #[error("the shard's leader has no majority")]
    NoQuorum,
    /// Another step is under way. Nothing changed.
    #[error("another change of the shard's membership is under way")]
    Busy,
    /// The step does not fit the membership as it is. Nothing changed.
    #[error("{0}")]
    Refused(String),
    /// The replica's node was not heard of lately. Nothing changed.
    #[error("node {node} of replica {replica} does not answer")]
    NotAlive {
        /// The replica.
        replica: ReplicaId,
        /// Its node.
        node: NodeId,
    },
    /// The replica is too far behind. Nothing changed.
    #[error("replica {replica} is {lag} entries behind")]
    Lagging {
        /// The replica.
        replica: ReplicaId,
        /// Entries behind the leader.
        lag: u64,
    },
    /// It was begun, then leadership was lost or time ran out: look at the membership and ask again.
    #[error("whether the change happens is not known")]
    OutcomeUnknown,
    /// The replica stops, or failed.
    #[error("the replica does not run")]
    Stopped,
}
