//! When a write is acknowledged, in what order writes reach the disk, and what a failed one does.

use std::sync::Arc;

use super::*;
use crate::log_store::LogError;
use crate::log_store::shard::{ShardLog, State};

#[tokio::test]
async fn entries_are_readable_at_once_but_acknowledged_only_after_their_write() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    let held = engine.fault().hold();
    let before = engine.fault().writes();
    let mut answer = submit(&mut log, entries(1, 0..3)).await;
    assert_eq!(read(&log).await, entries(1, 0..3));
    eventually("the writer is about to write", || engine.fault().writes() > before);
    assert!(answer.try_recv().is_err(), "acknowledged before the write");
    let wait = engine.log_wait(ShardId(1)).unwrap();
    assert!(futures::FutureExt::now_or_never(wait.wait_durable(2)).is_none(), "durable before the write");
    drop(held);
    answer.await.unwrap().unwrap();
    wait.wait_durable(2).await.unwrap();
}

/// What a crash of the process alone cannot tell: it leaves what was written and not synced to the kernel.
#[tokio::test]
async fn every_write_is_synced_before_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    let syncs = || engine.shared().syncs.load(Ordering::Acquire);
    for index in 0..10 {
        let before = syncs();
        append(&mut log, entries(1, index..index + 1)).await;
        assert!(syncs() > before, "entry {index} was acknowledged without a sync");
    }
    let before = syncs();
    log.save_vote(&vote(2)).await.unwrap();
    assert!(syncs() > before, "a vote was acknowledged without a sync");
}

#[tokio::test]
async fn appends_of_all_shards_that_wait_together_share_one_write() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let held = engine.fault().hold();
    let mut answers = vec![submit(&mut store(&engine, 1), entries(1, 0..1)).await];
    eventually("the writer is busy", || engine.fault().writes() == 1);
    for shard in 2..50 {
        answers.push(submit(&mut store(&engine, shard), entries(1, 0..2)).await);
    }
    drop(held);
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(engine.fault().writes(), 2);
}

#[tokio::test]
async fn a_truncation_lies_between_what_it_removes_and_what_replaces_it_even_in_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    let held = engine.fault().hold();
    let first = submit(&mut log, entries(1, 0..1)).await;
    eventually("the writer is busy", || engine.fault().writes() == 1);
    let old = submit(&mut log, entries(1, 1..6)).await;
    log.truncate_after(Some(log_id(1, 2))).await.unwrap();
    let new = submit(&mut log, entries(2, 3..5)).await;
    let wait = engine.log_wait(ShardId(1)).unwrap();
    drop(held);
    for answer in [first, old, new] {
        answer.await.unwrap().unwrap();
    }
    wait.wait_durable(4).await.unwrap();
    let expected: Vec<_> = entries(1, 0..3).into_iter().chain(entries(2, 3..5)).collect();
    assert_eq!(read(&log).await, expected);
    assert_eq!(engine.fault().writes(), 2);
    engine.close().await;
    assert_eq!(reopened(dir.path(), 1).await, expected);
}

#[tokio::test]
async fn a_truncation_takes_back_the_durability_of_what_it_removes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    append(&mut log, entries(1, 0..6)).await;
    let wait = engine.log_wait(ShardId(1)).unwrap();
    wait.wait_durable(5).await.unwrap();
    let held = engine.fault().hold();
    log.truncate_after(Some(log_id(1, 2))).await.unwrap();
    let new = submit(&mut log, entries(2, 3..6)).await;
    wait.wait_durable(2).await.unwrap();
    assert!(futures::FutureExt::now_or_never(wait.wait_durable(3)).is_none());
    drop(held);
    new.await.unwrap().unwrap();
    wait.wait_durable(5).await.unwrap();
}

#[tokio::test]
async fn a_write_that_ends_after_a_truncation_says_nothing_about_what_replaces_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    let wait = engine.log_wait(ShardId(1)).unwrap();
    let held = engine.fault().hold();
    let old = submit(&mut log, entries(1, 0..6)).await;
    eventually("the writer is busy", || engine.fault().writes() == 1);
    log.truncate_after(Some(log_id(1, 2))).await.unwrap();
    let new = submit(&mut log, entries(2, 3..6)).await;
    held.pass();
    old.await.unwrap().unwrap();
    eventually("the writer is busy again", || engine.fault().writes() == 2);
    assert!(futures::FutureExt::now_or_never(wait.wait_durable(4)).is_none(), "durable before its write");
    drop(held);
    new.await.unwrap().unwrap();
    wait.wait_durable(5).await.unwrap();
}

#[test]
fn entries_that_are_not_durable_stay_in_memory_whatever_was_written_at_their_index_before() {
    let log = ShardLog::new(ShardId(1), State::default(), Arc::default());
    log.lock().append(ShardId(1), &entries(1, 0..6)).unwrap();
    let generation = log.lock().generation();
    log.completed(generation, 6);
    log.lock().truncate_after(Some(log_id(1, 2))).unwrap();
    log.lower_durable_end(3);
    log.lock().append(ShardId(1), &entries(2, 3..6)).unwrap();
    assert!(log.evict(5) > 0);
    let plan = log.lock().plan(0, 6, usize::MAX);
    assert_eq!((plan.disk, plan.cached), ((0, 3), entries(2, 3..6)));
}

#[tokio::test]
async fn after_a_failed_write_nothing_is_acknowledged_and_the_engine_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (mut one, mut two) = (store(&engine, 1), store(&engine, 2));
    append(&mut one, entries(1, 0..1)).await;
    engine.fault().fail_next();
    let wait = engine.log_wait(ShardId(1)).unwrap();
    let (answer, waited) = (submit(&mut one, entries(1, 1..2)).await, wait.wait_durable(1));
    assert!(answer.await.unwrap().is_err());
    assert!(matches!(waited.await, Err(LogError::Poisoned(_))));
    assert!(engine.failed().await.contains("injected"));
    // The disk works again, but nobody knows what it holds.
    assert!(two.save_vote(&vote(3)).await.is_err());
    let (tx, rx) = ShardRaft::oneshot();
    assert!(two.append(entries(1, 0..1), IOFlushed::signal(tx)).await.is_err());
    assert!(rx.await.is_err());
    assert!(engine.store(ShardId(3), ReplicaId(1)).is_err());
    engine.close().await;
    assert_eq!(reopened(dir.path(), 1).await, entries(1, 0..1));
    assert_eq!(reopened(dir.path(), 2).await, entries(1, 0..0));
}

#[tokio::test]
async fn what_was_queued_before_a_failure_fails_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (mut one, mut two) = (store(&engine, 1), store(&engine, 2));
    let held = engine.fault().hold();
    engine.fault().fail_next();
    let first = submit(&mut one, entries(1, 0..1)).await;
    eventually("the writer is busy", || engine.fault().writes() == 1);
    let second = submit(&mut two, entries(1, 0..1)).await;
    drop(held);
    assert!(first.await.unwrap().is_err());
    assert!(second.await.unwrap().is_err());
}

#[tokio::test]
async fn an_append_that_leaves_a_hole_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    append(&mut log, entries(1, 0..3)).await;
    for start in [2, 4] {
        let (tx, _rx) = ShardRaft::oneshot();
        assert!(log.append(entries(1, start..start + 1), IOFlushed::signal(tx)).await.is_err());
    }
    assert_eq!(read(&log).await, entries(1, 0..3));
}

#[tokio::test]
async fn votes_and_pointers_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    append(&mut log, entries(1, 0..9)).await;
    log.save_committed(Some(log_id(1, 7))).await.unwrap();
    log.purge(log_id(1, 4)).await.unwrap();
    log.save_vote(&vote(5)).await.unwrap();
    engine.close().await;
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    assert_eq!(log.get_log_reader().await.read_vote().await.unwrap(), Some(vote(5)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 7)));
    let bounds = log.get_log_state().await.unwrap();
    assert_eq!((bounds.last_purged_log_id, bounds.last_log_id), (Some(log_id(1, 4)), Some(log_id(1, 8))));
    assert_eq!(read(&log).await, entries(1, 5..9));
}

#[tokio::test]
async fn a_purge_past_the_end_leaves_an_empty_log_that_continues_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    append(&mut log, entries(1, 0..3)).await;
    log.purge(log_id(4, 20)).await.unwrap();
    append(&mut log, entries(5, 21..23)).await;
    engine.close().await;
    assert_eq!(reopened(dir.path(), 1).await, entries(5, 21..23));
}

#[tokio::test]
async fn unhurried_changes_are_written_without_company() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    append(&mut log, entries(1, 0..3)).await;
    let before = engine.fault().writes();
    log.save_committed(Some(log_id(1, 2))).await.unwrap();
    eventually("the tick writes it", || engine.fault().writes() > before);
}

#[tokio::test]
async fn a_destroyed_log_leaves_nothing_and_its_handles_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut old = store(&engine, 1);
    let mut neighbour = store(&engine, 2);
    append(&mut old, entries(1, 0..9)).await;
    append(&mut neighbour, entries(1, 0..2)).await;
    old.save_vote(&vote(5)).await.unwrap();
    assert!(matches!(engine.store(ShardId(1), ReplicaId(11)), Err(LogError::OtherReplica { .. })));
    let late = engine.log_wait(ShardId(1)).unwrap();
    engine.destroy(ShardId(1)).await.unwrap();
    engine.destroy(ShardId(99)).await.unwrap();
    let (tx, _rx) = ShardRaft::oneshot();
    assert!(old.append(entries(1, 9..10), IOFlushed::signal(tx)).await.is_err());
    assert!(matches!(late.wait_durable(20).await, Err(LogError::NoLog(_))));
    let mut new = engine.store(ShardId(1), ReplicaId(11)).unwrap();
    assert_eq!(new.get_log_reader().await.read_vote().await.unwrap(), None);
    append(&mut new, entries(7, 0..1)).await;
    engine.close().await;
    let engine = open(dir.path());
    assert_eq!(engine.shards(), [(ShardId(1), ReplicaId(11)), (ShardId(2), ReplicaId(20))].into());
    assert_eq!(read(&engine.store(ShardId(1), ReplicaId(11)).unwrap()).await, entries(7, 0..1));
    assert_eq!(read(&store(&engine, 2)).await, entries(1, 0..2));
}

#[tokio::test]
async fn recent_entries_come_from_memory_and_older_ones_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    let large = |range: std::ops::Range<u64>| range.map(|index| entry(1, index, 64 << 10)).collect::<Vec<_>>();
    for start in (0..256).step_by(8) {
        append(&mut log, large(start..start + 8)).await;
    }
    let mut reader = log.get_log_reader().await;
    let reads = || engine.shared().metrics.disk_reads.get();
    assert_eq!(reader.try_get_log_entries(200..256).await.unwrap(), large(200..256));
    assert_eq!(reads(), 0, "recent entries are read from disk");
    eventually("memory is within its budget", || engine.shared().cached.bytes() <= 10 << 20);
    assert_eq!(reader.try_get_log_entries(..).await.unwrap(), large(0..256));
    assert!(reads() > 0);
    let first = reader.limited_get_log_entries(0, 256).await.unwrap();
    assert!(!first.is_empty() && first.len() <= 32, "{} entries in one read", first.len());
    let streamed: Vec<_> = futures::TryStreamExt::try_collect(reader.entries_stream(3..250).await).await.unwrap();
    assert_eq!(streamed, large(3..250));
    log.purge(log_id(1, 255)).await.unwrap();
    assert_eq!(engine.shared().cached.bytes(), 0);
}

#[tokio::test]
async fn one_entry_is_read_even_if_it_is_larger_than_a_read_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    append(&mut log, vec![entry(1, 0, 3 << 20), entry(1, 1, 3 << 20)]).await;
    assert_eq!(log.get_log_reader().await.limited_get_log_entries(0, 2).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_engine_dropped_without_closing_keeps_what_was_queued() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    let answer = submit(&mut log, entries(1, 0..3)).await;
    drop(engine);
    drop(log);
    answer.await.unwrap().unwrap();
    assert_eq!(reopened(dir.path(), 1).await, entries(1, 0..3));
}

#[tokio::test]
async fn a_log_knows_up_to_where_it_must_be_purged_to_fit_its_bytes_also_when_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    let large = |range: std::ops::Range<u64>| range.map(|index| entry(1, index, 256 << 10)).collect::<Vec<_>>();
    append(&mut log, large(0..16)).await;
    let budget = 2_u64 << 20;
    assert_eq!(engine.excess(ShardId(1), 8 << 20), None);
    assert_eq!(engine.excess(ShardId(9), 0), None);
    let first = engine.excess(ShardId(1), budget).unwrap();
    assert!((7..=9).contains(&first), "{first}");
    log.truncate_after(Some(log_id(1, 13))).await.unwrap();
    assert_eq!(engine.excess(ShardId(1), budget), Some(first - 2));
    append(&mut log, large(14..16)).await;
    engine.close().await;
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    assert_eq!(engine.excess(ShardId(1), budget), Some(first));
    log.purge(log_id(1, first)).await.unwrap();
    assert_eq!(engine.excess(ShardId(1), budget), None);
}
