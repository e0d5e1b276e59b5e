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
use kv_raft::data_engine::{DataError, ReadView, ScanEntry, ScanSpec};

use super::cursor;
use super::ranges::Bounds;

/// Most ranges (slots) one page looks into: a scan by prefix over all slots of a shard is spread over several pages
/// rather than holding a thread for long.
const RANGES_MAX: usize = 4096;

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
        self.run_with(|spec| view.scan(spec).map(|page| (page.entries, page.next)))
    }

    fn run_with(
        &self,
        mut scan: impl FnMut(&ScanSpec) -> Result<(Vec<ScanEntry>, Option<Bytes>), DataError>,
    ) -> Result<Page, DataError> {
        let mut page = Page::default();
        let mut from = self.from.clone();
        let mut bytes = 0;
        for looked in 0.. {
            let Some(range) = self.bounds.next_range(&from, &self.within) else { return Ok(page) };
            let full = page.entries.len() >= self.entries_max || bytes >= PAGE_BYTES_MAX;
            let late = looked > 0 && (looked >= RANGES_MAX || Instant::now() >= self.deadline);
            if full || late {
                page.next = Some(range.start().clone());
                return Ok(page);
            }
            let end = range.end().clone();
            let (entries, next) = scan(&ScanSpec {
                range,
                limit_entries: self.entries_max - page.entries.len(),
                limit_bytes: PAGE_BYTES_MAX - bytes,
                keys_only: self.keys_only,
                at: self.at,
                reverse: false,
            })?;
            for entry in entries {
                bytes += entry.key.len() + entry.versioned.value.len();
                page.entries.extend(self.key_value(entry));
            }
            match next {
                Some(next) => from = next,
                None if end.is_empty() => return Ok(page),
                None => from = end,
            }
        }
        Ok(page)
    }

    fn key_value(&self, entry: ScanEntry) -> Option<KeyValue> {
        let key = keys::decode(self.layout, &entry.key)?;
        Some(KeyValue { key, value: entry.versioned.value, commit_timestamp: entry.versioned.commit.0 })
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
    use std::collections::BTreeMap;
    use std::time::Duration;

    use kv_proto::ids::KeyspaceId;
    use kv_proto::pb::v1::ScanRequest;
    use kv_raft::command::Versioned;

    use super::*;

    const KEYSPACE: KeyspaceId = KeyspaceId(7);

    /// A model of a replica's data.
    fn scan(data: &BTreeMap<Bytes, Bytes>, spec: &ScanSpec) -> (Vec<ScanEntry>, Option<Bytes>) {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (key, value) in data.iter().filter(|(key, _)| spec.range.contains(key)) {
            if entries.len() >= spec.limit_entries || bytes >= spec.limit_bytes {
                return (entries, Some(key.clone()));
            }
            bytes += key.len() + value.len();
            let versioned = Versioned { commit: Timestamp(1), value: value.clone() };
            entries.push(ScanEntry { key: key.clone(), versioned });
        }
        (entries, None)
    }

    fn all_pages(layout: Layout, prefix: &str, entries_max: usize, keys: &[&str]) -> (Vec<String>, usize) {
        let data = keys.iter().map(|key| (keys::encode(KEYSPACE, layout, key.as_bytes()), Bytes::from("v")));
        let data: BTreeMap<Bytes, Bytes> = data.collect();
        let request = ScanRequest { prefix: Bytes::copy_from_slice(prefix.as_bytes()), ..Default::default() };
        let bounds = Bounds::new(KEYSPACE, layout, &request);
        let (mut found, mut pages, mut from) = (Vec::new(), 0, bounds.first());
        loop {
            let job = Job {
                bounds: bounds.clone(),
                from,
                within: KeyRange::all(),
                layout,
                entries_max,
                keys_only: false,
                at: None,
                deadline: Instant::now() + Duration::from_secs(60),
            };
            let page = job.run_with(|spec| Ok(scan(&data, spec))).unwrap();
            assert!(page.entries.len() <= entries_max);
            found.extend(page.entries.iter().map(|entry| String::from_utf8(entry.key.to_vec()).unwrap()));
            pages += 1;
            match page.next {
                Some(next) => from = next,
                None => break,
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
    fn a_page_looks_into_a_bounded_number_of_slots() {
        let (found, pages) = all_pages(Layout::Hash, "a", 10, &["a1"]);
        assert_eq!((found, pages), (vec!["a1".to_owned()], 4));
        assert_eq!(all_pages(Layout::Hash, "", 10, &["a1"]).1, 1);
    }
}
