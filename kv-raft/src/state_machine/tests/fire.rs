//! Damage to every file of a data folder: the state is exactly what was flushed, or the folder is refused by name.

use std::path::{Path, PathBuf};

use super::reads::spec;
use super::*;
use crate::data_engine::{DataError, Table, Turn};

/// A closed folder with several table files of each family, and the state it holds.
async fn folder(dir: &Path) -> Vec<u64> {
    let (engine, mut machine) = replica(dir, HOUR);
    let mut digests = vec![engine.checksum(SHARD).unwrap().1];
    for part in recorded(41, 240).chunks(80) {
        apply(&mut machine, part).await;
        engine.flush().await.unwrap();
        digests.push(engine.checksum(SHARD).unwrap().1);
    }
    drop(machine);
    engine.close().await;
    digests
}

/// But for RocksDB's diary and its lock, which hold nothing.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let all = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let matters = |path: &PathBuf| !path.file_name().unwrap().to_str().unwrap().starts_with("LO");
    let mut found: Vec<_> = all.filter(matters).map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect();
    found.sort();
    found
}

fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for (path, bytes) in files(dir) {
        std::fs::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    copy
}

/// Whether it was refused; if not, all of the state must be there. A manifest that ends at an earlier flush shows the
/// state of that flush: what follows is in the log, and a log purged past it does not start (openraft, get_initial_state).
fn refuses(dir: &Path, digests: &[u64], what: &str) -> bool {
    let before = files(dir);
    match DataEngine::open(dir, options()) {
        Err(error) => {
            let named = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
            assert!(named.contains(dir.to_str().unwrap()), "{what}: {named} names no file");
            let tables = before.iter().filter(|(path, _)| path.extension().is_some_and(|kind| kind == "sst"));
            for (path, bytes) in tables {
                assert!(std::fs::read(path).is_ok_and(|now| now == *bytes), "{what}: {} was changed", path.display());
            }
            true
        }
        Ok(engine) => {
            let found = engine.checksum(SHARD).map(|(_, digest)| digest);
            if what.contains("MANIFEST") && what.contains("cut") {
                assert!(found.is_err() || digests.contains(&found.clone().unwrap()), "{what}: {found:?}");
            } else {
                assert_eq!(found.as_ref().ok(), digests.last(), "{what}");
            }
            false
        }
    }
}

fn kind(path: &Path) -> String {
    let name = path.file_name().unwrap().to_str().unwrap();
    if name.ends_with(".sst") { "table".to_owned() } else { name.split('-').next().unwrap_or_default().to_owned() }
}

#[tokio::test]
async fn a_flipped_bit_in_any_file_of_the_data_refuses_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let digests = folder(dir.path()).await;
    let mut refused = std::collections::BTreeMap::<String, (usize, usize)>::new();
    for (path, bytes) in files(dir.path()) {
        let step = (bytes.len() / 12).max(1) | 1;
        for at in (0..bytes.len()).step_by(step) {
            let image = copy_of(dir.path());
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(image.path().join(path.file_name().unwrap()), flipped).unwrap();
            let of_kind = refused.entry(kind(&path)).or_default();
            of_kind.0 += usize::from(refuses(image.path(), &digests, &format!("{} flipped at {at}", path.display())));
            of_kind.1 += 1;
        }
    }
    println!("refused of flipped: {refused:?}");
    let (tables, flips) = refused["table"];
    assert!(tables * 2 > flips, "{tables} of {flips} flips in tables were noticed");
}

#[tokio::test]
async fn a_cut_or_missing_file_of_the_data_refuses_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let digests = folder(dir.path()).await;
    for (path, bytes) in files(dir.path()) {
        for eighths in 0..8 {
            let image = copy_of(dir.path());
            let keep = bytes.len() * eighths / 8;
            std::fs::write(image.path().join(path.file_name().unwrap()), &bytes[..keep]).unwrap();
            let refused = refuses(image.path(), &digests, &format!("{} cut to {keep}", path.display()));
            assert!(refused || kind(&path) != "table", "{} cut to {keep} goes unnoticed", path.display());
        }
        let image = copy_of(dir.path());
        std::fs::remove_file(image.path().join(path.file_name().unwrap())).unwrap();
        let refused = refuses(image.path(), &digests, &format!("{} missing", path.display()));
        let is_needed = ["table", "CURRENT", "MANIFEST"].contains(&kind(&path).as_str());
        assert!(refused || !is_needed, "{} is not missed", path.display());
    }
}

/// A page at a timestamp comes from two tables: that one fails must not look as if it held nothing, also where the page ends early.
#[tokio::test]
async fn a_scan_of_a_table_that_rots_fails_and_leaves_no_keys_out() {
    for table in [Table::Latest, Table::History] {
        let dir = tempfile::tempdir().unwrap();
        let (engine, mut machine) = replica(dir.path(), HOUR);
        apply(&mut machine, &recorded(44, 120)).await;
        engine.flush().await.unwrap();
        let mut rotten = 0;
        for file in engine.store().db().live_files().unwrap() {
            if file.column_family_name == table.name() {
                let path = dir.path().join(file.name.trim_start_matches('/'));
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[..16].iter_mut().for_each(|byte| *byte ^= 0xff);
                std::fs::write(&path, bytes).unwrap();
                rotten += 1;
            }
        }
        assert!(rotten > 0);
        let view = engine.view(SHARD).unwrap();
        let found = view.scan_some(&spec(Some(view.last_commit()), false), &mut |_| Turn::End);
        assert!(matches!(found, Err(DataError::Failed(_))), "{table:?}: {found:?}");
    }
}

/// What a full or broken disk does to whoever applies: the entry fails, nothing follows it, and after a restart the
/// state is that of the last flush.
#[tokio::test]
async fn a_batch_that_cannot_be_written_ends_the_engine_and_a_restart_goes_on_from_the_last_flush() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = replica(dir.path(), Duration::ZERO);
    let entries = recorded(43, 60);
    apply(&mut machine, &entries[..40]).await;
    engine.flush().await.unwrap();
    let flushed = engine.checksum(SHARD).unwrap();
    let _ = engine.store().fail("no space left on device".to_owned());
    let late: Vec<_> = entries[40..].iter().map(|entry| Ok((entry.clone(), None))).collect();
    assert!(machine.apply(futures::stream::iter(late)).await.is_err());
    assert_eq!(engine.flush().await, Err(DataError::Failed("no space left on device".to_owned())));
    assert_eq!(engine.replicas()[0].applied, Some(log_id(40)));
    drop((machine, engine));
    let again = open(dir.path());
    assert_eq!(again.checksum(SHARD).unwrap(), flushed);
    let mut machine = self::machine(&again, SHARD);
    apply(&mut machine, &entries[40..]).await;
}
