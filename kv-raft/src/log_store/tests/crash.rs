//! Crashes: the folder copied while writes go on, and writes that were cut short.

use std::sync::Arc;

use super::*;
use crate::log_store::layout;

/// What each shard was acknowledged to hold: its entries, and its vote.
type Acknowledged = Arc<Mutex<Vec<(u64, u64)>>>;

async fn write_on(mut log: LogStore, shard: usize, acknowledged: Acknowledged, stop: Arc<AtomicBool>) {
    let mut index = 0;
    let mut term = 1;
    while !stop.load(Ordering::Acquire) {
        append(&mut log, vec![entry(1, index, 200), entry(1, index + 1, 50)]).await;
        acknowledged.lock()[shard].0 = index + 2;
        index += 2;
        if index % 16 == 0 {
            term += 1;
            log.save_vote(&vote(term)).await.unwrap();
            acknowledged.lock()[shard].1 = term;
        }
    }
}

/// RocksDB's files, and what its manifest says of them.
fn structure(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = std::fs::read_dir(dir).unwrap().map(|item| item.unwrap().path());
    let is_manifest = |path: &Path| path.file_name().unwrap().to_str().unwrap().starts_with("MANIFEST");
    let mut files: Vec<_> = paths
        .map(|path| {
            (path.clone(), if is_manifest(&path) { std::fs::read(&path).unwrap_or_default() } else { Vec::new() })
        })
        .collect();
    files.sort();
    files
}

/// A copy as a crash would leave it: RocksDB replaced no file while it was made, it only appended.
fn image(dir: &Path) -> tempfile::TempDir {
    let started = Instant::now();
    loop {
        let image = tempfile::tempdir().unwrap();
        let before = structure(dir);
        if copy(dir, image.path()).is_ok() && structure(dir) == before {
            return image;
        }
        assert!(started.elapsed() < DEADLINE, "the files never rest");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_mid_run_holds_everything_acknowledged_before_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let acknowledged: Acknowledged = Arc::new(Mutex::new(vec![(0, 0); 4]));
    let stop = Arc::new(AtomicBool::new(false));
    let writers = tokio_util::task::TaskTracker::new();
    for shard in 0..4_usize {
        let log = store(&engine, shard as u64);
        writers.spawn(write_on(log, shard, Arc::clone(&acknowledged), Arc::clone(&stop)));
    }
    for round in 1..=25_u64 {
        eventually("every shard goes on", || acknowledged.lock().iter().all(|(entries, _)| *entries >= round * 4));
        if round % 3 == 0 {
            // Both, so that write-ahead files become free and are recycled.
            let database = engine.shared().database().unwrap();
            for family in [layout::LOG, layout::STATE] {
                database.flush_cf(database.cf_handle(family).unwrap()).unwrap();
            }
        }
        let expected = acknowledged.lock().clone();
        let image = image(dir.path());
        let engine = open(image.path());
        for (shard, (next, term)) in (0..).zip(expected) {
            let mut log = store(&engine, shard);
            let found = read(&log).await;
            assert!(found.len() as u64 >= next, "shard {shard} holds {} of {next}", found.len());
            for (index, found) in (0..).zip(found) {
                assert_eq!(found, entry(1, index, if index % 2 == 0 { 200 } else { 50 }));
            }
            let found = log.get_log_reader().await.read_vote().await.unwrap();
            assert!(found >= (term > 0).then(|| vote(term)), "vote {found:?}, acknowledged was {term}");
        }
        engine.close().await;
    }
    stop.store(true, Ordering::Release);
    writers.close();
    writers.wait().await;
}

/// Appends once more after an image of what was acknowledged; the returned image has the old note and the new record.
async fn image_of_an_unacknowledged_write(image: &Path) -> PathBuf {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    append(&mut log, entries(1, 0..4)).await;
    append(&mut log, entries(1, 4..8)).await;
    let note = std::fs::read(dir.path().join("ACKNOWLEDGED")).unwrap();
    append(&mut log, vec![entry(1, 8, 5000), entry(1, 9, 40_000)]).await;
    copy(dir.path(), image).unwrap();
    std::fs::write(image.join("ACKNOWLEDGED"), note).unwrap();
    let wal = std::fs::read_dir(image).unwrap().map(|item| item.unwrap().path());
    wal.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

#[tokio::test]
async fn a_write_torn_anywhere_is_dropped_and_everything_acknowledged_before_stays() {
    let image = tempfile::tempdir().unwrap();
    let wal = image_of_an_unacknowledged_write(image.path()).await;
    let whole = std::fs::read(&wal).unwrap();
    let torn = 45_000;
    for cut in [1, 2, 10, 500, 4_000, 20_000, 39_000, 44_000, 44_900] {
        for tail in ["gone", "zeros", "rot"] {
            let crashed = tempfile::tempdir().unwrap();
            copy(image.path(), crashed.path()).unwrap();
            let keep = whole.len() - cut;
            let mut bytes = whole[..keep].to_vec();
            match tail {
                "zeros" => bytes.resize(whole.len() + 10_000, 0),
                "rot" => bytes.extend(whole[keep..].iter().map(|byte| byte ^ 0x55)),
                _ => {}
            }
            std::fs::write(crashed.path().join(wal.file_name().unwrap()), bytes).unwrap();
            assert_eq!(reopened(crashed.path(), 1).await, entries(1, 0..8), "{cut} of {torn} bytes {tail}");
            // And what is written next is kept.
            let engine = open(crashed.path());
            append(&mut store(&engine, 1), entries(2, 8..9)).await;
            engine.close().await;
            assert_eq!(reopened(crashed.path(), 1).await.len(), 9);
        }
    }
}

#[tokio::test]
async fn the_end_of_the_log_cut_after_it_was_acknowledged_refuses_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    append(&mut store(&engine, 1), entries(1, 0..4)).await;
    append(&mut store(&engine, 1), entries(1, 4..8)).await;
    let image = tempfile::tempdir().unwrap();
    copy(dir.path(), image.path()).unwrap();
    let wal =
        contents(image.path()).into_iter().find(|(path, _)| path.extension().is_some_and(|e| e == "log")).unwrap();
    for cut in [1, 50, 200] {
        std::fs::write(&wal.0, &wal.1[..wal.1.len() - cut]).unwrap();
        let before = contents(image.path());
        let refused = try_open(image.path()).unwrap_err();
        assert!(refused.to_string().contains(wal.0.to_str().unwrap()), "{refused}");
        assert!(contents(image.path()) == before, "a refused folder was changed");
    }
    std::fs::write(&wal.0, &wal.1).unwrap();
    assert_eq!(reopened(image.path(), 1).await, entries(1, 0..8));
}
