//! Encoded keys: what is encoded is decoded to the same, any bytes are decoded or refused, order is kept.

#![no_main]

use bytes::Bytes;
use kv_proto::ids::KeyspaceId;
use kv_proto::keys::{self, Layout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, &[u8], &[u8])| {
    let (keyspace, one, other) = (KeyspaceId(input.0), input.1, input.2);
    for layout in [Layout::Hash, Layout::Range] {
        let encoded = keys::encode(keyspace, layout, one);
        assert_eq!(keys::decode(layout, &encoded).as_deref(), Some(one));
        assert!(keys::keyspace_range(keyspace).contains(&encoded));
        let _ = keys::decode(layout, &Bytes::copy_from_slice(one));
    }
    let encode = |key| keys::encode(keyspace, Layout::Range, key);
    assert_eq!(encode(one).cmp(&encode(other)), one.cmp(other));
    let _ = (keys::slot_of(one), keys::prefix_end(one));
});
