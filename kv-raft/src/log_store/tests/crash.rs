//! Crashes: the folder copied while writes go on, and writes that were cut short.

use std::sync::Arc;

use tokio::sync::watch;

use super::*;
use crate::log_store::record::Header;

/// What each shard was acknowledged to hold: its entries, and its vote.
type Acknowledged = Arc<Mutex<Vec<(u64, u64)>>>;

/// Entries that a writer may be ahead of what a round waits for, or on a fast disk so many files come that none rests while all
/// are copied.
const AHEAD: u64 = 64;

/// What each shard holds, at least, when a round begins.
fn begun(round: u64) -> u64 {
    round * 4
}

/// Until there are no more rounds.
async fn write_on(mut log: LogStore, shard: usize, acknowledged: Acknowledged, mut rounds: watch::Receiver<u64>) {
    let mut index = 0;
    let mut term = 1;
    while rounds.wait_for(|round| index < begun(*round) + AHEAD).await.is_ok() {
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

/// A copy as a crash would leave it: no file came, went or was used again while it was made.
fn image(dir: &Path) -> tempfile::TempDir {
    let started = Instant::now();
    loop {
        let image = tempfile::tempdir().unwrap();
        let before = files(dir);
        if copy(dir, image.path()).is_ok() && files(dir) == before {
            return image;
        }
        assert!(started.elapsed() < DEADLINE, "the files never rest");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_mid_run_holds_everything_acknowledged_before_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let acknowledged: Acknowledged = Arc::new(Mutex::new(vec![(0, 0); 4]));
    let rounds = watch::Sender::new(0);
    let writers = tokio_util::task::TaskTracker::new();
    for shard in 0..4_usize {
        let log = store(&engine, shard as u64);
        writers.spawn(write_on(log, shard, Arc::clone(&acknowledged), rounds.subscribe()));
    }
    for round in 1..=25 {
        rounds.send_replace(round);
        eventually("every shard goes on", || acknowledged.lock().iter().all(|(entries, _)| *entries >= begun(round)));
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
    drop(rounds);
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
    files(image).into_iter().find(|path| is_segment(path)).unwrap()
}

#[tokio::test]
async fn a_write_torn_anywhere_is_dropped_and_everything_acknowledged_before_stays() {
    let image = tempfile::tempdir().unwrap();
    let segment = image_of_an_unacknowledged_write(image.path()).await;
    let whole = std::fs::read(&segment).unwrap();
    let record = last_record(&whole);
    assert!(record.len() > 45_000 && record.len() < 50_000, "{record:?}");
    for keep in [0, 1, 3, 10, 500, 4_000, 4_096, 8_192, 20_000, 40_960, 44_000, 45_000] {
        for rest in ["gone", "zeros", "rot", "a block of it missing"] {
            let crashed = tempfile::tempdir().unwrap();
            copy(image.path(), crashed.path()).unwrap();
            let mut bytes = whole.clone();
            let torn = record.start + keep;
            match rest {
                "zeros" => bytes[torn..record.end].fill(0),
                "rot" => bytes[torn..record.end].iter_mut().for_each(|byte| *byte ^= 0x55),
                "gone" => bytes.truncate(torn),
                // The disk may write the blocks of one write in any order.
                _ => bytes[torn..torn + 100].fill(0x33),
            }
            std::fs::write(crashed.path().join(name(&segment)), bytes).unwrap();
            assert_eq!(reopened(crashed.path(), 1).await, entries(1, 0..8), "{rest} from {keep} on");
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
    let (path, whole) = contents(image.path()).into_iter().find(|(path, _)| is_segment(path)).unwrap();
    let record = last_record(&whole);
    for keep in [0, 1, 50, 200] {
        std::fs::write(&path, &whole[..record.start + keep]).unwrap();
        let before = contents(image.path());
        let refused = try_open(image.path()).unwrap_err();
        assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
        assert!(contents(image.path()) == before, "a refused folder was changed");
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(reopened(image.path(), 1).await, entries(1, 0..8));
}

#[tokio::test]
async fn a_last_record_without_the_zeros_that_fill_its_block_is_whole_and_the_log_goes_on_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    append(&mut store(&engine, 1), entries(1, 0..4)).await;
    engine.close().await;
    for _ in 0..3 {
        let (path, whole) = contents(dir.path()).into_iter().find(|(path, _)| is_segment(path)).unwrap();
        std::fs::write(&path, &whole[..last_record(&whole).end - 500]).unwrap();
        let engine = open(dir.path());
        let mut log = store(&engine, 1);
        let next = read(&log).await.len() as u64;
        append(&mut log, entries(1, next..next + 2)).await;
        engine.close().await;
        assert_eq!(reopened(dir.path(), 1).await, entries(1, 0..next + 2));
    }
}

/// Crashes at each step of beginning a segment leave what was acknowledged before.
#[tokio::test]
async fn a_segment_that_was_not_begun_is_dropped_whatever_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_small(dir.path());
    let mut log = store(&engine, 1);
    for index in 0..12 {
        append(&mut log, vec![entry(1, index, 9_000)]).await;
    }
    engine.close().await;
    let segments: Vec<_> = contents(dir.path()).into_iter().filter(|(path, _)| is_segment(path)).collect();
    let (newest, bytes) = segments.last().unwrap();
    let number = name(newest).strip_prefix("segment-").and_then(|name| name.strip_suffix(".log"));
    let number: u64 = number.unwrap().parse().unwrap();
    let next = newest.with_file_name(format!("segment-{:016}.log", number + 1));
    let fresh = {
        let sequence = u64::from_be_bytes(bytes[last_record(bytes).start + 8..][..8].try_into().unwrap());
        let header = Header { number: number + 1, first: sequence + 1, salt: 7 };
        let mut out = bytes::BytesMut::new();
        header.encode(&mut out);
        out.resize(BLOCK_BYTES, 0);
        out.to_vec()
    };
    let torn_header = fresh[..20].to_vec();
    for found in [Vec::new(), vec![0; 5_000], bytes.clone(), segments[0].1.clone(), torn_header, fresh] {
        let crashed = tempfile::tempdir().unwrap();
        copy(dir.path(), crashed.path()).unwrap();
        std::fs::write(crashed.path().join(name(&next)), &found).unwrap();
        let engine = open_small(crashed.path());
        let mut log = store(&engine, 1);
        let held = read(&log).await;
        let expected: Vec<_> = (0..held.len() as u64).map(|index| entry(1, index, 9_000)).collect();
        assert!(held.len() >= 12 && held == expected);
        append(&mut log, vec![entry(1, held.len() as u64, 9_000)]).await;
        engine.close().await;
        let engine = open_small(crashed.path());
        assert_eq!(read(&store(&engine, 1)).await.len(), held.len() + 1);
        engine.close().await;
    }
}
