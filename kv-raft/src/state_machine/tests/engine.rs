//! Opening, creating, destroying; and waiting for the log.

use std::sync::atomic::{AtomicBool, Ordering};

use super::crash::copy_folder;
use super::snapshots::rows_under;
use super::*;
use crate::data_engine::{CreateError, DataError, OpenError};

#[tokio::test]
async fn a_created_replica_is_there_after_a_crash_and_a_destroyed_one_never_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let other = ShardId(8);
    let engine = open(dir.path());
    let created = engine.create(new_replica(SHARD, 3, Duration::ZERO)).unwrap();
    engine.create(new_replica(other, 1, HOUR)).unwrap();
    assert_eq!(after_a_crash(&engine).1.replicas(), engine.replicas());
    let exists = engine.create(new_replica(SHARD, 4, Duration::ZERO));
    assert_eq!(exists, Err(CreateError::Exists { shard: SHARD, replica: ReplicaId(3) }));
    let mut first = machine(&engine, SHARD);
    let mut second = machine(&engine, other);
    apply(&mut first, &recorded(1, 40)).await;
    apply(&mut second, &recorded(2, 40)).await;
    let kept = engine.checksum(other).unwrap();

    engine.destroy(SHARD).unwrap();
    let (_dir, crashed) = after_a_crash(&engine);
    assert_eq!(crashed.replicas().len(), 1);
    assert!(crashed.create(new_replica(SHARD, 3, Duration::ZERO)).is_err());
    assert_eq!(engine.view(SHARD).err(), Some(DataError::NotHeld(SHARD)));
    assert_eq!(engine.destroy(SHARD), Err(DataError::NotHeld(SHARD)));
    let more = recorded(1, 41);
    let chunk = super::super::Chunk::decode(SHARD, more[40..].iter()).unwrap();
    let late = first.core.lock().apply(&chunk);
    assert_eq!(late, Err(DataError::NotHeld(SHARD)), "nothing is applied to it any more");
    drop((first, second));
    engine.flush().await.unwrap();
    assert_eq!(rows_under(&engine, created.extent), 0);
    drop(engine);

    let engine = open(dir.path());
    assert_eq!(engine.replicas().len(), 1);
    assert_eq!(engine.checksum(other).unwrap(), kept);
    let refused = engine.create(new_replica(SHARD, 3, Duration::ZERO));
    let destroyed = CreateError::Destroyed { shard: SHARD, replica: ReplicaId(3), destroyed: ReplicaId(3) };
    assert_eq!(refused, Err(destroyed));
    let again = engine.create(new_replica(SHARD, 4, Duration::ZERO)).unwrap();
    assert!(again.extent > created.extent, "extents are never used again");
    let view = engine.view(SHARD).unwrap();
    let spec = crate::data_engine::ScanSpec {
        range: KeyRange::all(),
        limit_entries: 10,
        limit_bytes: 1 << 20,
        keys_only: false,
        at: None,
        reverse: false,
    };
    assert!(view.scan(&spec).unwrap().entries.is_empty());
}

fn after_a_crash(engine: &DataEngine) -> (tempfile::TempDir, DataEngine) {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(engine, copy.path());
    let engine = open(copy.path());
    (copy, engine)
}

#[test]
fn rocksdbs_threads_work_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let _engine = open(dir.path());
    let nice = |task: i32| uapi::sched_getattr(task, 0).unwrap().sched_nice;
    let own = nice(0);
    let mut found = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("rocksdb:") {
            assert!(nice(task.file_name().to_str().unwrap().parse().unwrap()) > own, "{name}");
            found += 1;
        }
    }
    assert!(found >= 2, "one for flushes and one for compactions");
}

#[test]
fn tables_are_written_past_the_page_cache_where_the_folder_takes_that() {
    let dir = tempfile::tempdir().unwrap();
    let _engine = open(dir.path());
    let written = files(dir.path(), "OPTIONS-").pop().unwrap();
    let direct = std::fs::read_to_string(written).unwrap().contains("use_direct_io_for_flush_and_compaction=true");
    assert_eq!(direct, crate::direct::takes_direct_writes(dir.path()));
}

#[test]
fn a_folder_in_use_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _engine = open(dir.path());
    let refused = DataEngine::open(dir.path(), options()).err().unwrap();
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused:?}");
    assert!(refused.to_string().contains(dir.path().to_str().unwrap()));
}

fn files(dir: &Path, part: &str) -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = all.filter(|path| path.file_name().unwrap().to_str().unwrap().contains(part)).collect();
    found.sort();
    found
}

async fn filled(dir: &Path) {
    let (engine, mut machine) = replica(dir, HOUR);
    apply(&mut machine, &recorded(1, 200)).await;
    drop(machine);
    engine.close().await;
}

#[tokio::test]
async fn a_table_cut_short_removed_or_altered_is_named_and_nothing_is_deleted() {
    type Damage = fn(&Path);
    let cut: Damage = |path| {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    };
    let remove: Damage = |path| std::fs::remove_file(path).unwrap();
    let alter: Damage = |path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[20] ^= 4;
        std::fs::write(path, bytes).unwrap();
    };
    for (damage, first) in [(cut, false), (remove, false), (alter, false), (alter, true)] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        let tables = files(dir.path(), ".sst");
        let victim = if first { tables.first() } else { tables.last() }.unwrap();
        damage(victim);
        let before = files(dir.path(), ".sst");
        let refused = DataEngine::open(dir.path(), options()).err().unwrap();
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused:?}");
        let name = victim.file_name().unwrap().to_str().unwrap();
        assert!(refused.to_string().contains(name), "{refused} names {name}");
        assert_eq!(files(dir.path(), ".sst"), before);
    }
}

#[tokio::test]
async fn a_lost_or_altered_manifest_is_refused_and_nothing_is_deleted() {
    for (victim, altered) in [("CURRENT", false), ("MANIFEST", false), ("MANIFEST", true)] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        let tables = files(dir.path(), ".sst");
        for path in files(dir.path(), victim) {
            if altered {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[30] ^= 4;
                std::fs::write(&path, bytes).unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
        }
        let refused = DataEngine::open(dir.path(), options()).err().unwrap();
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused:?}");
        assert!(refused.to_string().contains(victim), "{refused}");
        assert_eq!(files(dir.path(), ".sst"), tables);
    }
}

#[tokio::test]
async fn a_folder_of_a_later_format_is_refused() {
    use crate::data_engine::{Table, keys};
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut batch = rocksdb::WriteBatch::default();
    batch.put_cf(engine.store().table(Table::Meta), keys::META_FORMAT, 9u32.to_be_bytes());
    engine.store().write(batch).unwrap();
    engine.close().await;
    drop(engine);
    let refused = DataEngine::open(dir.path(), options()).err().unwrap();
    assert!(matches!(refused, OpenError::Format { found: 9, known: 1, .. }), "{refused:?}");
}

#[tokio::test]
async fn after_the_first_failure_nothing_is_written_and_whoever_waits_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    engine.store().fail("the disk is gone".to_owned());
    assert_eq!(engine.failed().await, "the disk is gone");
    let refused = engine.create(new_replica(SHARD, 1, Duration::ZERO));
    assert_eq!(refused, Err(CreateError::Data(DataError::Failed("the disk is gone".to_owned()))));
}

/// A log that becomes durable when told to.
struct Slow(tokio::sync::watch::Receiver<u64>, AtomicBool);

impl LogWait for Slow {
    fn wait_durable(&self, index: u64) -> BoxFuture<'_, io::Result<()>> {
        self.1.store(true, Ordering::SeqCst);
        let mut durable = self.0.clone();
        Box::pin(
            async move { durable.wait_for(|reached| *reached >= index).await.map(|_| ()).map_err(io::Error::other) },
        )
    }
}

#[tokio::test]
async fn nothing_is_applied_before_the_log_is_durable_through_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    engine.create(new_replica(SHARD, 1, Duration::ZERO)).unwrap();
    let (reached, durable) = tokio::sync::watch::channel(4);
    let log = Arc::new(Slow(durable, AtomicBool::new(false)));
    let mut machine = engine.state_machine(SHARD, log.clone(), metrics()).unwrap();
    let entries = recorded(1, 5);
    {
        let mut applying = std::pin::pin!(apply(&mut machine, &entries));
        assert!(futures::poll!(applying.as_mut()).is_pending());
        assert!(log.1.load(Ordering::SeqCst));
        assert_eq!(engine.replicas()[0].applied, None);
        reached.send(5).unwrap();
        applying.await;
    }
    assert_eq!(engine.replicas()[0].applied, Some(log_id(5)));
}

/// Much more than is kept in memory, where nothing is written out in the background.
#[tokio::test]
async fn what_is_not_written_stays_within_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, machine) = replica(dir.path(), Duration::ZERO);
    let budget = options().write_buffer_bytes / 4;
    let _background = engine.hold_write_out().unwrap();
    let value = vec![b'v'; 10_000];
    for index in 1..=500_u64 {
        let key = index.to_be_bytes();
        let entry = batch(index, Timestamp::from_millis(index), &[put(&key, &value)]);
        machine.decide_and_write(&[(entry, None)], 0).unwrap();
        let unwritten = engine.store().unwritten().bytes();
        assert!((10_000..budget + 20_000).contains(&unwritten), "{unwritten} bytes after entry {index}");
    }
    let expected = engine.checksum(SHARD).unwrap();
    assert_eq!(engine.store().unwritten().bytes(), 0, "a checksum reads what is written");
    drop((machine, engine));
    assert_eq!(open(dir.path()).checksum(SHARD).unwrap(), expected);
}

/// The process may end once the engine is closed: nothing may be on its way into RocksDB then.
#[tokio::test]
async fn an_engine_is_closed_when_nothing_is_written_out_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _machine) = replica(dir.path(), Duration::ZERO);
    let writing = engine.hold_write_out().unwrap();
    let mut closing = std::pin::pin!(engine.close());
    assert!(tokio::time::timeout(Duration::from_millis(100), closing.as_mut()).await.is_err());
    drop(writing);
    closing.await;
    assert!(engine.hold_write_out().is_none(), "nothing more begins");
    engine.close().await;
}

/// The same key again and again takes the memory of one.
#[test]
fn what_is_overwritten_before_it_is_written_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, machine) = replica(dir.path(), Duration::ZERO);
    let mut sizes = Vec::new();
    for (index, length) in [(1, 100), (2, 5000), (3, 100)] {
        reply_to(&machine, &batch(index, Timestamp::from_millis(index), &[put(b"k", &vec![b'v'; length])]));
        sizes.push(engine.store().unwritten().bytes());
    }
    assert_eq!((sizes[0], sizes[1]), (sizes[2], sizes[0] + 4900));
}

/// When it is due it is written out beside what is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gathers_is_written_out_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), Duration::ZERO);
    let value = vec![b'v'; 10_000];
    for index in 1..=60_u64 {
        apply(&mut machine, &[batch(index, Timestamp::from_millis(index), &[put(&index.to_be_bytes(), &value)])]).await;
    }
    tokio::time::timeout(Duration::from_secs(10), async {
        while engine.store().unwritten().is_due() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    for index in 1..=60_u64 {
        assert_eq!(engine.view(SHARD).unwrap().get(&index.to_be_bytes()).unwrap().unwrap().value, value);
    }
}

/// A replica that goes leaves nothing that is written later, and one that takes its place begins empty.
#[tokio::test]
async fn what_is_not_written_of_a_destroyed_replica_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), Duration::ZERO);
    apply(&mut machine, &[batch(1, Timestamp(1), &[put(b"k", b"old")])]).await;
    let view = engine.view(SHARD).unwrap();
    engine.destroy(SHARD).unwrap();
    assert_eq!(view.get(b"k").unwrap().unwrap().value, "old", "whoever reads it goes on");
    engine.create(new_replica(SHARD, 2, Duration::ZERO)).unwrap();
    view.scan(&super::reads::spec(None, false)).unwrap();
    engine.flush().await.unwrap();
    drop((view, machine, engine));
    let engine = open(dir.path());
    assert_eq!(engine.replicas()[0].applied, None);
    assert_eq!(engine.view(SHARD).unwrap().get(b"k").unwrap(), None);
}

/// What a disk that failed did not take can be read until the process ends.
#[test]
fn what_cannot_be_written_stays_readable_and_is_not_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, machine) = replica(dir.path(), Duration::ZERO);
    reply_to(&machine, &batch(1, Timestamp(1), &[put(b"k", b"v")]));
    let holding = engine.holding(SHARD).unwrap();
    let _ = engine.store().fail("no space left on device".to_owned());
    for _ in 0..2 {
        assert!(holding.write_out(engine.store()).is_err());
        assert_eq!(engine.view(SHARD).unwrap().get(b"k").unwrap().unwrap().value, "v");
        assert!(engine.flush_now().is_err());
    }
    assert_eq!(holding.durable().applied, None);
}

/// A replica that is stopped and started again in one process knows the writes it applied.
#[test]
fn sessions_that_are_not_written_are_known_to_the_next_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, first) = replica(dir.path(), Duration::ZERO);
    let tag = SessionTag { client: ClientId(1), sequence: Sequence(1), lowest_unfinished: Sequence(1) };
    let command = Command { session: Some(tag), ..put(b"k", b"v") };
    let written = reply_to(&first, &batch(1, Timestamp::from_millis(1), std::slice::from_ref(&command)));
    drop(first);
    let second = machine(&engine, SHARD);
    let repeated = reply_to(&second, &batch(2, Timestamp::from_millis(2), &[command]));
    assert_eq!(repeated.0, written.0, "it is not applied again");
}
