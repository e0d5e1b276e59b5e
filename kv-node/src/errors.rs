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
        ProposeError::TimedOut { proposed: true } => deadline("propose", Outcome::Unknown),
        ProposeError::TimedOut { proposed: false } => deadline("queue", Outcome::NotApplied),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kv_proto::ids::{NodeId, ReplicaId};
    use kv_proto::key_range::KeyRange;
    use kv_proto::pb::admin::v1::Shard;
    use kv_raft::types::LeaderInfo;

    use super::*;
    use crate::catalog::{CatalogView, Leaders};

    fn with<T>(look: impl FnOnce(&Situation<'_>, &ShardInfo) -> T) -> T {
        let (view, leaders) = (CatalogView::default(), Leaders::default());
        let shard = ShardInfo { descriptor: Shard { shard_id: 7, ..Default::default() }, range: KeyRange::all() };
        look(&Situation { view: &view, leaders: &leaders, node: NodeId(1) }, &shard)
    }

    /// Reason, outcome, and whether sending again may help.
    fn told(error: &ServiceError) -> (&'static str, Outcome, bool) {
        (error.reason(), error.outcome(), error.retry_after().is_some())
    }

    #[test]
    fn a_failed_write_says_not_applied_only_when_it_never_enters_the_log() {
        let leader = LeaderInfo { replica: ReplicaId(1), node: NodeId(2), term: 1 };
        let (not_applied, unknown) = (Outcome::NotApplied, Outcome::Unknown);
        let table = [
            (ProposeError::NotLeader { leader: Some(leader) }, ("NOT_LEADER", not_applied, true)),
            (ProposeError::NotLeader { leader: None }, ("NO_LEADER", not_applied, true)),
            (ProposeError::NoQuorum, ("NO_LEADER", not_applied, true)),
            (ProposeError::OutcomeUnknown, ("OUTCOME_UNKNOWN", unknown, true)),
            (ProposeError::TimedOut { proposed: true }, ("DEADLINE_EXCEEDED", unknown, false)),
            (ProposeError::TimedOut { proposed: false }, ("DEADLINE_EXCEEDED", not_applied, false)),
            (ProposeError::Overloaded { queue: "q" }, ("OVERLOADED", not_applied, true)),
            (ProposeError::Stopped, ("NOT_READY", not_applied, true)),
            (ProposeError::Fatal("disk".to_owned()), ("INTERNAL", unknown, false)),
        ];
        with(|situation, shard| {
            for (error, expected) in table {
                let shown = format!("{error:?}");
                let told_error = propose(error, situation, shard);
                assert_eq!(told(&told_error), expected, "{shown}");
            }
            let error = propose(ProposeError::NotLeader { leader: Some(leader) }, situation, shard);
            assert_eq!(error.route_hint().unwrap().shard.as_ref().unwrap().leader_node_id, 2);
        });
    }

    #[test]
    fn a_write_lost_on_its_way_to_another_node_is_unknown_only_if_it_was_sent() {
        let address: Arc<str> = Arc::from("n2:1");
        let lost = |sent| ConnectionError::Lost { address: address.clone(), why: String::new(), sent };
        let late = |sent| ConnectionError::TimedOut { address: address.clone(), sent };
        let open = ConnectionError::CircuitOpen { address: address.clone(), retry_after: NO_LEADER_RETRY };
        let (not_applied, unknown) = (Outcome::NotApplied, Outcome::Unknown);
        let table = [
            (lost(true), true, ("OUTCOME_UNKNOWN", unknown, true)),
            (lost(false), true, ("NO_LEADER", not_applied, true)),
            (lost(true), false, ("NO_LEADER", not_applied, true)),
            (late(true), true, ("DEADLINE_EXCEEDED", unknown, false)),
            (late(true), false, ("DEADLINE_EXCEEDED", not_applied, false)),
            (open, true, ("NO_LEADER", not_applied, true)),
            (ConnectionError::Closed, true, ("NOT_READY", not_applied, true)),
        ];
        with(|_, shard| {
            for (error, writes, expected) in table {
                let shown = format!("{error:?}");
                assert_eq!(told(&forward(CallError::Connection(error), shard, writes)), expected, "{shown}");
            }
            let theirs = ServiceError::SessionStale { sequence: 3 };
            assert_eq!(forward(CallError::Service(theirs.clone()), shard, true), theirs);
        });
    }
}
