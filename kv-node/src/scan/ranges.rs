//! Which encoded ranges a scan reads, one after the other. Pure.
//!
//! In a range keyspace, and in a hash keyspace without bounds, that is one range. In a hash keyspace with bounds it is
//! one range per slot, because the same user keys lie in every slot; if the prefix holds a whole hash tag, all of its
//! keys lie in that tag's slot and only it is read.
//!
//! Invariants: the ranges ascend, do not overlap, and together hold exactly the keys within bounds at or after the
//! position given.
//!
//! Not here: reading them (page).

use bytes::{BufMut, Bytes, BytesMut};
use kv_proto::ids::KeyspaceId;
use kv_proto::key_range::KeyRange;
use kv_proto::keys::{self, Layout};
use kv_proto::pb::v1::{Consistency, ScanRequest};
use kv_proto::slot::{SLOTS, Slot};

use super::cursor::Fingerprint;

/// A scan with its bounds resolved.
#[derive(Clone, Debug)]
pub struct Bounds {
    keyspace: KeyspaceId,
    layout: Layout,
    /// User key, inclusive.
    start: Bytes,
    /// User key, exclusive; empty has no upper bound.
    end: Bytes,
    /// Set if the bounds name one slot.
    slot: Option<Slot>,
    fingerprint: Fingerprint,
}

impl Bounds {
    /// From a validated request.
    #[must_use]
    pub fn new(keyspace: KeyspaceId, layout: Layout, request: &ScanRequest) -> Self {
        let (start, end) = if request.prefix.is_empty() {
            (request.start.clone(), request.end.clone())
        } else {
            (request.prefix.clone(), keys::prefix_end(&request.prefix).unwrap_or_default())
        };
        let slot = (layout == Layout::Hash && holds_tag(&request.prefix)).then(|| Slot::of(&request.prefix));
        Self { keyspace, layout, start, end, slot, fingerprint: fingerprint(keyspace, request) }
    }

    /// What a cursor of this scan carries.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Where the first page begins.
    #[must_use]
    pub fn first(&self) -> Bytes {
        match self.layout {
            Layout::Range => keys::encode_at(self.keyspace, None, &self.start),
            Layout::Hash if self.unbounded() => keys::keyspace_range(self.keyspace).start().clone(),
            Layout::Hash => {
                let slot = self.slot.unwrap_or_else(|| Slot::new(0).expect("0 is a slot"));
                keys::encode_at(self.keyspace, Some(slot), &self.start)
            }
        }
    }

    /// The next range to read at or after `from`, inside of `within`; None at the end.
    #[must_use]
    pub fn next_range(&self, from: &Bytes, within: &KeyRange) -> Option<KeyRange> {
        let within = within.intersection(&keys::keyspace_range(self.keyspace))?;
        let within = within.intersection(&KeyRange::new(from.clone(), Bytes::new())?)?;
        match self.layout {
            Layout::Range => within.intersection(&self.range_of(None)?),
            Layout::Hash if self.unbounded() => Some(within),
            Layout::Hash => {
                let first = keys::slot_of(within.start()).map_or(0, Slot::get);
                let slots = self.slot.map_or(first..SLOTS, |slot| slot.get()..slot.get() + 1);
                slots.filter_map(Slot::new).find_map(|slot| within.intersection(&self.range_of(Some(slot))?))
            }
        }
    }

    /// The next range, and everything from its start to the end of the last one.
    #[must_use]
    pub fn ranges_from(&self, from: &Bytes, within: &KeyRange) -> Option<(KeyRange, KeyRange)> {
        let next = self.next_range(from, within)?;
        let last = match self.layout {
            Layout::Range => None,
            Layout::Hash => self.slot.or_else(|| Slot::new(SLOTS - 1)),
        };
        let end = self.range_of(last).unwrap_or_else(|| keys::keyspace_range(self.keyspace)).end().clone();
        let all = KeyRange::new(next.start().clone(), end)?.intersection(within)?;
        Some((next, all))
    }

    /// Whether nothing lies at or after `from`, in whatever shard.
    #[must_use]
    pub fn ends_before(&self, from: &Bytes) -> bool {
        self.next_range(from, &KeyRange::all()).is_none()
    }

    fn unbounded(&self) -> bool {
        self.start.is_empty() && self.end.is_empty()
    }

    fn range_of(&self, slot: Option<Slot>) -> Option<KeyRange> {
        let start = keys::encode_at(self.keyspace, slot, &self.start);
        let end = if !self.end.is_empty() {
            keys::encode_at(self.keyspace, slot, &self.end)
        } else {
            let next = slot.and_then(|slot| Slot::new(slot.get() + 1));
            match next {
                Some(next) => keys::encode_at(self.keyspace, Some(next), b""),
                None => keys::keyspace_range(self.keyspace).end().clone(),
            }
        };
        KeyRange::new(start, end)
    }
}

/// Whether every key that begins with the prefix has the same hash tag: it holds `{`, something, `}`.
fn holds_tag(prefix: &[u8]) -> bool {
    let Some(open) = prefix.iter().position(|byte| *byte == b'{') else { return false };
    let close = prefix.iter().skip(open + 1).position(|byte| *byte == b'}');
    close.is_some_and(|length| length > 0)
}

/// Checksum over everything a cursor must agree with; every node of a cluster computes the same.
fn fingerprint(keyspace: KeyspaceId, request: &ScanRequest) -> Fingerprint {
    let read = request.read.unwrap_or_default();
    let consistency = match Consistency::try_from(read.consistency) {
        Ok(Consistency::Unspecified) | Err(_) => Consistency::Linearizable,
        Ok(given) => given,
    };
    let mut fields = BytesMut::new();
    fields.put_u32(keyspace.0);
    for bound in [&request.start, &request.end, &request.prefix] {
        fields.put_u64(u64::try_from(bound.len()).unwrap_or(u64::MAX));
        fields.put_slice(bound);
    }
    fields.put_u8(request.keys_only.into());
    fields.put_i32(consistency.into());
    fields.put_u64(read.snapshot_timestamp);
    Fingerprint(crc32c::crc32c(&fields))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEYSPACE: KeyspaceId = KeyspaceId(7);

    fn scan(start: &[u8], end: &[u8], prefix: &[u8]) -> ScanRequest {
        let copy = Bytes::copy_from_slice;
        ScanRequest { start: copy(start), end: copy(end), prefix: copy(prefix), ..Default::default() }
    }

    /// Short keys over few letters, with tags among them.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(b"ab{}\xff".to_vec()), 0..6)
    }

    fn layout() -> impl Strategy<Value = Layout> {
        prop::sample::select(vec![Layout::Hash, Layout::Range])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_ranges_of_a_scan_hold_exactly_the_keys_within_its_bounds(
            layout in layout(), bounds in (key(), key(), key()), keys in prop::collection::vec(key(), 1..20),
        ) {
            let (start, end, prefix) = bounds;
            let request = if prefix.len() > 2 { scan(b"", b"", &prefix) } else { scan(&start, &end, b"") };
            prop_assume!(request.end.is_empty() || request.start < request.end);
            let bounds = Bounds::new(KEYSPACE, layout, &request);
            let mut ranges = Vec::new();
            let mut from = bounds.first();
            while let Some(range) = bounds.next_range(&from, &KeyRange::all()) {
                from = range.end().clone();
                ranges.push(range);
            }
            prop_assert!(ranges.is_sorted_by(|left, right| left.end() <= right.start()));
            let all = bounds.ranges_from(&bounds.first(), &KeyRange::all()).map(|(_, all)| all);
            let joined = ranges.first().zip(ranges.last());
            let joined = joined.and_then(|(first, last)| KeyRange::new(first.start().clone(), last.end().clone()));
            prop_assert_eq!(all, joined);
            for key in keys.iter().filter(|key| !key.is_empty()) {
                let wanted = key.starts_with(&request.prefix)
                    && key.as_slice() >= &request.start[..]
                    && (request.end.is_empty() || key.as_slice() < &request.end[..]);
                let encoded = kv_proto::keys::encode(KEYSPACE, layout, key);
                let read = ranges.iter().filter(|range| range.contains(&encoded)).count();
                prop_assert_eq!(read, usize::from(wanted), "{:?}", key);
            }
        }
    }

    #[test]
    fn a_prefix_with_a_whole_hash_tag_reads_one_slot() {
        let bounds = Bounds::new(KEYSPACE, Layout::Hash, &scan(b"", b"", b"{user1}."));
        let first = bounds.next_range(&bounds.first(), &KeyRange::all()).unwrap();
        assert!(first.contains(&keys::encode(KEYSPACE, Layout::Hash, b"{user1}.name")));
        assert_eq!(bounds.next_range(first.end(), &KeyRange::all()), None);
        assert!(bounds.ends_before(first.end()));
        assert!(!holds_tag(b"{}") && !holds_tag(b"{a") && !holds_tag(b"a}") && holds_tag(b"x{a}"));
    }

    #[test]
    fn a_scan_stays_within_the_shard_and_the_keyspace() {
        let bounds = Bounds::new(KEYSPACE, Layout::Range, &scan(b"b", b"", b""));
        let shard = KeyRange::new(keys::encode(KEYSPACE, Layout::Range, b"a"), Bytes::new()).unwrap();
        let range = bounds.next_range(&Bytes::new(), &shard).unwrap();
        assert_eq!(range.start(), &keys::encode(KEYSPACE, Layout::Range, b"b"));
        assert_eq!(range.end(), keys::keyspace_range(KEYSPACE).end());
    }

    #[test]
    fn a_fingerprint_changes_with_whatever_the_cursor_must_agree_with() {
        let base = fingerprint(KEYSPACE, &scan(b"a", b"b", b""));
        assert_ne!(base, fingerprint(KeyspaceId(8), &scan(b"a", b"b", b"")));
        assert_ne!(base, fingerprint(KEYSPACE, &scan(b"", b"ab", b"")));
        assert_ne!(base, fingerprint(KEYSPACE, &ScanRequest { keys_only: true, ..scan(b"a", b"b", b"") }));
        assert_eq!(base, fingerprint(KEYSPACE, &ScanRequest { page_size: 9, ..scan(b"a", b"b", b"") }));
    }
}
