//! The log engine: one RocksDB for the logs of all replicas of a node, one writer thread, one fsync per gathered batch.
//!
//! ```text
//! openraft -> LogStore (one replica) -> ShardLog (memory: recent entries, vote, pointers)
//!                 |                        ^ durable through ..., callbacks
//!                 v                        |
//!            bounded queue ---> writer thread: gather, one WriteBatch, one fsync, ACKNOWLEDGED, complete
//! ```
//!
//! Column families: `log` holds entries under (shard, index), both big endian; `state` holds per shard the vote, the
//! committed log id, the last purged log id, the log id of the last entry and the replica the log belongs to; the
//! default one holds the format of the folder. Each record carries its own CRC32C.
//!
//! Invariants:
//! - Nothing is acknowledged before the fsync that covers it returned; after a failed one nothing is, ever again.
//! - What is done to one shard reaches the disk in the order it was called, also inside one batch: a truncation lies
//!   between the entries it removes and those that replace them.
//! - Every write to the database is synced, so at most the last record of the write-ahead log can be torn by a crash.
//! - A folder opens with everything it ever acknowledged, or it does not open and the error names the file. What is
//!   verified, and what cannot be, is told in `verify`.
//!
//! Not here: when entries may be purged (state_machine decides by what it flushed); the bytes of an entry (codec).

mod engine;
mod queue;
mod shard;
mod store;
mod writer;

mod acknowledged;
mod layout;
mod options;
mod verify;
mod wal;

mod error;
pub mod metrics;

#[cfg(test)]
pub(crate) mod tests;

pub use engine::{LogEngine, LogOptions, LogWait};
pub use error::{LogError, OpenError};
pub use metrics::LogMetrics;
pub use store::{LogReader, LogStore, READ_BYTES_MAX};
