//! After a crash the state is exactly that of some applied entry, and applying the rest gives what never crashed.

use std::path::Path;

use openraft::storage::RaftStateMachine as _;

use super::*;

/// What a machine that loses its power would find: what names files as of now first, then the files, of which none
/// goes meanwhile. Files that are still being written belong to flushes that are not done.
pub(super) fn copy_folder(engine: &DataEngine, to: &Path) {
    let store = engine.store();
    store.db().disable_file_deletions().unwrap();
    let entries = || std::fs::read_dir(store.dir()).unwrap().map(Result::unwrap);
    let is_name = |name: &str| name.starts_with("MANIFEST") || name == "CURRENT";
    for names in [true, false] {
        for entry in entries().filter(|entry| entry.file_type().unwrap().is_file()) {
            let name = entry.file_name().into_string().unwrap();
            if is_name(&name) == names && name != "LOCK" {
                match std::fs::copy(entry.path(), to.join(name)) {
                    Ok(_) => {}
                    // Obsolete before deletions were off, and its deletion under way: were it needed, the copy would
                    // not open.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound && !names => {}
                    Err(error) => panic!("{}: {error}", entry.path().display()),
                }
            }
        }
    }
    store.db().enable_file_deletions().unwrap();
}

async fn checksums(entries: &[Entry], retention: Duration) -> Vec<u64> {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), retention);
    let mut sums = vec![engine.checksum(SHARD).unwrap().1];
    for entry in entries {
        apply(&mut machine, std::slice::from_ref(entry)).await;
        sums.push(engine.checksum(SHARD).unwrap().1);
    }
    sums
}

async fn crash_anywhere(retention: Duration, seed: u64) {
    let entries = recorded(seed, 120);
    let expected = checksums(&entries, retention).await;
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), retention);
    let mut dice = Dice(seed + 1);
    let mut applied = 0;
    let mut flushed = 0;
    while applied < entries.len() {
        let next = (applied + 1 + usize::try_from(dice.roll(9)).unwrap()).min(entries.len());
        apply(&mut machine, &entries[applied..next]).await;
        applied = next;
        // As of itself RocksDB flushes when it likes, which is what was written out by then.
        let holding = engine.holding(SHARD).unwrap();
        match dice.roll(4) {
            0 => holding.write_out(engine.store()).unwrap(),
            1 => engine.store().flush().unwrap(),
            _ => {}
        }
        if dice.roll(3) == 0 {
            let durable = engine.flush().await.unwrap();
            assert_eq!(durable[&SHARD], log_id(applied as u64));
            flushed = applied;
        }
        let crashed = tempfile::tempdir().unwrap();
        copy_folder(&engine, crashed.path());
        recover(crashed.path(), &entries, flushed..=applied, &expected).await;
    }
}

async fn recover(dir: &Path, entries: &[Entry], possible: std::ops::RangeInclusive<usize>, expected: &[u64]) {
    let engine = open(dir);
    let mut machine = machine(&engine, SHARD);
    let (survived, _) = machine.applied_state().await.unwrap();
    let index = survived.map_or(0, |log_id| usize::try_from(log_id.index).unwrap());
    assert!(possible.contains(&index), "{index} survived, {possible:?} is possible");
    assert_eq!(engine.checksum(SHARD).unwrap(), (survived, expected[index]), "state as of entry {index}");
    apply(&mut machine, &entries[index..]).await;
    assert_eq!(engine.checksum(SHARD).unwrap().1, expected[entries.len()], "after the rest is applied again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_point_loses_only_what_is_applied_again() {
    crash_anywhere(Duration::ZERO, 11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_point_loses_only_what_is_applied_again_with_history() {
    crash_anywhere(Duration::from_secs(2), 12).await;
}

#[tokio::test]
async fn where_chunks_are_cut_changes_nothing() {
    for retention in [Duration::ZERO, Duration::from_secs(2)] {
        let entries = recorded(5, 300);
        let mut sums = Vec::new();
        for size in [1, 7, 64, 300] {
            let dir = tempfile::tempdir().unwrap();
            let (engine, mut machine) = replica(dir.path(), retention);
            for chunk in entries.chunks(size) {
                apply(&mut machine, chunk).await;
            }
            sums.push(engine.checksum(SHARD).unwrap());
        }
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    }
}

#[tokio::test]
async fn a_clean_close_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let entries = recorded(3, 50);
    let (engine, mut machine) = replica(dir.path(), HOUR);
    apply(&mut machine, &entries).await;
    let before = engine.checksum(SHARD).unwrap();
    drop(machine);
    engine.close().await;
    drop(engine);
    assert_eq!(open(dir.path()).checksum(SHARD).unwrap(), before);
}
