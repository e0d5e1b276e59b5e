//! Key encodings, ranges and slots: orders, round trips, and that cuts leave no gap.

use bytes::Bytes;
use kv_proto::ids::KeyspaceId;
use kv_proto::key_range::KeyRange;
use kv_proto::keys::{self, Layout};
use kv_proto::slot::{SLOTS, Slot};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

fn key() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..12).prop_map(Bytes::from)
}

/// Keys of few bytes, so that equal ones and prefixes of each other are common.
fn near_key() -> impl Strategy<Value = Bytes> {
    vec(prop_oneof![Just(0_u8), Just(1), Just(0x7f), Just(0xff)], 0..4).prop_map(Bytes::from)
}

fn range() -> impl Strategy<Value = KeyRange> {
    (near_key(), near_key()).prop_filter_map("empty", |(start, end)| KeyRange::new(start, end))
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::Hash), Just(Layout::Range)]
}

/// No gap, no overlap: each range begins where the last one ended.
fn tile(whole: &KeyRange, ranges: &[KeyRange]) -> bool {
    let ends = ranges.iter().map(KeyRange::end);
    let starts = ranges.iter().skip(1).map(KeyRange::start);
    ranges.first().map(KeyRange::start) == Some(whole.start())
        && ranges.last().map(KeyRange::end) == Some(whole.end())
        && ends.zip(starts).all(|(end, start)| end == start)
}

#[test]
fn slots_are_those_of_redis_cluster() {
    // CLUSTER KEYSLOT of Redis 7.
    let published: [(&[u8], u16); 12] = [
        (b"", 0),
        (b"foo", 12_182),
        (b"bar", 5_061),
        (b"hello", 866),
        (b"a", 15_495),
        (b"b", 3_300),
        (b"c", 7_365),
        (b"somekey", 11_058),
        (b"foo{hash_tag}", 2_515),
        (b"bar{hash_tag}", 2_515),
        (b"123456789", 12_739),
        (b"user1000", 3_443),
    ];
    for (key, slot) in published {
        assert_eq!(Slot::of(key).get(), slot, "{}", key.escape_ascii());
    }
    assert_eq!(Slot::of(b"{user1000}.following"), Slot::of(b"user1000"));
}

#[test]
fn a_slot_is_below_the_number_of_slots() {
    assert_eq!(Slot::new(SLOTS - 1).map(Slot::get), Some(SLOTS - 1));
    assert_eq!(Slot::new(SLOTS), None);
}

#[test]
fn the_last_keyspace_has_no_upper_bound() {
    assert!(keys::keyspace_range(KeyspaceId(u32::MAX)).end().is_empty());
    assert_eq!(keys::keyspace_range(KeyspaceId(7)).to_string(), r"[\x00\x00\x00\x07, \x00\x00\x00\x08)");
}

#[test]
fn every_way_to_cut_a_hash_keyspace_is_even_and_without_a_gap() {
    let whole = keys::keyspace_range(KeyspaceId(3));
    for shards in [1, 2, 3, 6, 7, 1000, SLOTS] {
        let ranges = keys::split_by_slots(KeyspaceId(3), shards);
        assert_eq!(ranges.len(), usize::from(shards));
        assert!(tile(&whole, &ranges), "{shards} shards");
        let mut held = vec![0_u32; ranges.len()];
        for slot in 0..SLOTS {
            let first = keys::encode_at(KeyspaceId(3), Slot::new(slot), b"");
            held[ranges.partition_point(|range| range.start() <= &first) - 1] += 1;
        }
        let (fewest, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
        assert!(most - fewest <= 1, "{shards} shards hold {fewest} to {most} slots");
    }
}

#[test]
fn keys_that_do_not_ascend_cut_nothing() {
    let cut = |keys: &[&'static str]| {
        keys::split_by_keys(KeyspaceId(3), &keys.iter().map(|key| Bytes::from(*key)).collect::<Vec<_>>())
    };
    assert_eq!(cut(&[]).map(|ranges| ranges.len()), Some(1));
    for wrong in [&["b", "a"][..], &["a", "a"], &[""]] {
        assert_eq!(cut(wrong), None, "{wrong:?}");
    }
}

#[test]
fn too_short_bytes_are_no_encoded_key() {
    assert_eq!(keys::decode(Layout::Hash, &Bytes::from_static(&[0; 5])), None);
    assert_eq!(keys::decode(Layout::Range, &Bytes::from_static(&[0; 3])), None);
    assert_eq!(keys::slot_of(&[0, 0, 0, 1, 0xff, 0xff, b'k']), None, "no such slot");
}

proptest! {
    #[test]
    fn a_key_survives_its_encoding(keyspace: u32, layout in layout(), key in key()) {
        let encoded = keys::encode(KeyspaceId(keyspace), layout, &key);
        prop_assert_eq!(keys::decode(layout, &encoded), Some(key.clone()));
        prop_assert!(keys::keyspace_range(KeyspaceId(keyspace)).contains(&encoded));
        if layout == Layout::Hash {
            prop_assert_eq!(keys::slot_of(&encoded), Some(Slot::of(&key)));
        }
    }

    #[test]
    fn keys_encoded_together_are_as_each_by_itself(keyspace: u32, layout in layout(), keys in vec(key(), 0..20)) {
        let each: Vec<Bytes> = keys.iter().map(|key| keys::encode(KeyspaceId(keyspace), layout, key)).collect();
        prop_assert_eq!(keys::encode_all(KeyspaceId(keyspace), layout, keys.iter()), each);
    }

    #[test]
    fn encoded_keys_order_by_keyspace_slot_and_key(
        left in (0..3_u32, key()),
        right in (0..3_u32, key()),
        layout in layout(),
    ) {
        let order = |(keyspace, key): &(u32, Bytes)| {
            let slot = (layout == Layout::Hash).then(|| Slot::of(key));
            (*keyspace, slot, key.clone())
        };
        let encode = |(keyspace, key): &(u32, Bytes)| keys::encode(KeyspaceId(*keyspace), layout, key);
        prop_assert_eq!(encode(&left).cmp(&encode(&right)), order(&left).cmp(&order(&right)));
    }

    #[test]
    fn every_key_of_a_cut_keyspace_lies_in_exactly_one_range(
        cuts in btree_set(vec(any::<u8>(), 1..6).prop_map(Bytes::from), 0..8),
        keys in vec(key(), 1..20),
    ) {
        let cuts: Vec<Bytes> = cuts.into_iter().collect();
        let ranges = keys::split_by_keys(KeyspaceId(9), &cuts).unwrap();
        prop_assert!(tile(&keys::keyspace_range(KeyspaceId(9)), &ranges));
        for key in keys {
            let encoded = keys::encode(KeyspaceId(9), Layout::Range, &key);
            prop_assert_eq!(ranges.iter().filter(|range| range.contains(&encoded)).count(), 1);
        }
    }

    #[test]
    fn the_end_of_a_prefix_parts_what_begins_with_it_from_what_follows(prefix in near_key(), key in near_key()) {
        match keys::prefix_end(&prefix) {
            Some(end) => prop_assert_eq!(key.starts_with(&prefix), prefix <= key && key < end),
            None => prop_assert_eq!(key.starts_with(&prefix), prefix <= key),
        }
    }

    #[test]
    fn an_intersection_holds_what_both_ranges_hold(left in range(), right in range(), key in near_key()) {
        let both = left.contains(&key) && right.contains(&key);
        let intersection = left.intersection(&right);
        prop_assert_eq!(intersection.as_ref().is_some_and(|range| range.contains(&key)), both);
        prop_assert_eq!(&intersection, &right.intersection(&left));
        if let Some(range) = intersection {
            prop_assert!(left.covers(&range) && right.covers(&range));
        }
    }

    #[test]
    fn a_range_covers_itself_and_everything_covers_nothing_more(range in range(), other in range(), key in near_key()) {
        prop_assert!(range.covers(&range) && KeyRange::all().covers(&range));
        if range.covers(&other) && other.contains(&key) {
            prop_assert!(range.contains(&key));
        }
    }

    #[test]
    fn keys_with_the_same_hash_tag_share_a_slot(tag in "[a-z]{1,8}", left in "[a-z]{0,4}", right in "[a-z:}]{0,4}") {
        let key = format!("{left}{{{tag}}}{right}");
        prop_assert_eq!(Slot::of(key.as_bytes()), Slot::of(tag.as_bytes()));
    }
}
