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
use rocksdb::DBPinnableSlice;

use super::decide::{Version, View};
use super::session::Sessions;
use crate::data_engine::rows::read_version;
use crate::data_engine::{DataError, Store, Table, keys};

/// What earlier commands of the chunk did to keys.
type Written<'a> = BTreeMap<&'a [u8], Option<(Timestamp, &'a [u8])>>;

/// See the module.
pub(crate) struct Overlay<'a, 's> {
    store: &'s Store,
    extent: ExtentId,
    sessions: &'s mut Sessions,
    keeps_history: bool,
    /// None if no command of the chunk reads.
    written: Option<Written<'a>>,
}

impl<'a, 's> Overlay<'a, 's> {
    pub(crate) fn new(
        store: &'s Store,
        extent: ExtentId,
        sessions: &'s mut Sessions,
        keeps_history: bool,
        reads: bool,
    ) -> Self {
        Self { store, extent, sessions, keeps_history, written: reads.then(Written::new) }
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

    fn stored(&self, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, DataError> {
        let key = keys::latest(self.extent, key);
        self.store.checked(self.store.db().get_pinned_cf(self.store.table(Table::Latest), key))
    }
}

impl View for Overlay<'_, '_> {
    type Error = DataError;

    fn written_at(&self, key: &[u8]) -> Result<Option<Timestamp>, DataError> {
        match self.earlier(key) {
            Some(version) => Ok(version.map(|(commit, _)| commit)),
            None => self.stored(key)?.map(|row| Ok(read_version(&row)?.0)).transpose(),
        }
    }

    fn version(&self, key: &[u8]) -> Result<Option<Version<'_>>, DataError> {
        if let Some(version) = self.earlier(key) {
            return Ok(version.map(|(commit, value)| Version { commit, value: Cow::Borrowed(value) }));
        }
        let Some(row) = self.stored(key)? else { return Ok(None) };
        let (commit, value) = read_version(&row)?;
        Ok(Some(Version { commit, value: Cow::Owned(value.to_vec()) }))
    }

    fn sessions(&self) -> &Sessions {
        self.sessions
    }

    fn keeps_history(&self) -> bool {
        self.keeps_history
    }
}
