//! One replica's log as openraft sees it.
//!
//! Appends return once the entries are readable from memory; everything else that must be durable waits for the
//! writer's fsync. Reads come from memory; entries that left it are read from disk on a blocking thread.
//!
//! Invariants: every change is made in memory and queued under one lock, so the disk sees the order openraft called.
//!
//! Not here: batching (queue, writer); what the disk holds (disk, record).

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::stream::{self, Stream};
use kv_proto::ids::ShardId;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::engine::{LogEngine, LogWait, Shared};
use super::error::LogError;
use super::queue::{Action, Change};
use super::read::{self, Stretch};
use super::shard::{Plan, ShardLog, State};
use crate::codec;
use crate::failpoint;
use crate::types::{Entry, LogId, ShardRaft, Vote};

/// Most bytes of entries one read for replication returns, but at least one entry: what one message to a follower
/// carries, a quarter of the largest.
pub const READ_BYTES_MAX: usize = kv_proto::limits::MESSAGE_BYTES_MAX / 4;

/// A replica's log. Clones are handles of the same log; only one of them may write.
#[derive(Clone)]
pub struct LogStore {
    engine: LogEngine,
    log: Arc<ShardLog>,
}

/// Reads a replica's log beside its writer.
#[derive(Clone)]
pub struct LogReader(LogStore);

impl LogStore {
    pub(super) fn new(engine: LogEngine, log: Arc<ShardLog>) -> Self {
        Self { engine, log }
    }

    /// Whose log this is.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.log.shard
    }

    /// To wait until the log is durable.
    pub fn log_wait(&self) -> Result<LogWait, LogError> {
        self.engine.log_wait(self.log.shard)
    }

    /// The last entry's log id and the last purged one, from memory.
    #[must_use]
    pub fn bounds(&self) -> LogState<ShardRaft> {
        let state = self.log.lock();
        LogState { last_purged_log_id: state.purged, last_log_id: state.last }
    }

    /// The durable vote, from memory.
    #[must_use]
    pub fn vote(&self) -> Option<Vote> {
        self.log.lock().vote
    }

    fn shared(&self) -> &Arc<Shared> {
        self.engine.shared()
    }

    /// Changes the log and queues the write of it under one lock; None changes nothing. Waits for space for so many bytes.
    async fn change(
        &self,
        bytes: usize,
        make: impl FnOnce(&mut State) -> Result<Option<Action>, LogError>,
    ) -> Result<(), LogError> {
        let shared = self.shared();
        shared.check()?;
        let space = shared.queue.reserve(bytes).await?;
        let _due = {
            let mut state = self.log.lock_live()?;
            let Some(action) = make(&mut state)? else { return Ok(()) };
            shared.queue.push(Change::new(&self.log, action, space.take()))?
        };
        Ok(())
    }

    async fn append_entries(&self, entries: Vec<Entry>, callback: IOFlushed<ShardRaft>) -> Result<(), LogError> {
        let shared = self.shared();
        #[cfg(test)]
        shared.fault.before_append();
        let bytes = entries.iter().map(codec::entry_bytes).sum();
        let append = |state: &mut State| {
            shared.cached.add(state.append(self.log.shard, &entries)?);
            let generation = state.generation();
            Ok(Some(Action::Append { entries, generation, callback }))
        };
        self.change(bytes, append).await
    }

    async fn truncate(&self, after: Option<LogId>) -> Result<(), LogError> {
        let truncate = |state: &mut State| {
            let Some((start, freed)) = state.truncate_after(after) else { return Ok(None) };
            self.shared().cached.remove(freed);
            self.log.lower_durable_end(start);
            Ok(Some(Action::Truncate { start, tail: state.last, generation: state.generation() }))
        };
        self.change(0, truncate).await
    }

    async fn purge_upto(&self, upto: LogId) -> Result<(), LogError> {
        let purge = |state: &mut State| {
            let Some(freed) = state.purge(upto) else { return Ok(None) };
            self.shared().cached.remove(freed);
            Ok(Some(Action::Purge { upto, generation: state.generation() }))
        };
        self.change(0, purge).await
    }

    async fn persist_vote(&self, vote: Vote) -> Result<(), LogError> {
        let shared = self.shared();
        let saved = shared.answered(&self.log, |done, space| {
            let _state = self.log.lock_live()?;
            shared.queue.push(Change::new(&self.log, Action::SaveVote { vote, done }, space.take()))
        });
        saved.await?;
        failpoint!("log.voted");
        // Readers see a vote only once it is durable: they send nothing that a crash could make another term's.
        self.log.lock_live()?.vote = Some(vote);
        Ok(())
    }

    async fn note_committed(&self, committed: Option<LogId>) -> Result<(), LogError> {
        let note = |state: &mut State| {
            #[cfg(kv_sim)]
            committed
                .into_iter()
                .for_each(|id| crate::simulated::saw(self.log.shard, crate::simulated::Event::Committed(id)));
            state.committed = committed;
            Ok(Some(Action::SaveCommitted(committed)))
        };
        self.change(0, note).await
    }

    /// Entries of a half-open range: those the log holds, at most `bytes` of them but at least one.
    async fn read(&self, start: u64, end: u64, bytes: usize) -> Result<Vec<Entry>, LogError> {
        loop {
            let plan = self.log.lock_live()?.plan(start, end, bytes);
            if plan.disk.0 >= plan.disk.1 {
                return Ok(plan.cached);
            }
            let entries = self.read_disk(plan.disk, bytes).await;
            // A truncation or a purge meanwhile: what was read may be of two logs.
            if !self.log.lock_live()?.confirms(&plan) {
                continue;
            }
            return joined(self.log.shard, entries?, plan);
        }
    }

    async fn read_disk(&self, (start, end): (u64, u64), bytes: usize) -> Result<Vec<Entry>, LogError> {
        let shard = self.log.shard;
        let stretches = self.shared().files.stretches(shard, &self.log.places, &(start..end), bytes as u64)?;
        self.shared().metrics.disk_reads.inc();
        let read = crate::blocking::spawn_blocking(move || scan(shard, &stretches, (start, end), bytes)).await;
        read.unwrap_or_else(|error| Err(read_error(shard, &error)))
    }
}

fn read_error(shard: ShardId, reason: &dyn std::fmt::Display) -> LogError {
    LogError::Read { shard, reason: reason.to_string() }
}

/// Entries in a row, at least one.
fn scan(shard: ShardId, stretches: &[Stretch], (start, end): (u64, u64), bytes: usize) -> Result<Vec<Entry>, LogError> {
    let entries = read::entries(stretches, &(start..end), bytes)?;
    if entries.is_empty() { Err(read_error(shard, &format!("entry {start} is missing"))) } else { Ok(entries) }
}

/// What was read from disk, continued by what was in memory if the disk part is complete.
fn joined(shard: ShardId, mut entries: Vec<Entry>, plan: Plan) -> Result<Vec<Entry>, LogError> {
    let (start, end) = plan.disk;
    let complete = entries.len() as u64 == end - start;
    match (complete, plan.cached.is_empty()) {
        (true, _) => entries.extend(plan.cached),
        (false, true) => {}
        (false, false) => return Err(read_error(shard, &format!("entries {start} to {end} end too early"))),
    }
    Ok(entries)
}

/// A range as openraft gives it, half-open.
fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<ShardRaft> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = half_open(&range);
        Ok(self.0.read(start, end, usize::MAX).await?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.log.lock_live()?.vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.0.read(start, end, READ_BYTES_MAX).await?)
    }

    /// In chunks, so that applying a long log never holds all of it in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = half_open(&range);
        let begin = (self.0.clone(), start, VecDeque::new());
        Box::pin(stream::try_unfold(begin, move |(log, next, mut chunk)| async move {
            if chunk.is_empty() && next < end {
                chunk = VecDeque::from(log.read(next, end, READ_BYTES_MAX).await?);
            }
            let entry: Option<Entry> = chunk.pop_front();
            Ok(entry.map(|entry| (entry.clone(), (log, entry.log_id.index + 1, chunk))))
        }))
    }
}

impl RaftLogStorage<ShardRaft> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<ShardRaft>, io::Error> {
        Ok(self.bounds())
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(self.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        Ok(self.persist_vote(*vote).await?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        Ok(self.note_committed(committed).await?)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.lock_live()?.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<ShardRaft>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        Ok(self.append_entries(entries, callback).await?)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        Ok(self.truncate(last_log_id).await?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        Ok(self.purge_upto(log_id).await?)
    }
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LogReader").field(&self.0.log.shard).finish()
    }
}
