//! Extents: allotted once, deleted when nobody reads them any more.
//!
//! Invariants: an id is given out once per folder, since ids are reserved durably before they are given out; an
//! extent's data is deleted only after the last reader let go of it and after the record that named it is durably
//! gone.
//!
//! Not here: which replica uses which extent (holding).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kv_proto::ids::ExtentId;
use parking_lot::Mutex;
use rocksdb::{ReadOptions, WriteBatch};

use super::error::DataError;
use super::keys;
use super::options::Table;
use super::rows::damaged;
use super::store::Store;

/// Ids reserved at once: one flush per this many replicas created or snapshots received.
const RESERVED_AT_ONCE: u64 = 64;

type Doomed = Arc<Mutex<Vec<ExtentId>>>;

/// An extent in use. The last one to drop a doomed extent leaves it to [`Extents::collect`].
#[derive(Debug)]
pub(crate) struct Extent {
    id: ExtentId,
    doomed: AtomicBool,
    garbage: Doomed,
}

impl Extent {
    pub(crate) fn id(&self) -> ExtentId {
        self.id
    }

    /// Its data goes once nobody holds it.
    pub(crate) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// A durable record names it now.
    pub(crate) fn keep(&self) {
        self.doomed.store(false, Ordering::Release);
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire) {
            self.garbage.lock().push(self.id);
        }
    }
}

/// Allots and deletes extents.
#[derive(Debug)]
pub(crate) struct Extents {
    /// (next id, first id that is not reserved)
    ids: Mutex<(u64, u64)>,
    garbage: Doomed,
}

impl Extents {
    pub(crate) fn open(store: &Store) -> Result<Self, DataError> {
        let reserved = match store.checked(store.db().get_cf(store.table(Table::Meta), keys::META_EXTENTS))? {
            Some(bytes) => u64::from_be_bytes(bytes.as_slice().try_into().map_err(|_| damaged("extent counter"))?),
            None => 1,
        };
        Ok(Self { ids: Mutex::new((reserved, reserved)), garbage: Arc::default() })
    }

    /// A new extent, doomed until it is kept. Blocking now and then.
    pub(crate) fn allot(&self, store: &Store) -> Result<Arc<Extent>, DataError> {
        let mut ids = self.ids.lock();
        let (next, reserved) = *ids;
        if next == reserved {
            let reserved = reserved + RESERVED_AT_ONCE;
            let mut batch = WriteBatch::default();
            batch.put_cf(store.table(Table::Meta), keys::META_EXTENTS, reserved.to_be_bytes());
            store.write(batch)?;
            store.flush()?;
            *ids = (next, reserved);
        }
        ids.0 += 1;
        let extent = self.of_record(ExtentId(next));
        extent.doom();
        Ok(Arc::new(extent))
    }

    /// The extent a record names.
    pub(crate) fn of_record(&self, id: ExtentId) -> Extent {
        Extent { id, doomed: AtomicBool::new(false), garbage: Arc::clone(&self.garbage) }
    }

    /// Deletes what nobody holds any more. What a crash undoes of it, the next start does again.
    pub(crate) fn collect(&self, store: &Store) -> Result<(), DataError> {
        let garbage = std::mem::take(&mut *self.garbage.lock());
        garbage.into_iter().try_for_each(|extent| delete(store, extent))
    }
}

/// Deletes all extents that `named` does not name.
pub(crate) fn delete_unnamed(store: &Store, named: &[ExtentId]) -> Result<usize, DataError> {
    let mut unnamed = Vec::new();
    for table in [Table::Latest, Table::History, Table::Changes] {
        extents_in(store, table, keys::extent_of, keys::extent_start, &mut unnamed)?;
    }
    for letter in [keys::META_SESSION, keys::META_SUMMARY] {
        let extent =
            |key: &[u8]| keys::decode_meta(key).filter(|(found, _)| *found == letter).map(|(_, id)| ExtentId(id));
        extents_in(store, Table::Meta, extent, |extent| keys::meta_rows(letter, extent.0).0, &mut unnamed)?;
    }
    unnamed.sort_unstable();
    unnamed.dedup();
    unnamed.retain(|extent| !named.contains(extent));
    unnamed.iter().try_for_each(|extent| delete(store, *extent))?;
    Ok(unnamed.len())
}

/// Visits one key per extent.
fn extents_in(
    store: &Store,
    table: Table,
    extent_of: impl Fn(&[u8]) -> Option<ExtentId>,
    start_of: impl Fn(ExtentId) -> Vec<u8>,
    found: &mut Vec<ExtentId>,
) -> Result<(), DataError> {
    let mut rows = store.db().raw_iterator_cf_opt(store.table(table), ReadOptions::default());
    rows.seek(start_of(ExtentId(0)));
    while let Some(extent) = rows.key().and_then(&extent_of) {
        found.push(extent);
        rows.seek(start_of(ExtentId(extent.0.saturating_add(1))));
    }
    store.checked(rows.status())
}

fn delete(store: &Store, extent: ExtentId) -> Result<(), DataError> {
    let (start, end) = (keys::extent_start(extent), keys::extent_end(extent));
    let mut batch = WriteBatch::default();
    for table in [Table::Latest, Table::History, Table::Changes] {
        // Whole files go at once; what shares a file with other extents is covered by a range tombstone.
        store.checked(store.db().delete_file_in_range_cf(store.table(table), &start, &end))?;
        batch.delete_range_cf(store.table(table), &start, &end);
    }
    let (start, end) = keys::meta_rows(keys::META_SESSION, extent.0);
    batch.delete_range_cf(store.table(Table::Meta), &start, &end);
    batch.delete_cf(store.table(Table::Meta), keys::meta_summary(extent));
    store.write(batch)
}
