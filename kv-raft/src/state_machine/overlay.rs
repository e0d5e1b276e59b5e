//! The state as a command in the middle of a chunk finds it: what is stored, and over it what earlier commands of the
//! chunk did.
//!
//! Invariants: chunks that never read keep no overlay.
//!
//! Not here: reads of clients (data engine, read).

use std::borrow::Cow;
use std::collections::BTreeMap;

use kv_proto::ids::ExtentId;
use kv_proto::timestamp::Timestamp;

use super::decide::{Version, View};
use super::session::Sessions;
use crate::data_engine::rows::read_version;
use crate::data_engine::{DataError, Holding, Store, Table, keys};

/// What earlier commands of the chunk did to keys.
type Written<'a> = BTreeMap<&'a [u8], Option<(Timestamp, &'a [u8])>>;

/// See the module.
pub(crate) struct Overlay<'a, 's> {
    store: &'s Store,
    holding: &'s Holding,
    extent: ExtentId,
    sessions: &'s mut Sessions,
    /// None if no command of the chunk reads.
    written: Option<Written<'a>>,
}

impl<'a, 's> Overlay<'a, 's> {
    pub(crate) fn new(
        store: &'s Store,
        holding: &'s Holding,
        extent: ExtentId,
        sessions: &'s mut Sessions,
        reads: bool,
    ) -> Self {
        Self { store, holding, extent, sessions, written: reads.then(Written::new) }
    }

    /// Later commands find this under the key.
    pub(crate) fn record(&mut self, key: &'a [u8], version: Option<(Timestamp, &'a [u8])>) {
        if let Some(written) = &mut self.written {
            written.insert(key, version);
        }
    }

    pub(crate) fn sessions_mut(&mut self) -> &mut Sessions {
        self.sessions
    }

    fn earlier(&self, key: &[u8]) -> Option<Option<(Timestamp, &'a [u8])>> {
        self.written.as_ref().and_then(|written| written.get(key)).copied()
    }

    /// Reads the row that earlier chunks left.
    fn stored<T>(&self, key: &[u8], read: impl FnOnce(&[u8]) -> Result<T, DataError>) -> Result<Option<T>, DataError> {
        let key = keys::latest(self.extent, key);
        let unwritten = self.holding.unwritten.read().get(&key);
        if let Some(row) = unwritten {
            return row.map(|row| read(&row)).transpose();
        }
        let row = self.store.db().get_pinned_cf(self.store.table(Table::Latest), key);
        self.store.checked(row)?.map(|row| read(&row)).transpose()
    }
}

impl View for Overlay<'_, '_> {
    type Error = DataError;

    fn written_at(&self, key: &[u8]) -> Result<Option<Timestamp>, DataError> {
        match self.earlier(key) {
            Some(version) => Ok(version.map(|(commit, _)| commit)),
            None => self.stored(key, |row| Ok(read_version(row)?.0)),
        }
    }

    fn version(&self, key: &[u8]) -> Result<Option<Version<'_>>, DataError> {
        if let Some(version) = self.earlier(key) {
            return Ok(version.map(|(commit, value)| Version { commit, value: Cow::Borrowed(value) }));
        }
        self.stored(key, |row| {
            let (commit, value) = read_version(row)?;
            Ok(Version { commit, value: Cow::Owned(value.to_vec()) })
        })
    }

    fn sessions(&self) -> &Sessions {
        self.sessions
    }

    fn keeps_history(&self) -> bool {
        self.holding.keeps_history()
    }
}
