//! The log engine: one row of files for the logs of all replicas of a node, one writer thread, one fsync per gathered batch.
//!
//! ```text
//! openraft -> LogStore (one replica) -> ShardLog (memory: recent entries, vote, pointers)
//!                 |                        ^ durable through ..., callbacks
//!                 v                        |
//!            bounded queue ---> writer thread: gather, one record, one fsync, ACKNOWLEDGED, complete
//!                                                  |
//!                                    segment-1.log, segment-2.log, ... (disk, record, segment)
//! ```
//!
//! Records are only ever appended: nothing is written twice but the entries of idle shards that would hold old segments for
//! ever. Memory knows where the entries of a shard lie (places). It is a raft log engine as TiKV's is, and its records are
//! checked as those of SQLite's write-ahead log are.
//!
//! Invariants:
//! - Nothing is acknowledged before the fsync that covers it returned; after a failed one nothing is, ever again.
//! - What is done to one shard reaches the disk in the order it was called, also inside one record: a truncation lies
//!   between the entries it removes and those that replace them.
//! - Every record is synced before the next is written, so at most the last one can be torn by a crash.
//! - A folder opens with everything it ever acknowledged, or it does not open and the error names the file. What is
//!   verified, and what cannot be, is told in `replay`.
//!
//! Not here: when entries may be purged (state_machine decides by what it flushed); the bytes of an entry (codec).

mod engine;
mod queue;
mod shard;
mod store;
mod writer;

mod disk;
mod kept;
mod places;
mod read;
mod replay;

mod acknowledged;
mod buffer;
mod options;
mod record;
mod segment;

mod error;
pub mod metrics;

#[cfg(test)]
pub(crate) mod tests;

pub use engine::{LogEngine, LogOptions, LogWait};
pub use error::{LogError, OpenError};
pub use metrics::LogMetrics;
pub use store::{LogReader, LogStore, READ_BYTES_MAX};
