//! Applies a chunk of committed entries: decide, then one batch.
//!
//! Invariants: data, sessions, membership and the applied log id of a chunk are one write; a command's commit timestamp
//! is the later of its leader's stamp and the timestamp after the last commit, so log order is commit order; where
//! chunks are cut changes nothing.
//!
//! Not here: waiting for the log (state machine); what a command does (decide).

use std::sync::Arc;

use kv_proto::ids::ShardId;
use kv_proto::timestamp::Timestamp;
use openraft::EntryPayload;
use rocksdb::{ColumnFamily, ReadOptions, WriteBatch};

use super::decide::{Decision, Edit, decide};
use super::overlay::Overlay;
use super::session::Sessions;
use crate::command::{Command, Operation, Order, Replies};
use crate::data_engine::{DataEngine, DataError, Holding, Progress, Table, Writing, keys, rows};
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
    /// How many commands it holds.
    pub(crate) commands: usize,
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
        let mut chunk = Self { entries: Vec::new(), reads: false, commands: 0 };
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
                    chunk.commands += commands.len();
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

    /// Applies a chunk with one write and returns the replies of each entry. May block on the disk.
    pub(crate) fn apply(&mut self, chunk: &Chunk<'_>) -> Result<Vec<Replies>, DataError> {
        let holding = Arc::clone(&self.holding);
        let writer = holding.writer();
        if writer.destroyed {
            return Err(DataError::NotHeld(holding.shard));
        }
        let store = Arc::clone(self.engine.store());
        let mut progress = Progress::clone(&holding.progress());
        let mut batch = WriteBatch::default();
        let extent = progress.extent.id();
        let reads = chunk.reads || holding.keeps_history();
        let mut overlay = Overlay::new(&store, extent, &mut self.sessions, holding.keeps_history(), reads);
        // Until all of it can be read: what is read meanwhile is not remembered.
        let writing = store.rows().begin_write(&holding.gate, extent);
        let mut writes = Writes::new(&store, &writing, extent, &mut batch);
        let mut replies = Vec::with_capacity(chunk.entries.len());
        let mut membership_changed = false;
        let mut quarantined = None;
        for (log_id, content) in &chunk.entries {
            assert!(Some(*log_id) > progress.applied, "entries are applied in log order");
            progress.applied = Some(*log_id);
            let mut answers = Vec::new();
            match content {
                Content::Nothing => {}
                Content::Membership(membership) => {
                    progress.membership = Arc::new(membership.clone());
                    membership_changed = true;
                }
                Content::Order(stamp, order) => {
                    overlay.sessions_mut().advance(*stamp);
                    quarantined = quarantined.or(order.condemns(holding.replica));
                }
                Content::Commands(stamp, commands) => {
                    overlay.sessions_mut().advance(*stamp);
                    answers.reserve_exact(commands.len());
                    for command in commands {
                        let commit = (*stamp).max(progress.last_commit.next());
                        let Decision { reply, edits } = decide(&overlay, commit, command)?;
                        writes.put(commit, edits, &mut overlay);
                        progress.last_commit = commit;
                        progress.safepoint = holding.safepoint_at(commit, progress.safepoint);
                        answers.push(reply);
                    }
                }
            }
            replies.push(Replies(answers));
        }
        progress.session_clock = self.sessions.clock();
        self.put_sessions(&progress, &mut batch);
        if membership_changed {
            holding.put_membership(&store, &progress, &mut batch);
        }
        if let Some(checked) = quarantined {
            holding.put_quarantine(&store, checked, &mut batch);
        }
        holding.put_applied(&store, &progress, &mut batch);
        holding.raise_floor(progress.safepoint);
        store.write(batch)?;
        drop(writing);
        holding.publish(progress);
        if let Some(checked) = quarantined {
            holding.quarantine(checked);
        }
        drop(writer);
        Ok(replies)
    }

    fn put_sessions(&mut self, progress: &Progress, batch: &mut WriteBatch) {
        let meta = self.engine.store().table(Table::Meta);
        for (client, row) in self.sessions.take_changed() {
            let key = keys::meta_session(progress.extent.id(), client);
            match row {
                Some(row) => batch.put_cf(meta, key, row),
                None => batch.delete_cf(meta, key),
            }
        }
    }
}

/// Turns edits into rows.
struct Writes<'b> {
    batch: &'b mut WriteBatch,
    writing: &'b Writing<'b>,
    extent: kv_proto::ids::ExtentId,
    latest: &'b ColumnFamily,
    history: &'b ColumnFamily,
    changes: &'b ColumnFamily,
    /// Used again for each row.
    key: Vec<u8>,
    row: Vec<u8>,
    changed: Vec<u8>,
}

impl<'b> Writes<'b> {
    fn new(
        store: &'b crate::data_engine::Store,
        writing: &'b Writing<'b>,
        extent: kv_proto::ids::ExtentId,
        batch: &'b mut WriteBatch,
    ) -> Self {
        Self {
            batch,
            writing,
            extent,
            latest: store.table(Table::Latest),
            history: store.table(Table::History),
            changes: store.table(Table::Changes),
            key: Vec::new(),
            row: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// The edits of one command.
    fn put<'a>(&mut self, commit: Timestamp, edits: Vec<Edit<'a>>, overlay: &mut Overlay<'a, '_>) {
        let records = super::decide::View::keeps_history(overlay);
        self.changed.clear();
        for edit in edits {
            match edit {
                Edit::Keep { key, start, value } => {
                    rows::write_version(&mut self.row, start, &value);
                    self.batch.put_cf(self.history, keys::history(self.extent, key, commit), &self.row);
                }
                Edit::Put { key, value } => {
                    self.writing.forget(key);
                    keys::write_latest(&mut self.key, self.extent, key);
                    rows::write_version(&mut self.row, commit, value);
                    self.batch.put_cf(self.latest, &self.key, &self.row);
                    overlay.record(key, Some((commit, value)));
                    self.note(records, key);
                }
                Edit::Delete { key } => {
                    self.writing.forget(key);
                    keys::write_latest(&mut self.key, self.extent, key);
                    self.batch.delete_cf(self.latest, &self.key);
                    overlay.record(key, None);
                    self.note(records, key);
                }
                Edit::Settle { tag, outcome } => overlay.sessions_mut().settle(&tag, outcome),
            }
        }
        if !self.changed.is_empty() {
            self.batch.put_cf(self.changes, keys::change(self.extent, commit), &self.changed);
        }
    }

    fn note(&mut self, records: bool, key: &[u8]) {
        if records {
            rows::write_changed_key(&mut self.changed, key);
        }
    }
}
