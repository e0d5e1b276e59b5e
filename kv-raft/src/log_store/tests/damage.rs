//! Damaged, missing and foreign files: exactly what was acknowledged, or a refusal that names the file.

use super::*;

/// A folder with everything in it: several segments, votes, a purge, entries written once more.
async fn folder(dir: &Path) -> Vec<(u64, Vec<Entry>, Option<Vote>)> {
    let engine = open_small(dir);
    for shard in 1..4 {
        let mut log = store(&engine, shard);
        for start in (0..40).step_by(4) {
            append(&mut log, entries(1, start..start + 4)).await;
        }
        log.save_vote(&vote(shard)).await.unwrap();
    }
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

#[tokio::test]
async fn a_flipped_bit_in_any_file_refuses_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = folder(dir.path()).await;
    let (mut flips, mut refusals) = (0, 0);
    for (path, bytes) in contents(dir.path()) {
        // The first bytes of each block, where headers are, and some of the rest.
        let starts =
            (0..bytes.len()).step_by(BLOCK_BYTES).flat_map(|block| (0..40).step_by(3).map(move |at| block + at));
        let step = (bytes.len() / 40).max(1) | 1;
        for at in starts.chain((0..bytes.len()).step_by(step)).filter(|at| *at < bytes.len()) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let refused = damaged(dir.path(), &expected, &path, &flipped, &format!("flipped at {at}")).await;
            flips += 1;
            refusals += usize::from(refused);
            // Zeros fill blocks.
            let zeros = bytes[at..at + 8.min(bytes.len() - at)].iter().all(|byte| *byte == 0);
            assert!(refused || zeros || !is_segment(&path), "a flip at {at} of {} goes unnoticed", path.display());
        }
    }
    assert!(flips > 500 && refusals * 4 > flips, "{refusals} of {flips} flips refused");
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
    assert!(files(dir.path()).iter().filter(|path| is_segment(path)).count() > 3);
    for path in files(dir.path()) {
        let image = tempfile::tempdir().unwrap();
        copy(dir.path(), image.path()).unwrap();
        std::fs::remove_file(image.path().join(name(&path))).unwrap();
        let refused = refuses(image.path(), &expected, &format!("{} missing", path.display())).await;
        assert!(refused || name(&path).starts_with("spare-"), "{} is not missed", path.display());
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
async fn a_folder_of_another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    append(&mut store(&engine, 1), entries(1, 0..4)).await;
    engine.close().await;
    let (path, whole) = contents(dir.path()).into_iter().find(|(path, _)| is_segment(path)).unwrap();
    let mut future = whole.clone();
    future[15] += 1;
    std::fs::write(&path, future).unwrap();
    let refused = try_open(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Format { found: 3, known: 2, .. }), "{refused}");
    std::fs::write(&path, &whole).unwrap();
    std::fs::write(dir.path().join("CURRENT"), "MANIFEST-000001\n").unwrap();
    let refused = try_open(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Format { found: 1, known: 2, .. }), "{refused}");
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
    let (segment, whole) = contents(image.path()).into_iter().find(|(path, _)| is_segment(path)).unwrap();
    // The last record may be torn as far as this note tells; all before it were followed by another. The header is told to be
    // rotten by the note only.
    for block in (2 * BLOCK_BYTES..last_record(&whole).start).step_by(BLOCK_BYTES) {
        for at in [0, 5, 9, 15, 16, 20, 700] {
            let mut flipped = whole.clone();
            flipped[block + at] ^= 1 << (at % 8);
            std::fs::write(&segment, &flipped).unwrap();
            let refused = try_open(image.path()).map(|_| block + at);
            let zeros = whole[block + at..block + BLOCK_BYTES].iter().all(|byte| *byte == 0);
            assert!(zeros || refused.unwrap_err().to_string().contains(segment.to_str().unwrap()), "{block} {at}");
        }
    }
    std::fs::write(&segment, &whole).unwrap();
    assert_eq!(reopened(image.path(), 1).await.len(), 40);
}
