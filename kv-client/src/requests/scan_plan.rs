//! Which parts of a keyspace a scan reads: pure.
//!
//! Invariants: parts are in range order and do not overlap; together they hold every key the bounds allow.
//!
//! Not here: reading them (scan).

use bytes::{BufMut as _, Bytes, BytesMut};
use kv_proto::key_range::KeyRange;
use kv_proto::keys::{self, Layout};
use kv_proto::slot::Slot;

use crate::routes::Routes;

/// What a scan asks for, in users' keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) start: Bytes,
    pub(crate) end: Bytes,
    pub(crate) prefix: Bytes,
}

/// The encoded keys that may hold something. In a hash keyspace that is all of it, unless the prefix names a whole hash
/// tag: then one slot.
pub(crate) fn encoded_range(routes: &Routes, bounds: &Bounds) -> Option<KeyRange> {
    let whole = keys::keyspace_range(routes.keyspace());
    match routes.layout() {
        Layout::Hash => {
            let slot = tagged(&bounds.prefix).then(|| Slot::of(&bounds.prefix));
            let Some(slot) = slot else { return Some(whole) };
            let start = keys::encode_at(routes.keyspace(), Some(slot), b"");
            let end = Slot::new(slot.get() + 1).map(|next| keys::encode_at(routes.keyspace(), Some(next), b""));
            KeyRange::new(start, end.unwrap_or_else(|| whole.end().clone()))
        }
        Layout::Range => {
            let encode = |key: &[u8]| keys::encode_at(routes.keyspace(), None, key);
            let end_of = |end: Option<Bytes>| end.map_or_else(|| whole.end().clone(), |end| encode(&end));
            let by_prefix = KeyRange::new(encode(&bounds.prefix), end_of(keys::prefix_end(&bounds.prefix)))?;
            let end = (!bounds.end.is_empty()).then(|| bounds.end.clone());
            let by_bounds = KeyRange::new(encode(&bounds.start), end_of(end))?;
            by_prefix.intersection(&by_bounds)
        }
    }
}

/// The parts of the range, one per shard.
pub(crate) fn parts(routes: &Routes, range: &KeyRange) -> Vec<KeyRange> {
    routes.shards().iter().filter_map(|route| route.range().intersection(range)).collect()
}

/// Whether the prefix holds a whole hash tag, so that all keys that begin with it share a slot.
fn tagged(prefix: &[u8]) -> bool {
    let Some(open) = prefix.iter().position(|byte| *byte == b'{') else { return false };
    let rest = prefix.get(open + 1..).unwrap_or_default();
    // An empty tag is no tag: the whole key counts.
    rest.iter().position(|byte| *byte == b'}').is_some_and(|close| close > 0)
}

/// Where a scan goes on: the encoded key at or after which the next page lies, and the last cursor a node gave. A node
/// begins at the later of the two, so both stay right when shards split in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) position: Bytes,
    pub(crate) resume: Bytes,
}

/// Format of an encoded place.
const FORMAT: u8 = 1;

impl Place {
    /// format (1), length of the position (2, big endian), position, resume.
    pub(crate) fn encode(&self) -> Bytes {
        let length = u16::try_from(self.position.len()).expect("an encoded key is a few kilobytes at most");
        let mut bytes = BytesMut::with_capacity(3 + self.position.len() + self.resume.len());
        bytes.put_u8(FORMAT);
        bytes.put_u16(length);
        bytes.put_slice(&self.position);
        bytes.put_slice(&self.resume);
        bytes.freeze()
    }

    /// None if these are not the bytes of a place.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        let (header, _) = bytes.split_first_chunk::<3>()?;
        let [format, high, low] = *header;
        let end = 3 + usize::from(u16::from_be_bytes([high, low]));
        (format == FORMAT && bytes.len() >= end)
            .then(|| Self { position: bytes.slice(3..end), resume: bytes.slice(end..) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::KeyspaceId;
    use kv_proto::pb::v1 as pb;

    const KEYSPACE: KeyspaceId = KeyspaceId(9);

    fn routes(hashed: bool, ranges: &[KeyRange]) -> Routes {
        let shard = |(index, range): (usize, &KeyRange)| pb::ShardRoute {
            shard_id: index as u64 + 10,
            epoch: 1,
            start: range.start().clone(),
            end: range.end().clone(),
            keyspace_id: KEYSPACE.0,
            ..pb::ShardRoute::default()
        };
        let shards = ranges.iter().enumerate().map(shard).collect();
        let answer = pb::ListRoutesResponse { keyspace_id: 9, hashed, shards, ..pb::ListRoutesResponse::default() };
        Routes::from_pb(&answer, None).unwrap()
    }

    fn bounds(start: &'static str, end: &'static str, prefix: &'static str) -> Bounds {
        Bounds { start: start.into(), end: end.into(), prefix: prefix.into() }
    }

    fn touched(routes: &Routes, bounds: &Bounds) -> usize {
        encoded_range(routes, bounds).map_or(0, |range| parts(routes, &range).len())
    }

    #[test]
    fn a_range_keyspace_is_read_only_where_the_bounds_lie() {
        let cuts = ["g", "n", "t"].map(Bytes::from);
        let routes = routes(false, &keys::split_by_keys(KEYSPACE, &cuts).unwrap());
        assert_eq!(touched(&routes, &bounds("", "", "")), 4);
        assert_eq!(touched(&routes, &bounds("a", "b", "")), 1);
        assert_eq!(touched(&routes, &bounds("h", "u", "")), 3);
        assert_eq!(touched(&routes, &bounds("", "", "n")), 1);
        assert_eq!(touched(&routes, &bounds("z", "b", "")), 0);
    }

    #[test]
    fn a_hash_keyspace_is_read_everywhere_unless_the_prefix_names_a_hash_tag() {
        let routes = routes(true, &keys::split_by_slots(KEYSPACE, 6));
        assert_eq!(touched(&routes, &bounds("", "", "user")), 6);
        assert_eq!(touched(&routes, &bounds("", "", "{user1}:")), 1);
        assert_eq!(touched(&routes, &bounds("", "", "{user1")), 6);
        assert_eq!(touched(&routes, &bounds("", "", "{}user")), 6);
    }

    #[test]
    fn a_place_survives_its_encoding_and_other_bytes_are_refused() {
        let place = Place { position: Bytes::from_static(b"pos"), resume: Bytes::from_static(b"cursor") };
        assert_eq!(Place::decode(&place.encode()), Some(place));
        for bytes in [&b""[..], b"\x01", b"\x02\x00\x00", b"\x01\x00\x09abc"] {
            assert_eq!(Place::decode(&Bytes::from_static(bytes)), None);
        }
    }
}
