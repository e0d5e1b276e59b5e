//! A snapshot on its way out: the view as SST files for the receiver's extent, one at a time.
//!
//! Invariants: at most one file is on disk, of bounded length, until the next is asked for; keys lie under the receiver's
//! extent; old versions that may not be read are left out.
//!
//! Not here: sending (transport); receiving (sink).

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_proto::ids::ExtentId;
use parking_lot::Mutex;
use rocksdb::{ReadOptions, SstFileWriter};

use super::snapshot::SnapshotView;
use crate::data_engine::rows::{self, MembershipRow, SummaryRow};
use crate::data_engine::{DataError, Table, keys, snapshot_file};
use crate::failpoint;

/// A file ends once it is this long: small enough to make while the one before is sent, large enough to ingest whole.
const FILE_BYTES: u64 = 32 << 20;

/// Read at once while a file's checksum is taken.
const READ_BYTES: usize = 256 << 10;

/// A folder of its own below the engine's scratch folder, which goes with it.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn create(scratch: &Path, kind: &str) -> Result<Self, DataError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = scratch.join(format!("{kind}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&path).map_err(|error| at(&path, &error))?;
        Ok(Self(path))
    }

    pub(super) fn file(&self, number: u32) -> PathBuf {
        self.0.join(format!("{number:06}.sst"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a scratch folder stays until the next start");
        }
    }
}

/// An error of the file system, with the file.
pub(super) fn at(path: &Path, error: &std::io::Error) -> DataError {
    DataError::Failed(format!("{}: {error}", path.display()))
}

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Position, from 0.
    pub file: u32,
    /// "latest", "history", "changes" or "meta".
    pub table: &'static str,
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// CRC32C of the whole file.
    pub checksum: u32,
}

/// Writes a view as SST files for the receiver's extent, one at a time.
pub struct SnapshotSource {
    extent: ExtentId,
    cursor: Arc<Mutex<Cursor>>,
}

struct Cursor {
    view: SnapshotView,
    extent: ExtentId,
    folder: Folder,
    /// Files made so far.
    made: u32,
    /// Tables left, the next one last, with where to go on in it.
    left: Vec<(Table, Option<Vec<u8>>)>,
}

impl SnapshotSource {
    /// Files are made in a scratch folder of the engine; each is deleted when the next one is asked for, the last one
    /// when the source is dropped.
    pub fn new(view: SnapshotView, extent: ExtentId) -> Result<Self, DataError> {
        if view.quarantined {
            return Err(DataError::BadSnapshot("the sender's content differs from that of its peers".to_owned()));
        }
        let folder = Folder::create(&view.scratch, "out")?;
        let left = Table::ALL.into_iter().rev().map(|table| (table, None)).collect();
        let cursor = Arc::new(Mutex::new(Cursor { view, extent, folder, made: 0, left }));
        Ok(Self { extent, cursor })
    }

    /// The extent the files' keys lie under.
    #[must_use]
    pub fn extent(&self) -> ExtentId {
        self.extent
    }

    /// The next file; None after the last. Works on a blocking thread.
    pub async fn next_file(&mut self) -> Result<Option<SnapshotFile>, DataError> {
        let cursor = Arc::clone(&self.cursor);
        let made = crate::blocking::spawn_blocking(move || cursor.lock().next_file()).await;
        made.unwrap_or_else(|stopped| Err(DataError::Failed(stopped.to_string())))
    }
}

impl Cursor {
    fn next_file(&mut self) -> Result<Option<SnapshotFile>, DataError> {
        if let Some(last) = self.made.checked_sub(1).map(|last| self.folder.file(last)) {
            std::fs::remove_file(&last).or_else(|error| if last.exists() { Err(at(&last, &error)) } else { Ok(()) })?;
        }
        failpoint!("snapshot.make");
        while let Some((table, from)) = self.left.pop() {
            let path = self.folder.file(self.made);
            let (rows, next) = self.write_file(table, from, &path)?;
            if let Some(next) = next {
                self.left.push((table, Some(next)));
            }
            if rows == 0 {
                continue;
            }
            let (bytes, checksum) = measure(&path)?;
            let file = self.made;
            self.made += 1;
            return Ok(Some(SnapshotFile { file, table: table.name(), path, bytes, checksum }));
        }
        Ok(None)
    }

    /// How many rows were written and where to go on, if the table is not done.
    fn write_file(
        &self,
        table: Table,
        from: Option<Vec<u8>>,
        path: &Path,
    ) -> Result<(u64, Option<Vec<u8>>), DataError> {
        let store = self.view.store();
        // A scratch file that cannot be written fails the snapshot, not the engine.
        let failed = |error: rocksdb::Error| DataError::Failed(format!("{}: {error}", path.display()));
        let options = snapshot_file(table);
        let mut writer = SstFileWriter::create(&options);
        let mut written = 0;
        let begins = from.is_none();
        let (start, end) = self.bounds(table);
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        read.set_iterate_upper_bound(end);
        let mut rows = self.view.pinned.borrow_dependent().raw_iterator_cf_opt(store.table(table), read);
        rows.seek(from.unwrap_or(start));
        if table == Table::Meta && begins {
            writer.open(path).map_err(failed)?;
            writer.put(keys::meta_summary(self.extent), rows::encode(&self.summary())).map_err(failed)?;
            written = 1;
        }
        let mut next = None;
        while let (Some(key), Some(value)) = (rows.key(), rows.value()) {
            if written > 0 && writer.file_size() >= FILE_BYTES {
                next = Some(key.to_vec());
                break;
            }
            if self.is_sent(table, key) {
                if written == 0 {
                    writer.open(path).map_err(failed)?;
                }
                writer.put(self.moved(table, key)?, value).map_err(failed)?;
                written += 1;
            }
            rows.next();
        }
        store.checked(rows.status())?;
        if written > 0 {
            writer.finish().map_err(failed)?;
        }
        Ok((written, next))
    }

    fn bounds(&self, table: Table) -> (Vec<u8>, Vec<u8>) {
        let progress = &self.view.progress;
        let extent = progress.extent.id();
        match table {
            Table::Latest => keys::latest_range(extent, &progress.range),
            Table::History => keys::history_range(extent, &progress.range),
            Table::Changes => (keys::extent_start(extent), keys::extent_end(extent)),
            Table::Meta => keys::meta_rows(keys::META_SESSION, extent.0),
        }
    }

    fn is_sent(&self, table: Table, key: &[u8]) -> bool {
        match table {
            Table::Latest | Table::Meta => true,
            Table::History | Table::Changes => {
                keys::trailing_timestamp(key).is_some_and(|end| end > self.view.progress.safepoint)
            }
        }
    }

    /// The key under the receiver's extent.
    fn moved(&self, table: Table, key: &[u8]) -> Result<Vec<u8>, DataError> {
        let letter = usize::from(table == Table::Meta);
        let rest = key.get(letter + keys::EXTENT_BYTES..).ok_or_else(|| rows::damaged("key"))?;
        let mut moved = Vec::with_capacity(key.len());
        moved.extend_from_slice(key.get(..letter).unwrap_or_default());
        moved.extend_from_slice(&self.extent.0.to_be_bytes());
        moved.extend_from_slice(rest);
        Ok(moved)
    }

    fn summary(&self) -> SummaryRow {
        let progress = &self.view.progress;
        SummaryRow {
            state: progress.applied_row(),
            membership: MembershipRow::from(progress.membership.as_ref()),
            start: progress.range.start().to_vec(),
            end: progress.range.end().to_vec(),
        }
    }
}

/// Length and CRC32C of a file.
fn measure(path: &Path) -> Result<(u64, u32), DataError> {
    let mut file = File::open(path).map_err(|error| at(path, &error))?;
    let mut buffer = vec![0; READ_BYTES];
    let (mut bytes, mut checksum) = (0, 0);
    loop {
        let read = file.read(&mut buffer).map_err(|error| at(path, &error))?;
        let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) else { return Ok((bytes, checksum)) };
        checksum = crc32c::crc32c_append(checksum, data);
        bytes += u64::try_from(read).unwrap_or(u64::MAX);
    }
}
