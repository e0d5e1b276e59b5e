//! Rows of the latest state that were read lately: a point read that finds one here searches neither memtables nor
//! blocks.
//!
//! Whoever writes closes the replica's [`Gate`], forgets the rows it is about to change, writes, and opens the gate again.
//! What is read while a gate is closed is not remembered, nor what was read before it closed last. So a row that is found
//! is the one that a read of RocksDB would have found at that moment.
//!
//! Invariants: a row found here is RocksDB's, at every moment; all rows together weigh at most what the cache was given.
//!
//! Not here: blocks of files (options); what a read answers (read); which rows a chunk changes (state machine, apply).

use std::collections::hash_map::RandomState;
use std::sync::atomic::{AtomicBool, Ordering};

use kv_proto::ids::ExtentId;
use parking_lot::RwLock;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{Equivalent, OptionsBuilder, Weighter};

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

/// Where a row lies: its extent and its encoded key.
#[derive(Debug, Hash, PartialEq, Eq)]
struct Place {
    extent: ExtentId,
    key: Box<[u8]>,
}

/// The same, to look for.
#[derive(Hash)]
struct At<'k> {
    extent: ExtentId,
    key: &'k [u8],
}

impl Equivalent<Place> for At<'_> {
    fn equivalent(&self, place: &Place) -> bool {
        self.extent == place.extent && *self.key == *place.key
    }
}

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<Place, Versioned> for Weight {
    fn weight(&self, place: &Place, row: &Versioned) -> u64 {
        ROW_OVERHEAD + (place.key.len() + row.value.len()) as u64
    }
}

/// The rows of all replicas of a node.
pub(crate) struct RowCache(Cache<Place, Versioned, Weight, RandomState>);

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
    extent: ExtentId,
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

    /// The row, if it is remembered.
    pub(crate) fn get(&self, extent: ExtentId, key: &[u8]) -> Option<Versioned> {
        self.0.get(&At { extent, key })
    }

    /// Remembers a row that was read since the ticket was taken, unless a write began meanwhile.
    pub(crate) fn remember(&self, gate: &Gate, ticket: Option<Ticket>, extent: ExtentId, key: &[u8], row: &Versioned) {
        if key.len() + row.value.len() > ROW_BYTES_MAX {
            return;
        }
        // Held until the row is in: a write that begins now finds it, and forgets it.
        let writes = gate.0.read();
        if ticket.is_some_and(|Ticket(turns)| turns == writes.turns) {
            writes.remembers.store(true, Ordering::Relaxed);
            self.0.insert(Place { extent, key: key.into() }, row.clone());
        }
    }

    /// Closes the gate of a replica whose data lies in this extent; one write at a time.
    pub(crate) fn begin_write<'a>(&'a self, gate: &'a Gate, extent: ExtentId) -> Writing<'a> {
        let mut writes = gate.0.write();
        assert!(writes.turns.is_multiple_of(2), "a replica has one writer at a time");
        writes.turns += 1;
        let forgets = *writes.remembers.get_mut();
        Writing { cache: self, gate, extent, forgets }
    }
}

impl Writing<'_> {
    /// For each row that is changed, before the write.
    pub(crate) fn forget(&self, key: &[u8]) {
        if self.forgets {
            self.cache.0.remove(&At { extent: self.extent, key });
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

    const HERE: ExtentId = ExtentId(1);

    fn row(commit: u64, bytes: usize) -> Versioned {
        Versioned { commit: Timestamp(commit), value: Bytes::from(vec![b'v'; bytes]) }
    }

    fn commit(cache: &RowCache, extent: ExtentId, key: &[u8]) -> Option<u64> {
        cache.get(extent, key).map(|row| row.commit.0)
    }

    #[test]
    fn a_row_is_found_under_its_extent_and_key_until_it_is_changed() {
        let (cache, gate) = (RowCache::new(1 << 20), Gate::default());
        cache.remember(&gate, gate.ticket(), HERE, b"a", &row(1, 10));
        cache.remember(&gate, gate.ticket(), HERE, b"b", &row(2, 10));
        assert_eq!(commit(&cache, HERE, b"a"), Some(1));
        assert_eq!(commit(&cache, ExtentId(2), b"a"), None);
        let writing = cache.begin_write(&gate, HERE);
        writing.forget(b"a");
        assert_eq!((commit(&cache, HERE, b"a"), commit(&cache, HERE, b"b")), (None, Some(2)));
    }

    #[test]
    fn what_was_read_before_or_during_a_write_is_not_remembered() {
        let (cache, gate) = (RowCache::new(1 << 20), Gate::default());
        let before = gate.ticket();
        let writing = cache.begin_write(&gate, HERE);
        writing.forget(b"a");
        let during = gate.ticket();
        assert!(before.is_some() && during.is_none());
        cache.remember(&gate, before, HERE, b"a", &row(1, 10));
        assert_eq!(commit(&cache, HERE, b"a"), None, "the write is under way");
        drop(writing);
        for ticket in [before, during] {
            cache.remember(&gate, ticket, HERE, b"a", &row(1, 10));
            assert_eq!(commit(&cache, HERE, b"a"), None, "{ticket:?}");
        }
        cache.remember(&gate, gate.ticket(), HERE, b"a", &row(2, 10));
        assert_eq!(commit(&cache, HERE, b"a"), Some(2));
    }

    #[test]
    fn replicas_have_gates_of_their_own() {
        let (cache, one, other) = (RowCache::new(1 << 20), Gate::default(), Gate::default());
        let ticket = one.ticket();
        drop(cache.begin_write(&other, ExtentId(2)));
        cache.remember(&one, ticket, HERE, b"a", &row(1, 10));
        assert_eq!(commit(&cache, HERE, b"a"), Some(1));
    }

    #[test]
    fn rows_weigh_no_more_than_the_cache_was_given_and_large_ones_stay_out() {
        let (cache, gate) = (RowCache::new(1 << 20), Gate::default());
        for number in 0..20_000_u32 {
            cache.remember(&gate, gate.ticket(), HERE, &number.to_be_bytes(), &row(1, 100));
        }
        let weight = cache.0.weight();
        assert!((1 << 19..=1 << 20).contains(&weight), "{weight}");
        cache.remember(&gate, gate.ticket(), HERE, b"large", &row(1, ROW_BYTES_MAX));
        assert_eq!(commit(&cache, HERE, b"large"), None);
    }
}
