//! The error contract over the forms it takes on the wire: gRPC headers, and failures inside a stream.

use std::time::Duration;

use bytes::Bytes;
use kv_proto::errors::{Outcome, REASONS, ServiceError, Violation};
use kv_proto::ids::ShardId;
use kv_proto::pb::v1::{RouteHint, RouteReplica, ShardRoute};
use proptest::prelude::*;
use prost::Message as _;
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What the fields of an example are made of.
#[derive(Clone, Debug)]
struct Fill {
    text: String,
    other: String,
    number: u64,
    delay: Duration,
    outcome: Outcome,
    key: Vec<u8>,
}

fn fill() -> impl Strategy<Value = Fill> {
    let delay = (0..86_400_u64, 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos));
    let outcome = prop_oneof![Just(Outcome::NotApplied), Just(Outcome::Unknown)];
    (any::<String>(), ".{0,40}", any::<u64>(), delay, outcome, proptest::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(text, other, number, delay, outcome, key)| Fill { text, other, number, delay, outcome, key })
}

fn hint(fill: &Fill) -> Box<RouteHint> {
    let replica = RouteReplica { node_id: 3, address: fill.text.clone(), voter: true };
    let shard = ShardRoute {
        shard_id: fill.number,
        epoch: 7,
        start: Bytes::from(fill.key.clone()),
        end: Bytes::new(),
        leader_node_id: 3,
        replicas: vec![replica],
        keyspace_id: 2,
    };
    Box::new(RouteHint { shard: Some(shard.clone()), current: vec![shard] })
}

/// One of every variant, in the order of [`REASONS`], the foreign one last.
fn examples(fill: &Fill) -> Vec<ServiceError> {
    let Fill { text, other, number, delay, outcome, .. } = fill.clone();
    let violation = Violation { field: text.clone(), description: other.clone() };
    let shard = ShardId(number);
    vec![
        ServiceError::Invalid { violations: vec![violation.clone(), violation] },
        ServiceError::DeadlineMissing,
        ServiceError::DeadlineExceeded { stage: text.clone(), outcome },
        ServiceError::KeyspaceNotFound { name: text.clone() },
        ServiceError::ShardNotFound { shard },
        ServiceError::NotFound { what: text.clone(), name: other.clone() },
        ServiceError::AlreadyExists { what: text.clone(), name: other.clone() },
        ServiceError::ClusterMismatch { ours: text.clone(), theirs: other.clone() },
        ServiceError::CursorMismatch,
        ServiceError::CrossShard { first: shard, second: ShardId(number.wrapping_add(1)) },
        ServiceError::NotLeader { hint: hint(fill) },
        ServiceError::StaleRoute { hint: hint(fill) },
        ServiceError::NoLeader { shard, retry_after: delay },
        ServiceError::OutcomeUnknown { shard, retry_after: delay },
        ServiceError::SessionStale { sequence: number },
        ServiceError::Overloaded { queue: text.clone(), retry_after: delay },
        ServiceError::ReadOnly { why: text.clone(), retry_after: delay },
        ServiceError::SnapshotUnavailable { asked: number, why: text.clone() },
        ServiceError::Conflict { what: text.clone(), planned: number, found: number.wrapping_add(1) },
        ServiceError::Refused { why: text.clone(), force: other },
        ServiceError::NotReady { why: text.clone(), retry_after: delay },
        ServiceError::Internal { why: text.clone(), outcome },
        ServiceError::Foreign { code: Code::PermissionDenied, message: text },
    ]
}

/// Fails to compile when a variant is added, as a reminder to add it to the examples.
fn position(error: &ServiceError) -> usize {
    match error {
        ServiceError::Invalid { .. } => 0,
        ServiceError::DeadlineMissing => 1,
        ServiceError::DeadlineExceeded { .. } => 2,
        ServiceError::KeyspaceNotFound { .. } => 3,
        ServiceError::ShardNotFound { .. } => 4,
        ServiceError::NotFound { .. } => 5,
        ServiceError::AlreadyExists { .. } => 6,
        ServiceError::ClusterMismatch { .. } => 7,
        ServiceError::CursorMismatch => 8,
        ServiceError::CrossShard { .. } => 9,
        ServiceError::NotLeader { .. } => 10,
        ServiceError::StaleRoute { .. } => 11,
        ServiceError::NoLeader { .. } => 12,
        ServiceError::OutcomeUnknown { .. } => 13,
        ServiceError::SessionStale { .. } => 14,
        ServiceError::Overloaded { .. } => 15,
        ServiceError::ReadOnly { .. } => 16,
        ServiceError::SnapshotUnavailable { .. } => 17,
        ServiceError::Conflict { .. } => 18,
        ServiceError::Refused { .. } => 19,
        ServiceError::NotReady { .. } => 20,
        ServiceError::Internal { .. } => 21,
        ServiceError::Foreign { .. } => 22,
    }
}

fn plain() -> Fill {
    Fill {
        text: "some text".to_owned(),
        other: "other".to_owned(),
        number: 12,
        delay: Duration::from_millis(250),
        outcome: Outcome::Unknown,
        key: b"key".to_vec(),
    }
}

fn through_headers(error: &ServiceError) -> Status {
    let mut headers = HeaderMap::new();
    Status::from(error.clone()).add_header(&mut headers).expect("an error fits into headers");
    Status::from_header_map(&headers).expect("the headers hold a status")
}

#[test]
fn every_reason_is_produced_by_exactly_one_variant() {
    let examples = examples(&plain());
    let positions: Vec<usize> = examples.iter().map(position).collect();
    assert_eq!(positions, (0..=REASONS.len()).collect::<Vec<_>>(), "one example of each variant, in order");
    let reasons: Vec<&str> = examples.iter().map(ServiceError::reason).collect();
    assert_eq!(reasons, REASONS.iter().copied().chain([""]).collect::<Vec<_>>());
}

#[test]
fn every_status_carries_one_error_info_and_retry_info_only_if_a_retry_may_help() {
    for error in examples(&plain()) {
        let status = through_headers(&error);
        assert_eq!(status.code(), error.code(), "{error}");
        let details = status.get_error_details();
        if let ServiceError::Foreign { .. } = error {
            assert!(status.details().is_empty() || details.error_info().is_none());
            continue;
        }
        let rpc = tonic_types::pb::Status::decode(status.details()).unwrap();
        let infos = rpc.details.iter().filter(|any| any.type_url.ends_with("google.rpc.ErrorInfo")).count();
        assert_eq!(infos, 1, "{error}");
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (error.reason(), kv_proto::errors::DOMAIN));
        assert_eq!(info.metadata.get("outcome"), Some(&error.outcome().to_string()));
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        assert_eq!(delay, error.retry_after(), "{error}");
        assert_eq!(details.bad_request().is_some(), matches!(error, ServiceError::Invalid { .. }));
    }
}

#[test]
fn a_status_from_outside_of_the_contract_becomes_foreign() {
    let foreign = |code, message: &str| ServiceError::Foreign { code, message: message.to_owned() };
    let plain = Status::unavailable("connection refused");
    assert_eq!(ServiceError::from_status(&plain), foreign(Code::Unavailable, "connection refused"));
    let damaged = Status::with_details(Code::Internal, "x", Bytes::from_static(b"\xff\xff\xff"));
    assert_eq!(ServiceError::from_status(&damaged), foreign(Code::Internal, "x"));
    let mut failure = ServiceError::CursorMismatch.to_failure();
    failure.details.clear();
    let message = failure.message.clone();
    assert_eq!(ServiceError::from_failure(failure), foreign(Code::InvalidArgument, &message));
}

#[test]
fn only_a_write_that_may_be_in_the_log_has_an_unknown_outcome() {
    let mut fill = plain();
    fill.outcome = Outcome::NotApplied;
    let unknown: Vec<&str> =
        examples(&fill).iter().filter(|error| error.outcome() == Outcome::Unknown).map(ServiceError::reason).collect();
    assert_eq!(unknown, ["OUTCOME_UNKNOWN", "SESSION_STALE", ""]);
}

proptest! {
    #[test]
    fn every_error_survives_the_headers_of_a_response(fill in fill()) {
        for error in examples(&fill) {
            prop_assert_eq!(&ServiceError::from_status(&through_headers(&error)), &error);
        }
    }

    #[test]
    fn every_error_survives_a_stream(fill in fill()) {
        for error in examples(&fill) {
            let bytes = error.to_failure().encode_to_vec();
            let failure = kv_proto::pb::v1::Failure::decode(bytes.as_slice()).unwrap();
            prop_assert_eq!(&ServiceError::from_failure(failure), &error);
        }
    }

    #[test]
    fn damaged_details_never_panic(details in proptest::collection::vec(any::<u8>(), 0..200), code in 0..20_i32) {
        let status = Status::with_details(Code::from_i32(code), "x", Bytes::from(details));
        let _ = ServiceError::from_status(&status);
    }
}
