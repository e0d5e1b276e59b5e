//! A snapshot carries exactly the state of the entry it names, and takes effect whole or not at all.

use bytes::Bytes;
use openraft::RaftSnapshotBuilder as _;
use openraft::storage::RaftStateMachine as _;

use super::super::{ReceivedSnapshot, SnapshotData, SnapshotSource, SnapshotView};
use super::crash::copy_folder;
use super::*;
use crate::command::Reply;
use crate::data_engine::DataError;
use crate::types::SnapshotMeta;

async fn current(machine: &mut StateMachine) -> (SnapshotMeta, SnapshotView) {
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    let SnapshotData::View(view) = snapshot.snapshot else { panic!("a view is due") };
    (snapshot.meta, view)
}

async fn receive(engine: &DataEngine, meta: &SnapshotMeta, view: SnapshotView) -> ReceivedSnapshot {
    let sink = engine.receive_snapshot(SHARD, meta.clone()).unwrap();
    super::super::sink::copy(view, sink).await.unwrap()
}

#[tokio::test]
async fn an_installed_snapshot_is_the_state_it_names_and_the_old_extent_is_gone() {
    for retention in [Duration::ZERO, Duration::from_secs(2), HOUR] {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let entries = recorded(21, 200);
        let (leader, mut leading) = replica(from.path(), retention);
        apply(&mut leading, &entries[..150]).await;
        let (follower, mut following) = replica(to.path(), retention);
        apply(&mut following, &entries[..20]).await;
        let old = follower.replicas()[0].extent;

        let (meta, view) = current(&mut leading).await;
        assert_eq!(meta.last_log_id, Some(log_id(150)));
        let expected = leader.checksum(SHARD).unwrap();
        // What is applied after the view is taken is not in it.
        apply(&mut leading, &entries[150..160]).await;
        let received = receive(&follower, &meta, view).await;
        following.install_snapshot(&meta, SnapshotData::Received(received)).await.unwrap();

        assert_eq!(follower.checksum(SHARD).unwrap(), expected);
        assert_eq!(following.applied_state().await.unwrap(), (meta.last_log_id, meta.last_membership.clone()));
        assert_ne!(follower.replicas()[0].extent, old);
        assert_eq!(rows_under(&follower, old), 0);
        let crashed = tempfile::tempdir().unwrap();
        copy_folder(&follower, crashed.path());
        assert_eq!(open(crashed.path()).checksum(SHARD).unwrap(), expected, "durable when it is installed");
        apply(&mut following, &entries[150..]).await;
        apply(&mut leading, &entries[160..]).await;
        assert_eq!(follower.checksum(SHARD).unwrap(), leader.checksum(SHARD).unwrap());

        let before = follower.checksum(SHARD).unwrap();
        drop(following);
        follower.close().await;
        drop(follower);
        assert_eq!(open(to.path()).checksum(SHARD).unwrap(), before, "after a restart");
    }
}

pub(super) fn rows_under(engine: &DataEngine, extent: kv_proto::ids::ExtentId) -> usize {
    use crate::data_engine::{Table, keys};
    let store = engine.store();
    let count = |table, start: Vec<u8>, end: Vec<u8>| {
        let rows = store
            .db()
            .iterator_cf(store.table(table), rocksdb::IteratorMode::From(&start, rocksdb::Direction::Forward));
        rows.map(Result::unwrap).take_while(|(key, _)| key.as_ref() < end.as_slice()).count()
    };
    let data = [Table::Latest, Table::History, Table::Changes];
    let data: usize = data.map(|table| count(table, keys::extent_start(extent), keys::extent_end(extent))).iter().sum();
    let meta = [keys::META_SESSION, keys::META_SUMMARY].map(|letter| {
        let (start, end) = keys::meta_rows(letter, extent.0);
        count(Table::Meta, start, end)
    });
    data + meta.iter().sum::<usize>()
}

#[tokio::test]
async fn a_write_sent_again_after_a_snapshot_gets_its_first_reply() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_leader, mut leading) = replica(from.path(), Duration::ZERO);
    let tag = SessionTag { client: ClientId(9), sequence: Sequence(4), lowest_unfinished: Sequence(2) };
    let once = Command { session: Some(tag), ..put(b"k", b"once") };
    let first = reply_to(&leading, &batch(1, Timestamp(70), std::slice::from_ref(&once)));
    let (meta, view) = current(&mut leading).await;
    let (follower, mut following) = replica(to.path(), Duration::ZERO);
    following.install_snapshot(&meta, SnapshotData::View(view)).await.unwrap();

    reply_to(&following, &batch(2, Timestamp(80), &[put(b"k", b"other")]));
    let again = reply_to(&following, &batch(3, Timestamp(90), std::slice::from_ref(&once)));
    assert_eq!(again, first);
    assert!(matches!(again.0.as_slice(), [Reply::Written { .. }]));
    assert_eq!(follower.view(SHARD).unwrap().get(b"k").unwrap().unwrap().value, "other");
}

#[tokio::test]
async fn sessions_age_alike_after_a_snapshot_and_after_a_restart() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (leader, mut leading) = replica(from.path(), Duration::ZERO);
    for (index, millis) in [(1, 7000), (2, 90_000), (3, 93_000)] {
        reply_to(&leading, &batch(index, Timestamp::from_millis(millis), &[put(b"k", b"v")]));
    }
    let clock = leading.core.lock().session_clock();
    assert_eq!(clock.now().0, 20_000);

    let (meta, view) = current(&mut leading).await;
    let (_follower, mut following) = replica(to.path(), Duration::ZERO);
    reply_to(&following, &batch(1, Timestamp::from_millis(7000), &[put(b"k", b"v")]));
    following.install_snapshot(&meta, SnapshotData::View(view)).await.unwrap();
    assert_eq!(following.core.lock().session_clock(), clock);

    drop(leading);
    leader.close().await;
    drop(leader);
    let leader = open(from.path());
    assert_eq!(machine(&leader, SHARD).core.lock().session_clock(), clock);
}

#[tokio::test]
async fn a_node_that_dies_before_the_switch_keeps_its_old_state_and_nothing_of_the_snapshot() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let entries = recorded(33, 100);
    let (_leader, mut leading) = replica(from.path(), HOUR);
    apply(&mut leading, &entries).await;
    let (follower, mut following) = replica(to.path(), HOUR);
    apply(&mut following, &entries[..30]).await;
    follower.flush().await.unwrap();
    let before = follower.checksum(SHARD).unwrap();

    let (meta, view) = current(&mut leading).await;
    let received = receive(&follower, &meta, view).await;
    let extent = received.extent().id();
    super::super::snapshot::ingest(follower.store(), &received).unwrap();
    assert!(rows_under(&follower, extent) > 0);
    // The process ends here.
    let crashed = tempfile::tempdir().unwrap();
    copy_folder(&follower, crashed.path());

    let follower = open(crashed.path());
    assert_eq!(follower.checksum(SHARD).unwrap(), before);
    assert_eq!(rows_under(&follower, extent), 0);
    assert_eq!(std::fs::read_dir(follower.scratch()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_snapshot_that_is_given_up_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), Duration::ZERO);
    apply(&mut machine, &recorded(2, 40)).await;
    let (meta, view) = current(&mut machine).await;
    let received = receive(&engine, &meta, view).await;
    drop(received);
    assert_eq!(std::fs::read_dir(engine.scratch()).unwrap().count(), 0);
}

#[tokio::test]
async fn altered_missing_or_misplaced_chunks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), Duration::ZERO);
    apply(&mut machine, &recorded(2, 40)).await;
    let (meta, view) = current(&mut machine).await;
    let mut sink = engine.receive_snapshot(SHARD, meta.clone()).unwrap();
    let mut source = SnapshotSource::new(view, sink.extent()).unwrap();
    let made = source.next_file().await.unwrap().unwrap();
    let data = Bytes::from(std::fs::read(&made.path).unwrap());
    assert_eq!((data.len() as u64, crc32c::crc32c(&data)), (made.bytes, made.checksum));
    let refused = |result: Result<(), DataError>| assert!(matches!(result, Err(DataError::BadSnapshot(_))));

    refused(sink.begin_file(0, "nonsense", made.bytes, made.checksum).await);
    refused(sink.begin_file(1, made.table, made.bytes, made.checksum).await);
    refused(sink.write_chunk(0, 0, data.clone(), crc32c::crc32c(&data)).await);
    sink.begin_file(0, made.table, made.bytes, made.checksum).await.unwrap();
    refused(sink.write_chunk(0, 0, data.clone(), 1).await);
    refused(sink.write_chunk(0, 5, data.clone(), crc32c::crc32c(&data)).await);
    refused(sink.write_chunk(1, 0, data.clone(), crc32c::crc32c(&data)).await);
    let half = data.slice(..data.len() / 2);
    sink.write_chunk(0, 0, half.clone(), crc32c::crc32c(&half)).await.unwrap();
    refused(sink.finish(1).await.map(|_| ()));
}

#[tokio::test]
async fn the_builder_reports_what_is_durable_and_the_current_snapshot_what_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), Duration::ZERO);
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
    let entries = recorded(4, 30);
    apply(&mut machine, &entries[..10]).await;
    assert!(machine.try_create_snapshot_builder(false).await.is_none(), "nothing is durable");
    engine.flush().await.unwrap();
    apply(&mut machine, &entries[10..]).await;
    let mut builder = machine.try_create_snapshot_builder(false).await.unwrap();
    assert_eq!(builder.build_snapshot().await.unwrap().meta.last_log_id, Some(log_id(10)));
    let (meta, _view) = current(&mut machine).await;
    assert_eq!(meta.last_log_id, Some(log_id(30)));
    // What openraft learns at start must be on disk.
    let mut builder = machine.try_create_snapshot_builder(false).await.unwrap();
    assert_eq!(builder.build_snapshot().await.unwrap().meta.last_log_id, Some(log_id(30)));
}

#[tokio::test]
async fn what_a_snapshot_permits_to_read_is_in_it_although_compaction_goes_on_while_it_is_sent() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let retention = Duration::from_secs(2);
    let (leader, mut leading) = replica(from.path(), retention);
    let entries = recorded(6, 200);
    let versions = reads::replay(&leader, &mut leading, &entries[..100]).await;
    let (meta, view) = current(&mut leading).await;
    apply(&mut leading, &entries[100..]).await;
    leader.flush().await.unwrap();
    reads::compact(&leader);
    let (follower, mut following) = replica(to.path(), retention);
    following.install_snapshot(&meta, SnapshotData::View(view)).await.unwrap();
    let safepoint = follower.replicas()[0].safepoint;
    reads::check(&follower.view(SHARD).unwrap(), &versions, safepoint);
}

#[tokio::test]
async fn a_large_replica_travels_in_files_of_bounded_length() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (leader, mut leading) = replica(from.path(), Duration::ZERO);
    let mut dice = Dice(1);
    for index in 1..=90 {
        // Random bytes, so that compression does not hide their length.
        let value: Vec<u8> = (0..1 << 20).map(|_| dice.roll(256) as u8).collect();
        let key = format!("key{index}");
        apply(&mut leading, &[batch(index, Timestamp(index), &[put(key.as_bytes(), &value)])]).await;
    }
    let (meta, view) = current(&mut leading).await;
    let (follower, mut following) = replica(to.path(), Duration::ZERO);
    let mut source = SnapshotSource::new(view, kv_proto::ids::ExtentId(99)).unwrap();
    let mut sizes = Vec::new();
    while let Some(made) = source.next_file().await.unwrap() {
        sizes.push(made.bytes);
    }
    assert_eq!(sizes.len(), 4, "three files of data, one of the rest: {sizes:?}");
    assert!(sizes.iter().all(|bytes| *bytes < 35 << 20), "{sizes:?}");
    drop(source);
    let (_, view) = current(&mut leading).await;
    following.install_snapshot(&meta, SnapshotData::View(view)).await.unwrap();
    assert_eq!(follower.checksum(SHARD).unwrap(), leader.checksum(SHARD).unwrap());
}
