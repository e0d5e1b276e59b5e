//! What processes that work on the same keys know of each other, and how those keys are named.
//!
//! Invariants: a name that has had its share of operations is not given out again, but for reads at a timestamp.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Keys of the default keyspace begin so; those of the ordered one begin with a tag.
pub(super) const HASHED: &str = "d/";
/// One batch group in each shard of the ordered keyspace.
pub(super) const TAGS: [&str; 2] = ["a", "z"];
/// Keys of a batch group.
pub(super) const GROUP: u64 = 4;
/// Keys that are fought over at a time.
pub(super) const REGISTERS: u64 = 4;
/// Counters at a time.
pub(super) const COUNTERS: u64 = 8;
/// Operations after which a key is left for a fresh one.
const USES: u64 = 400;
/// The same for keys that are also deleted, which only a search can judge.
const DELETED_USES: u64 = 40;
/// Elements of a set that is scanned.
const SET_SIZE: u64 = 150;
/// Timestamps kept to read at.
const MOMENTS: usize = 32;

/// A batch that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The tag's place.
    pub(super) place: usize,
    pub(super) round: u64,
    pub(super) version: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Crew {
    number: usize,
    values: AtomicU64,
    registers: AtomicU64,
    counters: AtomicU64,
    deletes: AtomicU64,
    elements: AtomicU64,
    batches: AtomicU64,
    /// Of late.
    moments: Mutex<VecDeque<Moment>>,
}

impl Crew {
    pub(super) fn new(number: usize) -> Self {
        let (values, registers, counters, deletes) = <(AtomicU64, AtomicU64, AtomicU64, AtomicU64)>::default();
        let (elements, batches, moments) = <(AtomicU64, AtomicU64, Mutex<VecDeque<Moment>>)>::default();
        Self { number, values, registers, counters, deletes, elements, batches, moments }
    }

    /// A value nobody else writes.
    pub(super) fn value(&self) -> String {
        format!("{}-{:>16}", self.number, self.values.fetch_add(1, Ordering::Relaxed))
    }

    /// The register of this number in the round of now.
    pub(super) fn register(&self, register: u64) -> String {
        let round = self.registers.fetch_add(1, Ordering::Relaxed) / (REGISTERS * USES);
        format!("{HASHED}{}/register/{round}/{register}", self.number)
    }

    pub(super) fn counter(&self, counter: u64) -> String {
        let round = self.counters.fetch_add(1, Ordering::Relaxed) / (COUNTERS * USES);
        format!("{HASHED}{}/counter/{round}/{counter}", self.number)
    }

    pub(super) fn deleted(&self) -> String {
        let round = self.deletes.fetch_add(1, Ordering::Relaxed) / DELETED_USES;
        format!("{HASHED}{}/deleted/{round}", self.number)
    }

    /// A key for one more element of the set that is being filled, in one of the two keyspaces.
    pub(super) fn element(&self, tag: &str) -> String {
        let element = self.elements.fetch_add(1, Ordering::Relaxed);
        let begin = if element.is_multiple_of(2) { self.hashed_sets() } else { self.tagged_sets(tag) };
        format!("{begin}{}/{element}", element / SET_SIZE)
    }

    /// How the elements begin of the set that is being filled, or of one before.
    pub(super) fn set(&self, before: u64, tag: Option<&str>) -> String {
        let set = (self.elements.load(Ordering::Relaxed) / SET_SIZE).saturating_sub(before);
        format!("{}{set}/", tag.map_or_else(|| self.hashed_sets(), |tag| self.tagged_sets(tag)))
    }

    fn hashed_sets(&self) -> String {
        format!("{HASHED}{}/set/", self.number)
    }

    fn tagged_sets(&self, tag: &str) -> String {
        format!("{tag}/{}/set/", self.number)
    }

    /// How elements of sets begin.
    pub(super) fn sets(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.hashed_sets()).chain(TAGS.iter().map(|tag| self.tagged_sets(tag)))
    }

    /// The round of batch groups; each use of one is counted.
    pub(super) fn round(&self) -> u64 {
        // There is a group for each tag.
        self.batches.fetch_add(1, Ordering::Relaxed) / (TAGS.len() as u64 * USES)
    }

    /// How the keys of a batch group begin.
    pub(super) fn group(&self, tag: &str, round: u64) -> String {
        format!("{tag}/{}/group/{round}/", self.number)
    }

    /// A key of a batch group.
    pub(super) fn member(&self, tag: &str, round: u64, key: u64) -> String {
        format!("{}{}", self.group(tag, round), key % GROUP)
    }

    /// Keeps the moment of a batch.
    pub(super) fn remember(&self, moment: Moment) {
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        moments.push_back(moment);
        while moments.len() > MOMENTS {
            moments.pop_front();
        }
    }

    /// Moments of late of the group with this tag.
    pub(super) fn moments(&self, place: usize) -> Vec<Moment> {
        let moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        moments.iter().filter(|moment| moment.place == place).copied().collect()
    }
}
