//! The messages of a snapshot stream. What a receiver does with their chunks has tests of its own: it needs an engine.

#![no_main]

use kv_proto::pb::raft::v1::{SendSnapshotRequest, SendSnapshotResponse};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let _ = SendSnapshotRequest::decode(bytes);
    let _ = SendSnapshotResponse::decode(bytes);
});
