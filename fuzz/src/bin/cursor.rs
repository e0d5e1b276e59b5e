//! Cursors: what is accepted is what was given out.

#![no_main]

use bytes::Bytes;
use kv_node::scan::cursor::{self, Fingerprint};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, &[u8])| {
    let (fingerprint, bytes) = (Fingerprint(input.0), Bytes::copy_from_slice(input.1));
    if let Ok(next) = cursor::decode(fingerprint, &bytes) {
        assert_eq!(cursor::encode(fingerprint, &next), bytes);
    }
    let given = cursor::encode(fingerprint, input.1);
    assert_eq!(cursor::decode(fingerprint, &given).ok().as_deref(), Some(input.1));
});
