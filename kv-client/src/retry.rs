//! What to do about a failed attempt: a pure function, so that scripts can test it.
//!
//! Invariants:
//! - what may have been applied is sent again only if the request is repeatable: a read, or a write under a session;
//! - waits are random within their window (full jitter), so that clients that failed together do not return together.
//!
//! Not here: carrying the decision out (execute).

use std::time::Duration;

use kv_proto::errors::{Outcome, ServiceError};
use tonic::Code;

use crate::connection::{CallError, ConnectionError};

/// First window of the backoff.
const WINDOW_MIN: Duration = Duration::from_millis(10);

/// Widest window: a new leader is found this long after its election at worst.
const WINDOW_MAX: Duration = Duration::from_millis(200);

/// Window once the retry budget is spent: goes on, but slowly.
const WINDOW_SPENT: Duration = Duration::from_secs(1);

/// A request may be sent from node to node this often without a wait; more is a circle.
const REDIRECTS_FREE: u32 = 2;

/// A node's own failure is met with other attempts up to this one.
const INTERNAL_TRIES: u32 = 4;

/// Every so many failures in a row, all routes are fetched anew instead of asking the next replica.
const REFRESH_EVERY: u32 = 4;

/// What is known when an attempt has failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// How often the request has been sent, this attempt included.
    pub(crate) number: u32,
    /// Whether sending it again cannot apply it twice.
    pub(crate) repeatable: bool,
    /// Time left.
    pub(crate) remaining: Duration,
    /// Whether the client's retry budget still holds something.
    pub(crate) budget: bool,
}

/// Where the next attempt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Where the node's hint says.
    Follow,
    /// To the same node.
    Same,
    /// To another replica.
    Elsewhere,
    /// Where newly fetched routes say.
    Refresh,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Send it again after `least` and a random part of `window`.
    Retry {
        /// Where.
        step: Step,
        /// What the node asked for.
        least: Duration,
        /// Jitter is drawn from this.
        window: Duration,
    },
    /// Tell the caller.
    Fail,
}

/// Decides.
pub(crate) fn decide(error: &CallError, attempt: Attempt) -> Decision {
    if error.outcome() == Outcome::Unknown && !attempt.repeatable {
        return Decision::Fail;
    }
    let decision = match error {
        CallError::Connection(error) => on_silence(error, attempt),
        CallError::Service(error) => on_answer(error, attempt),
    };
    match decision {
        Decision::Retry { least, .. } if least >= attempt.remaining => Decision::Fail,
        Decision::Retry { .. } | Decision::Fail => decision,
    }
}

fn on_silence(error: &ConnectionError, attempt: Attempt) -> Decision {
    match error {
        ConnectionError::Closed => Decision::Fail,
        // The first time another replica may know more at once.
        ConnectionError::CircuitOpen { .. } | ConnectionError::Unreachable { .. } | ConnectionError::Lost { .. }
            if attempt.number == 1 =>
        {
            at_once(Step::Elsewhere)
        }
        ConnectionError::CircuitOpen { .. }
        | ConnectionError::Unreachable { .. }
        | ConnectionError::Lost { .. }
        | ConnectionError::TimedOut { .. } => backoff(elsewhere(attempt), Duration::ZERO, attempt),
    }
}

fn on_answer(error: &ServiceError, attempt: Attempt) -> Decision {
    let least = error.retry_after().unwrap_or_default();
    match error {
        ServiceError::NotLeader { hint } if hint.shard.as_ref().is_some_and(|shard| shard.leader_node_id != 0) => {
            follow(attempt)
        }
        ServiceError::StaleRoute { hint } if !hint.current.is_empty() => follow(attempt),
        ServiceError::StaleRoute { .. } if attempt.number <= REDIRECTS_FREE => at_once(Step::Refresh),
        ServiceError::StaleRoute { .. } | ServiceError::ShardNotFound { .. } => backoff(Step::Refresh, least, attempt),
        ServiceError::NotLeader { .. } | ServiceError::NoLeader { .. } | ServiceError::NotReady { .. } => {
            backoff(elsewhere(attempt), least, attempt)
        }
        ServiceError::OutcomeUnknown { .. } | ServiceError::ReadOnly { .. } => {
            backoff(elsewhere(attempt), least, attempt)
        }
        ServiceError::Overloaded { .. } => backoff(Step::Same, least, attempt),
        // A node whose disk fails says so and ends: another takes over. What goes on failing is a fault of the product.
        ServiceError::Internal { .. } if attempt.number <= INTERNAL_TRIES => {
            backoff(elsewhere(attempt), Duration::ZERO, attempt)
        }
        ServiceError::DeadlineExceeded { .. } => backoff(elsewhere(attempt), Duration::ZERO, attempt),
        ServiceError::Foreign { code: Code::Unavailable, .. } => backoff(elsewhere(attempt), Duration::ZERO, attempt),
        ServiceError::Invalid { .. }
        | ServiceError::DeadlineMissing
        | ServiceError::KeyspaceNotFound { .. }
        | ServiceError::NotFound { .. }
        | ServiceError::AlreadyExists { .. }
        | ServiceError::ClusterMismatch { .. }
        | ServiceError::CursorMismatch
        | ServiceError::CrossShard { .. }
        | ServiceError::SessionStale { .. }
        | ServiceError::SnapshotUnavailable { .. }
        | ServiceError::Conflict { .. }
        | ServiceError::Refused { .. }
        | ServiceError::Internal { .. }
        | ServiceError::Foreign { .. } => Decision::Fail,
    }
}

fn elsewhere(attempt: Attempt) -> Step {
    if attempt.number.is_multiple_of(REFRESH_EVERY) { Step::Refresh } else { Step::Elsewhere }
}

fn follow(attempt: Attempt) -> Decision {
    if attempt.number <= REDIRECTS_FREE {
        at_once(Step::Follow)
    } else {
        backoff(Step::Follow, Duration::ZERO, attempt)
    }
}

fn at_once(step: Step) -> Decision {
    Decision::Retry { step, least: Duration::ZERO, window: Duration::ZERO }
}

fn backoff(step: Step, least: Duration, attempt: Attempt) -> Decision {
    let doublings = attempt.number.saturating_sub(1).min(8);
    let window = if attempt.budget { (WINDOW_MIN * (1 << doublings)).min(WINDOW_MAX) } else { WINDOW_SPENT };
    Decision::Retry { step, least, window }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
