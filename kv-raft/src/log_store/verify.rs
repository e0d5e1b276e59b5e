//! Opens a log folder only if everything it ever acknowledged is there as it was written.
//!
//! Before the database is opened for writing, which replays and then removes write-ahead files, it is opened read-only
//! and verified, so that a refusal leaves the folder as it was found.
//!
//! What is refused, and what notices it:
//! - a damaged record in the middle of a write-ahead file: `wal`;
//! - a lost, cut or rotten end of the last write-ahead file: the sequence number in `ACKNOWLEDGED`;
//! - a missing or shortened older write-ahead file: RocksDB, which lists them in its manifest;
//! - a flipped bit in a table file: RocksDB's block checksums, since the whole log is read once;
//! - an entry, vote or pointer that is not what was written: its own checksum;
//! - an entry missing anywhere, or a log that lost its end: indexes in a row from the purged one to the recorded tail;
//! - a missing or cut table file, manifest or `CURRENT`: RocksDB, else the sequence number or the row of indexes.
//!
//! What is not: a record of entries purged long ago that rots, since nothing reads it; a rotten last record after a power
//! cut in a busy moment (acknowledged).
//!
//! Invariants: nothing is written before all is verified.
//!
//! Not here: what is done with a refused folder (the operator decides: docs/operations.md).

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use kv_proto::ids::ShardId;
use rocksdb::{ColumnFamily, DB, IteratorMode, ReadOptions, WriteOptions};

use super::acknowledged::Acknowledged;
use super::error::OpenError;
use super::layout::{self, Item};
use super::options::{self, Budget};
use super::shard::State;
use super::wal;
use crate::codec;
use crate::failpoint;

/// Read ahead of the scan, so that verifying runs at the disk's speed.
const READAHEAD_BYTES: usize = 2 << 20;

/// An open, verified folder.
pub(super) struct Opened {
    pub(super) database: DB,
    pub(super) acknowledged: Acknowledged,
    pub(super) shards: BTreeMap<ShardId, State>,
    /// Counts what the database does.
    #[cfg(test)]
    pub(super) statistics: rocksdb::Options,
}

/// What is known of a shard while the folder is read.
#[derive(Default)]
struct Found {
    state: State,
    tail: Option<Option<crate::types::LogId>>,
}

/// See the module.
pub(super) fn open(dir: &Path, budget: Budget) -> Result<Opened, OpenError> {
    std::fs::create_dir_all(dir).map_err(OpenError::io(dir))?;
    let mut acknowledged = Acknowledged::open(dir)?;
    let is_new = acknowledged.sequence() == 0;
    let mut shards = BTreeMap::new();
    if !is_new {
        wal::verify(dir)?;
        let database = DB::open_cf_descriptors_read_only(
            &options::database(budget, false, false),
            dir,
            options::families(budget),
            false,
        );
        let database = database.map_err(|error| OpenError::database(dir, error))?;
        shards = verify(dir, &database, acknowledged.sequence())?;
    }
    let direct = options::takes_direct_writes(dir);
    tracing::debug!(direct, "how the log's tables are written");
    let options = options::database(budget, is_new, direct);
    #[cfg(test)]
    let options = {
        let mut options = options;
        options.enable_statistics();
        options
    };
    failpoint!("log.open");
    let database = DB::open_cf_descriptors(&options, dir, options::families(budget));
    let database = database.map_err(|error| OpenError::database(dir, error))?;
    if is_new {
        record_format(dir, &database, &mut acknowledged)?;
    }
    failpoint!("log.opened");
    complete(dir, &database, acknowledged.sequence())?;
    Ok(Opened {
        database,
        acknowledged,
        shards,
        #[cfg(test)]
        statistics: options,
    })
}

/// Makes an empty folder one of this format, durably.
fn record_format(dir: &Path, database: &DB, acknowledged: &mut Acknowledged) -> Result<(), OpenError> {
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    let written = database.put_opt(layout::FORMAT_KEY, layout::encode_format(), &synced);
    written.map_err(|error| OpenError::database(dir, error))?;
    let noted = acknowledged.note(database.latest_sequence_number()).and_then(|()| acknowledged.sync());
    noted.map_err(OpenError::io(acknowledged.path()))
}

/// The database holds everything that was acknowledged.
fn complete(dir: &Path, database: &DB, acknowledged: u64) -> Result<(), OpenError> {
    let recovered = database.latest_sequence_number();
    if recovered >= acknowledged {
        return Ok(());
    }
    let newest = wal::newest(dir)?.unwrap_or_else(|| dir.to_owned());
    Err(OpenError::damaged(
        &newest,
        format!("the write-ahead log ends at {recovered}, but writes through {acknowledged} were acknowledged"),
    ))
}

fn verify(dir: &Path, database: &DB, acknowledged: u64) -> Result<BTreeMap<ShardId, State>, OpenError> {
    let damaged = |what: String| OpenError::damaged(dir, what);
    let format = database.get(layout::FORMAT_KEY).map_err(|error| OpenError::database(dir, error))?;
    let format = format.ok_or_else(|| damaged("its format record is missing".to_owned()))?;
    let found =
        layout::decode_format(Bytes::from(format)).map_err(|error| damaged(format!("its format record: {error}")))?;
    if found != layout::FORMAT {
        return Err(OpenError::Format { dir: dir.to_owned(), found, known: layout::FORMAT });
    }
    complete(dir, database, acknowledged)?;
    let family =
        |name: &str| database.cf_handle(name).ok_or_else(|| damaged(format!("column family {name} is missing")));
    let mut shards = BTreeMap::new();
    read_all(dir, database, family(layout::STATE)?, |key, value| read_state(&mut shards, key, value))?;
    for found in shards.values_mut() {
        found.state.last = found.state.purged;
        found.state.first = found.state.next();
    }
    read_all(dir, database, family(layout::LOG)?, |key, value| read_entry(&mut shards, key, value))?;
    let whole = |(shard, found): (ShardId, Found)| match found.tail {
        Some(tail) if tail != found.state.last => {
            Err(damaged(format!("the log of shard {shard} ends at {:?}, but {tail:?} was written", found.state.last)))
        }
        None if found.state.last.is_some() => Err(damaged(format!("the tail record of shard {shard} is missing"))),
        Some(_) | None => Ok((shard, found.state)),
    };
    shards.into_iter().map(whole).collect()
}

/// Every record of a column family, in order.
fn read_all(
    dir: &Path,
    database: &DB,
    family: &ColumnFamily,
    mut read: impl FnMut(&[u8], Bytes) -> Result<(), String>,
) -> Result<(), OpenError> {
    let mut options = ReadOptions::default();
    options.set_readahead_size(READAHEAD_BYTES);
    options.fill_cache(false);
    for record in database.iterator_cf_opt(family, options, IteratorMode::Start) {
        let (key, value) = record.map_err(|error| OpenError::database(dir, error))?;
        read(&key, Bytes::from(value)).map_err(|what| OpenError::damaged(dir, what))?;
    }
    Ok(())
}

fn read_state(shards: &mut BTreeMap<ShardId, Found>, key: &[u8], value: Bytes) -> Result<(), String> {
    let (shard, item) =
        layout::parse_state_key(key).ok_or_else(|| format!("{key:?} is no key of column family state"))?;
    let found = shards.entry(shard).or_default();
    let read = match item {
        Item::Owner => layout::decode_owner(value).map(|owner| found.state.owner = Some(owner)),
        Item::Vote => layout::decode_vote(value).map(|vote| found.state.vote = Some(vote)),
        Item::Committed => layout::decode_pointer(value).map(|committed| found.state.committed = committed),
        Item::Purged => layout::decode_pointer(value).map(|purged| found.state.purged = purged),
        Item::Tail => layout::decode_pointer(value).map(|tail| found.tail = Some(tail)),
    };
    read.map_err(|error| format!("the {item:?} record of shard {shard}: {error}"))
}

fn read_entry(shards: &mut BTreeMap<ShardId, Found>, key: &[u8], value: Bytes) -> Result<(), String> {
    let (shard, index) = layout::parse_log_key(key).ok_or_else(|| format!("{key:?} is no key of column family log"))?;
    let found = shards.get_mut(&shard).ok_or_else(|| format!("shard {shard} has entries but no state"))?;
    let bytes = value.len();
    let entry = codec::decode_entry(value).map_err(|error| format!("entry {index} of shard {shard}: {error}"))?;
    let next = found.state.next();
    if entry.log_id.index != index || index != next {
        return Err(format!("the log of shard {shard} continues with entry {index}, expected was {next}"));
    }
    found.state.last = Some(entry.log_id);
    found.state.count(index, bytes);
    Ok(())
}
