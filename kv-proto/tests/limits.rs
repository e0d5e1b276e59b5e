//! What the limits promise about messages, measured on encoded ones.

use bytes::Bytes;
use kv_proto::limits::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, MESSAGE_BYTES_MAX, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX,
    VALUE_BYTES_MAX,
};
use kv_proto::pb::v1 as pb;
use prost::Message as _;

fn operation(key: usize, value: usize) -> pb::WriteOperation {
    let put = pb::PutOperation { key: Bytes::from(vec![1; key]), value: Bytes::from(vec![2; value]) };
    pb::WriteOperation { operation: Some(pb::write_operation::Operation::Put(put)) }
}

fn in_pipeline(operations: Vec<pb::WriteOperation>) -> usize {
    let batch = pb::BatchWriteRequest { operations, ..pb::BatchWriteRequest::default() };
    let call = pb::PipelineCall { id: u64::MAX, request: Some(pb::pipeline_call::Request::BatchWrite(batch)) };
    pb::PipelineRequest { calls: vec![call] }.encoded_len()
}

#[test]
fn the_largest_batch_fits_into_a_message() {
    let entry = BATCH_BYTES_MAX / BATCH_OPERATIONS_MAX;
    assert!(in_pipeline(vec![operation(entry / 2, entry / 2); BATCH_OPERATIONS_MAX]) < MESSAGE_BYTES_MAX);
    let largest = BATCH_BYTES_MAX / (KEY_BYTES_MAX + VALUE_BYTES_MAX);
    assert!(in_pipeline(vec![operation(KEY_BYTES_MAX, VALUE_BYTES_MAX); largest]) < MESSAGE_BYTES_MAX);
}

#[test]
fn the_largest_page_fits_into_a_message() {
    let entry = |value: usize| pb::KeyValue {
        key: Bytes::from(vec![1; KEY_BYTES_MAX.min(value)]),
        value: Bytes::from(vec![2; value]),
        commit_timestamp: u64::MAX,
    };
    let small = vec![entry(PAGE_BYTES_MAX / PAGE_ENTRIES_MAX / 2); PAGE_ENTRIES_MAX];
    let large = vec![entry(VALUE_BYTES_MAX); PAGE_BYTES_MAX / VALUE_BYTES_MAX + 1];
    for entries in [small, large] {
        let page = pb::ScanResponse { entries, cursor: Bytes::from(vec![3; 2 * KEY_BYTES_MAX]), header: None };
        assert!(page.encoded_len() < MESSAGE_BYTES_MAX);
    }
}
