//! What can go wrong between the data engine and its disk.
//!
//! Invariants: a refusal is never one of these; whatever is here is fatal for the replica or the node, except where a
//! variant says that the caller asked for what is not there.
//!
//! Not here: refusals of commands (command, `Reply`).

use std::io;
use std::path::PathBuf;

use kv_proto::ids::{ReplicaId, ShardId};
use kv_proto::timestamp::Timestamp;

/// Why the data folder does not open. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("data folder {} is in use by another process", dir.display())]
    Locked {
        /// The folder.
        dir: PathBuf,
    },
    /// A file is missing, cut short or altered.
    #[error("data folder {} is damaged: {what}", dir.display())]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// Names the file, as RocksDB reports it.
        what: String,
    },
    /// Written by another version of this program.
    #[error("data folder {} has format {found}, this program reads format {known}", dir.display())]
    Format {
        /// The folder.
        dir: PathBuf,
        /// As found.
        found: u32,
        /// What this program writes.
        known: u32,
    },
    /// The folder cannot be read or written.
    #[error("data folder {} cannot be opened", dir.display())]
    Io {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a read, write or snapshot failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// The disk failed or a file is damaged. The engine is unusable from then on.
    #[error("data engine failed: {0}")]
    Failed(String),
    /// No replica of this shard is held here, or it was destroyed meanwhile.
    #[error("shard {0} has no replica here")]
    NotHeld(ShardId),
    /// The timestamp lies before what is kept.
    #[error("timestamp {asked} is before {oldest}, the oldest that is readable")]
    TooOld {
        /// As asked.
        asked: Timestamp,
        /// The oldest readable one.
        oldest: Timestamp,
    },
    /// The key is not one the replica holds.
    #[error("key {key} is not in this shard")]
    OutsideRange {
        /// The encoded key, escaped.
        key: String,
    },
    /// What was received is not the snapshot that was announced.
    #[error("snapshot refused: {0}")]
    BadSnapshot(String),
}

/// Why a replica is not created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// This node holds a replica of the shard already.
    #[error("shard {shard} already has replica {replica} here")]
    Exists {
        /// The shard.
        shard: ShardId,
        /// The replica that is here.
        replica: ReplicaId,
    },
    /// A replica with this id, or a later one, was destroyed here: an id never comes back.
    #[error("replica {replica} of shard {shard} is refused: replica {destroyed} was destroyed here")]
    Destroyed {
        /// The shard.
        shard: ShardId,
        /// As asked.
        replica: ReplicaId,
        /// The highest one destroyed here.
        destroyed: ReplicaId,
    },
    /// The disk failed.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl From<DataError> for io::Error {
    fn from(error: DataError) -> Self {
        Self::other(error)
    }
}
