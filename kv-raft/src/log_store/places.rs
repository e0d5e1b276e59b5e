//! Where the entries of one shard lie in the segments.
//!
//! A place is known every so many bytes, and for the first entry of the shard in each segment. From there on the entries are
//! found by reading operations in a row, up to the index of the next place: what lies there of other indexes was
//! truncated, or lies elsewhere now.
//!
//! Invariants: ascending in the index; the entries between two places lie in one segment, in order, at or after the
//! first one; after a truncation or a move the next entries begin a place of their own.
//!
//! Not here: reading (read); what the shard's pointers are (kept).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Entries of so many bytes, or so many bytes of a segment, begin another place.
const STRETCH_BYTES: u64 = 64 << 10;
/// Places of one operation are read together up to so many bytes.
const TOGETHER_BYTES: u64 = 256 << 10;

/// An operation of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    /// Number of the segment.
    pub(super) segment: u64,
    /// Where the record begins in it.
    pub(super) offset: u64,
    /// Where the operation begins among the record's.
    pub(super) operation: usize,
}

/// Where a stretch of entries begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its first entry.
    pub(super) index: u64,
    /// The operation that entry is in.
    pub(super) at: At,
    /// Of the entries written there, truncated ones included.
    pub(super) bytes: u64,
}

/// What of each segment is still needed, over all shards.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// How many places lie in each.
    segments: BTreeMap<u64, usize>,
    bytes: u64,
}

impl Live {
    fn add(&mut self, segment: u64, places: usize, bytes: u64) {
        *self.segments.entry(segment).or_default() += places;
        self.bytes += bytes;
    }

    fn remove(&mut self, place: &Place) {
        if let Some(places) = self.segments.get_mut(&place.at.segment) {
            *places = places.saturating_sub(1);
        }
        self.bytes = self.bytes.saturating_sub(place.bytes);
    }

    /// Whether no entry of a segment is needed any more.
    pub(super) fn is_dead(&self, segment: u64) -> bool {
        self.segments.get(&segment).is_none_or(|places| *places == 0)
    }

    /// Bytes of all entries that are needed, about.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets a segment that is gone.
    pub(super) fn forget(&mut self, segment: u64) {
        self.segments.remove(&segment);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: VecDeque<Place>,
    /// The next entry does not go on where the last place's end: they were truncated, or moved.
    cut: bool,
}

impl Places {
    /// An entry of so many bytes follows the last one.
    pub(super) fn append(&mut self, index: u64, bytes: u64, at: At, live: &mut Live) {
        let goes_on = |last: &&mut Place| {
            let near = last.at.segment == at.segment && at.offset.saturating_sub(last.at.offset) < STRETCH_BYTES;
            near && last.bytes < STRETCH_BYTES
        };
        match self.places.back_mut().filter(|_| !self.cut).filter(goes_on) {
            Some(last) => {
                last.bytes += bytes;
                live.add(at.segment, 0, bytes);
            }
            None => {
                self.places.push_back(Place { index, at, bytes });
                live.add(at.segment, 1, bytes);
            }
        }
        self.cut = false;
    }

    /// The entries of a range, of so many bytes, lie here now.
    pub(super) fn relocate(&mut self, range: &Range<u64>, bytes: u64, at: At, live: &mut Live) {
        let from = self.places.partition_point(|place| place.index < range.start);
        let to = self.places.partition_point(|place| place.index < range.end);
        self.places.drain(from..to).for_each(|place| live.remove(&place));
        // What is appended next need not go on where these end: at a start those between may not have been come to yet.
        self.cut |= from == self.places.len();
        self.places.insert(from, Place { index: range.start, at, bytes });
        live.add(at.segment, 1, bytes);
    }

    /// The entries from an index on are gone.
    pub(super) fn truncate(&mut self, start: u64, live: &mut Live) {
        let keep = self.places.partition_point(|place| place.index < start);
        self.places.drain(keep..).for_each(|place| live.remove(&place));
        self.cut = true;
    }

    /// The entries below an index are gone; the log goes on at `next`.
    pub(super) fn purge(&mut self, start: u64, next: u64, live: &mut Live) {
        while self.places.get(1).map_or(next, |place| place.index) <= start {
            let Some(place) = self.places.pop_front() else { break };
            live.remove(&place);
        }
        // Those before it are still where it begins, but no longer of the log.
        if let Some(first) = self.places.front_mut() {
            first.index = first.index.max(start);
        }
    }

    /// All entries are gone.
    pub(super) fn clear(&mut self, live: &mut Live) {
        self.places.drain(..).for_each(|place| live.remove(&place));
    }

    /// The stretches that hold the entries of a range: where each begins, and the indexes of its entries; as many as hold so
    /// many bytes, at least one.
    pub(super) fn covering(&self, range: &Range<u64>, bytes: u64) -> Vec<(At, Range<u64>)> {
        let mut from = self.places.partition_point(|place| place.index <= range.start).saturating_sub(1);
        let mut taken = 0_u64;
        let mut stretches = Vec::new();
        while taken <= bytes
            && let Some((stretch, at, entries)) =
                self.stretch(from, range.end).filter(|(_, _, entries)| !entries.is_empty())
        {
            taken = taken.saturating_add(if stretches.is_empty() { 0 } else { at.bytes });
            stretches.push((at.at, entries));
            from = stretch;
        }
        stretches
    }

    /// The first stretches in a row that lie in a segment, of the entries of a range: up to so many, and up to what is read
    /// together.
    pub(super) fn in_segment(&self, segment: u64, range: Range<u64>, most: usize) -> Vec<(At, Range<u64>)> {
        let lies = |place: &Place| place.at.segment == segment && place.index >= range.start;
        let mut from = self.places.iter().position(lies);
        let mut bytes = 0;
        let mut stretches = Vec::new();
        while bytes < TOGETHER_BYTES
            && stretches.len() < most
            && let Some((after, place, entries)) = from.and_then(|from| self.stretch(from, range.end))
            && place.at.segment == segment
        {
            bytes += place.bytes;
            stretches.push((place.at, entries));
            from = Some(after);
        }
        stretches
    }

    /// The stretch that begins with a place, and which place is after it.
    fn stretch(&self, from: usize, end: u64) -> Option<(usize, Place, Range<u64>)> {
        let mut together = *self.places.get(from)?;
        let first = together.index;
        let mut after = from + 1;
        while let Some(next) =
            self.places.get(after).filter(|next| next.at == together.at && together.bytes < TOGETHER_BYTES)
        {
            together.bytes += next.bytes;
            after += 1;
        }
        Some((after, together, first..self.places.get(after).map_or(end, |next| next.index.min(end))))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.places.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(segment: u64, offset: u64) -> At {
        At { segment, offset, operation: 0 }
    }

    /// As at a start whose oldest segment does not hold what lies between.
    #[test]
    fn an_entry_appended_after_a_move_has_a_place_of_its_own() {
        let (mut places, mut live) = (Places::default(), Live::default());
        places.relocate(&(10..11), 50, at(20, 4096), &mut live);
        places.append(30, 50, at(20, 8192), &mut live);
        places.relocate(&(11..30), 950, at(21, 4096), &mut live);
        let stretches = places.covering(&(10..31), u64::MAX);
        assert_eq!(stretches, [(at(20, 4096), 10..11), (at(21, 4096), 11..30), (at(20, 8192), 30..31)]);
        places.purge(30, 31, &mut live);
        assert!(!live.is_dead(20) && live.is_dead(21));
    }

    #[test]
    fn places_that_are_near_are_one_and_those_of_one_operation_are_read_together() {
        let (mut places, mut live) = (Places::default(), Live::default());
        for index in 0..8 {
            places.append(index, 100, at(1, 4096 * (index + 1)), &mut live);
        }
        places.append(8, 100, at(1, 1 << 20), &mut live);
        for index in 9..29 {
            places.append(index, 40 << 10, at(2, 4096), &mut live);
        }
        assert_eq!(places.iter().map(|place| place.index).take(4).collect::<Vec<_>>(), [0, 8, 9, 11]);
        let stretches = places.covering(&(3..29), u64::MAX);
        let of_two = |range| (at(2, 4096), range);
        assert_eq!(stretches[..2], [(at(1, 4096), 0..8), (at(1, 1 << 20), 8..9)]);
        assert_eq!(stretches[2..], [of_two(9..17), of_two(17..25), of_two(25..29)]);
        assert_eq!(places.covering(&(3..29), 10), stretches[..2]);
        assert_eq!(places.in_segment(1, 0..29, 9), stretches[..2]);
        assert_eq!(places.in_segment(2, 17..29, 1), stretches[3..4]);
        places.truncate(12, &mut live);
        places.append(12, 10, at(2, 8192), &mut live);
        assert_eq!(places.covering(&(11..13), u64::MAX), [(at(2, 4096), 11..12), (at(2, 8192), 12..13)]);
        assert_eq!(live.bytes(), 900 + 4 * 40 * 1024 + 10);
    }
}
