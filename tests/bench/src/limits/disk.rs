//! How often a second a small write can be made durable.
//!
//! Not here: what an engine makes of it (rocks).

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::record::Limit;

use super::Watch;

/// About what one put costs in a log.
const RECORD: [u8; 512] = [7; 512];
/// Written over again and again.
const PREALLOCATED_BYTES: usize = 64 << 20;

/// The file grows with each record, so its length is synced as well.
pub(super) fn append(each: Duration) -> Result<Limit> {
    let folder = tempfile::tempdir()?;
    let mut file = File::create(folder.path().join("log"))?;
    let mut watch = Watch::start(each)?;
    while watch.goes_on() {
        let began = Instant::now();
        file.write_all(&RECORD)?;
        file.sync_data()?;
        watch.record(began);
    }
    Ok(watch.limit(1))
}

/// The blocks are there already.
pub(super) fn overwrite(each: Duration) -> Result<Limit> {
    let folder = tempfile::tempdir()?;
    let mut file = File::create(folder.path().join("log"))?;
    file.write_all(&vec![0; PREALLOCATED_BYTES])?;
    file.sync_all()?;
    let mut watch = Watch::start(each)?;
    for at in (0..PREALLOCATED_BYTES as u64).step_by(RECORD.len()).cycle() {
        if !watch.goes_on() {
            break;
        }
        let began = Instant::now();
        file.write_all_at(&RECORD, at)?;
        file.sync_data()?;
        watch.record(began);
    }
    Ok(watch.limit(1))
}
