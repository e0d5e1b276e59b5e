//! The data of all replicas of a node in one RocksDB without a write-ahead log: the committed Raft log is the log.

#![allow(clippy::unused_self, clippy::unused_async, clippy::missing_errors_doc)]

mod error;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::ids::{ExtentId, ReplicaId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::timestamp::Timestamp;

pub use self::error::{CreateError, DataError, OpenError};
use crate::command::Versioned;
use crate::types::LogId;

/// How much the engine may use.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Memory for write buffers and block cache together, in bytes.
    pub memory_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_threads: usize,
    /// Bytes per second that flushes and compactions may write together; 0 is unlimited.
    pub background_bytes_per_second: u64,
    /// If all tables together are at most this long, every block is checked at open, in bytes.
    pub verify_bytes: u64,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self { memory_bytes: 256 << 20, background_threads: 2, background_bytes_per_second: 0, verify_bytes: 128 << 20 }
    }
}

/// What a new replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewReplica {
    /// Its shard.
    pub shard: ShardId,
    /// Its id.
    pub replica: ReplicaId,
    /// The encoded keys it holds.
    pub range: KeyRange,
    /// How long overwritten versions stay readable; zero keeps none.
    pub retention: Duration,
}

/// What the engine knows of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRecord {
    /// Its shard.
    pub shard: ShardId,
    /// Its id.
    pub replica: ReplicaId,
    /// Where its data lies.
    pub extent: ExtentId,
    /// The encoded keys it holds.
    pub range: KeyRange,
    /// How long overwritten versions stay readable.
    pub retention: Duration,
    /// The last entry applied.
    pub applied: Option<LogId>,
    /// Commit timestamp of the last command applied.
    pub last_commit: Timestamp,
    /// Timestamps before this one are not readable.
    pub safepoint: Timestamp,
}

/// The engine; clones share it.
#[derive(Clone)]
pub struct DataEngine;

impl DataEngine {
    /// Opens or creates the folder. Deletes what no replica record names. Blocking.
    pub fn open(_dir: &Path, _options: DataOptions) -> Result<Self, OpenError> {
        Ok(Self)
    }
    /// The replicas held here, by shard.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaRecord> {
        Vec::new()
    }
    /// Creates an empty replica; it is durable when this returns. Blocking.
    pub fn create(&self, new: NewReplica) -> Result<ReplicaRecord, CreateError> {
        Err(DataError::NotHeld(new.shard).into())
    }
    /// Destroys the replica and leaves a tombstone; both are durable when this returns. Blocking.
    pub fn destroy(&self, shard: ShardId) -> Result<(), DataError> {
        Err(DataError::NotHeld(shard))
    }
    /// Makes everything applied so far durable and tells up to where that is, for each shard that applied anything.
    pub async fn flush(&self) -> Result<BTreeMap<ShardId, LogId>, DataError> {
        Ok(BTreeMap::new())
    }
    /// What is applied, to read from.
    pub fn view(&self, shard: ShardId) -> Result<ReadView, DataError> {
        Err(DataError::NotHeld(shard))
    }
    /// A deterministic digest of the replica's state and the entry it belongs to: replicas that applied the same
    /// entries have the same. Blocking; reads everything.
    pub fn checksum(&self, shard: ShardId) -> Result<(Option<LogId>, u64), DataError> {
        Err(DataError::NotHeld(shard))
    }
    /// Bytes on disk of the replica's data, roughly.
    #[must_use]
    pub fn estimated_bytes(&self, _shard: ShardId) -> u64 {
        0
    }
    /// Waits until the engine failed and says why: the process must end.
    pub async fn failed(&self) -> String {
        std::future::pending().await
    }
    /// Flushes and stops background work.
    pub async fn close(&self) {}
}

/// What a scan returns.
#[derive(Clone, Debug)]
pub struct ScanSpec {
    /// Encoded keys; cut to the replica's range.
    pub range: KeyRange,
    /// Most entries of the page, at least 1.
    pub limit_entries: usize,
    /// The page ends once keys and values reach this many bytes.
    pub limit_bytes: usize,
    /// Leaves values empty.
    pub keys_only: bool,
    /// The state at this timestamp instead of the latest.
    pub at: Option<Timestamp>,
    /// From the end of the range down.
    pub reverse: bool,
}

/// One key of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanEntry {
    /// Encoded key.
    pub key: Bytes,
    /// Its value and when it was written.
    pub versioned: Versioned,
}

/// One page of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// In key order, descending if the scan is reverse.
    pub entries: Vec<ScanEntry>,
    /// Bound of what is left: the next range's start, or its end if the scan is reverse. None if nothing is.
    pub next: Option<Bytes>,
}

/// A replica's applied state to read from; cheap to clone. Each call reads one consistent state, which is the one at
/// [`ReadView::applied`] or a later one. All calls block on disk if the cache misses.
#[derive(Clone)]
pub struct ReadView;

impl ReadView {
    /// The latest version of a key.
    pub fn get(&self, _key: &[u8]) -> Result<Option<Versioned>, DataError> {
        Ok(None)
    }
    /// The version of a key at a timestamp.
    pub fn get_at(&self, _key: &[u8], _at: Timestamp) -> Result<Option<Versioned>, DataError> {
        Ok(None)
    }
    /// Several keys of one state, the latest or that at a timestamp, in the order asked.
    pub fn get_many(&self, _keys: &[&[u8]], _at: Option<Timestamp>) -> Result<Vec<Option<Versioned>>, DataError> {
        Ok(Vec::new())
    }
    /// One page.
    pub fn scan(&self, _spec: &ScanSpec) -> Result<ScanPage, DataError> {
        Ok(ScanPage::default())
    }
    /// The last entry applied when the view was taken.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        None
    }
    /// Commit timestamp of the last command applied when the view was taken.
    #[must_use]
    pub fn last_commit(&self) -> Timestamp {
        Timestamp(0)
    }
}
