//! A digest of a replica's state that is the same on all replicas that applied the same entries.
//!
//! The way it is computed is numbered ([`CHECKSUM_ALGORITHM`](crate::command::CHECKSUM_ALGORITHM)): replicas compare it.
//!
//! Invariants: covers what a read, a retry or a watch can see, and nothing that differs between replicas: not the
//! extent, and not old versions before the safepoint, which each replica collects in its own time.
//!
//! Not here: who compares it (replica, checks); checksums of stored blocks (RocksDB) and of snapshot files (state machine, sink).

use std::sync::Arc;

use parking_lot::Mutex;
use rocksdb::ReadOptions;
use tokio::sync::Notify;

use super::DataEngine;
use super::collect::Held;
use super::error::DataError;
use super::holding::{Holding, Progress};
use super::keys;
use super::options::Table;
use super::rows::{self, MembershipRow};
use super::store::{Pinned, Store};

/// Bytes read between two looks at the pace.
const PACED_BYTES: usize = 256 << 10;

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

/// A replica's content as of one applied entry, kept until its checksum is taken.
pub(crate) struct CheckView {
    pinned: Pinned,
    pub(super) progress: Arc<Progress>,
    /// Dropped after the view.
    _held: Held,
}

impl CheckView {
    pub(crate) fn take(engine: &DataEngine, holding: &Holding) -> Result<Self, DataError> {
        let (pinned, progress, held) = engine.pin(holding)?;
        Ok(Self { pinned, progress, _held: held })
    }

    /// The entry it shows.
    pub(crate) fn index(&self) -> u64 {
        self.progress.applied.map_or(0, |applied| applied.index)
    }

    /// The checksum; None if `pace`, which is told of bytes read, says no. Blocking; reads everything.
    pub(crate) fn digest(&self, pace: &mut dyn FnMut(usize) -> bool) -> Result<Option<u64>, DataError> {
        of(self.pinned.borrow_owner(), &self.pinned, &self.progress, pace)
    }
}

/// The view that waits to be compared. Only the newest check counts, so a view takes the place of one nobody took yet.
#[derive(Default)]
pub(crate) struct NewestView {
    view: Mutex<Option<CheckView>>,
    came: Notify,
}

impl NewestView {
    pub(crate) fn put(&self, view: CheckView) {
        let replaced = self.view.lock().replace(view);
        drop(replaced);
        self.came.notify_one();
    }

    /// Waits for one. For a single task.
    pub(crate) async fn take(&self) -> CheckView {
        loop {
            let waiting = self.view.lock().take();
            if let Some(view) = waiting {
                return view;
            }
            self.came.notified().await;
        }
    }
}

fn of(
    store: &Store,
    pinned: &Pinned,
    progress: &Progress,
    pace: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<u64>, DataError> {
    let extent = progress.extent.id();
    let mut digest = Digest::new();
    digest.add(&rows::encode(&progress.applied_row()));
    digest.add(&rows::encode(&MembershipRow::from(progress.membership.as_ref())));
    digest.add(progress.range.start());
    digest.add(progress.range.end());
    let whole = || (keys::extent_start(extent), keys::extent_end(extent));
    let kept = |key: &[u8]| keys::trailing_timestamp(key).is_some_and(|end| end > progress.safepoint);
    let sessions = keys::meta_rows(keys::META_SESSION, extent.0);
    let mut add = |table, bounds, counts: &dyn Fn(&[u8]) -> bool| {
        add_rows((store, pinned, table), bounds, &mut digest, counts, pace)
    };
    let whole = add(Table::Latest, whole(), &|_| true)?
        && add(Table::History, whole(), &kept)?
        && add(Table::Changes, whole(), &kept)?
        && add(Table::Meta, sessions, &|_| true)?;
    Ok(whole.then_some(digest.0))
}

/// Keys are added without what comes before and in the extent. False if it was told to end.
fn add_rows(
    (store, pinned, table): (&Store, &Pinned, Table),
    (start, end): (Vec<u8>, Vec<u8>),
    digest: &mut Digest,
    counts: &dyn Fn(&[u8]) -> bool,
    pace: &mut dyn FnMut(usize) -> bool,
) -> Result<bool, DataError> {
    digest.add(table.name().as_bytes());
    let prefix = start.len();
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_iterate_lower_bound(start);
    options.set_iterate_upper_bound(end);
    let mut rows = pinned.borrow_dependent().raw_iterator_cf_opt(store.table(table), options);
    rows.seek_to_first();
    let mut read = 0;
    while let (Some(key), Some(value)) = (rows.key(), rows.value()) {
        if counts(key) {
            digest.add(key.get(prefix..).unwrap_or_default());
            digest.add(value);
        }
        read += key.len() + value.len();
        if read >= PACED_BYTES {
            if !pace(read) {
                return Ok(false);
            }
            read = 0;
        }
        rows.next();
    }
    store.checked(rows.status())?;
    Ok(pace(read))
}
