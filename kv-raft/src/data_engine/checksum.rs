//! A digest of a replica's state that is the same on all replicas that applied the same entries.
//!
//! Invariants: covers what a read, a retry or a watch can see, and nothing that differs between replicas: not the
//! extent, and not old versions before the safepoint, which each replica collects in its own time.
//!
//! Not here: checksums of stored blocks (RocksDB) and of snapshot files (state machine, sink).

use rocksdb::ReadOptions;

use super::error::DataError;
use super::holding::Progress;
use super::keys;
use super::options::Table;
use super::rows::{self, MembershipRow};
use super::store::{Pinned, Store};

/// FNV-1a, 64 bits.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes();
        for byte in length.iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

pub(crate) fn of(store: &Store, pinned: &Pinned, progress: &Progress) -> Result<u64, DataError> {
    let extent = progress.extent.id();
    let mut digest = Digest::new();
    digest.add(&rows::encode(&progress.applied_row()));
    digest.add(&rows::encode(&MembershipRow::from(progress.membership.as_ref())));
    digest.add(progress.range.start());
    digest.add(progress.range.end());
    let whole = || (keys::extent_start(extent), keys::extent_end(extent));
    let kept = |key: &[u8]| keys::trailing_timestamp(key).is_some_and(|end| end > progress.safepoint);
    add_rows(store, pinned, Table::Latest, whole(), &mut digest, |_| true)?;
    add_rows(store, pinned, Table::History, whole(), &mut digest, kept)?;
    add_rows(store, pinned, Table::Changes, whole(), &mut digest, kept)?;
    add_rows(store, pinned, Table::Meta, keys::meta_rows(keys::META_SESSION, extent.0), &mut digest, |_| true)?;
    Ok(digest.0)
}

/// Keys are added without what comes before and in the extent.
fn add_rows(
    store: &Store,
    pinned: &Pinned,
    table: Table,
    (start, end): (Vec<u8>, Vec<u8>),
    digest: &mut Digest,
    counts: impl Fn(&[u8]) -> bool,
) -> Result<(), DataError> {
    digest.add(table.name().as_bytes());
    let prefix = start.len();
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_iterate_lower_bound(start);
    options.set_iterate_upper_bound(end);
    let mut rows = pinned.borrow_dependent().raw_iterator_cf_opt(store.table(table), options);
    rows.seek_to_first();
    while let (Some(key), Some(value)) = (rows.key(), rows.value()) {
        if counts(key) {
            digest.add(key.get(prefix..).unwrap_or_default());
            digest.add(value);
        }
        rows.next();
    }
    store.checked(rows.status())
}
