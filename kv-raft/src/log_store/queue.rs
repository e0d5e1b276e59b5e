//! The bounded queue of changes between the replicas and the writer.
//!
//! Changes that nobody waits for (a committed log id, a purge) do not wake the writer: they ride with the next batch,
//! or with the tick. The order is kept in any case.
//!
//! Invariants: first in, first out; what was reserved is released when its write is done, so the queue and the write
//! in flight together stay within the bound.
//!
//! Not here: what a change does to the disk (disk).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::ids::ReplicaId;
use openraft::storage::IOFlushed;
#[cfg(not(kv_sim))]
use parking_lot::Condvar as Wake;
use parking_lot::Mutex;
#[cfg(kv_sim)]
use tokio::sync::Notify as Wake;
use tokio::sync::{Semaphore, oneshot};

use super::error::LogError;
use super::shard::ShardLog;
use crate::types::{Entry, LogId, ShardRaft, Vote};

/// Bound of what waits, in KiB, each change counting at least one: 64 MiB, or 65,536 changes. A disk that writes
/// 100 MB/s empties it within a second; more would only hide that it is too slow.
const QUEUE_KIB_MAX: usize = 64 << 10;
/// One synced write gathers at most this much: larger ones make those behind wait longer without sparing an fsync worth having.
const BATCH_KIB_MAX: usize = 8 << 10;
/// Unhurried changes that wait for company before the writer is woken for them alone.
const UNHURRIED_MAX: usize = 1024;
/// How long they wait at most; also how long the writer is idle before it syncs its note.
const TICK: Duration = Duration::from_secs(1);

const _: () = assert!(BATCH_KIB_MAX < QUEUE_KIB_MAX, "while one batch is written the next gathers");

/// A change to one shard's log.
pub(super) struct Change {
    pub(super) shard: Arc<ShardLog>,
    pub(super) action: Action,
    pub(super) queued: Instant,
    pub(super) kib: usize,
}

/// What is changed. `tail` is the log's last log id after it.
pub(super) enum Action {
    Append {
        entries: Vec<Entry>,
        generation: u64,
        callback: IOFlushed<ShardRaft>,
    },
    Truncate {
        start: u64,
        tail: Option<LogId>,
        generation: u64,
    },
    Purge {
        upto: LogId,
        generation: u64,
    },
    SaveVote {
        vote: Vote,
        done: Done,
    },
    SaveCommitted(Option<LogId>),
    SaveOwner(ReplicaId),
    Destroy {
        done: Done,
    },
    /// Changes nothing: done when everything queued before is durable.
    Barrier {
        done: Done,
    },
}

/// Told when a change is durable, or that it will not be.
pub(super) type Done = oneshot::Sender<Result<(), LogError>>;

impl Action {
    /// Whether someone waits for it.
    fn is_urgent(&self) -> bool {
        match self {
            Self::Append { .. }
            | Self::Truncate { .. }
            | Self::SaveVote { .. }
            | Self::Destroy { .. }
            | Self::Barrier { .. } => true,
            Self::Purge { .. } | Self::SaveCommitted(_) | Self::SaveOwner(_) => false,
        }
    }
}

#[cfg(kv_sim)]
impl Change {
    /// Tells the simulation that it is durable.
    pub(super) fn tell(&self) {
        use crate::simulated::{Event, Write, saw};
        let write = match &self.action {
            Action::Append { entries, .. } => Write::Entries(entries),
            Action::Truncate { start, .. } => Write::Truncated(*start),
            Action::Purge { upto, .. } => Write::Purged(upto),
            Action::SaveVote { vote, .. } => Write::Vote(vote),
            Action::Destroy { .. } => Write::Destroyed,
            Action::SaveCommitted(_) | Action::SaveOwner(_) | Action::Barrier { .. } => return,
        };
        saw(self.shard.shard, Event::Written { replica: self.shard.lock().owner, write });
    }
}

/// See the module.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Wake,
    space: Semaphore,
}

#[derive(Default)]
struct Waiting {
    changes: VecDeque<Change>,
    urgent: usize,
    closed: bool,
}

/// Reserved space; given back when dropped, unless a change takes it along.
pub(super) struct Space<'a> {
    queue: &'a Queue,
    kib: usize,
}

impl Space<'_> {
    /// For [`Change::kib`]: the writer gives it back.
    pub(super) fn take(mut self) -> usize {
        std::mem::take(&mut self.kib)
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        self.queue.release(self.kib);
    }
}

/// Wakes the writer when it is dropped, if it sleeps and is wanted. To be dropped after the locks under which the change
/// was made: the writer would run into them at once, on a machine with few cores in the place of who holds them.
#[must_use = "dropped at once it may wake the writer while locks are held"]
pub(super) struct Due<'a>(Option<&'a Queue>);

impl Drop for Due<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.0 {
            queue.wake.notify_one();
        }
    }
}

/// What the writer gets.
pub(super) enum Gathered {
    /// Write these.
    Batch(Vec<Change>),
    /// Nothing came for a while.
    Idle,
    /// Closed and empty.
    Closed,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::default(), wake: Wake::new(), space: Semaphore::new(QUEUE_KIB_MAX) }
    }

    /// Waits for space.
    pub(super) async fn reserve(&self, bytes: usize) -> Result<Space<'_>, LogError> {
        let kib = (1 + bytes / 1024).min(BATCH_KIB_MAX);
        let permits = u32::try_from(kib).map_err(|_| LogError::Closed)?;
        self.space.acquire_many(permits).await.map_err(|_| LogError::Closed)?.forget();
        Ok(Space { queue: self, kib })
    }

    /// Adds a change whose space was reserved. Refused (and dropped) once closed.
    pub(super) fn push(&self, change: Change) -> Result<Due<'_>, LogError> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(LogError::Closed);
        }
        waiting.urgent += usize::from(change.action.is_urgent());
        waiting.changes.push_back(change);
        let due = waiting.urgent == 1 || waiting.changes.len() == UNHURRIED_MAX;
        Ok(Due(due.then_some(self)))
    }

    /// Waits for changes and takes them, in order, up to the bound of a batch.
    #[cfg(not(kv_sim))]
    pub(super) fn gather(&self) -> Gathered {
        let mut waiting = self.waiting.lock();
        if !waiting.is_due() {
            self.wake.wait_while_for(&mut waiting, |waiting| !waiting.is_due(), TICK);
        }
        waiting.gathered()
    }

    /// The same without a thread to wait on.
    #[cfg(kv_sim)]
    pub(super) async fn gather(&self) -> Gathered {
        let due = async {
            while !self.waiting.lock().is_due() {
                self.wake.notified().await;
            }
        };
        let _ = tokio::time::timeout(TICK, due).await;
        self.waiting.lock().gathered()
    }

    /// Gives back the space of changes that are done.
    pub(super) fn release(&self, kib: usize) {
        self.space.add_permits(kib);
    }

    /// Accepts nothing more; what waits is still written.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.space.close();
        self.wake.notify_one();
    }
}

impl Waiting {
    fn gathered(&mut self) -> Gathered {
        if self.changes.is_empty() {
            return if self.closed { Gathered::Closed } else { Gathered::Idle };
        }
        let mut kib = 0;
        let mut batch = Vec::with_capacity(self.changes.len());
        while self.changes.front().is_some_and(|change| kib == 0 || kib + change.kib <= BATCH_KIB_MAX) {
            let Some(change) = self.changes.pop_front() else { break };
            kib += change.kib;
            self.urgent -= usize::from(change.action.is_urgent());
            batch.push(change);
        }
        Gathered::Batch(batch)
    }

    fn is_due(&self) -> bool {
        self.closed || self.urgent > 0 || self.changes.len() >= UNHURRIED_MAX
    }
}
