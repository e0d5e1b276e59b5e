//! Applies a chunk of committed entries: decide, then all changes at once.
//!
//! Invariants: data, sessions, membership and the applied log id of a chunk change together; a command's commit timestamp
//! is the later of its leader's stamp and the timestamp after the last commit, so log order is commit order; where
//! chunks are cut changes nothing.
//!
//! Not here: waiting for the log (state machine); what a command does (decide); when RocksDB gets it (data engine,
//! unwritten).

use std::sync::Arc;

use kv_proto::ids::{ExtentId, ShardId};
use kv_proto::timestamp::Timestamp;
use openraft::EntryPayload;
use rocksdb::ReadOptions;

use super::decide::{Decision, Edit, View as _, decide};
use super::overlay::Overlay;
use super::session::Sessions;
use crate::command::{Command, Operation, Order, Replies};
use crate::data_engine::{Changed, DataEngine, DataError, Holding, LatestRow, Progress, Table, keys, rows};
use crate::types::{Entry, LogId, StoredMembership};

/// A replica's state as far as applying changes it.
pub(crate) struct Core {
    engine: DataEngine,
    holding: Arc<Holding>,
    sessions: Sessions,
}

/// A chunk whose commands are decoded.
pub(crate) struct Chunk<'a> {
    entries: Vec<(LogId, Content<'a>)>,
    /// Whether any command must read before it writes.
    pub(crate) reads: bool,
    /// How many operations its commands hold.
    operations: usize,
}

enum Content<'a> {
    Nothing,
    Commands(Timestamp, Vec<Command<'a>>),
    Order(Timestamp, Order),
    Membership(StoredMembership),
}

impl<'a> Chunk<'a> {
    /// Entries must come in log order. An entry that does not decode was never proposed: it is damage.
    pub(crate) fn decode(shard: ShardId, entries: impl Iterator<Item = &'a Entry>) -> Result<Self, DataError> {
        let mut chunk = Self { entries: Vec::new(), reads: false, operations: 0 };
        for entry in entries {
            let content = match &entry.payload {
                EntryPayload::Blank => Content::Nothing,
                EntryPayload::Membership(membership) => {
                    Content::Membership(StoredMembership::new(Some(entry.log_id), membership.clone()))
                }
                EntryPayload::Normal(batch) if batch.is_order() => {
                    let damaged = |error| DataError::Failed(format!("shard {shard}, entry {}: {error}", entry.log_id));
                    let (stamp, order) = batch.decode_order().map_err(damaged)?;
                    Content::Order(stamp, order)
                }
                EntryPayload::Normal(batch) => {
                    let damaged = |error| DataError::Failed(format!("shard {shard}, entry {}: {error}", entry.log_id));
                    let (stamp, commands) = batch.decode().map_err(damaged)?;
                    chunk.operations += commands.iter().map(|command| command.operations.len()).sum::<usize>();
                    chunk.reads |= commands.iter().any(reads);
                    Content::Commands(stamp, commands)
                }
            };
            chunk.entries.push((entry.log_id, content));
        }
        Ok(chunk)
    }
}

fn reads(command: &Command<'_>) -> bool {
    let deletes = |operation: &Operation<'_>| matches!(operation, Operation::Delete { .. });
    !command.conditions.is_empty() || command.operations.iter().any(deletes)
}

impl Core {
    /// Loads the sessions. Blocking.
    pub(crate) fn load(engine: DataEngine, holding: Arc<Holding>) -> Result<Self, DataError> {
        // Of a replica that was stopped in this process: they are read from RocksDB.
        holding.write_out(engine.store())?;
        let mut core = Self { engine, holding, sessions: Sessions::default() };
        core.reload_sessions()?;
        Ok(core)
    }

    pub(crate) fn engine(&self) -> &DataEngine {
        &self.engine
    }

    pub(crate) fn holding(&self) -> &Arc<Holding> {
        &self.holding
    }

    #[cfg(test)]
    pub(crate) fn session_clock(&self) -> crate::data_engine::session_clock::SessionClock {
        self.sessions.clock()
    }

    /// Reads the sessions of the extent the replica uses now.
    pub(crate) fn reload_sessions(&mut self) -> Result<(), DataError> {
        let store = self.engine.store();
        let (start, end) = keys::meta_rows(keys::META_SESSION, self.holding.progress().extent.id().0);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end);
        let mut found = store.db().raw_iterator_cf_opt(store.table(Table::Meta), options);
        found.seek(start);
        let mut sessions = Sessions::new(self.holding.progress().session_clock);
        while let (Some(key), Some(row)) = (found.key(), found.value()) {
            let client = keys::decode_session(key).ok_or_else(|| rows::damaged("session's key"))?;
            sessions.load(client, row)?;
            found.next();
        }
        store.checked(found.status())?;
        self.sessions = sessions;
        Ok(())
    }

    /// Before a chunk is applied while much is not written. Blocking.
    pub(crate) fn make_room(&self) -> Result<(), DataError> {
        self.holding.write_out(self.engine.store())
    }

    /// Applies a chunk as a whole and returns the replies of each entry. May block on the disk if commands read.
    pub(crate) fn apply(&mut self, chunk: &Chunk<'_>) -> Result<Vec<Replies>, DataError> {
        let holding = Arc::clone(&self.holding);
        let store = Arc::clone(self.engine.store());
        store.is_whole()?;
        let writer = holding.writer();
        if writer.destroyed {
            return Err(DataError::NotHeld(holding.shard));
        }
        let mut progress = Progress::clone(&holding.progress());
        let extent = progress.extent.id();
        let reads = chunk.reads || holding.keeps_history();
        let mut overlay = Overlay::new(&store, &holding, extent, &mut self.sessions, reads);
        let mut changed = Changed::default();
        changed.latest.reserve(chunk.operations);
        let mut replies = Vec::with_capacity(chunk.entries.len());
        for (log_id, content) in &chunk.entries {
            assert!(Some(*log_id) > progress.applied, "entries are applied in log order");
            progress.applied = Some(*log_id);
            let mut answers = Vec::new();
            match content {
                Content::Nothing => {}
                Content::Membership(membership) => {
                    progress.membership = Arc::new(membership.clone());
                    changed.membership = true;
                }
                Content::Order(stamp, order) => {
                    overlay.sessions_mut().advance(*stamp);
                    changed.quarantined = changed.quarantined.or(order.condemns(holding.replica));
                }
                Content::Commands(stamp, commands) => {
                    overlay.sessions_mut().advance(*stamp);
                    answers.reserve_exact(commands.len());
                    for command in commands {
                        let commit = (*stamp).max(progress.last_commit.next());
                        let Decision { reply, edits } = decide(&overlay, commit, command)?;
                        put(&mut changed, extent, commit, edits, &mut overlay);
                        progress.last_commit = commit;
                        progress.safepoint = holding.safepoint_at(commit, progress.safepoint);
                        answers.push(reply);
                    }
                }
            }
            replies.push(Replies(answers));
        }
        changed.sessions = self.sessions.take_changed();
        progress.session_clock = self.sessions.clock();
        let quarantined = changed.quarantined;
        let progress = Arc::new(progress);
        holding.raise_floor(progress.safepoint);
        holding.unwritten.add(&store, changed, Arc::clone(&progress));
        holding.publish(progress);
        if let Some(checked) = quarantined {
            holding.quarantine(checked);
        }
        drop(writer);
        Ok(replies)
    }
}

/// Adds the edits of one command, as rows, to what the chunk changes.
fn put<'a>(
    changed: &mut Changed,
    extent: ExtentId,
    commit: Timestamp,
    edits: Vec<Edit<'a>>,
    overlay: &mut Overlay<'a, '_>,
) {
    let mut keys_changed = Vec::new();
    let records = overlay.keeps_history();
    let mut note = |key: &[u8]| {
        if records {
            rows::write_changed_key(&mut keys_changed, key);
        }
    };
    for edit in edits {
        match edit {
            Edit::Keep { key, start, value } => {
                let row = rows::version(start, &value);
                changed.once.push((Table::History, keys::history(extent, key, commit), row));
            }
            Edit::Put { key, value } => {
                changed.latest.push(LatestRow::new(extent, key, Some((commit, value))));
                overlay.record(key, Some((commit, value)));
                note(key);
            }
            Edit::Delete { key } => {
                changed.latest.push(LatestRow::new(extent, key, None));
                overlay.record(key, None);
                note(key);
            }
            Edit::Settle { tag, outcome } => overlay.sessions_mut().settle(&tag, outcome),
        }
    }
    if !keys_changed.is_empty() {
        changed.once.push((Table::Changes, keys::change(extent, commit), keys_changed));
    }
}
