//! Reads one page of a scan from one shard. Blocking.
//!
//! Invariants: a page holds at most as many entries as asked, and about [`PAGE_BYTES_MAX`] bytes; it always moves on,
//! so that a scan ends.
//!
//! Not here: which ranges (ranges); which shard comes next (local).

use std::time::Instant;

use bytes::Bytes;
use kv_proto::key_range::KeyRange;
use kv_proto::keys::{self, Layout};
use kv_proto::limits::PAGE_BYTES_MAX;
use kv_proto::pb::v1::{KeyValue, ResponseHeader, ScanResponse};
use kv_proto::timestamp::Timestamp;
use kv_raft::data_engine::{DataError, ReadView, ScanEntry, ScanPage, ScanSpec, Turn};

use super::cursor;
use super::ranges::Bounds;

/// How often a page goes on to a range (slot) further on at most: a scan by prefix over all slots of a shard is spread over
/// several pages rather than holding a thread for long.
const MOVES_MAX: usize = 4096;

/// After so many keys it looks at the time.
const KEYS_PER_LOOK: usize = 1024;

/// What to read.
#[derive(Clone, Debug)]
pub struct Job {
    /// The scan.
    pub bounds: Bounds,
    /// Where the page begins.
    pub from: Bytes,
    /// The shard's range.
    pub within: KeyRange,
    /// How the keyspace lays out its keys.
    pub layout: Layout,
    /// Most entries.
    pub entries_max: usize,
    /// Leave values out.
    pub keys_only: bool,
    /// The state at this timestamp.
    pub at: Option<Timestamp>,
    /// The page ends by then with what it has.
    pub deadline: Instant,
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// With the user's keys.
    pub entries: Vec<KeyValue>,
    /// Encoded key where to go on in this shard; None at its end.
    pub next: Option<Bytes>,
}

impl Job {
    /// Reads it.
    pub fn run(&self, view: &ReadView) -> Result<Page, DataError> {
        self.run_with(|spec, turn| view.scan_some(spec, turn))
    }

    fn run_with(
        &self,
        scan: impl FnOnce(&ScanSpec, &mut dyn FnMut(&Bytes) -> Turn) -> Result<ScanPage, DataError>,
    ) -> Result<Page, DataError> {
        let Some((first, range)) = self.bounds.ranges_from(&self.from, &self.within) else {
            return Ok(Page::default());
        };
        let spec = ScanSpec {
            range,
            limit_entries: self.entries_max,
            limit_bytes: PAGE_BYTES_MAX,
            keys_only: self.keys_only,
            at: self.at,
            reverse: false,
        };
        let mut ranges = Ranges { job: self, range: first, moves: 0, asked: 0 };
        let page = scan(&spec, &mut |key| ranges.turn(key))?;
        Ok(Page {
            entries: page.entries.into_iter().filter_map(|entry| self.key_value(entry)).collect(),
            next: page.next,
        })
    }

    fn key_value(&self, entry: ScanEntry) -> Option<KeyValue> {
        let key = keys::decode(self.layout, &entry.key)?;
        Some(KeyValue { key, value: entry.versioned.value, commit_timestamp: entry.versioned.commit.0 })
    }
}

/// The ranges that the keys of a page lie in, one after the other.
struct Ranges<'a> {
    job: &'a Job,
    range: KeyRange,
    moves: usize,
    asked: usize,
}

impl Ranges<'_> {
    /// Takes the first key in any case, or leaves it behind: each page moves on, however late it is.
    fn turn(&mut self, key: &Bytes) -> Turn {
        self.asked += 1;
        let is_late = || Instant::now() >= self.job.deadline;
        if self.range.contains(key) {
            let late = self.asked.is_multiple_of(KEYS_PER_LOOK) && is_late();
            return if late { Turn::Pause(key.clone()) } else { Turn::Take };
        }
        let Some(range) = self.job.bounds.next_range(key, &self.job.within) else { return Turn::End };
        if self.moves >= MOVES_MAX || is_late() {
            return Turn::Pause(range.start().clone());
        }
        self.moves += 1;
        self.range = range;
        if self.range.contains(key) { Turn::Take } else { Turn::Skip(self.range.start().clone()) }
    }
}

/// The response with a cursor to where the scan goes on.
#[must_use]
pub fn response(entries: Vec<KeyValue>, next: Option<Bytes>, bounds: &Bounds, header: ResponseHeader) -> ScanResponse {
    let cursor = next.map(|next| cursor::encode(bounds.fingerprint(), &next)).unwrap_or_default();
    ScanResponse { header: Some(header), entries, cursor }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use kv_proto::ids::KeyspaceId;
    use kv_proto::pb::v1::ScanRequest;
    use kv_proto::slot::{SLOTS, Slot};
    use kv_raft::command::Versioned;

    use super::*;

    const KEYSPACE: KeyspaceId = KeyspaceId(7);

    /// A model of a replica's data.
    fn scan(data: &BTreeMap<Bytes, Bytes>, spec: &ScanSpec, turn: &mut dyn FnMut(&Bytes) -> Turn) -> ScanPage {
        let (mut page, mut bytes, mut from) = (ScanPage::default(), 0, Bytes::new());
        for (key, value) in data.iter().filter(|(key, _)| spec.range.contains(key)) {
            if *key < from {
                continue;
            }
            match turn(key) {
                Turn::Take => {}
                Turn::Skip(to) => {
                    assert!(to > *key, "a scan moves on");
                    from = to;
                    continue;
                }
                Turn::Pause(at) => {
                    assert!(at >= *key, "the next page begins no earlier");
                    return ScanPage { next: Some(at), ..page };
                }
                Turn::End => return page,
            }
            if page.entries.len() >= spec.limit_entries || bytes >= spec.limit_bytes {
                return ScanPage { next: Some(key.clone()), ..page };
            }
            bytes += key.len() + value.len();
            let versioned = Versioned { commit: Timestamp(1), value: value.clone() };
            page.entries.push(ScanEntry { key: key.clone(), versioned });
        }
        page
    }

    fn all_pages(layout: Layout, prefix: &str, entries_max: usize, keys: &[&str]) -> (Vec<String>, usize) {
        let encode = |key: &&str| keys::encode(KEYSPACE, layout, key.as_bytes());
        let far = Instant::now() + Duration::from_secs(60);
        pages_of(layout, prefix, entries_max, keys.iter().map(encode), &[KeyRange::all()], far)
    }

    /// The keys found in these shards, and in how many pages.
    fn pages_of(
        layout: Layout,
        prefix: &str,
        entries_max: usize,
        encoded: impl Iterator<Item = Bytes>,
        shards: &[KeyRange],
        deadline: Instant,
    ) -> (Vec<String>, usize) {
        let data: BTreeMap<Bytes, Bytes> = encoded.map(|key| (key, Bytes::from("v"))).collect();
        let request = ScanRequest { prefix: Bytes::copy_from_slice(prefix.as_bytes()), ..Default::default() };
        let bounds = Bounds::new(KEYSPACE, layout, &request);
        let (mut found, mut pages) = (Vec::new(), 0);
        for within in shards {
            let mut from = Some(bounds.first().max(within.start().clone()));
            while let Some(begin) = from {
                let bounds = bounds.clone();
                let within = within.clone();
                let job = Job {
                    bounds,
                    from: begin.clone(),
                    within,
                    layout,
                    entries_max,
                    keys_only: false,
                    at: None,
                    deadline,
                };
                let page = job.run_with(|spec, turn| Ok(scan(&data, spec, turn))).unwrap();
                assert!(page.entries.len() <= entries_max);
                assert!(page.next.as_ref().is_none_or(|next| *next > begin), "a page moves on");
                found.extend(page.entries.iter().map(|entry| String::from_utf8(entry.key.to_vec()).unwrap()));
                pages += 1;
                from = page.next;
            }
        }
        found.sort();
        (found, pages)
    }

    #[test]
    fn pages_of_a_prefix_hold_every_key_once_in_either_layout() {
        let keys = ["a1", "a2", "a3", "b1", "b2"];
        for layout in [Layout::Hash, Layout::Range] {
            for entries_max in [1, 2, 10] {
                assert_eq!(all_pages(layout, "a", entries_max, &keys).0, ["a1", "a2", "a3"]);
                assert_eq!(all_pages(layout, "", entries_max, &keys).0, keys);
            }
        }
    }

    #[test]
    fn a_page_goes_on_to_a_bounded_number_of_slots_and_over_those_without_keys_for_nothing() {
        let in_slots = |number| {
            let slots = (0..number).filter_map(Slot::new);
            let wanted = keys::encode(KEYSPACE, Layout::Hash, b"a1");
            slots.map(|slot| keys::encode_at(KEYSPACE, Some(slot), b"b")).chain([wanted])
        };
        let far = Instant::now() + Duration::from_secs(60);
        let found = |prefix, number| pages_of(Layout::Hash, prefix, 10_000, in_slots(number), &[KeyRange::all()], far);
        assert_eq!(found("a", SLOTS), (vec!["a1".to_owned()], 4));
        assert_eq!(found("a", 1000), (vec!["a1".to_owned()], 1));
        assert_eq!(found("", 1000).1, 1);
    }

    #[test]
    fn a_scan_that_is_late_ends_all_the_same_and_stays_within_its_keyspace_and_shards() {
        let names: Vec<String> = (0..6000).map(|number| format!("{}{number}", ["a", "b"][number % 2])).collect();
        let spaces = [KeyspaceId(KEYSPACE.0 - 1), KEYSPACE, KeyspaceId(KEYSPACE.0 + 1)];
        let now = Instant::now();
        for layout in [Layout::Hash, Layout::Range] {
            let shards = match layout {
                Layout::Hash => keys::split_by_slots(KEYSPACE, 3),
                Layout::Range => keys::split_by_keys(KEYSPACE, &[Bytes::from("a2"), Bytes::from("b3")]).unwrap(),
            };
            for prefix in ["a", ""] {
                let wanted: BTreeSet<&String> = names.iter().filter(|name| name.starts_with(prefix)).collect();
                let data = spaces
                    .iter()
                    .flat_map(|space| names.iter().map(|name| keys::encode(*space, layout, name.as_bytes())));
                let (found, pages) = pages_of(layout, prefix, 10_000, data, &shards, now);
                assert!(found.iter().eq(wanted), "{layout:?} {prefix}");
                assert!(pages > shards.len(), "{layout:?} {prefix}: {pages} pages, although each is late");
            }
        }
    }
}
