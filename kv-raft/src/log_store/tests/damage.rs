//! Damaged, missing and foreign files: exactly what was acknowledged, or a refusal that names the file.

use super::*;
use crate::log_store::layout;

/// A folder with everything in it: table files, two write-ahead files' worth of records, votes, a purge.
async fn folder(dir: &Path) -> Vec<(u64, Vec<Entry>, Option<Vote>)> {
    let engine = open(dir);
    for shard in 1..4 {
        let mut log = store(&engine, shard);
        for start in (0..40).step_by(4) {
            append(&mut log, entries(1, start..start + 4)).await;
        }
        log.save_vote(&vote(shard)).await.unwrap();
    }
    let database = engine.shared().database().unwrap();
    for family in [layout::LOG, layout::STATE] {
        database.flush_cf(database.cf_handle(family).unwrap()).unwrap();
    }
    drop(database);
    for shard in 1..4 {
        let mut log = store(&engine, shard);
        log.purge(log_id(1, 9)).await.unwrap();
        for start in (40..60).step_by(2) {
            append(&mut log, entries(2, start..start + 2)).await;
        }
    }
    let mut expected = Vec::new();
    for shard in 1..4 {
        expected.push((shard, read(&store(&engine, shard)).await, Some(vote(shard))));
    }
    engine.close().await;
    expected
}

/// Whether the folder refuses, naming something in it, without a change; else it must hold what is expected.
async fn refuses(dir: &Path, expected: &[(u64, Vec<Entry>, Option<Vote>)], what: &str) -> bool {
    let before = contents(dir);
    let engine = match try_open(dir) {
        Ok(engine) => engine,
        Err(error) => {
            let message = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
            assert!(message.contains(dir.to_str().unwrap()), "{what}: {message} names no file");
            let unchanged = |(path, bytes): &(PathBuf, Vec<u8>)| std::fs::read(path).is_ok_and(|now| now == *bytes);
            assert!(before.iter().all(unchanged), "{what}: a refused folder was changed");
            return true;
        }
    };
    for (shard, entries, vote) in expected {
        let mut log = store(&engine, *shard);
        assert_eq!(read(&log).await, *entries, "{what}: shard {shard}");
        assert_eq!(log.get_log_reader().await.read_vote().await.unwrap(), *vote, "{what}: shard {shard}");
    }
    engine.close().await;
    false
}

async fn damaged(
    original: &Path,
    expected: &[(u64, Vec<Entry>, Option<Vote>)],
    name: &Path,
    bytes: &[u8],
    what: &str,
) -> bool {
    let image = tempfile::tempdir().unwrap();
    copy(original, image.path()).unwrap();
    std::fs::write(image.path().join(name.file_name().unwrap()), bytes).unwrap();
    refuses(image.path(), expected, &format!("{} {what}", name.display())).await
}

fn is_kind(path: &Path, kind: &str) -> bool {
    path.extension().is_some_and(|extension| extension == kind)
}

#[tokio::test]
async fn a_flipped_bit_in_any_file_refuses_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = folder(dir.path()).await;
    let (mut flips, mut refusals) = (0, 0);
    for (path, bytes) in contents(dir.path()) {
        let step = (bytes.len() / 40).max(1) | 1;
        for at in (0..bytes.len()).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let refused = damaged(dir.path(), &expected, &path, &flipped, &format!("flipped at {at}")).await;
            flips += 1;
            refusals += usize::from(refused);
            let zeros = bytes[at..].iter().all(|byte| *byte == 0);
            assert!(refused || zeros || !is_kind(&path, "log"), "a flip at {at} of {} goes unnoticed", path.display());
        }
    }
    assert!(refusals * 2 > flips, "{refusals} of {flips} flips refused");
}

#[tokio::test]
async fn a_cut_in_any_file_refuses_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = folder(dir.path()).await;
    for (path, bytes) in contents(dir.path()) {
        for eighths in 0..8 {
            let keep = bytes.len() * eighths / 8;
            damaged(dir.path(), &expected, &path, &bytes[..keep], &format!("cut to {keep}")).await;
        }
    }
}

#[tokio::test]
async fn a_missing_file_refuses_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = folder(dir.path()).await;
    for (path, bytes) in contents(dir.path()) {
        let image = tempfile::tempdir().unwrap();
        copy(dir.path(), image.path()).unwrap();
        std::fs::remove_file(image.path().join(path.file_name().unwrap())).unwrap();
        let refused = refuses(image.path(), &expected, &format!("{} missing", path.display())).await;
        let is_needed = is_kind(&path, "sst") || (is_kind(&path, "log") && !bytes.is_empty());
        assert!(refused || !is_needed, "{} is not missed", path.display());
    }
}

#[tokio::test]
async fn a_folder_in_use_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let refused = try_open(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Locked(_)));
    assert_eq!(refused.to_string(), format!("log folder {} is in use by another process", dir.path().display()));
    engine.close().await;
    open(dir.path()).close().await;
}

#[tokio::test]
async fn a_folder_of_an_unknown_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let future = {
        let mut out = bytes::BytesMut::new();
        bytes::BufMut::put_u64(&mut out, 2);
        crate::codec::seal(&mut out, 0);
        out
    };
    engine.shared().database().unwrap().put(layout::FORMAT_KEY, future).unwrap();
    engine.close().await;
    let refused = try_open(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Format { found: 2, known: 1, .. }), "{refused}");
}

#[tokio::test]
async fn a_lost_last_entry_is_noticed_by_the_tail_record() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    append(&mut store(&engine, 1), entries(1, 0..9)).await;
    let database = engine.shared().database().unwrap();
    database.delete_cf(database.cf_handle(layout::LOG).unwrap(), layout::log_key(ShardId(1), 8)).unwrap();
    drop(database);
    engine.close().await;
    let refused = try_open(dir.path()).unwrap_err();
    assert!(refused.to_string().contains("shard 1"), "{refused}");
}

#[tokio::test]
async fn a_rotten_record_before_whole_ones_refuses_even_when_the_note_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut log = store(&engine, 1);
    append(&mut log, entries(1, 0..2)).await;
    let note = std::fs::read(dir.path().join("ACKNOWLEDGED")).unwrap();
    for index in 2..40 {
        append(&mut log, vec![entry(1, index, 3_000)]).await;
    }
    let image = tempfile::tempdir().unwrap();
    copy(dir.path(), image.path()).unwrap();
    std::fs::write(image.path().join("ACKNOWLEDGED"), note).unwrap();
    let (wal, whole) = contents(image.path()).into_iter().find(|(path, _)| is_kind(path, "log")).unwrap();
    // The last record may be torn as far as this note tells; all before it were followed by another.
    for at in (400..whole.len() - 4_000).step_by(997) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(&wal, &flipped).unwrap();
        let refused = try_open(image.path()).map(|_| at).unwrap_err();
        assert!(refused.to_string().contains(wal.to_str().unwrap()), "{refused}");
    }
    std::fs::write(&wal, &whole).unwrap();
    assert_eq!(reopened(image.path(), 1).await.len(), 40);
}
