//! What a client is told when a replica could not do what it asked.
//!
//! Invariants: the outcome is never better than what the replica knows: only an error that says that the command never
//! enters the log becomes NOT_APPLIED. Every variant is named, so a new one fails to compile here.
//!
//! Not here: the wire form (kv-proto, errors); refusals, which are replies.

use std::time::Duration;

use kv_client::connection::{CallError, ConnectionError};
use kv_proto::errors::{Outcome, ServiceError};
use kv_raft::data_engine::DataError;
use kv_raft::replica::{ProposeError, ReadError};

use crate::catalog::ShardInfo;
use crate::router::{NO_LEADER_RETRY, Situation, no_leader};

/// A full queue empties within tens of milliseconds, or stays full.
const OVERLOADED_RETRY: Duration = Duration::from_millis(50);

/// A node that stops is replaced as leader within a second.
const STOPPED_RETRY: Duration = Duration::from_millis(100);

/// A write that was not answered.
#[must_use]
pub fn propose(error: ProposeError, situation: &Situation<'_>, shard: &ShardInfo) -> ServiceError {
    match error {
        ProposeError::NotLeader { leader: Some(leader) } => situation.not_leader(shard, Some(leader.node)),
        ProposeError::NotLeader { leader: None } | ProposeError::NoQuorum => no_leader(shard),
        ProposeError::OutcomeUnknown => outcome_unknown(shard),
        ProposeError::Overloaded { queue } => overloaded(queue),
        ProposeError::Stopped => stopped(),
        // Consensus may have failed after the entry left this node.
        ProposeError::Fatal(why) => ServiceError::Internal { why, outcome: Outcome::Unknown },
    }
}

/// A read that got no view.
#[must_use]
pub fn read(error: ReadError, situation: &Situation<'_>, shard: &ShardInfo, asked: u64) -> ServiceError {
    match error {
        ReadError::NotLeader { leader: Some(leader) } => situation.not_leader(shard, Some(leader.node)),
        ReadError::NotLeader { leader: None } | ReadError::NoQuorum => no_leader(shard),
        // Another replica may be fresher; the leader is.
        ReadError::TooStale { staleness: _ } => {
            let leader = situation.leaders.leader(shard.id()).map(|leader| leader.node);
            situation.not_leader(shard, leader.filter(|leader| *leader != situation.node))
        }
        ReadError::TooFarAhead(error) => ServiceError::SnapshotUnavailable { asked, why: error.to_string() },
        ReadError::Overloaded { queue } => overloaded(queue),
        ReadError::Stopped => stopped(),
        ReadError::Fatal(why) => ServiceError::Internal { why, outcome: Outcome::NotApplied },
    }
}

/// A view that could not be read.
#[must_use]
pub fn data(error: DataError, shard: &ShardInfo, asked: u64) -> ServiceError {
    match error {
        DataError::NotHeld(_) | DataError::OutsideRange { .. } => no_leader(shard),
        DataError::TooOld { asked: _, oldest } => {
            ServiceError::SnapshotUnavailable { asked, why: format!("the oldest readable one is {oldest}") }
        }
        error @ (DataError::Failed(_) | DataError::BadSnapshot(_)) => {
            ServiceError::Internal { why: error.to_string(), outcome: Outcome::NotApplied }
        }
    }
}

/// A request sent on to another node that did not come back with a response.
#[must_use]
pub fn forward(error: CallError, shard: &ShardInfo, writes: bool) -> ServiceError {
    let error = match error {
        CallError::Service(error) => return error,
        CallError::Connection(error) => error,
    };
    let outcome = if writes { error.outcome() } else { Outcome::NotApplied };
    match error {
        ConnectionError::TimedOut { .. } => ServiceError::DeadlineExceeded { stage: "forward".to_owned(), outcome },
        ConnectionError::CircuitOpen { retry_after, .. } => ServiceError::NoLeader { shard: shard.id(), retry_after },
        ConnectionError::Lost { .. } | ConnectionError::Unreachable { .. } => match outcome {
            Outcome::Unknown => outcome_unknown(shard),
            Outcome::NotApplied => no_leader(shard),
        },
        ConnectionError::Closed => stopped(),
    }
}

/// The deadline passed.
#[must_use]
pub fn deadline(stage: &str, outcome: Outcome) -> ServiceError {
    ServiceError::DeadlineExceeded { stage: stage.to_owned(), outcome }
}

/// A queue or budget is full.
#[must_use]
pub fn overloaded(queue: &str) -> ServiceError {
    ServiceError::Overloaded { queue: queue.to_owned(), retry_after: OVERLOADED_RETRY }
}

fn outcome_unknown(shard: &ShardInfo) -> ServiceError {
    ServiceError::OutcomeUnknown { shard: shard.id(), retry_after: NO_LEADER_RETRY }
}

fn stopped() -> ServiceError {
    ServiceError::NotReady { why: "it is stopping".to_owned(), retry_after: STOPPED_RETRY }
}
