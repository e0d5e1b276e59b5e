//! Reads, at the latest state and at timestamps, against a model that keeps everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;

use super::*;
use crate::command::{Reply, Versioned};
use crate::data_engine::{DataError, ReadView, ScanPage, ScanSpec, Turn, keys};
use crate::log_store::tests::DEADLINE;

/// State after each commit.
pub(super) type Versions = BTreeMap<Timestamp, BTreeMap<Vec<u8>, Versioned>>;

/// Everything in one page.
pub(super) fn spec(at: Option<Timestamp>, reverse: bool) -> ScanSpec {
    ScanSpec { range: KeyRange::all(), limit_entries: 1000, limit_bytes: 1 << 20, keys_only: false, at, reverse }
}

fn contents(page: &ScanPage) -> BTreeMap<Vec<u8>, Versioned> {
    page.entries.iter().map(|entry| (entry.key.to_vec(), entry.versioned.clone())).collect()
}

/// Applies entries one by one; the latest state after each is taken from a scan, and from point reads before and after it has
/// had all rows written out.
pub(super) async fn replay(engine: &DataEngine, machine: &mut StateMachine, entries: &[Entry]) -> Versions {
    let (mut versions, known) = (Versions::new(), (0..KEYS).map(key_of).collect::<BTreeSet<_>>());
    for entry in entries {
        apply(machine, std::slice::from_ref(entry)).await;
        let view = engine.view(SHARD).unwrap();
        let keys: Vec<&[u8]> = known.iter().map(Vec::as_slice).collect();
        let unwritten: Vec<_> = keys.iter().map(|key| view.get(key).unwrap()).collect();
        assert_eq!(view.get_many(&keys, None, usize::MAX).unwrap(), unwritten);
        let state = contents(&view.scan(&spec(None, false)).unwrap());
        for (key, row) in keys.iter().zip(&unwritten) {
            assert_eq!(row.as_ref(), state.get(*key), "before it is written");
            assert_eq!(view.get(key).unwrap().as_ref(), state.get(*key));
        }
        versions.insert(view.last_commit(), state);
    }
    versions
}

pub(super) fn check(view: &ReadView, versions: &Versions, oldest: Timestamp) {
    let keys: BTreeSet<&Vec<u8>> = versions.values().flat_map(BTreeMap::keys).collect();
    for (at, expected) in versions.range(oldest..) {
        let forward = view.scan(&spec(Some(*at), false)).unwrap();
        assert_eq!(&contents(&forward), expected, "at {at}");
        let mut backward = view.scan(&spec(Some(*at), true)).unwrap();
        backward.entries.reverse();
        assert_eq!(backward.entries, forward.entries, "at {at}");
        for key in &keys {
            assert_eq!(view.get_at(key, *at).unwrap().as_ref(), expected.get(*key), "{} at {at}", key.escape_ascii());
        }
    }
}

#[tokio::test]
async fn every_timestamp_inside_the_retention_shows_the_state_of_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), HOUR);
    let versions = replay(&engine, &mut machine, &recorded(77, 120)).await;
    let view = engine.view(SHARD).unwrap();
    check(&view, &versions, Timestamp(0));
    // Between two commits the earlier one is seen.
    let (first, state) = versions.iter().nth(50).unwrap();
    let between = Timestamp(first.0 + 1);
    if !versions.contains_key(&between) {
        assert_eq!(&contents(&view.scan(&spec(Some(between), false)).unwrap()), state);
    }
}

#[tokio::test]
async fn compaction_drops_what_the_durable_safepoint_permits_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), Duration::from_secs(2));
    let versions = replay(&engine, &mut machine, &recorded(78, 150)).await;
    let safepoint = engine.replicas()[0].safepoint;
    let before = (engine.checksum(SHARD).unwrap(), old_versions(&engine));
    compact(&engine);
    assert_eq!(old_versions(&engine), before.1, "no safepoint is durable yet");
    engine.flush().await.unwrap();
    compact(&engine);
    assert!(old_versions(&engine) < before.1);
    assert_eq!(engine.checksum(SHARD).unwrap(), before.0, "what is collected does not count");
    let view = engine.view(SHARD).unwrap();
    check(&view, &versions, safepoint);
    let too_old = Timestamp(safepoint.0 - 1);
    let refused = DataError::TooOld { asked: too_old, oldest: safepoint };
    assert_eq!(view.get_at(b"k0", too_old), Err(refused.clone()));
    assert_eq!(view.scan(&spec(Some(too_old), false)), Err(refused));
}

pub(super) fn compact(engine: &DataEngine) {
    use crate::data_engine::Table;
    let store = engine.store();
    store.flush().unwrap();
    for table in [Table::History, Table::Changes] {
        let mut options = rocksdb::CompactOptions::default();
        options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
        store.db().compact_range_cf_opt(store.table(table), None::<&[u8]>, None::<&[u8]>, &options);
    }
}

fn old_versions(engine: &DataEngine) -> usize {
    let store = engine.store();
    store.db().iterator_cf(store.table(crate::data_engine::Table::History), rocksdb::IteratorMode::Start).count()
}

#[tokio::test]
async fn commits_ascend_in_log_order_whatever_the_stamps_say() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, machine) = replica(dir.path(), Duration::ZERO);
    let mut before = Timestamp(0);
    for (index, stamp) in [(1, 500), (2, 400), (3, 501), (4, 501), (5, 900)] {
        let replies = reply_to(&machine, &batch(index, Timestamp(stamp), &[put(b"a", b"1"), put(b"b", b"2")]));
        for reply in replies.0 {
            let Reply::Written { commit, .. } = reply else { panic!("{reply:?}") };
            assert!(commit > before && commit >= Timestamp(stamp), "{commit} after {before}, stamped {stamp}");
            before = commit;
        }
    }
    assert_eq!(engine.view(SHARD).unwrap().last_commit(), Timestamp(901));
}

#[tokio::test]
async fn a_keyspace_without_retention_keeps_neither_old_versions_nor_changes() {
    use crate::data_engine::Table;
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), Duration::ZERO);
    apply(&mut machine, &recorded(79, 100)).await;
    engine.flush().await.unwrap();
    let store = engine.store();
    for table in [Table::History, Table::Changes] {
        assert_eq!(store.db().iterator_cf(store.table(table), rocksdb::IteratorMode::Start).count(), 0);
    }
    let view = engine.view(SHARD).unwrap();
    let now = view.last_commit();
    let page = view.scan(&spec(None, false)).unwrap();
    assert_eq!(view.scan(&spec(Some(now), false)).unwrap(), page);
    assert!(view.get_at(b"k0", Timestamp(now.0 - 1)).is_err());
}

/// What a page left of a range.
fn rest(range: &KeyRange, next: Bytes, reverse: bool) -> KeyRange {
    let (start, end) = if reverse { (range.start().clone(), next) } else { (next, range.end().clone()) };
    KeyRange::new(start, end).unwrap()
}

#[tokio::test]
async fn pages_join_to_the_whole_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), HOUR);
    apply(&mut machine, &recorded(80, 100)).await;
    let view = engine.view(SHARD).unwrap();
    for at in [None, Some(view.last_commit())] {
        for reverse in [false, true] {
            let whole = view.scan(&spec(at, reverse)).unwrap();
            assert!(whole.entries.len() > 10);
            let mut joined = Vec::new();
            let mut range = KeyRange::all();
            loop {
                let page =
                    view.scan(&ScanSpec { range: range.clone(), limit_entries: 3, ..spec(at, reverse) }).unwrap();
                assert!(page.entries.len() <= 3);
                joined.extend(page.entries);
                let Some(next) = page.next else { break };
                range = rest(&range, next, reverse);
            }
            assert_eq!(joined, whole.entries);
        }
    }
    let bounded = ScanSpec { limit_bytes: 1, ..spec(None, false) };
    assert_eq!(view.scan(&bounded).unwrap().entries.len(), 1, "a page holds at least one entry");
    let names = view.scan(&ScanSpec { keys_only: true, ..spec(None, false) }).unwrap();
    assert!(names.entries.iter().all(|entry| entry.versioned.value.is_empty()));
}

/// Takes the keys `x3` to `x5` of each letter.
fn middle(key: &[u8], reverse: bool) -> Turn {
    let &[letter, digit] = key else { panic!("{}", key.escape_ascii()) };
    let skip = |letter, digit| Turn::Skip(vec![letter, digit].into());
    match (digit, reverse) {
        (b'3'..=b'5', _) => Turn::Take,
        (..=b'2', false) => skip(letter, b'3'),
        (_, false) => skip(letter + 1, b'3'),
        (..=b'2', true) if letter == b'a' => Turn::End,
        (..=b'2', true) => skip(letter - 1, b'6'),
        (_, true) => skip(letter, b'6'),
    }
}

#[tokio::test]
async fn a_scan_takes_what_it_is_told_and_goes_on_where_it_paused() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), HOUR);
    let keys: Vec<[u8; 2]> = (b'a'..=b'd').flat_map(|letter| (b'0'..=b'9').map(move |digit| [letter, digit])).collect();
    let write = |index: u64, every: usize| {
        let value = index.to_string().into_bytes();
        let commands: Vec<_> = keys.iter().step_by(every).map(|key| put(key, &value)).collect();
        batch(index, Timestamp(index * 1000), &commands)
    };
    // Of every second key two versions and the latest, of the others the latest alone.
    apply(&mut machine, &[write(1, 2), write(2, 2), write(3, 1)]).await;
    let view = engine.view(SHARD).unwrap();
    for at in [None, Some(view.last_commit()), Some(Timestamp(2500))] {
        for reverse in [false, true] {
            let mut wanted = view.scan(&spec(at, reverse)).unwrap().entries;
            wanted.retain(|entry| middle(&entry.key, false) == Turn::Take);
            assert_eq!(wanted.len(), if at == Some(Timestamp(2500)) { 4 } else { 12 });
            for (limit_entries, asked_max) in [(1000, usize::MAX), (2, usize::MAX), (1000, 2), (1, 2)] {
                let (mut joined, mut range, mut pages) = (Vec::new(), KeyRange::all(), 0);
                loop {
                    let mut asked = 0;
                    let mut turn = |key: &Bytes| {
                        asked += 1;
                        match middle(key, reverse) {
                            Turn::Skip(to) if asked > asked_max => Turn::Pause(to),
                            turn @ (Turn::Take | Turn::Skip(_) | Turn::Pause(_) | Turn::End) => turn,
                        }
                    };
                    let spec = ScanSpec { range: range.clone(), limit_entries, ..spec(at, reverse) };
                    let page = view.scan_some(&spec, &mut turn).unwrap();
                    joined.extend(page.entries);
                    pages += 1;
                    assert!(pages < 100, "a scan ends");
                    let Some(next) = page.next else { break };
                    range = rest(&range, next, reverse);
                }
                assert_eq!(joined, wanted, "at {at:?}, reverse {reverse}, by {limit_entries} and {asked_max}");
                assert_eq!(pages == 1, limit_entries == 1000 && asked_max == usize::MAX, "{pages}");
            }
        }
    }
}

/// A point read remembers the row it found, beside one that changes it and one that writes out what was changed.
#[test]
fn point_reads_beside_a_writer_never_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, machine) = replica(dir.path(), Duration::ZERO);
    let (ended, remembered) = (AtomicBool::new(false), AtomicU64::new(0));
    let read = || {
        let mut last = Timestamp(0);
        while !ended.load(Ordering::Relaxed) {
            let view = engine.view(SHARD).unwrap();
            let found = engine.store().rows().get(&keys::latest(view.extent(), b"k")).is_some();
            remembered.fetch_add(u64::from(found), Ordering::Relaxed);
            let commit = view.get(b"k").unwrap().map_or(Timestamp(0), |row| row.commit);
            assert!(commit >= view.last_commit(), "it misses what was applied before");
            assert!(commit >= last, "it is older than what was read before");
            last = commit;
            let both = view.get_many(&[b"k", b"l"], None, usize::MAX).unwrap();
            let [k, l] = [0, 1].map(|at| both[at].as_ref().map_or(Timestamp(0), |row| row.commit));
            assert!(k >= l && k.0 - l.0 <= Timestamp::from_millis(1).0, "{k} and {l} are of two states");
            assert!(k >= last, "it is older than what was read before");
        }
    };
    let write_out = || {
        let holding = engine.holding(SHARD).unwrap();
        while !ended.load(Ordering::Relaxed) {
            holding.write_out(engine.store()).unwrap();
        }
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(read)).collect();
        scope.spawn(write_out);
        let writer = scope.spawn(|| {
            let mut both = put(b"k", b"v");
            both.operations.push(Operation::Put { key: b"l", value: b"v" });
            let begun = Instant::now();
            // Until a reader came between two writes as well, however few processors there are for all four.
            let goes_on =
                |index| index <= 20_000 || (remembered.load(Ordering::Relaxed) == 0 && begun.elapsed() < DEADLINE);
            for index in (1..).take_while(|index| goes_on(*index)) {
                // The other one stays a version behind, every other time.
                let command = if index % 2 == 0 { put(b"k", b"v") } else { both.clone() };
                reply_to(&machine, &batch(index, Timestamp::from_millis(index), &[command]));
            }
        });
        let written = writer.join();
        ended.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert!(written.is_ok(), "the writer failed");
        assert!(remembered.load(Ordering::Relaxed) > 0, "nobody read between two writes");
    });
}

#[tokio::test]
async fn a_view_goes_on_showing_its_extent_while_a_snapshot_replaces_it() {
    use openraft::storage::RaftStateMachine as _;
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_leader, mut leading) = replica(from.path(), Duration::ZERO);
    apply(&mut leading, &[batch(1, Timestamp(1), &[put(b"k", b"old")])]).await;
    let (follower, mut following) = replica(to.path(), Duration::ZERO);
    apply(&mut following, &[batch(1, Timestamp(1), &[put(b"k", b"old")])]).await;
    let view = follower.view(SHARD).unwrap();
    apply(&mut leading, &[batch(2, Timestamp(2), &[put(b"k", b"new")])]).await;
    let snapshot = leading.get_current_snapshot().await.unwrap().unwrap();
    following.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert_eq!(view.get(b"k").unwrap().unwrap().value, "old");
    assert_eq!(follower.view(SHARD).unwrap().get(b"k").unwrap().unwrap().value, "new");
}
