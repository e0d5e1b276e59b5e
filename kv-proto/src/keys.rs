//! From a user's key to the encoded key that shards are cut by, and back.
//!
//! Encoded key = keyspace id (4 bytes, big endian), then in a hash keyspace the slot (2 bytes, big endian), then the
//! user's key as it is. Byte order of encoded keys is (keyspace, slot, key) order.
//!
//! Not here: the extent prefix under which a replica stores encoded keys (kv-raft, data engine).

use bytes::{BufMut, Bytes, BytesMut};

use crate::ids::KeyspaceId;
use crate::key_range::KeyRange;
use crate::slot::{SLOTS, Slot};

const KEYSPACE_BYTES: usize = 4;
const SLOT_BYTES: usize = 2;

/// How a keyspace lays out its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// By slot, then key.
    Hash,
    /// By key.
    Range,
}

/// The encoded key of a user's key.
#[must_use]
pub fn encode(keyspace: KeyspaceId, layout: Layout, key: &[u8]) -> Bytes {
    encode_at(keyspace, slot(layout, key), key)
}

/// The encoded keys of many user's keys, as slices of one allocation.
#[must_use]
pub fn encode_all<'k>(
    keyspace: KeyspaceId,
    layout: Layout,
    keys: impl Iterator<Item = &'k Bytes> + Clone,
) -> Vec<Bytes> {
    let bytes = keys.clone().map(|key| KEYSPACE_BYTES + SLOT_BYTES + key.len()).sum();
    let mut encoded = BytesMut::with_capacity(bytes);
    let encode = |key: &Bytes| {
        put(&mut encoded, keyspace, slot(layout, key), key);
        encoded.split().freeze()
    };
    keys.map(encode).collect()
}

/// The encoded key with the slot given; for bounds of a scan, where the key alone does not tell it.
#[must_use]
pub fn encode_at(keyspace: KeyspaceId, slot: Option<Slot>, key: &[u8]) -> Bytes {
    let mut encoded = BytesMut::with_capacity(KEYSPACE_BYTES + SLOT_BYTES + key.len());
    put(&mut encoded, keyspace, slot, key);
    encoded.freeze()
}

fn slot(layout: Layout, key: &[u8]) -> Option<Slot> {
    match layout {
        Layout::Hash => Some(Slot::of(key)),
        Layout::Range => None,
    }
}

fn put(out: &mut BytesMut, keyspace: KeyspaceId, slot: Option<Slot>, key: &[u8]) {
    out.put_u32(keyspace.0);
    if let Some(slot) = slot {
        out.put_u16(slot.get());
    }
    out.put_slice(key);
}

/// The user's key inside an encoded key; None if it is too short to be one of this layout.
#[must_use]
pub fn decode(layout: Layout, encoded: &Bytes) -> Option<Bytes> {
    let header = match layout {
        Layout::Hash => KEYSPACE_BYTES + SLOT_BYTES,
        Layout::Range => KEYSPACE_BYTES,
    };
    (encoded.len() >= header).then(|| encoded.slice(header..))
}

/// The slot of an encoded key of a hash keyspace; None if it is too short or out of range.
#[must_use]
pub fn slot_of(encoded: &[u8]) -> Option<Slot> {
    let bytes = encoded.get(KEYSPACE_BYTES..KEYSPACE_BYTES + SLOT_BYTES)?;
    Slot::new(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// All keys of a keyspace.
#[must_use]
pub fn keyspace_range(keyspace: KeyspaceId) -> KeyRange {
    let start = Bytes::copy_from_slice(&keyspace.0.to_be_bytes());
    let end = keyspace.0.checked_add(1).map_or_else(Bytes::new, |next| Bytes::copy_from_slice(&next.to_be_bytes()));
    KeyRange::new(start, end).expect("a keyspace id sorts before the next one")
}

/// Cuts a hash keyspace into `shards` ranges of nearly equal slot counts. `shards` is between 1 and [`SLOTS`].
#[must_use]
pub fn split_by_slots(keyspace: KeyspaceId, shards: u16) -> Vec<KeyRange> {
    assert!((1..=SLOTS).contains(&shards), "a hash keyspace has between 1 and {SLOTS} shards");
    let starts = (1..shards).map(|shard| {
        let first = u32::from(SLOTS) * u32::from(shard) / u32::from(shards);
        let slot = u16::try_from(first).ok().and_then(Slot::new).expect("a fraction of the slots is a slot");
        encode_at(keyspace, Some(slot), b"")
    });
    split_at(&keyspace_range(keyspace), starts)
}

/// Cuts a range keyspace at the given user keys, which must be ascending, distinct and not empty; None otherwise.
#[must_use]
pub fn split_by_keys(keyspace: KeyspaceId, keys: &[Bytes]) -> Option<Vec<KeyRange>> {
    let ascending = keys.iter().zip(keys.iter().skip(1)).all(|(left, right)| left < right);
    let valid = ascending && keys.first().is_none_or(|first| !first.is_empty());
    valid.then(|| split_at(&keyspace_range(keyspace), keys.iter().map(|key| encode_at(keyspace, None, key))))
}

fn split_at(whole: &KeyRange, starts: impl Iterator<Item = Bytes>) -> Vec<KeyRange> {
    let mut bounds: Vec<Bytes> = std::iter::once(whole.start().clone()).chain(starts).collect();
    bounds.push(whole.end().clone());
    let pairs = bounds.iter().zip(bounds.iter().skip(1));
    pairs.map(|(start, end)| KeyRange::new(start.clone(), end.clone()).expect("bounds ascend")).collect()
}

/// The first key after every key that begins with `prefix`; None if there is none (all bytes are 0xff).
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = BytesMut::from(prefix.get(..=last)?);
    *end.last_mut()? += 1;
    Some(end.freeze())
}
