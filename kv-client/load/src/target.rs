//! What a load is sent to: a store that takes operations, one at a time from each client.
//!
//! Not here: which operation comes next (workload), our own cluster (cluster).

use std::fmt;

use bytes::Bytes;

/// One operation with its keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read this key.
    Get(Bytes),
    /// Write this key.
    Put(Bytes, Bytes),
    /// Read this key, then write it if it is still as read.
    CompareAndSet(Bytes, Bytes),
    /// Read this key, then write it.
    ReadModifyWrite(Bytes, Bytes),
    /// Read at most this many keys from this one on.
    Scan(Bytes, usize),
    /// Write all of these, as the store does it best.
    Batch(Vec<(Bytes, Bytes)>),
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// So many keys were read or written.
    Keys(u64),
    /// A compare-and-set that another client beat.
    Refused,
}

/// A store under load. Clones share what a client library shares between its users.
pub trait Target: Clone + Send + Sync + 'static {
    /// Why an operation failed.
    type Error: fmt::Display + Send + 'static;

    /// Does one operation and waits for its answer.
    fn operate(&self, operation: Operation) -> impl Future<Output = Result<Answer, Self::Error>> + Send;
}
