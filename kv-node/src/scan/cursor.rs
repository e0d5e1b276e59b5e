//! Where a scan goes on, as bytes a client hands back.
//!
//! version (1), fingerprint of the scan (4), encoded key at which the next page begins, CRC32C of all before (4).
//! Numbers are big endian. A cursor holds no state of a node: any node takes it.
//!
//! Invariants: what [`encode`] gives, [`decode`] returns for the same fingerprint, and for no other; a damaged or
//! shortened cursor is refused.

use bytes::{BufMut, Bytes, BytesMut};
use kv_proto::errors::ServiceError;

/// Changing the bytes takes a new one.
const VERSION: u8 = 1;

const NUMBER: usize = size_of::<u32>();

/// What a cursor belongs to: a checksum over keyspace, bounds and options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub u32);

/// A cursor at an encoded key.
#[must_use]
pub fn encode(fingerprint: Fingerprint, next: &[u8]) -> Bytes {
    let mut cursor = BytesMut::with_capacity(1 + NUMBER + next.len() + NUMBER);
    cursor.put_u8(VERSION);
    cursor.put_u32(fingerprint.0);
    cursor.put_slice(next);
    let checksum = crc32c::crc32c(&cursor);
    cursor.put_u32(checksum);
    cursor.freeze()
}

/// The encoded key of a cursor of this scan.
pub fn decode(fingerprint: Fingerprint, cursor: &Bytes) -> Result<Bytes, ServiceError> {
    let parts = || {
        let (body, checksum) = cursor.split_last_chunk::<NUMBER>()?;
        let (version, rest) = body.split_first()?;
        let (of, next) = rest.split_first_chunk::<NUMBER>()?;
        let valid = crc32c::crc32c(body) == u32::from_be_bytes(*checksum)
            && *version == VERSION
            && u32::from_be_bytes(*of) == fingerprint.0;
        valid.then(|| cursor.slice_ref(next))
    };
    parts().ok_or(ServiceError::CursorMismatch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_decodes_to_what_it_encodes(fingerprint: u32, next: Vec<u8>) {
            let cursor = encode(Fingerprint(fingerprint), &next);
            prop_assert_eq!(decode(Fingerprint(fingerprint), &cursor), Ok(Bytes::from(next)));
        }

        #[test]
        fn a_cursor_of_another_scan_is_refused(fingerprint: u32, other: u32, next: Vec<u8>) {
            prop_assume!(fingerprint != other);
            let cursor = encode(Fingerprint(fingerprint), &next);
            prop_assert_eq!(decode(Fingerprint(other), &cursor), Err(ServiceError::CursorMismatch));
        }

        #[test]
        fn a_damaged_cursor_is_refused(fingerprint: u32, next: Vec<u8>, at: prop::sample::Index, flip in 1_u8..) {
            let mut damaged = encode(Fingerprint(fingerprint), &next).to_vec();
            let at = at.index(damaged.len());
            damaged[at] ^= flip;
            prop_assert_eq!(decode(Fingerprint(fingerprint), &damaged.into()), Err(ServiceError::CursorMismatch));
        }

        #[test]
        fn a_shortened_cursor_is_refused(fingerprint: u32, next: Vec<u8>, at: prop::sample::Index) {
            let cursor = encode(Fingerprint(fingerprint), &next);
            let cursor = cursor.slice(..at.index(cursor.len()));
            prop_assert_eq!(decode(Fingerprint(fingerprint), &cursor), Err(ServiceError::CursorMismatch));
        }

        #[test]
        fn no_bytes_make_decode_panic(bytes: Vec<u8>) {
            let _ = decode(Fingerprint(0), &bytes.into());
        }
    }
}
