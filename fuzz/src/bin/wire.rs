//! Messages of clients and of nodes, and errors inside of streams: any bytes are decoded or refused, and a decoded
//! error becomes an error of the contract.

#![no_main]

use kv_proto::errors::ServiceError;
use kv_proto::pb::raft::v1::{ExchangeRequest, ExchangeResponse};
use kv_proto::pb::v1::{Failure, PipelineRequest, PipelineResponse};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let _ = PipelineRequest::decode(bytes);
    let _ = PipelineResponse::decode(bytes);
    let _ = ExchangeRequest::decode(bytes);
    let _ = ExchangeResponse::decode(bytes);
    if let Ok(failure) = Failure::decode(bytes) {
        let error = ServiceError::from_failure(failure);
        assert_eq!(ServiceError::from_failure(error.to_failure()), error);
    }
});
