//! A snapshot on its way in: files taken chunk by chunk into a scratch folder.
//!
//! Invariants: a file is complete and its checksum right before the next one begins, over however many streams it came;
//! memory holds one chunk at a time; what is not installed goes when it is dropped, its extent and its folder.
//!
//! Not here: installing (snapshot); making the files (source).

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::ids::{ExtentId, ShardId};
use parking_lot::Mutex;

use super::snapshot::{SnapshotData, SnapshotView};
use super::source::{Folder, SnapshotSource, at};
use crate::data_engine::{DataEngine, DataError, Extent, Table};
use crate::failpoint;
use crate::types::SnapshotMeta;

/// Chunks of a snapshot copied within a node.
const COPY_BYTES: usize = 256 << 10;

/// Takes the files of a snapshot into a scratch folder of the engine.
pub struct SnapshotSink {
    extent: ExtentId,
    state: Arc<Mutex<State>>,
}

struct State {
    received: ReceivedSnapshot,
    open: Option<OpenFile>,
}

struct OpenFile {
    table: Table,
    path: PathBuf,
    file: File,
    written: u64,
    so_far: u32,
    bytes: u64,
    checksum: u32,
}

/// All files of a snapshot, checked, on this node's disk.
pub struct ReceivedSnapshot {
    shard: ShardId,
    meta: SnapshotMeta,
    extent: Arc<Extent>,
    files: Vec<(Table, PathBuf)>,
    folder: Folder,
}

fn refuse<T>(what: String) -> Result<T, DataError> {
    Err(DataError::BadSnapshot(what))
}

impl SnapshotSink {
    pub(super) fn new(engine: DataEngine, shard: ShardId, meta: SnapshotMeta) -> Result<Self, DataError> {
        engine.holding(shard)?;
        let folder = Folder::create(&engine.scratch(), "in")?;
        let extent = engine.allot_extent()?;
        let id = extent.id();
        let received = ReceivedSnapshot { shard, meta, extent, files: Vec::new(), folder };
        Ok(Self { extent: id, state: Arc::new(Mutex::new(State { received, open: None })) })
    }

    /// The extent the files' keys must lie under.
    #[must_use]
    pub fn extent(&self) -> ExtentId {
        self.extent
    }

    /// How far it has come: all files before the one named first, and of that one this many bytes.
    #[must_use]
    pub fn position(&self) -> (u32, u64) {
        let state = self.state.lock();
        (state.received.count(), state.open.as_ref().map_or(0, |open| open.written))
    }

    /// Begins a file; files come in order, each complete before the next. One that was begun may be announced again, as
    /// the same, and goes on after what came of it.
    pub async fn begin_file(&mut self, file: u32, table: &str, bytes: u64, checksum: u32) -> Result<(), DataError> {
        let Some(table) = Table::of_name(table) else { return refuse(format!("there is no table {table:?}")) };
        self.run(move |state| state.begin_file(file, table, bytes, checksum)).await
    }

    /// Appends to the file begun last; refuses gaps and altered data.
    pub async fn write_chunk(&mut self, file: u32, offset: u64, data: Bytes, checksum: u32) -> Result<(), DataError> {
        self.run(move |state| state.write_chunk(file, offset, &data, checksum)).await
    }

    /// Ends the snapshot: the number of files must be what came, each complete.
    pub async fn finish(self, files: u32) -> Result<SnapshotData, DataError> {
        self.run(move |state| state.end_file()).await?;
        let Some(state) = Arc::into_inner(self.state) else { return refuse("it is still being written".to_owned()) };
        failpoint!("snapshot.received");
        let received = state.into_inner().received;
        if received.count() != files {
            return refuse(format!("{files} files were announced, {} came", received.count()));
        }
        Ok(SnapshotData::Received(received))
    }

    async fn run<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut State) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, DataError> {
        let state = Arc::clone(&self.state);
        let done = crate::blocking::spawn_blocking(move || {
            let result = run(&mut state.lock());
            // Given back before the caller goes on.
            drop(state);
            result
        });
        done.await.unwrap_or_else(|stopped| refuse(stopped.to_string()))
    }
}

impl State {
    fn begin_file(&mut self, file: u32, table: Table, bytes: u64, checksum: u32) -> Result<(), DataError> {
        if let Some(open) = self.open.as_ref().filter(|_| file == self.received.count()) {
            let same = (open.table, open.bytes, open.checksum) == (table, bytes, checksum);
            return if same { Ok(()) } else { refuse(format!("file {file} is another one than was begun")) };
        }
        self.end_file()?;
        if file != self.received.count() {
            return refuse(format!("file {file} came, file {} was due", self.received.count()));
        }
        failpoint!("snapshot.file", DataError::BadSnapshot("a failpoint".to_owned()));
        let path = self.received.folder.file(file);
        let handle = File::create_new(&path).map_err(|error| at(&path, &error))?;
        self.open = Some(OpenFile { table, path, file: handle, written: 0, so_far: 0, bytes, checksum });
        Ok(())
    }

    fn write_chunk(&mut self, file: u32, offset: u64, data: &[u8], checksum: u32) -> Result<(), DataError> {
        let due = self.received.count();
        let Some(open) = self.open.as_mut().filter(|_| file == due) else {
            return refuse(format!("a chunk of file {file} came, which was not begun"));
        };
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        if offset != open.written || open.written.saturating_add(length) > open.bytes {
            return refuse(format!("file {file}: {length} bytes at {offset} came, {} were due", open.written));
        }
        if crc32c::crc32c(data) != checksum {
            return refuse(format!("file {file}: the chunk at {offset} was altered on its way"));
        }
        failpoint!("snapshot.chunk", DataError::BadSnapshot("a failpoint".to_owned()));
        open.file.write_all(data).map_err(|error| at(&open.path, &error))?;
        open.written += length;
        open.so_far = crc32c::crc32c_append(open.so_far, data);
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), DataError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        if open.written != open.bytes || open.so_far != open.checksum {
            return refuse(format!("file {} is not complete or was altered", self.received.count()));
        }
        self.received.files.push((open.table, open.path));
        Ok(())
    }
}

impl ReceivedSnapshot {
    fn count(&self) -> u32 {
        u32::try_from(self.files.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn extent(&self) -> &Arc<Extent> {
        &self.extent
    }

    pub(super) fn files_of(&self, table: Table) -> Vec<PathBuf> {
        self.files.iter().filter(|(of, _)| *of == table).map(|(_, path)| path.clone()).collect()
    }

    /// Refuses to be installed as what it is not.
    pub(super) fn check_announced(&self, shard: ShardId, meta: &SnapshotMeta) -> Result<(), DataError> {
        if self.shard != shard || self.meta != *meta {
            return refuse(format!("it was received for shard {} as {}", self.shard, self.meta));
        }
        Ok(())
    }
}

/// Makes and takes all files within one node.
pub(super) async fn copy(view: SnapshotView, mut sink: SnapshotSink) -> Result<ReceivedSnapshot, DataError> {
    let mut source = SnapshotSource::new(view, sink.extent())?;
    let mut files = 0;
    while let Some(made) = source.next_file().await? {
        sink.begin_file(made.file, made.table, made.bytes, made.checksum).await?;
        let path = made.path.clone();
        let whole = crate::blocking::spawn_blocking(move || std::fs::read(path)).await;
        let whole = whole.unwrap_or_else(|stopped| Err(io::Error::other(stopped)));
        let whole = whole.map_err(|error| at(&made.path, &error))?;
        let mut offset = 0;
        for chunk in whole.chunks(COPY_BYTES) {
            let data = Bytes::copy_from_slice(chunk);
            let checksum = crc32c::crc32c(&data);
            sink.write_chunk(made.file, offset, data, checksum).await?;
            offset += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        }
        files += 1;
    }
    match sink.finish(files).await? {
        SnapshotData::Received(received) => Ok(received),
        SnapshotData::View(_) | SnapshotData::Durable => refuse("a sink gives received snapshots only".to_owned()),
    }
}
