//! Where the simulation (`cfg(kv_sim)`) looks in and reaches in: what happens is told to one [`World`], and the world says
//! how long disks take and how far a node's clock is off.
//!
//! Invariants: what is told has happened just now, on the thread that did it; nothing here changes what a node does.
//!
//! Not here: the world (tests/sim); anything a normal build compiles.

use std::sync::OnceLock;
use std::time::Duration;

use kv_proto::ids::{ReplicaId, ShardId};

use crate::command::Replies;
use crate::types::{Entry, LogId, SnapshotMeta, Vote};

/// Something a node did.
#[derive(Debug)]
pub enum Event<'a> {
    /// The log of a shard was found on disk when the engine was opened.
    Found {
        /// Whose.
        replica: Option<ReplicaId>,
        /// The vote.
        vote: Option<Vote>,
        /// The last purged entry.
        purged: Option<LogId>,
        /// The last entry, or the purged one.
        last: Option<LogId>,
    },
    /// A change of a log is durable; nobody was told yet.
    Written {
        /// Whose log.
        replica: Option<ReplicaId>,
        /// What changed.
        write: Write<'a>,
    },
    /// Consensus knows that everything through an entry is committed.
    Committed(LogId),
    /// A replica begins to apply after this entry, which survived.
    Loaded {
        /// Which replica.
        replica: ReplicaId,
        /// The last entry its data holds.
        applied: Option<LogId>,
    },
    /// An entry was applied.
    Applied {
        /// The entry.
        entry: &'a Entry,
        /// What it returned.
        replies: &'a Replies,
    },
    /// A snapshot took the place of the state.
    Installed(&'a SnapshotMeta),
    /// A linearizable read was served.
    Served {
        /// What [`World::read_begins`] returned when it began.
        floor: u64,
        /// The index it saw.
        applied: u64,
    },
}

/// A change of a log.
#[derive(Debug)]
pub enum Write<'a> {
    /// Entries were added.
    Entries(&'a [Entry]),
    /// The entries from this index on are gone.
    Truncated(u64),
    /// The entries through this one are gone.
    Purged(&'a LogId),
    /// The vote was saved.
    Vote(&'a Vote),
    /// Everything is gone.
    Destroyed,
}

/// What a step of the disk is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Work that would run on a thread of its own.
    Work,
    /// Before the log's writer writes: what waits is lost in a crash.
    BeforeWrite,
    /// Before it answers: what was written survives a crash, though nobody was told.
    BeforeAnswer,
}

/// The simulation.
pub trait World: Send + Sync {
    /// A shard of the node that runs now did something.
    fn saw(&self, shard: ShardId, event: Event<'_>);
    /// The node that runs now has begun. A process that ends takes its memory along; what replicas of a simulated one
    /// hold of each other goes when this is called.
    fn began(&self, forget: Box<dyn FnOnce() + Send>);
    /// The index a linearizable read that begins now must not be behind.
    fn read_begins(&self, shard: ShardId) -> u64;
    /// How long a step of the disk of the node that runs now takes.
    fn delay(&self, step: Disk) -> Duration;
    /// How far the wall clock of the node that runs now is ahead, in milliseconds.
    fn clock_offset_ms(&self) -> i64;
}

static WORLD: OnceLock<Box<dyn World>> = OnceLock::new();

/// Begins the simulation; without it nothing is told and nothing takes time.
pub fn begin(world: Box<dyn World>) {
    assert!(WORLD.set(world).is_ok(), "a process simulates once");
}

pub(crate) fn saw(shard: ShardId, event: Event<'_>) {
    if let Some(world) = WORLD.get() {
        world.saw(shard, event);
    }
}

pub(crate) fn began(forget: impl FnOnce() + Send + 'static) {
    if let Some(world) = WORLD.get() {
        world.began(Box::new(forget));
    }
}

pub(crate) fn read_begins(shard: ShardId) -> u64 {
    WORLD.get().map_or(0, |world| world.read_begins(shard))
}

pub(crate) async fn disk(step: Disk) {
    if let Some(world) = WORLD.get() {
        tokio::time::sleep(world.delay(step)).await;
    }
}

pub(crate) fn clock_offset_ms() -> i64 {
    WORLD.get().map_or(0, |world| world.clock_offset_ms())
}
