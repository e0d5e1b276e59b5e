//! Snapshots on their way: a connection of its own per snapshot, files in checksummed chunks, and what goes on when the
//! connection breaks.
//!
//! The sender announces shard, replica and what the snapshot covers; the receiver answers with the extent its keys
//! must lie under. Then come the files, each as the sender builds it, and the end, which the receiver answers once
//! consensus has taken the snapshot in.
//!
//! When the stream breaks, both ends keep what they have for a while: the sender its view and the file that is not
//! wholly confirmed, the receiver the files and the part of one that came. The sender connects again with the very same
//! header, which names this one sending of this one process; the receiver says what it holds, and the sender goes on
//! after it. Anything else leaves nothing behind at either end, and the next attempt starts over with what is newest
//! then.
//!
//! Invariants: what was received under one header is never continued under another; at no end is more than a few chunks
//! in memory; a snapshot that stalls is given up; all snapshots a node sends together keep its rate limit; what waits
//! for a stream to come again is bounded in number and in time, at either end.
//!
//! Not here: how files are built and taken in (state_machine); when a snapshot is needed (openraft).

mod send;

mod receive;

mod arriving;

mod rate;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::pb::raft::v1::SnapshotProgress;
use tokio::sync::Semaphore;

use self::arriving::Arriving;
use self::rate::Rate;
pub(super) use self::receive::serve;
pub(super) use self::send::{Sending, send};
use crate::timing::Timing;

/// How files, chunks and headers are laid out; a receiver refuses what it does not know.
const SNAPSHOT_FORMAT: u32 = 1;

/// Large enough for the disk, small enough that the rate limit is even and memory small.
const CHUNK_BYTES: usize = 256 << 10;
const _: () = assert!(2 * CHUNK_BYTES <= MESSAGE_BYTES_MAX);

/// Chunks handed to HTTP/2 ahead of its flow control.
const CHUNKS_AHEAD: usize = 2;

/// Snapshots a node receives at once; more would only share one disk. A sender that is refused tries again.
const RECEIVED_AT_ONCE: usize = 4;

/// Snapshots a node keeps a part of while nobody sends the rest. Each may be as large as a shard, on a disk that has
/// better use for the space.
const KEPT_AT_ONCE: usize = 4;

/// Snapshots a node sends at once: when a node comes back that was away from hundreds of shards, the others wait here and
/// not as half-built files on one disk.
const SENT_AT_ONCE: usize = 4;

/// Snapshots a node would go on with, once their receiver can be reached. Each pins a view and keeps a file, and does
/// not count among those that are sent.
const INTERRUPTED_AT_ONCE: usize = 4;

/// A snapshot without progress for this long is given up, by either end. Building one file is within it.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Without progress for this long since its stream broke, a sender lets go of its view: longer than a lost connection
/// or a rerouted network takes, and what it would save is soon outweighed by the log that has grown meanwhile.
const RESUME_WITHIN: Duration = Duration::from_secs(15);

/// How long what was received waits for the rest: the receiver may have noticed the break a while before the sender.
const KEEP_FOR: Duration = Duration::from_secs(60);
const _: () = assert!(KEEP_FOR.as_secs() >= 2 * RESUME_WITHIN.as_secs());

/// Consensus waits for what it is doing before it takes a snapshot in.
const INSTALL_MAX: Duration = Duration::from_secs(300);

/// How far a snapshot has come: all files before this one, and of it this many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    file: u32,
    offset: u64,
}

impl From<SnapshotProgress> for Position {
    fn from(progress: SnapshotProgress) -> Self {
        Self { file: progress.file, offset: progress.offset }
    }
}

impl From<Position> for SnapshotProgress {
    fn from(position: Position) -> Self {
        Self { file: position.file, offset: position.offset }
    }
}

/// All snapshots on their way from and to one node.
pub(super) struct Transfers {
    rate: Rate,
    /// Numbers the sendings of this process, from 1.
    next_sending: AtomicU64,
    sending: Semaphore,
    interrupted: Semaphore,
    receiving: Arc<Semaphore>,
    kept: Semaphore,
    arriving: Arriving,
    resume_within: Duration,
    keep_for: Duration,
}

impl Transfers {
    pub(super) fn new(timing: &Timing) -> Self {
        Self {
            rate: Rate::new(timing.snapshot_bytes_per_second),
            next_sending: AtomicU64::new(1),
            sending: Semaphore::new(SENT_AT_ONCE),
            interrupted: Semaphore::new(INTERRUPTED_AT_ONCE),
            receiving: Arc::new(Semaphore::new(RECEIVED_AT_ONCE)),
            kept: Semaphore::new(KEPT_AT_ONCE),
            arriving: Arriving::default(),
            resume_within: RESUME_WITHIN,
            keep_for: KEEP_FOR,
        }
    }
}
