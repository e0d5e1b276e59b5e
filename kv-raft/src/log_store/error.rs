//! Why the log engine refuses to open, and why it fails once open.
//!
//! Not here: refusals of bytes (codec).

use std::io;
use std::path::{Path, PathBuf};

use kv_proto::ids::{ReplicaId, ShardId};

/// Why a log folder does not open. What it holds was not changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another engine of this one, has the folder open.
    #[error("log folder {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// What was acknowledged is not all there, or not as it was written.
    #[error("log folder is damaged at {}: {what}", .file.display())]
    Damaged {
        /// The file, or the folder if it is no single one.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Written by a version this one does not know.
    #[error("log folder {} has format {found}, only {known} is known", .dir.display())]
    Format {
        /// The folder.
        dir: PathBuf,
        /// As recorded.
        found: u32,
        /// The newest one known.
        known: u32,
    },
    /// The operating system refused.
    #[error("cannot use {}", .path.display())]
    Io {
        /// What was to be read or written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn damaged(file: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), what: what.into() }
    }
}

/// Why an operation on an open log engine failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// A write or an fsync failed once; the process must end and recover from disk.
    #[error("the log engine failed and accepts nothing more: {0}")]
    Poisoned(String),
    /// The engine is closed or closing.
    #[error("the log engine is closed")]
    Closed,
    /// The shard's log was destroyed, or never created.
    #[error("this node holds no log of shard {0}")]
    NoLog(ShardId),
    /// The log on disk belongs to another incarnation of the replica; destroy it first.
    #[error("the log of shard {shard} belongs to replica {held}, not {asked}")]
    OtherReplica {
        /// The shard.
        shard: ShardId,
        /// Whose log lies on disk.
        held: ReplicaId,
        /// Who asked for it.
        asked: ReplicaId,
    },
    /// An append does not continue the log.
    #[error("entry {index} does not continue the log of shard {shard}, whose next index is {next}")]
    Hole {
        /// The shard.
        shard: ShardId,
        /// The entry's index.
        index: u64,
        /// What it must be.
        next: u64,
    },
    /// Entries could not be read back.
    #[error("cannot read the log of shard {shard}: {reason}")]
    Read {
        /// The shard.
        shard: ShardId,
        /// Why not.
        reason: String,
    },
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        Self::other(error)
    }
}
