//! Rows of the latest state that were read lately: a point read that finds one here searches neither memtables nor
//! blocks.
//!
//! Whoever writes to RocksDB closes the replica's [`Gate`], forgets the rows it is about to change, writes, and opens the gate again.
//! What is read while a gate is closed is not remembered, nor what was read before it closed last. So a row that is found
//! is the one that a read of RocksDB would have found at that moment.
//!
//! Invariants: a row found here is RocksDB's, at every moment; all rows together weigh at most what the cache was given.
//!
//! Not here: blocks of files (options); what a read answers (read); what is applied and not written yet (unwritten).

use std::collections::hash_map::RandomState;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::command::Versioned;

/// What a row takes beside its key and value: its place in the cache, and that of one forgotten lately.
const ROW_OVERHEAD: u64 = 256;

/// A larger one is not remembered: copying it costs as much as finding it.
const ROW_BYTES_MAX: usize = 16 << 10;

/// Rows of usual size, by which the cache is laid out; it may hold more or fewer.
const ROW_BYTES_USUAL: u64 = ROW_OVERHEAD + 128;

/// Independently locked parts, the same on every machine; fewer only of a cache for a few hundred rows.
const PARTS_MIN: usize = 16;

/// More parts, so that none holds more than this: making room in one may look at all its rows under its lock.
const PART_BYTES_MAX: usize = 2 << 20;

/// A key as the table holds it.
type TableKey = Box<[u8]>;

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<TableKey, Versioned> for Weight {
    fn weight(&self, key: &TableKey, row: &Versioned) -> u64 {
        ROW_OVERHEAD + (key.len() + row.value.len()) as u64
    }
}

/// The rows of all replicas of a node.
pub(crate) struct RowCache(Cache<TableKey, Versioned, Weight, RandomState>);

/// Whether what is read of one replica may be remembered.
#[derive(Debug, Default)]
pub(crate) struct Gate(RwLock<Writes>);

#[derive(Debug, Default)]
struct Writes {
    /// Begun and ended: odd while one is under way.
    turns: u64,
    /// Whether any row of the replica was ever remembered; if not, there is nothing to forget.
    remembers: AtomicBool,
}

/// A moment at which the gate was open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u64);

impl Gate {
    /// To be taken before RocksDB is read; None while a write is under way.
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        let turns = self.0.read().turns;
        turns.is_multiple_of(2).then_some(Ticket(turns))
    }
}

/// A write under way: the gate is closed until this is dropped.
pub(crate) struct Writing<'a> {
    cache: &'a RowCache,
    gate: &'a Gate,
    forgets: bool,
}

impl RowCache {
    /// With so many bytes for all rows.
    pub(crate) fn new(bytes: usize) -> Self {
        let usual = bytes / usize::try_from(ROW_BYTES_USUAL).unwrap_or(1);
        let options = OptionsBuilder::new()
            .weight_capacity(bytes as u64)
            .estimated_items_capacity(usual)
            .shards(PARTS_MIN.max(bytes.div_ceil(PART_BYTES_MAX)))
            .build()
            .expect("all that is needed is set");
        Self(Cache::with_options(options, Weight, RandomState::new(), DefaultLifecycle::default()))
    }

    /// The row under a key of the table of the latest state, if it is remembered.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Versioned> {
        self.0.get(key)
    }

    /// Remembers a row that was read since the ticket was taken, unless a write began meanwhile.
    pub(crate) fn remember(&self, gate: &Gate, ticket: Option<Ticket>, key: &[u8], row: &Versioned) {
        if key.len() + row.value.len() > ROW_BYTES_MAX {
            return;
        }
        // Held until the row is in: a write that begins now finds it, and forgets it.
        let writes = gate.0.read();
        if ticket.is_some_and(|Ticket(turns)| turns == writes.turns) {
            writes.remembers.store(true, Ordering::Relaxed);
            self.0.insert(key.into(), row.clone());
        }
    }

    /// Closes the gate of a replica; one write at a time.
    pub(crate) fn begin_write<'a>(&'a self, gate: &'a Gate) -> Writing<'a> {
        let mut writes = gate.0.write();
        assert!(writes.turns.is_multiple_of(2), "a replica has one writer at a time");
        writes.turns += 1;
        let forgets = *writes.remembers.get_mut();
        Writing { cache: self, gate, forgets }
    }
}

impl Writing<'_> {
    /// For each row that is changed, before the write.
    pub(crate) fn forget(&self, key: &[u8]) {
        if self.forgets {
            self.cache.0.remove(key);
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.gate.0.write().turns += 1;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_proto::timestamp::Timestamp;

    use super::*;

    fn row(commit: u64, bytes: usize) -> Versioned {
        Versioned { commit: Timestamp(commit), value: Bytes::from(vec![b'v'; bytes]) }
    }

    fn commit(cache: &RowCache, key: &[u8]) -> Option<u64> {
        cache.get(key).map(|row| row.commit.0)
    }

    #[test]
    fn a_row_is_found_under_its_key_until_it_is_changed() {
        let (cache, gate) = (RowCache::new(1 << 20), Gate::default());
        cache.remember(&gate, gate.ticket(), b"a", &row(1, 10));
        cache.remember(&gate, gate.ticket(), b"b", &row(2, 10));
        assert_eq!(commit(&cache, b"a"), Some(1));
        assert_eq!(commit(&cache, b"c"), None);
        let writing = cache.begin_write(&gate);
        writing.forget(b"a");
        assert_eq!((commit(&cache, b"a"), commit(&cache, b"b")), (None, Some(2)));
    }

    #[test]
    fn what_was_read_before_or_during_a_write_is_not_remembered() {
        let (cache, gate) = (RowCache::new(1 << 20), Gate::default());
        let before = gate.ticket();
        let writing = cache.begin_write(&gate);
        writing.forget(b"a");
        let during = gate.ticket();
        assert!(before.is_some() && during.is_none());
        cache.remember(&gate, before, b"a", &row(1, 10));
        assert_eq!(commit(&cache, b"a"), None, "the write is under way");
        drop(writing);
        for ticket in [before, during] {
            cache.remember(&gate, ticket, b"a", &row(1, 10));
            assert_eq!(commit(&cache, b"a"), None, "{ticket:?}");
        }
        cache.remember(&gate, gate.ticket(), b"a", &row(2, 10));
        assert_eq!(commit(&cache, b"a"), Some(2));
    }

    #[test]
    fn replicas_have_gates_of_their_own() {
        let (cache, one, other) = (RowCache::new(1 << 20), Gate::default(), Gate::default());
        let ticket = one.ticket();
        drop(cache.begin_write(&other));
        cache.remember(&one, ticket, b"a", &row(1, 10));
        assert_eq!(commit(&cache, b"a"), Some(1));
    }

    #[test]
    fn rows_weigh_no_more_than_the_cache_was_given_and_large_ones_stay_out() {
        let (cache, gate) = (RowCache::new(1 << 20), Gate::default());
        for number in 0..20_000_u32 {
            cache.remember(&gate, gate.ticket(), &number.to_be_bytes(), &row(1, 100));
        }
        let weight = cache.0.weight();
        assert!((1 << 19..=1 << 20).contains(&weight), "{weight}");
        cache.remember(&gate, gate.ticket(), b"large", &row(1, ROW_BYTES_MAX));
        assert_eq!(commit(&cache, b"large"), None);
    }
}
