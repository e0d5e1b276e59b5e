//! What is applied and not yet written to RocksDB: rows gather here by key, and are written many at once, in key order.
//!
//! A memtable's place for a row among its neighbours' is found in a fraction of the time that a random one takes, and what is
//! overwritten meanwhile is never written. Nothing is lost by a crash but what the log holds: see the data engine.
//!
//! Each replica gathers for itself. What is being written stays readable here until RocksDB holds it, while
//! the next rows gather. A read looks here first; one that walks keys in order has what is gathered written out before.
//!
//! Invariants: what is written out together is all that was gathered, with the progress it belongs to, so RocksDB shows the
//! state of some applied entry; a row leaves when RocksDB holds it and what was remembered in its place is forgotten; all
//! replicas together gather no more than a budget and what one chunk of each adds.
//!
//! Not here: who decides what a row is (state machine, apply).

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use foldhash::quality::RandomState;
use kv_proto::ids::{ClientId, ExtentId};
use kv_proto::timestamp::Timestamp;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rocksdb::{ColumnFamily, WriteBatch};

use super::error::DataError;
use super::holding::{Holding, Progress};
use super::options::Table;
use super::store::Store;
use super::{keys, rows};

/// What a row takes beside its key and value: its place in the table, what allocations round up to, and its place in key order.
const ROW_OVERHEAD: usize = 144;

/// What the table of the latest state is to hold under a key. In one piece: rows are made on one thread and freed on another.
#[derive(Debug)]
pub(crate) struct LatestRow {
    /// The key, then the row, which is never empty; nothing behind the key if it is deleted.
    bytes: Bytes,
    key_bytes: usize,
}

impl LatestRow {
    /// None if the key is deleted.
    pub(crate) fn new(extent: ExtentId, key: &[u8], version: Option<(Timestamp, &[u8])>) -> Self {
        let row_bytes = version.map_or(0, |(_, value)| rows::version_bytes(value));
        let mut bytes = Vec::with_capacity(keys::latest_bytes(key) + row_bytes);
        keys::write_latest(&mut bytes, extent, key);
        let key_bytes = bytes.len();
        if let Some((commit, value)) = version {
            rows::write_version(&mut bytes, commit, value);
        }
        Self { bytes: bytes.into(), key_bytes }
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.key_bytes)
    }

    fn key(&self) -> &[u8] {
        self.parts().0
    }

    fn row(&self) -> Option<&[u8]> {
        Some(self.parts().1).filter(|row| !row.is_empty())
    }

    fn shared_row(&self) -> Option<Bytes> {
        self.row().map(|row| self.bytes.slice_ref(row))
    }
}

/// Rows are found by their keys.
impl Borrow<[u8]> for LatestRow {
    fn borrow(&self) -> &[u8] {
        self.key()
    }
}

impl PartialEq for LatestRow {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for LatestRow {}

impl Hash for LatestRow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// What a chunk of entries changes.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// The latest state, in the order of the changes.
    pub(crate) latest: Vec<LatestRow>,
    /// Rows that are never overwritten.
    pub(crate) once: Vec<(Table, Vec<u8>, Vec<u8>)>,
    /// None for those that are forgotten.
    pub(crate) sessions: Vec<(ClientId, Option<Vec<u8>>)>,
    /// Whether the membership did.
    pub(crate) membership: bool,
    /// The first check that found the content different.
    pub(crate) quarantined: Option<u64>,
}

/// What several chunks changed.
#[derive(Default)]
struct Gathered {
    latest: HashSet<LatestRow, RandomState>,
    once: Vec<(Table, Vec<u8>, Vec<u8>)>,
    sessions: BTreeMap<ClientId, Option<Vec<u8>>>,
    membership: bool,
    quarantined: Option<u64>,
    /// As of the last chunk; None if there was none.
    progress: Option<Arc<Progress>>,
    bytes: usize,
}

impl Gathered {
    fn add(&mut self, changed: Changed, progress: Arc<Progress>) {
        let Changed { latest, once, sessions, membership, quarantined } = changed;
        for row in latest {
            self.bytes += row.bytes.len();
            match self.latest.replace(row) {
                Some(before) => self.bytes -= before.bytes.len(),
                None => self.bytes += ROW_OVERHEAD,
            }
        }
        for (_, key, row) in &once {
            self.bytes += ROW_OVERHEAD + key.len() + row.len();
        }
        self.once.extend(once);
        for (client, row) in sessions {
            self.bytes += row.as_ref().map_or(0, Vec::len);
            match self.sessions.insert(client, row) {
                Some(before) => self.bytes -= before.map_or(0, |row| row.len()),
                None => self.bytes += ROW_OVERHEAD,
            }
        }
        self.membership |= membership;
        self.quarantined = self.quarantined.or(quarantined);
        self.progress = Some(progress);
    }

    /// All of it, sorted where it is much.
    fn batch(&self, store: &Store, holding: &Holding, progress: &Progress) -> WriteBatch {
        // A little more than it takes: growing would copy all of it.
        let mut batch = WriteBatch::with_capacity_bytes(self.bytes);
        let latest = store.table(Table::Latest);
        for row in in_key_order(&self.latest) {
            put_or_delete(&mut batch, latest, row.key(), row.row());
        }
        for (table, key, row) in &self.once {
            batch.put_cf(store.table(*table), key, row);
        }
        let meta = store.table(Table::Meta);
        for (client, row) in &self.sessions {
            let key = keys::meta_session(progress.extent.id(), *client);
            put_or_delete(&mut batch, meta, &key, row.as_deref());
        }
        if self.membership {
            holding.put_membership(store, progress, &mut batch);
        }
        if let Some(checked) = self.quarantined {
            holding.put_quarantine(store, checked, &mut batch);
        }
        holding.put_applied(store, progress, &mut batch);
        batch
    }
}

/// Rows in key order. Keys lie apart in memory, and most of them differ in the first bytes that are not common to all: those are
/// looked at once for each key, not once for each comparison.
fn in_key_order(rows: &HashSet<LatestRow, RandomState>) -> impl Iterator<Item = &LatestRow> {
    let any = rows.iter().next().map_or(&[][..], LatestRow::key);
    let equal = |row: &LatestRow| any.iter().zip(row.key()).take_while(|(one, other)| one == other).count();
    let common = rows.iter().map(equal).min().unwrap_or(0);
    let mut sorted: Vec<_> = rows.iter().map(|row| (head(row.key().get(common..).unwrap_or_default()), row)).collect();
    sorted.sort_unstable_by(|(head, row), (other_head, other)| {
        head.cmp(other_head).then_with(|| row.key().cmp(other.key()))
    });
    sorted.into_iter().map(|(_, row)| row)
}

/// The first bytes as a number that sorts as they do; those of shorter keys as if zeros followed.
fn head(key: &[u8]) -> u128 {
    let mut head = [0; 16];
    head.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    u128::from_be_bytes(head)
}

/// What a replica has not written. See the module.
#[derive(Default)]
pub(crate) struct Unwritten {
    rows: RwLock<Rows>,
    /// Held by whoever writes out.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Rows {
    gathering: Gathered,
    writing: Option<Arc<Gathered>>,
    /// How many gatherings began to be written.
    begun: u64,
    /// How many rows the last one had: the next one is laid out for as many, since growing looks at all keys again.
    usual: usize,
}

impl Rows {
    fn is_empty(&self) -> bool {
        self.gathering.progress.is_none() && self.writing.is_none()
    }
}

/// Nothing changes meanwhile: not for long.
pub(crate) struct Unchanging<'a>(RwLockReadGuard<'a, Rows>);

impl Unchanging<'_> {
    /// The row that the table of the latest state is to hold under its key, if RocksDB may not hold it yet; None in it if the
    /// key is deleted.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let Rows { gathering, writing, .. } = &*self.0;
        let row = gathering.latest.get(key).or_else(|| writing.as_ref()?.latest.get(key))?;
        Some(row.shared_row())
    }
}

impl Unwritten {
    pub(crate) fn read(&self) -> Unchanging<'_> {
        Unchanging(self.rows.read())
    }

    /// Takes what a chunk changed. For one caller at a time, in the order of the chunks.
    pub(crate) fn add(&self, store: &Store, changed: Changed, progress: Arc<Progress>) {
        let mut rows = self.rows.write();
        let before = rows.gathering.bytes;
        if rows.gathering.latest.is_empty() && !changed.latest.is_empty() {
            let usual = rows.usual;
            rows.gathering.latest.reserve(usual);
        }
        rows.gathering.add(changed, progress);
        store.unwritten().changed(before, rows.gathering.bytes);
    }

    /// What is to be written now. What could not be written stays: the engine has failed then.
    fn begin(&self) -> Option<Arc<Gathered>> {
        let mut rows = self.rows.write();
        if rows.writing.is_none() && rows.gathering.progress.is_some() {
            rows.usual = rows.gathering.latest.len();
            rows.writing = Some(Arc::new(std::mem::take(&mut rows.gathering)));
            rows.begun += 1;
        }
        rows.writing.clone()
    }
}

impl Holding {
    /// Writes what is gathered to RocksDB: when this returns, that holds all that was applied before. Blocking.
    pub(crate) fn write_out(&self, store: &Store) -> Result<(), DataError> {
        let begun = {
            let rows = self.unwritten.rows.read();
            if rows.is_empty() {
                let was_busy = rows.usual > 0;
                drop(rows);
                if was_busy {
                    self.unwritten.rows.write().usual = 0;
                }
                return Ok(());
            }
            rows.begun
        };
        let _turn = self.unwritten.turn.lock();
        // Whoever had the turn may have written what was gathered then.
        let written_meanwhile = {
            let rows = self.unwritten.rows.read();
            rows.begun > begun && rows.writing.is_none()
        };
        if written_meanwhile {
            return Ok(());
        }
        let Some(writing) = self.unwritten.begin() else { return Ok(()) };
        self.write(store, &writing)?;
        let written = self.unwritten.rows.write().writing.take();
        store.unwritten().changed(writing.bytes, 0);
        // Freed without the lock.
        drop((written, writing));
        Ok(())
    }

    fn write(&self, store: &Store, gathered: &Gathered) -> Result<(), DataError> {
        let Some(progress) = &gathered.progress else { return Ok(()) };
        let batch = gathered.batch(store, self, progress);
        // Until RocksDB holds all of it: what is read meanwhile is not remembered.
        let writing = store.rows().begin_write(&self.gate);
        gathered.latest.iter().for_each(|row| writing.forget(row.key()));
        store.write(batch)
    }
}

/// How much all replicas of a node have not written.
#[derive(Debug)]
pub(crate) struct UnwrittenBytes {
    bytes: AtomicUsize,
    /// A third of the budget: that much is written out at once, as much is the batch made of it, and the rest is for what is
    /// applied meanwhile.
    third: usize,
}

impl UnwrittenBytes {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), third: bytes_max / 3 }
    }

    fn changed(&self, before: usize, after: usize) {
        if after >= before {
            self.bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// How much that is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether it is time to write out for all.
    pub(crate) fn is_due(&self) -> bool {
        self.bytes() >= self.third
    }

    /// Whether whoever adds more writes out first.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes() >= self.third * 2
    }
}

fn put_or_delete(batch: &mut WriteBatch, table: &ColumnFamily, key: &[u8], row: Option<&[u8]>) {
    match row {
        Some(row) => batch.put_cf(table, key, row),
        None => batch.delete_cf(table, key),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_are_written_in_key_order_whatever_their_keys_have_in_common(
            common in proptest::collection::vec(any::<u8>(), 0..20),
            ends in proptest::collection::vec(proptest::collection::vec(0_u8..3, 0..40), 0..60),
        ) {
            let row = |end: Vec<u8>| LatestRow::new(ExtentId(1), &[common.as_slice(), &end].concat(), None);
            let rows: HashSet<_, RandomState> = ends.into_iter().map(row).collect();
            let mut expected: Vec<_> = rows.iter().map(LatestRow::key).collect();
            expected.sort_unstable();
            prop_assert_eq!(in_key_order(&rows).map(LatestRow::key).collect::<Vec<_>>(), expected);
        }
    }
}
