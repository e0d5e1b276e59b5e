//! Segments: when they are begun, given up, used again and cleaned, and what is read from them.

use super::*;

fn segments(dir: &Path) -> usize {
    files(dir).iter().filter(|path| is_segment(path)).count()
}

fn spares(dir: &Path) -> usize {
    files(dir).iter().filter(|path| name(path).starts_with("spare-")).count()
}

#[tokio::test]
async fn what_is_read_from_disk_is_what_was_written_over_many_segments_and_shards() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let sizes = [20, 3_000, 20_000, 70_000, 1];
    let of = |shard: u64, index: u64| entry(shard, index, sizes[usize::try_from((shard + index) % 5).unwrap()]);
    for start in (0..60).step_by(3) {
        for shard in 1..4 {
            let some = (start..start + 3).map(|index| of(shard, index)).collect();
            append(&mut store(&engine, shard), some).await;
        }
    }
    assert!(segments(dir.path()) > 10);
    eventually("nothing is in memory", || engine.shared().cached.bytes() == 0);
    for engine in [engine.clone(), {
        engine.close().await;
        open_small(dir.path())
    }] {
        if engine.shared().files.is_closed() {
            continue;
        }
        for shard in 1..4 {
            let mut reader = store(&engine, shard).get_log_reader().await;
            for (start, end) in [(0, 60), (0, 1), (59, 60), (7, 8), (13, 44), (58, 99)] {
                let expected: Vec<_> = (start..end.min(60)).map(|index| of(shard, index)).collect();
                assert_eq!(reader.try_get_log_entries(start..end).await.unwrap(), expected, "{shard}: {start}..{end}");
                let limited = reader.limited_get_log_entries(start, end).await.unwrap();
                assert!(!limited.is_empty() && expected.starts_with(&limited));
            }
        }
    }
}

#[tokio::test]
async fn segments_go_once_what_they_hold_is_purged_and_their_files_are_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let mut log = store(&engine, 1);
    for index in 0..80 {
        append(&mut log, vec![entry(1, index, 9_000)]).await;
    }
    let before = segments(dir.path());
    assert!(before > 15, "{before}");
    log.purge(log_id(1, 77)).await.unwrap();
    append(&mut log, vec![entry(1, 80, 10)]).await;
    eventually("old segments go", || segments(dir.path()) <= 3);
    assert_eq!(spares(dir.path()), crate::log_store::disk::SPARES_MAX);
    for index in 81..100 {
        append(&mut log, vec![entry(1, index, 9_000)]).await;
    }
    assert!(spares(dir.path()) < crate::log_store::disk::SPARES_MAX);
    let expected: Vec<_> = (78..100).map(|index| entry(1, index, if index == 80 { 10 } else { 9_000 })).collect();
    assert_eq!(read(&log).await, expected);
    engine.close().await;
    let engine = open_small(dir.path());
    assert_eq!(read(&store(&engine, 1)).await, expected);
}

/// Shard 1 and 2 are idle with entries in the first segments; shard 3 goes on and purges.
#[tokio::test]
async fn idle_shards_do_not_hold_old_segments_for_ever_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let (mut one, mut two, mut busy) = (store(&engine, 1), store(&engine, 2), store(&engine, 3));
    for index in 0..6 {
        append(&mut one, vec![entry(1, index, 12_000)]).await;
        append(&mut two, entries(1, index * 3..index * 3 + 3)).await;
    }
    append(&mut two, entries(1, 18..20)).await;
    two.truncate_after(Some(log_id(1, 16))).await.unwrap();
    append(&mut two, entries(2, 17..19)).await;
    two.purge(log_id(1, 3)).await.unwrap();
    let mut most = 0;
    for index in 0..400 {
        append(&mut busy, vec![entry(1, index, 9_000)]).await;
        if index % 10 == 9 {
            busy.purge(log_id(1, index - 2)).await.unwrap();
        }
        most = most.max(segments(dir.path()));
        if index % 25 == 0 {
            let image = tempfile::tempdir().unwrap();
            copy(dir.path(), image.path()).unwrap();
            assert_eq!(reopened(image.path(), 1).await.len(), 6, "in a copy made at {index}");
            assert_eq!(reopened(image.path(), 2).await.len(), 15, "in a copy made at {index}");
        }
    }
    // Sixteen, and what 4 times the entries take; a hundred and more were written.
    assert!(most < 40, "{most} segments");
    let (of_one, of_two): (Vec<_>, Vec<_>) = (
        (0..6).map(|index| entry(1, index, 12_000)).collect(),
        entries(1, 4..17).into_iter().chain(entries(2, 17..19)).collect(),
    );
    assert_eq!((read(&one).await, read(&two).await), (of_one.clone(), of_two.clone()));
    append(&mut two, entries(3, 19..20)).await;
    engine.close().await;
    let engine = open_small(dir.path());
    assert_eq!(read(&store(&engine, 1)).await, of_one);
    assert_eq!(read(&store(&engine, 2)).await, [of_two, entries(3, 19..20)].concat());
    assert_eq!(read(&store(&engine, 3)).await, (398..400).map(|index| entry(1, index, 9_000)).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_a_file_held_before_it_was_used_again_is_not_taken_for_records() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let mut log = store(&engine, 1);
    let mut used_again = 0;
    for index in 0..60 {
        append(&mut log, vec![entry(1, index, 9_000)]).await;
        let image = tempfile::tempdir().unwrap();
        copy(dir.path(), image.path()).unwrap();
        let newest = files(image.path()).into_iter().rfind(|path| is_segment(path)).unwrap();
        let bytes = std::fs::read(&newest).unwrap();
        used_again += usize::from(bytes[last_record(&bytes).end..].iter().any(|byte| *byte != 0));
        assert_eq!(reopened(image.path(), 1).await, [entry(1, index, 9_000)]);
        log.purge(log_id(1, index)).await.unwrap();
    }
    assert!(used_again > 20, "{used_again} of 60 files were used again");
}

#[tokio::test]
async fn an_entry_larger_than_a_segment_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let large = vec![entry(1, 0, 200_000), entry(1, 1, 10), entry(1, 2, 300_000)];
    for entry in &large {
        append(&mut store(&engine, 1), vec![entry.clone()]).await;
    }
    assert_eq!(read(&store(&engine, 1)).await, large);
    engine.close().await;
    let engine = open_small(dir.path());
    assert_eq!(read(&store(&engine, 1)).await, large);
}

/// One entry of it in each of many segments, and more to come while older ones are written once more.
#[tokio::test]
async fn entries_of_a_slow_shard_are_found_wherever_they_are_moved_to() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let (mut slow, mut busy) = (store(&engine, 1), store(&engine, 2));
    for index in 0..600 {
        append(&mut busy, vec![entry(1, index, 9_000)]).await;
        busy.purge(log_id(1, index)).await.unwrap();
        if index % 4 == 0 {
            append(&mut slow, entries(1, index / 4..index / 4 + 1)).await;
        }
        if index % 50 == 49 {
            let image = tempfile::tempdir().unwrap();
            copy(dir.path(), image.path()).unwrap();
            let engine = open_small(image.path());
            let mut log = store(&engine, 1);
            let next = index / 4 + 1;
            assert_eq!(read(&log).await, entries(1, 0..next), "in a copy made at {index}");
            // It goes on, is cleaned and opened again.
            for more in 0..60 {
                append(&mut store(&engine, 2), vec![entry(1, index + 1 + more, 9_000)]).await;
                append(&mut log, entries(1, next + more..next + more + 1)).await;
                store(&engine, 2).purge(log_id(1, index + more)).await.unwrap();
            }
            assert_eq!(read(&log).await, entries(1, 0..next + 60));
            engine.close().await;
            let engine = open_small(image.path());
            assert_eq!(read(&store(&engine, 1)).await, entries(1, 0..next + 60), "after {index}, opened twice");
            engine.close().await;
        }
    }
    assert!(segments(dir.path()) < 30, "{} segments", segments(dir.path()));
}

#[tokio::test]
async fn files_longer_than_a_segment_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let mut log = store(&engine, 1);
    for index in 0..6 {
        append(&mut log, vec![entry(1, index, 200_000)]).await;
        log.purge(log_id(1, index)).await.unwrap();
    }
    append(&mut log, entries(1, 6..7)).await;
    eventually("old segments go", || segments(dir.path()) <= 2);
    assert_eq!(spares(dir.path()), 0);
    for index in 7..40 {
        append(&mut log, vec![entry(1, index, 9_000)]).await;
        log.purge(log_id(1, index)).await.unwrap();
    }
    engine.close().await;
    assert!(spares(dir.path()) > 0);
    // A smaller segment than any file.
    let smaller = Sizes { segment: 8 << 10, ..SMALL };
    LogEngine::open_sized(dir.path(), options(), smaller).unwrap().close().await;
    assert_eq!(spares(dir.path()), 0);
}
