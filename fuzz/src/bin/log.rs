//! Log entries, command batches, and what stands beside them in the log: what decodes is encoded to the same bytes.

#![no_main]

use bytes::{Bytes, BytesMut};
use kv_raft::codec;
use kv_raft::command::CommandBatch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(entry) = codec::decode_entry(bytes.clone()) {
        let mut out = BytesMut::new();
        codec::encode_entry(&entry, &mut out);
        assert_eq!(codec::decode_entry(out.freeze()).ok(), Some(entry));
    }
    if let Ok(batch) = CommandBatch::from_bytes(bytes.clone()) {
        let _ = batch.decode();
    }
    let _ = codec::decode_log_id(&mut bytes.clone());
    let _ = codec::decode_optional_log_id(&mut bytes.clone());
    let _ = codec::decode_vote(&mut bytes.clone());
    let _ = codec::decode_membership(&mut bytes.clone());
    let _ = codec::decode_stored_membership(&mut bytes.clone());
});
