//! The one error contract: [`ServiceError`] <-> `tonic::Status`.
//!
//! Invariants:
//! - every status carries exactly one `ErrorInfo` whose reason is in [`REASONS`], domain [`DOMAIN`];
//! - a `RetryInfo` if and only if sending again may help, and then it is the least time to wait;
//! - a `RouteHint` where the request reached a node or shard that does not serve it;
//! - metadata "outcome" says whether the write may have been applied;
//! - `from_status(to_status(e)) == e`, and a status of no known reason becomes [`ServiceError::Foreign`].
//!
//! Not here: what to do about an error (kv-client, retry).

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use prost_types::Any;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::ids::ShardId;
use crate::pb::v1::{Failure, RouteHint};

/// The domain of every reason.
pub const DOMAIN: &str = "kv.v1";

/// Full name of the detail that carries a route.
const ROUTE_HINT: &str = "kv.v1.RouteHint";

/// What became of a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was not applied and never will be.
    NotApplied,
    /// It may be applied, now or later; only its session tells.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotApplied => "NOT_APPLIED",
            Self::Unknown => "UNKNOWN",
        })
    }
}

/// One field at fault and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {description}")]
pub struct Violation {
    /// Path of the field, as in `header.session.client_id`.
    pub field: String,
    /// What is wrong and which limit applies.
    pub description: String,
}

/// Everything a node answers instead of a response.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ServiceError {
    /// Fields of the request are at fault.
    #[error("invalid request: {}", join(violations))]
    Invalid {
        /// At least one.
        violations: Vec<Violation>,
    },
    /// Neither `header.timeout_ms` nor `grpc-timeout` is there.
    #[error("the request has no deadline: set header.timeout_ms or grpc-timeout (at most 60 s)")]
    DeadlineMissing,
    /// The deadline passed.
    #[error("deadline passed while the request was in {stage}")]
    DeadlineExceeded {
        /// Where it was: "queue", "propose", "read", "forward", "transport".
        stage: String,
        /// Whether it may have been applied.
        outcome: Outcome,
    },
    /// There is no such keyspace.
    #[error("keyspace {name:?} does not exist")]
    KeyspaceNotFound {
        /// As asked.
        name: String,
    },
    /// There is no such shard.
    #[error("shard {shard} does not exist")]
    ShardNotFound {
        /// As asked.
        shard: ShardId,
    },
    /// There is no such node, action or other named thing.
    #[error("{what} {name} does not exist")]
    NotFound {
        /// "node", "action", ...
        what: String,
        /// As asked.
        name: String,
    },
    /// The name is taken.
    #[error("{name:?} already exists, as a {what}")]
    AlreadyExists {
        /// "keyspace", ...
        what: String,
        /// As asked.
        name: String,
    },
    /// The caller speaks of another cluster.
    #[error("this is cluster {ours}, the request is for cluster {theirs}")]
    ClusterMismatch {
        /// The id of this node's cluster.
        ours: String,
        /// The id in the request.
        theirs: String,
    },
    /// The cursor is damaged or of another scan.
    #[error("the cursor does not belong to this scan: begin again without one")]
    CursorMismatch,
    /// A batch names keys of several shards.
    #[error(
        "the batch names keys of shards {first} and {second}: a batch is atomic within one shard; split it, or give keys that belong together a common hash tag in a hash keyspace"
    )]
    CrossShard {
        /// The shard of the first key.
        first: ShardId,
        /// The first other one.
        second: ShardId,
    },
    /// Another replica leads the shard, or the shard is not on this node.
    #[error("shard {} is not led by the node that was asked", hint_shard(hint))]
    NotLeader {
        /// Where to go; its leader is 0 if not known.
        hint: Box<RouteHint>,
    },
    /// The route the request was sent by is out of date.
    #[error("the route to shard {} is stale", hint_shard(hint))]
    StaleRoute {
        /// The shards that hold the range now.
        hint: Box<RouteHint>,
    },
    /// The shard has no leader that can reach a quorum now.
    #[error("shard {shard} has no leader now")]
    NoLeader {
        /// Which.
        shard: ShardId,
        /// Least time until sending again may help.
        retry_after: Duration,
    },
    /// The entry was proposed and then lost sight of.
    #[error("shard {shard} changed its leader while the write was in flight: it may or may not be applied")]
    OutcomeUnknown {
        /// Which.
        shard: ShardId,
        /// Least time until sending again, under the same session, may help.
        retry_after: Duration,
    },
    /// The write's sequence lies below what its client declared finished, which may have been applied; or it was refused
    /// before, which was not. Either way it is not applied any more.
    #[error("sequence {sequence} of this client was finished or refused before: it is not applied any more")]
    SessionStale {
        /// As sent.
        sequence: u64,
    },
    /// A queue or budget is full.
    #[error("{queue} is full: wait and send again")]
    Overloaded {
        /// Which one.
        queue: String,
        /// Least time until sending again may help.
        retry_after: Duration,
    },
    /// The node takes no writes.
    #[error("the node is read-only: {why}")]
    ReadOnly {
        /// What is wrong with its disk.
        why: String,
        /// Least time until sending again may help.
        retry_after: Duration,
    },
    /// The timestamp of a snapshot read is outside of what is kept.
    #[error("snapshot timestamp {asked} is not readable: {why}")]
    SnapshotUnavailable {
        /// As asked.
        asked: u64,
        /// Collected already, in the future, or a keyspace without retention.
        why: String,
    },
    /// Something changed since the caller looked.
    #[error("{what} is at epoch {found}, the request was planned from {planned}: look again")]
    Conflict {
        /// "shard 7", ...
        what: String,
        /// As sent.
        planned: u64,
        /// As it is.
        found: u64,
    },
    /// It would lose quorum or data.
    #[error("refused: {why}{}", force_advice(force))]
    Refused {
        /// What would be lost.
        why: String,
        /// The name that forces it; empty if nothing does.
        force: String,
    },
    /// The node starts, stops, or is not a member yet.
    #[error("the node is not ready: {why}")]
    NotReady {
        /// Which of these.
        why: String,
        /// Least time until sending again may help.
        retry_after: Duration,
    },
    /// A bug, or damage; the node's log says more.
    #[error("internal error: {why}")]
    Internal {
        /// In one line.
        why: String,
        /// Whether the write may have been applied.
        outcome: Outcome,
    },
    /// Not from this contract: the transport, a proxy, or an unknown reason.
    #[error("{message} ({})", code_name(*code))]
    Foreign {
        /// As received.
        code: Code,
        /// As received.
        message: String,
    },
}

/// Every reason, in the order of the variants.
pub const REASONS: [&str; 22] = [
    "INVALID_REQUEST",
    "DEADLINE_MISSING",
    "DEADLINE_EXCEEDED",
    "KEYSPACE_NOT_FOUND",
    "SHARD_NOT_FOUND",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "CLUSTER_MISMATCH",
    "CURSOR_MISMATCH",
    "CROSS_SHARD",
    "NOT_LEADER",
    "STALE_ROUTE",
    "NO_LEADER",
    "OUTCOME_UNKNOWN",
    "SESSION_STALE",
    "OVERLOADED",
    "READ_ONLY",
    "SNAPSHOT_UNAVAILABLE",
    "CONFLICT",
    "REFUSED",
    "NOT_READY",
    "INTERNAL",
];

type Metadata = Vec<(&'static str, String)>;

impl ServiceError {
    /// One field at fault.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid { violations: vec![Violation { field: field.into(), description: description.into() }] }
    }

    /// Its reason in [`REASONS`]; empty for [`ServiceError::Foreign`].
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.parts().1
    }

    /// Its gRPC code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.parts().0
    }

    /// Whether a write that failed so may have been applied. A status from outside of the contract tells nothing,
    /// except that an unreachable server or a refused stream never saw the request: the caller knows that better.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::DeadlineExceeded { outcome, .. } | Self::Internal { outcome, .. } => *outcome,
            Self::OutcomeUnknown { .. } | Self::SessionStale { .. } | Self::Foreign { .. } => Outcome::Unknown,
            Self::Invalid { .. }
            | Self::DeadlineMissing
            | Self::KeyspaceNotFound { .. }
            | Self::ShardNotFound { .. }
            | Self::NotFound { .. }
            | Self::AlreadyExists { .. }
            | Self::ClusterMismatch { .. }
            | Self::CursorMismatch
            | Self::CrossShard { .. }
            | Self::NotLeader { .. }
            | Self::StaleRoute { .. }
            | Self::NoLeader { .. }
            | Self::Overloaded { .. }
            | Self::ReadOnly { .. }
            | Self::SnapshotUnavailable { .. }
            | Self::Conflict { .. }
            | Self::Refused { .. }
            | Self::NotReady { .. } => Outcome::NotApplied,
        }
    }

    /// Least time until sending again may help; None if it does not help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoLeader { retry_after, .. }
            | Self::OutcomeUnknown { retry_after, .. }
            | Self::Overloaded { retry_after, .. }
            | Self::ReadOnly { retry_after, .. }
            | Self::NotReady { retry_after, .. } => Some(*retry_after),
            Self::NotLeader { .. } | Self::StaleRoute { .. } => Some(Duration::ZERO),
            Self::Invalid { .. }
            | Self::DeadlineMissing
            | Self::DeadlineExceeded { .. }
            | Self::KeyspaceNotFound { .. }
            | Self::ShardNotFound { .. }
            | Self::NotFound { .. }
            | Self::AlreadyExists { .. }
            | Self::ClusterMismatch { .. }
            | Self::CursorMismatch
            | Self::CrossShard { .. }
            | Self::SessionStale { .. }
            | Self::SnapshotUnavailable { .. }
            | Self::Conflict { .. }
            | Self::Refused { .. }
            | Self::Internal { .. }
            | Self::Foreign { .. } => None,
        }
    }

    /// Where the request should have gone.
    #[must_use]
    pub fn route_hint(&self) -> Option<&RouteHint> {
        if let Self::NotLeader { hint } | Self::StaleRoute { hint } = self { Some(hint) } else { None }
    }

    fn parts(&self) -> (Code, &'static str, Metadata) {
        match self {
            Self::Invalid { .. } => (Code::InvalidArgument, "INVALID_REQUEST", vec![]),
            Self::DeadlineMissing => (Code::InvalidArgument, "DEADLINE_MISSING", vec![]),
            Self::DeadlineExceeded { stage, .. } => {
                (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", vec![("stage", stage.clone())])
            }
            Self::KeyspaceNotFound { name } => (Code::NotFound, "KEYSPACE_NOT_FOUND", vec![("name", name.clone())]),
            Self::ShardNotFound { shard } => (Code::NotFound, "SHARD_NOT_FOUND", vec![("shard", shard.to_string())]),
            Self::NotFound { what, name } => {
                (Code::NotFound, "NOT_FOUND", vec![("what", what.clone()), ("name", name.clone())])
            }
            Self::AlreadyExists { what, name } => {
                (Code::AlreadyExists, "ALREADY_EXISTS", vec![("what", what.clone()), ("name", name.clone())])
            }
            Self::ClusterMismatch { ours, theirs } => {
                let metadata = vec![("ours", ours.clone()), ("theirs", theirs.clone())];
                (Code::FailedPrecondition, "CLUSTER_MISMATCH", metadata)
            }
            Self::CursorMismatch => (Code::InvalidArgument, "CURSOR_MISMATCH", vec![]),
            Self::CrossShard { first, second } => {
                let metadata = vec![("first", first.to_string()), ("second", second.to_string())];
                (Code::InvalidArgument, "CROSS_SHARD", metadata)
            }
            Self::NotLeader { .. } => (Code::Unavailable, "NOT_LEADER", vec![]),
            Self::StaleRoute { .. } => (Code::FailedPrecondition, "STALE_ROUTE", vec![]),
            Self::NoLeader { shard, .. } => (Code::Unavailable, "NO_LEADER", vec![("shard", shard.to_string())]),
            Self::OutcomeUnknown { shard, .. } => {
                (Code::Unavailable, "OUTCOME_UNKNOWN", vec![("shard", shard.to_string())])
            }
            Self::SessionStale { sequence } => {
                (Code::Aborted, "SESSION_STALE", vec![("sequence", sequence.to_string())])
            }
            Self::Overloaded { queue, .. } => (Code::ResourceExhausted, "OVERLOADED", vec![("queue", queue.clone())]),
            Self::ReadOnly { why, .. } => (Code::ResourceExhausted, "READ_ONLY", vec![("why", why.clone())]),
            Self::SnapshotUnavailable { asked, why } => {
                (Code::OutOfRange, "SNAPSHOT_UNAVAILABLE", vec![("asked", asked.to_string()), ("why", why.clone())])
            }
            Self::Conflict { what, planned, found } => {
                let metadata =
                    vec![("what", what.clone()), ("planned", planned.to_string()), ("found", found.to_string())];
                (Code::Aborted, "CONFLICT", metadata)
            }
            Self::Refused { why, force } => {
                (Code::FailedPrecondition, "REFUSED", vec![("why", why.clone()), ("force", force.clone())])
            }
            Self::NotReady { why, .. } => (Code::Unavailable, "NOT_READY", vec![("why", why.clone())]),
            Self::Internal { why, .. } => (Code::Internal, "INTERNAL", vec![("why", why.clone())]),
            Self::Foreign { code, .. } => (*code, "", vec![]),
        }
    }

    fn to_rpc(&self) -> pb::Status {
        let (code, reason, metadata) = self.parts();
        let mut rpc = pb::Status { code: code.into(), message: self.to_string(), details: vec![] };
        if let Self::Foreign { message, .. } = self {
            rpc.message.clone_from(message);
            return rpc;
        }
        let mut metadata: HashMap<String, String> =
            metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        metadata.insert("outcome".to_owned(), self.outcome().to_string());
        let info = pb::ErrorInfo { reason: reason.to_owned(), domain: DOMAIN.to_owned(), metadata };
        rpc.details.push(any("google.rpc.ErrorInfo", &info));
        if let Some(delay) = self.retry_after() {
            let retry_delay = prost_types::Duration::try_from(delay).ok();
            rpc.details.push(any("google.rpc.RetryInfo", &pb::RetryInfo { retry_delay }));
        }
        if let Self::Invalid { violations } = self {
            let field_violations = violations.iter().map(violation_to_rpc).collect();
            rpc.details.push(any("google.rpc.BadRequest", &pb::BadRequest { field_violations }));
        }
        if let Some(hint) = self.route_hint() {
            rpc.details.push(any(ROUTE_HINT, hint));
        }
        rpc
    }

    fn from_rpc(rpc: &pb::Status) -> Self {
        known(rpc).unwrap_or_else(|| Self::Foreign { code: Code::from_i32(rpc.code), message: rpc.message.clone() })
    }

    /// The same for a reply inside a stream.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        let rpc = self.to_rpc();
        Failure { code: rpc.code, message: rpc.message, details: rpc.details }
    }

    /// The inverse of [`ServiceError::to_failure`].
    #[must_use]
    pub fn from_failure(failure: Failure) -> Self {
        Self::from_rpc(&pb::Status { code: failure.code, message: failure.message, details: failure.details })
    }

    /// The inverse of `Status::from(error)`.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let foreign = || Self::Foreign { code: status.code(), message: status.message().to_owned() };
        pb::Status::decode(status.details()).ok().and_then(|rpc| known(&rpc)).unwrap_or_else(foreign)
    }
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let rpc = error.to_rpc();
        let details = Bytes::from(rpc.encode_to_vec());
        Self::with_details(Code::from_i32(rpc.code), rpc.message, details)
    }
}

/// The error a status of ours stands for; None if its details are not of this contract.
fn known(rpc: &pb::Status) -> Option<ServiceError> {
    let info: pb::ErrorInfo = detail(rpc, "google.rpc.ErrorInfo")?;
    if info.domain != DOMAIN {
        return None;
    }
    let text = |key: &str| info.metadata.get(key).cloned();
    let number = |key: &str| info.metadata.get(key)?.parse::<u64>().ok();
    let shard = |key: &str| number(key).map(ShardId);
    let hint = || detail::<RouteHint>(rpc, ROUTE_HINT).map(Box::new);
    let retry_after = || {
        let delay = detail::<pb::RetryInfo>(rpc, "google.rpc.RetryInfo")?.retry_delay?;
        Duration::try_from(delay).ok()
    };
    let outcome = || match info.metadata.get("outcome")?.as_str() {
        "NOT_APPLIED" => Some(Outcome::NotApplied),
        "UNKNOWN" => Some(Outcome::Unknown),
        _ => None,
    };
    Some(match info.reason.as_str() {
        "INVALID_REQUEST" => {
            let request: pb::BadRequest = detail(rpc, "google.rpc.BadRequest")?;
            ServiceError::Invalid { violations: request.field_violations.into_iter().map(violation_from_rpc).collect() }
        }
        "DEADLINE_MISSING" => ServiceError::DeadlineMissing,
        "DEADLINE_EXCEEDED" => ServiceError::DeadlineExceeded { stage: text("stage")?, outcome: outcome()? },
        "KEYSPACE_NOT_FOUND" => ServiceError::KeyspaceNotFound { name: text("name")? },
        "SHARD_NOT_FOUND" => ServiceError::ShardNotFound { shard: shard("shard")? },
        "NOT_FOUND" => ServiceError::NotFound { what: text("what")?, name: text("name")? },
        "ALREADY_EXISTS" => ServiceError::AlreadyExists { what: text("what")?, name: text("name")? },
        "CLUSTER_MISMATCH" => ServiceError::ClusterMismatch { ours: text("ours")?, theirs: text("theirs")? },
        "CURSOR_MISMATCH" => ServiceError::CursorMismatch,
        "CROSS_SHARD" => ServiceError::CrossShard { first: shard("first")?, second: shard("second")? },
        "NOT_LEADER" => ServiceError::NotLeader { hint: hint()? },
        "STALE_ROUTE" => ServiceError::StaleRoute { hint: hint()? },
        "NO_LEADER" => ServiceError::NoLeader { shard: shard("shard")?, retry_after: retry_after()? },
        "OUTCOME_UNKNOWN" => ServiceError::OutcomeUnknown { shard: shard("shard")?, retry_after: retry_after()? },
        "SESSION_STALE" => ServiceError::SessionStale { sequence: number("sequence")? },
        "OVERLOADED" => ServiceError::Overloaded { queue: text("queue")?, retry_after: retry_after()? },
        "READ_ONLY" => ServiceError::ReadOnly { why: text("why")?, retry_after: retry_after()? },
        "SNAPSHOT_UNAVAILABLE" => ServiceError::SnapshotUnavailable { asked: number("asked")?, why: text("why")? },
        "CONFLICT" => {
            ServiceError::Conflict { what: text("what")?, planned: number("planned")?, found: number("found")? }
        }
        "REFUSED" => ServiceError::Refused { why: text("why")?, force: text("force")? },
        "NOT_READY" => ServiceError::NotReady { why: text("why")?, retry_after: retry_after()? },
        "INTERNAL" => ServiceError::Internal { why: text("why")?, outcome: outcome()? },
        _ => return None,
    })
}

fn any(name: &str, message: &impl prost::Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

fn detail<M: prost::Message + Default>(rpc: &pb::Status, name: &str) -> Option<M> {
    let is_named = |any: &&Any| any.type_url.rsplit('/').next() == Some(name);
    rpc.details.iter().find(is_named).and_then(|any| M::decode(any.value.as_slice()).ok())
}

fn violation_to_rpc(violation: &Violation) -> pb::bad_request::FieldViolation {
    pb::bad_request::FieldViolation {
        field: violation.field.clone(),
        description: violation.description.clone(),
        ..Default::default()
    }
}

fn violation_from_rpc(violation: pb::bad_request::FieldViolation) -> Violation {
    Violation { field: violation.field, description: violation.description }
}

fn join(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn hint_shard(hint: &RouteHint) -> u64 {
    hint.shard.as_ref().map_or(0, |shard| shard.shard_id)
}

fn force_advice(force: &str) -> String {
    if force.is_empty() { String::new() } else { format!(" (to do it all the same: --force {force})") }
}

fn code_name(code: Code) -> &'static str {
    code.description()
}
