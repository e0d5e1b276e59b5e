//! How keys of the four tables are laid out.
//!
//! - latest: extent (8), encoded key
//! - history: extent (8), escaped key, end of the version (8)
//! - changes: extent (8), commit timestamp (8)
//! - meta: one letter, then what the letter says
//!
//! Numbers are big endian, so that byte order is number order.
//!
//! Invariants: within one extent, latest and history sort by encoded key, history then by end; no history key of one
//! encoded key lies between those of another.
//!
//! Not here: how encoded keys are made (kv-proto, keys); what values hold (rows).

use bytes::Bytes;
use kv_proto::ids::{ClientId, ExtentId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::timestamp::Timestamp;

/// Length of the extent in front of every key.
pub(crate) const EXTENT_BYTES: usize = 8;
const TIMESTAMP_BYTES: usize = 8;

/// A zero byte inside a key is followed by this; it sorts after [`END_OF_KEY`].
const ZERO_IN_KEY: u8 = 0xff;
/// After the zero byte that ends a key.
const END_OF_KEY: u8 = 0x01;

/// Format of the folder.
pub(crate) const META_FORMAT: &[u8] = b"F";
/// Extent ids below this are taken.
pub(crate) const META_EXTENTS: &[u8] = b"E";
const META_RECORD: u8 = b'R';
const META_APPLIED: u8 = b'A';
const META_MEMBERSHIP: u8 = b'M';
const META_TOMBSTONE: u8 = b'T';
/// The replica's content differed from its peers': index of the check.
const META_QUARANTINE: u8 = b'Q';
/// Sessions: extent (8), client (16).
pub(crate) const META_SESSION: u8 = b'S';
/// What a snapshot says of itself: extent (8).
pub(crate) const META_SUMMARY: u8 = b'I';

pub(crate) fn latest(extent: ExtentId, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(latest_bytes(key));
    write_latest(&mut out, extent, key);
    out
}

pub(crate) fn latest_bytes(key: &[u8]) -> usize {
    EXTENT_BYTES + key.len()
}

pub(crate) fn write_latest(out: &mut Vec<u8>, extent: ExtentId, key: &[u8]) {
    out.extend_from_slice(&extent.0.to_be_bytes());
    out.extend_from_slice(key);
}

/// In front of all history keys of encoded keys that sort at or after `key`, and behind those of all before it.
pub(crate) fn history_bound(extent: ExtentId, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(EXTENT_BYTES + key.len() + 2 + TIMESTAMP_BYTES);
    out.extend_from_slice(&extent.0.to_be_bytes());
    for byte in key {
        out.push(*byte);
        if *byte == 0 {
            out.push(ZERO_IN_KEY);
        }
    }
    out
}

/// What all history keys of one encoded key begin with, and no others.
pub(crate) fn history_prefix(extent: ExtentId, key: &[u8]) -> Vec<u8> {
    let mut out = history_bound(extent, key);
    out.extend_from_slice(&[0, END_OF_KEY]);
    out
}

pub(crate) fn history(extent: ExtentId, key: &[u8], end: Timestamp) -> Vec<u8> {
    let mut out = history_prefix(extent, key);
    out.extend_from_slice(&end.0.to_be_bytes());
    out
}

/// The encoded key and the end of the version; None for bytes that [`history`] did not make.
pub(crate) fn decode_history(bytes: &[u8]) -> Option<(Vec<u8>, Timestamp)> {
    let mut rest = bytes.get(EXTENT_BYTES..)?;
    let mut key = Vec::with_capacity(rest.len());
    loop {
        let (byte, after) = rest.split_first()?;
        rest = after;
        if *byte != 0 {
            key.push(*byte);
            continue;
        }
        let (mark, after) = rest.split_first()?;
        rest = after;
        match *mark {
            ZERO_IN_KEY => key.push(0),
            END_OF_KEY => return Some((key, Timestamp(u64::from_be_bytes(rest.try_into().ok()?)))),
            _ => return None,
        }
    }
}

pub(crate) fn change(extent: ExtentId, commit: Timestamp) -> Vec<u8> {
    let mut out = Vec::with_capacity(EXTENT_BYTES + TIMESTAMP_BYTES);
    out.extend_from_slice(&extent.0.to_be_bytes());
    out.extend_from_slice(&commit.0.to_be_bytes());
    out
}

/// The timestamp a history or changes key ends with.
pub(crate) fn trailing_timestamp(key: &[u8]) -> Option<Timestamp> {
    key.last_chunk().map(|bytes| Timestamp(u64::from_be_bytes(*bytes)))
}

/// The extent a key of latest, history or changes lies in.
pub(crate) fn extent_of(key: &[u8]) -> Option<ExtentId> {
    key.first_chunk().map(|bytes| ExtentId(u64::from_be_bytes(*bytes)))
}

/// First key of an extent; also the end of the one before.
pub(crate) fn extent_start(extent: ExtentId) -> Vec<u8> {
    extent.0.to_be_bytes().to_vec()
}

/// After the last key of an extent. Ids are allotted from 1 up, so there always is a next one.
pub(crate) fn extent_end(extent: ExtentId) -> Vec<u8> {
    extent_start(ExtentId(extent.0.saturating_add(1)))
}

/// Start and end of a key range in `latest`.
pub(crate) fn latest_range(extent: ExtentId, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let end = if range.end().is_empty() { extent_end(extent) } else { latest(extent, range.end()) };
    (latest(extent, range.start()), end)
}

/// Start and end of a key range in `history`.
pub(crate) fn history_range(extent: ExtentId, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let end = if range.end().is_empty() { extent_end(extent) } else { history_bound(extent, range.end()) };
    (history_bound(extent, range.start()), end)
}

/// The encoded key of a key in `latest`.
pub(crate) fn decode_latest(key: &[u8]) -> Option<Bytes> {
    key.get(EXTENT_BYTES..).map(Bytes::copy_from_slice)
}

pub(crate) fn meta_record(shard: ShardId) -> Vec<u8> {
    lettered(META_RECORD, shard.0)
}

pub(crate) fn meta_applied(shard: ShardId) -> Vec<u8> {
    lettered(META_APPLIED, shard.0)
}

pub(crate) fn meta_membership(shard: ShardId) -> Vec<u8> {
    lettered(META_MEMBERSHIP, shard.0)
}

pub(crate) fn meta_tombstone(shard: ShardId) -> Vec<u8> {
    lettered(META_TOMBSTONE, shard.0)
}

pub(crate) fn meta_quarantine(shard: ShardId) -> Vec<u8> {
    lettered(META_QUARANTINE, shard.0)
}

pub(crate) fn meta_summary(extent: ExtentId) -> Vec<u8> {
    lettered(META_SUMMARY, extent.0)
}

pub(crate) fn meta_session(extent: ExtentId, client: ClientId) -> Vec<u8> {
    let mut out = lettered(META_SESSION, extent.0);
    out.extend_from_slice(&client.to_bytes());
    out
}

/// Start and end of all rows of one letter and number.
pub(crate) fn meta_rows(letter: u8, number: u64) -> (Vec<u8>, Vec<u8>) {
    (lettered(letter, number), lettered(letter, number.saturating_add(1)))
}

/// The letter and the number of a meta key; None for those without a number.
pub(crate) fn decode_meta(key: &[u8]) -> Option<(u8, u64)> {
    let (letter, rest) = key.split_first()?;
    rest.first_chunk().map(|number| (*letter, u64::from_be_bytes(*number)))
}

/// The shard of a replica's record; None for other rows.
pub(crate) fn decode_record(key: &[u8]) -> Option<ShardId> {
    decode_meta(key).filter(|(letter, _)| *letter == META_RECORD).map(|(_, shard)| ShardId(shard))
}

/// The client of a session's key.
pub(crate) fn decode_session(key: &[u8]) -> Option<ClientId> {
    key.get(1 + EXTENT_BYTES..).and_then(ClientId::from_bytes)
}

fn lettered(letter: u8, number: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 8 + 16);
    out.push(letter);
    out.extend_from_slice(&number.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Few byte values, so that escapes, prefixes and equal keys occur.
    fn keys() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(0xfe), Just(0xff)], 0..6)
    }

    proptest! {
        #[test]
        fn history_keys_decode_to_what_was_encoded(extent: u64, key in keys(), end: u64) {
            let bytes = history(ExtentId(extent), &key, Timestamp(end));
            prop_assert_eq!(decode_history(&bytes), Some((key, Timestamp(end))));
            prop_assert_eq!(trailing_timestamp(&bytes), Some(Timestamp(end)));
            prop_assert_eq!(extent_of(&bytes), Some(ExtentId(extent)));
        }

        #[test]
        fn history_keys_sort_by_extent_then_key_then_end(
            left in (0u64..3, keys(), any::<u64>()),
            right in (0u64..3, keys(), any::<u64>()),
        ) {
            let encode = |(extent, key, end): &(u64, Vec<u8>, u64)| history(ExtentId(*extent), key, Timestamp(*end));
            prop_assert_eq!(encode(&left).cmp(&encode(&right)), left.cmp(&right));
        }

        #[test]
        fn a_history_prefix_belongs_to_one_key_only(left in keys(), right in keys(), end: u64) {
            let starts = history(ExtentId(7), &right, Timestamp(end)).starts_with(&history_prefix(ExtentId(7), &left));
            prop_assert_eq!(starts, left == right);
        }

        #[test]
        fn a_history_bound_parts_the_keys_before_from_the_others(bound in keys(), key in keys(), end: u64) {
            let at_or_after = history(ExtentId(7), &key, Timestamp(end)) >= history_bound(ExtentId(7), &bound);
            prop_assert_eq!(at_or_after, key >= bound);
        }

        #[test]
        fn latest_keys_sort_by_extent_then_key(left in (0u64..3, keys()), right in (0u64..3, keys())) {
            let encode = |(extent, key): &(u64, Vec<u8>)| latest(ExtentId(*extent), key);
            prop_assert_eq!(encode(&left).cmp(&encode(&right)), left.cmp(&right));
        }

        #[test]
        fn bytes_from_anywhere_decode_or_are_refused(bytes in vec(any::<u8>(), 0..40)) {
            let _ = decode_history(&bytes);
            let _ = decode_meta(&bytes);
            let _ = decode_session(&bytes);
        }
    }
}
