//! One shard's log as it is in memory: the vote, the pointers, and the recent entries.
//!
//! Memory is ahead of the disk: a call changes it at once and queues the write under the same lock, so the queue holds
//! the changes of a shard in the order they were made. Entries leave memory, oldest first, only once they are durable.
//!
//! Invariants:
//! - The cached entries are the end of the log, without a gap: `cache_start + cache.len() == next index`.
//! - `durable_end` never lies past an entry that an unfinished write still has to make durable: a truncation lowers it
//!   and starts a generation, and completions of earlier generations no longer raise it.
//!
//! Not here: the order of writes (queue, writer).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kv_proto::ids::{ReplicaId, ShardId};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::error::LogError;
use super::kept::Kept;
use super::places::Places;
use super::record::Pointers;
use crate::codec;
use crate::types::{Entry, LogId, Vote};

/// What an entry costs in memory beside its encoded bytes.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// How far apart the points are at which the log's bytes are known.
const MARK_BYTES: u64 = 256 << 10;

/// The bytes of a log, known at points of it: an estimate that is off by at most a mark after a truncation or a purge.
#[derive(Debug, Default)]
struct Marks {
    /// Ever added and not truncated.
    total: u64,
    /// What of it was purged.
    purged: u64,
    /// Index and total through it, ascending in both.
    marks: VecDeque<(u64, u64)>,
}

impl Marks {
    fn marked(&self) -> u64 {
        self.marks.back().map_or(self.purged, |mark| mark.1)
    }

    fn add(&mut self, index: u64, bytes: u64) {
        self.total += bytes;
        if self.total - self.marked() >= MARK_BYTES {
            self.marks.push_back((index, self.total));
        }
    }

    fn truncate(&mut self, start: u64) {
        let before = self.marks.len();
        while self.marks.back().is_some_and(|mark| mark.0 >= start) {
            self.marks.pop_back();
        }
        if self.marks.len() < before {
            self.total = self.marked();
        }
    }

    fn purge(&mut self, upto: u64) {
        while let Some(mark) = self.marks.front().filter(|mark| mark.0 <= upto) {
            self.purged = mark.1;
            self.marks.pop_front();
        }
    }

    fn excess(&self, budget: u64) -> Option<u64> {
        if self.total - self.purged <= budget {
            return None;
        }
        let first = self.marks.partition_point(|mark| self.total - mark.1 > budget);
        self.marks.get(first).or(self.marks.back()).map(|mark| mark.0)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct ShardLog {
    /// Whose log.
    pub(super) shard: ShardId,
    state: Mutex<State>,
    /// Where its entries lie on disk.
    pub(super) places: Arc<Mutex<Places>>,
    /// The log is durable below this index.
    durable_end: AtomicU64,
    /// No handle may write any more.
    destroyed: AtomicBool,
    changed: Notify,
}

/// What is known of a shard's log.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) owner: Option<ReplicaId>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// The last entry's log id, or the purged one.
    pub(super) last: Option<LogId>,
    /// Index of the first entry, if there is one.
    pub(super) first: u64,
    generation: u64,
    cache: VecDeque<Entry>,
    cache_start: u64,
    size: Marks,
}

/// Where a range of entries is.
#[derive(Debug)]
pub(super) struct Plan {
    /// Half-open range to read from disk first; may be empty.
    pub(super) disk: (u64, u64),
    /// What follows it.
    pub(super) cached: Vec<Entry>,
    generation: u64,
    first: u64,
}

/// What an entry counts against the memory budget.
pub(super) fn cost(entry: &Entry) -> usize {
    codec::entry_bytes(entry) + ENTRY_OVERHEAD_BYTES
}

impl State {
    /// What was found on disk.
    pub(super) fn found(kept: &Kept) -> Self {
        let Pointers { owner, vote, committed, purged, last } = kept.pointers;
        let mut state = Self { owner, vote, committed, purged, last, first: kept.first(), ..Self::default() };
        let places = kept.places.lock();
        let ends = places.iter().skip(1).map(|next| next.index).chain([kept.next()]);
        places.iter().zip(ends).for_each(|(place, end)| state.size.add(end.saturating_sub(1), place.bytes));
        state
    }

    /// Index the next entry must have.
    pub(super) fn next(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    /// Counts truncations: a completion of an earlier generation says nothing about the log's end.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The index through which the log must be purged to hold about this many bytes; None if it holds no more.
    pub(super) fn excess(&self, budget: u64) -> Option<u64> {
        self.size.excess(budget)
    }

    /// Adds entries; returns the bytes they take.
    pub(super) fn append(&mut self, shard: ShardId, entries: &[Entry]) -> Result<usize, LogError> {
        let mut next = self.next();
        let Some(first) = entries.first() else { return Ok(0) };
        if self.last.is_none() {
            // openraft starts an empty log at 0, or after what it purged, and its test suite at 1; a start finds only the former.
            (next, self.first, self.cache_start) = (first.log_id.index, first.log_id.index, first.log_id.index);
        }
        for (entry, expected) in entries.iter().zip(next..) {
            if entry.log_id.index != expected {
                return Err(LogError::Hole { shard, index: entry.log_id.index, next: expected });
            }
        }
        entries.iter().for_each(|entry| self.size.add(entry.log_id.index, codec::entry_bytes(entry) as u64));
        self.cache.extend(entries.iter().cloned());
        self.last = entries.last().map(|entry| entry.log_id);
        Ok(entries.iter().map(cost).sum())
    }

    /// Drops the entries after a log id; returns the first index dropped and the bytes freed.
    pub(super) fn truncate_after(&mut self, after: Option<LogId>) -> Option<(u64, usize)> {
        let (start, end) = (after.map_or(self.first, |after| (after.index + 1).max(self.first)), self.next());
        if start >= end {
            return None;
        }
        let keep = usize::try_from(start.saturating_sub(self.cache_start)).unwrap_or(usize::MAX).min(self.cache.len());
        let freed = self.cache.drain(keep..).map(|entry| cost(&entry)).sum();
        self.cache_start = self.cache_start.min(start);
        self.size.truncate(start);
        // A log id the caller named exists; what remains before the first entry is the purged one.
        self.last = if start == self.first { self.purged } else { after };
        self.generation += 1;
        Some((start, freed))
    }

    /// Drops the entries up to a log id; returns the bytes freed, or None if they are gone already.
    pub(super) fn purge(&mut self, upto: LogId) -> Option<usize> {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return None;
        }
        let start = upto.index + 1;
        let drop = usize::try_from(start.saturating_sub(self.cache_start)).unwrap_or(usize::MAX).min(self.cache.len());
        let freed = self.cache.drain(..drop).map(|entry| cost(&entry)).sum();
        self.cache_start = self.cache_start.max(start);
        self.size.purge(upto.index);
        if self.next() <= start {
            self.last = Some(upto);
        }
        (self.purged, self.first) = (Some(upto), start.max(self.first));
        Some(freed)
    }

    /// Where the entries of a half-open range are: at most `bytes` of them, and at least one if there is any.
    pub(super) fn plan(&self, start: u64, end: u64, bytes: usize) -> Plan {
        let (start, end) = (start.max(self.first), end.min(self.next()));
        let disk_end = self.cache_start.min(end).max(start);
        let mut cached = Vec::new();
        // A range that begins on disk is continued by the caller's next read if its bytes are limited.
        if start == disk_end || bytes == usize::MAX {
            let skip = usize::try_from(disk_end.saturating_sub(self.cache_start)).unwrap_or(usize::MAX);
            let take = usize::try_from(end.saturating_sub(disk_end)).unwrap_or(usize::MAX);
            let mut taken = 0_usize;
            for entry in self.cache.iter().skip(skip).take(take) {
                taken = taken.saturating_add(codec::entry_bytes(entry));
                if taken > bytes && !cached.is_empty() {
                    break;
                }
                cached.push(entry.clone());
            }
        }
        Plan { disk: (start, disk_end), cached, generation: self.generation, first: self.first }
    }

    /// Whether what was read from disk for a plan is still what the log holds there.
    pub(super) fn confirms(&self, plan: &Plan) -> bool {
        self.generation == plan.generation && self.first == plan.first
    }
}

impl ShardLog {
    /// A log as it was found on disk, or an empty one.
    pub(super) fn new(shard: ShardId, mut state: State, places: Arc<Mutex<Places>>) -> Self {
        state.cache_start = state.next();
        let durable_end = AtomicU64::new(state.next());
        let (destroyed, changed) = (AtomicBool::new(false), Notify::new());
        Self { shard, state: Mutex::new(state), places, durable_end, destroyed, changed }
    }

    /// Tells the simulation what was found on disk.
    #[cfg(kv_sim)]
    pub(super) fn tell(&self) {
        let state = self.state.lock();
        let State { owner: replica, vote, purged, last, .. } = *state;
        crate::simulated::saw(self.shard, crate::simulated::Event::Found { replica, vote, purged, last });
    }

    /// For a change; queue its write before the guard is dropped.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// For a change by a handle, which may have outlived the log.
    pub(super) fn lock_live(&self) -> Result<MutexGuard<'_, State>, LogError> {
        let state = self.state.lock();
        if self.destroyed.load(Ordering::Acquire) { Err(LogError::NoLog(self.shard)) } else { Ok(state) }
    }

    /// Index below which the log is durable.
    pub(super) fn durable_end(&self) -> u64 {
        self.durable_end.load(Ordering::Acquire)
    }

    /// Call with the state locked, after a truncation.
    pub(super) fn lower_durable_end(&self, end: u64) {
        self.durable_end.fetch_min(end, Ordering::AcqRel);
    }

    /// A synced write covered the log below `end`, as of a generation.
    pub(super) fn completed(&self, generation: u64, end: u64) {
        let state = self.state.lock();
        if state.generation == generation {
            self.durable_end.fetch_max(end, Ordering::AcqRel);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Drops durable entries through an index from memory; returns the bytes freed.
    pub(super) fn evict(&self, through: u64) -> usize {
        let mut state = self.state.lock();
        let end = self.durable_end().min(through.saturating_add(1));
        let mut freed = 0;
        while state.cache_start < end {
            let Some(entry) = state.cache.pop_front() else { break };
            freed += cost(&entry);
            state.cache_start += 1;
        }
        freed
    }

    /// Refuses all handles from now on and forgets the entries; returns the bytes freed.
    pub(super) fn destroy(&self) -> usize {
        let mut state = self.state.lock();
        self.destroyed.store(true, Ordering::Release);
        let freed = state.cache.iter().map(cost).sum();
        *state = State { generation: state.generation + 1, ..State::default() };
        self.durable_end.store(0, Ordering::Release);
        freed
    }

    /// Whether [`ShardLog::destroy`] was called.
    pub(super) fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::Acquire)
    }

    /// Wakes whoever waits for durability, after any change of it or a failure.
    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Completes at the next [`ShardLog::wake`] or completion after the future was first polled or enabled.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}
