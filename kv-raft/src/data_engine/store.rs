//! The RocksDB below the data engine: opening it, writing without a write-ahead log, and its one failure.
//!
//! Invariants: every write goes through [`Store::write`], which never uses the write-ahead log; rows of a replica in the
//! latest state change only inside of a [`Writing`](super::row_cache::Writing), or what is remembered of them would stay; after the
//! first failure every write is refused, and the failure is told to whoever waits for it.
//!
//! Not here: what is written (engine, state machine).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{
    ColumnFamily, DB, ErrorKind, FlushOptions, IteratorMode, ReadOptions, Snapshot, WriteBatch, WriteOptions,
};

use super::collect::Safepoints;
use super::error::{DataError, OpenError};
use super::keys;
use super::options::{self, DataOptions, Table};
use super::row_cache::RowCache;
use super::unwritten::UnwrittenBytes;
use crate::failure::Failure;
use crate::{direct, failpoint};

/// Version of what [`keys`] and [`rows`](super::rows) lay out.
const FORMAT: u32 = 1;

/// The database with its failure.
pub(crate) struct Store {
    db: DB,
    dir: PathBuf,
    failure: Failure,
    rows: RowCache,
    unwritten: UnwrittenBytes,
}

self_cell::self_cell! {
    /// A consistent view of the whole database that keeps it open.
    pub(crate) struct Pinned {
        owner: Arc<Store>,
        #[covariant]
        dependent: Snapshot,
    }
}

impl Pinned {
    pub(crate) fn take(store: &Arc<Store>) -> Self {
        Self::new(Arc::clone(store), |store| store.db.snapshot())
    }
}

impl Store {
    pub(crate) fn open(dir: &Path, options: &DataOptions, safepoints: &Arc<Safepoints>) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { dir: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let fresh = !dir.join("CURRENT").exists();
        if fresh {
            refuse_remains(dir)?;
        }
        // RocksDB may have begun another one by the time it finds that tables are missing.
        let manifest = std::fs::read_to_string(dir.join("CURRENT")).unwrap_or_default();
        options::start_threads(options).map_err(io)?;
        // In the simulation the way through the page cache is the shorter one.
        let direct = !cfg!(kv_sim) && direct::takes_direct_writes(dir);
        let database = options::database(options, fresh, direct);
        let db = DB::open_cf_descriptors(&database, dir, options::tables(options, safepoints))
            .map_err(|error| opening(dir, &error).in_manifest(manifest.trim_end()))?;
        let rows = RowCache::new(options::row_cache_bytes(options));
        let unwritten = UnwrittenBytes::new(options::unwritten_bytes(options));
        let store = Self { db, dir: dir.to_owned(), failure: Failure::default(), rows, unwritten };
        store.check_format()?;
        store.verify(options.verify_bytes).map_err(|error| opening(dir, &error))?;
        #[cfg(not(kv_sim))]
        store.begin_compactions().map_err(|error| opening(dir, &error))?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), OpenError> {
        let damaged = |what: String| OpenError::Damaged { dir: self.dir.clone(), what };
        let found = self.db.get_cf(self.table(Table::Meta), keys::META_FORMAT);
        match found.map_err(|error| opening(&self.dir, &error))? {
            Some(bytes) => {
                let bytes =
                    bytes.as_slice().try_into().map_err(|_| damaged("its format does not decode".to_owned()))?;
                let found = u32::from_be_bytes(bytes);
                let refused = || OpenError::Format { dir: self.dir.clone(), found, known: FORMAT };
                (found == FORMAT).then_some(()).ok_or_else(refused)
            }
            None if self.live_bytes() > 0 => Err(damaged("it holds data but no format".to_owned())),
            None => {
                let mut batch = WriteBatch::default();
                batch.put_cf(self.table(Table::Meta), keys::META_FORMAT, FORMAT.to_be_bytes());
                self.write(batch).and_then(|()| self.flush()).map_err(|error| damaged(error.to_string()))
            }
        }
    }

    /// Reads everything if it is short, else the meta table only: each block's checksum is compared. Damage elsewhere
    /// is found when it is read, and is fatal then.
    fn verify(&self, whole_up_to: u64) -> Result<(), rocksdb::Error> {
        let whole = self.live_bytes() <= whole_up_to;
        for table in Table::ALL {
            if whole || table == Table::Meta {
                let mut options = ReadOptions::default();
                options.fill_cache(false);
                options.set_verify_checksums(true);
                for row in self.db.iterator_cf_opt(self.table(table), options, IteratorMode::Start) {
                    row?;
                }
            }
        }
        Ok(())
    }

    /// A damaged folder is left as it is: nothing is rewritten before it is checked.
    #[cfg(not(kv_sim))]
    fn begin_compactions(&self) -> Result<(), rocksdb::Error> {
        let mut tables = Table::ALL.into_iter();
        tables.try_for_each(|table| self.db.set_options_cf(self.table(table), &[("disable_auto_compactions", "false")]))
    }

    fn live_bytes(&self) -> u64 {
        let files = self.db.live_files().unwrap_or_default();
        files.iter().map(|file| u64::try_from(file.size).unwrap_or(u64::MAX)).sum()
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The database, for reading.
    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    /// Rows read lately.
    pub(crate) fn rows(&self) -> &RowCache {
        &self.rows
    }

    /// What is applied and not written yet.
    pub(crate) fn unwritten(&self) -> &UnwrittenBytes {
        &self.unwritten
    }

    pub(crate) fn table(&self, table: Table) -> &ColumnFamily {
        self.db.cf_handle(table.name()).expect("opened with all tables")
    }

    /// Remembers a failure: nothing is written from then on.
    pub(crate) fn checked<T>(&self, result: Result<T, rocksdb::Error>) -> Result<T, DataError> {
        result.map_err(|error| self.fail(format!("{}: {error}", self.dir.display())))
    }

    /// See [`Store::checked`].
    pub(crate) fn fail(&self, why: String) -> DataError {
        self.failure.set(&why);
        DataError::Failed(why)
    }

    /// Refuses after a failure.
    pub(crate) fn is_whole(&self) -> Result<(), DataError> {
        self.failure.reason().map_or(Ok(()), |why| Err(DataError::Failed(why)))
    }

    /// Applies a batch at once; durable after the next flush.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), DataError> {
        self.is_whole()?;
        failpoint!("data.write", self.fail("a failpoint".to_owned()));
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.checked(self.db.write_opt(batch, &options))
    }

    /// Makes all that is written durable, all tables together. After a failure nothing is: a disk that failed once may
    /// say that it wrote what it lost. Blocking.
    pub(crate) fn flush(&self) -> Result<(), DataError> {
        self.is_whole()?;
        failpoint!("data.flush", self.fail("a failpoint".to_owned()));
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.checked(self.db.flush_cfs_opt(&Table::ALL.map(|table| self.table(table)), &options))?;
        #[cfg(kv_sim)]
        self.compact_in_line()?;
        Ok(())
    }

    /// What compaction in the background does elsewhere: when that runs, and so whether a read finds its block in
    /// memory, would be of real time.
    #[cfg(kv_sim)]
    fn compact_in_line(&self) -> Result<(), DataError> {
        let first_level = rocksdb::properties::num_files_at_level(0);
        for table in Table::ALL.map(|table| self.table(table)) {
            let files = self.checked(self.db.property_int_value_cf(table, &first_level))?.unwrap_or(0);
            if files >= u64::from(options::FIRST_LEVEL_FILES.unsigned_abs()) {
                self.db.compact_range_cf(table, None::<&[u8]>, None::<&[u8]>);
            }
        }
        Ok(())
    }

    pub(crate) async fn failed(&self) -> String {
        self.failure.wait().await
    }
}

/// A folder without a `CURRENT` file is new, unless tables lie in it.
fn refuse_remains(dir: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { dir: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            let what = format!("{} is missing, but tables are there", dir.join("CURRENT").display());
            return Err(OpenError::Damaged { dir: dir.to_owned(), what });
        }
    }
    Ok(())
}

impl OpenError {
    /// RocksDB does not name the manifest when its contents are damaged.
    fn in_manifest(self, manifest: &str) -> Self {
        match self {
            Self::Damaged { dir, what } if !what.contains(".sst") && !what.contains("MANIFEST") => {
                let what = format!("{what} (in the manifest, {manifest:?})");
                Self::Damaged { dir, what }
            }
            other @ (Self::Damaged { .. } | Self::Locked { .. } | Self::Format { .. } | Self::Io { .. }) => other,
        }
    }
}

/// RocksDB tells its errors apart by kind and by text only.
fn opening(dir: &Path, error: &rocksdb::Error) -> OpenError {
    let (dir, what) = (dir.to_owned(), error.to_string());
    let says = |part: &str| what.contains(part);
    if error.kind() == ErrorKind::IOError && (says("/LOCK") || says("lock hold")) {
        OpenError::Locked { dir }
    } else if error.kind() == ErrorKind::IOError && !says("No such file") {
        OpenError::Io { dir, source: io::Error::other(what) }
    } else {
        OpenError::Damaged { dir, what }
    }
}
