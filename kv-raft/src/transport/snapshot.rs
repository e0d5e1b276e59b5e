//! Snapshots on their way: one connection and one stream per snapshot, files in checksummed chunks.
//!
//! The sender announces shard, replica and what the snapshot covers; the receiver answers with the extent its keys
//! must lie under. Then come the files, each as the sender builds it, and the end, which the receiver answers once
//! consensus has taken the snapshot in. Whatever breaks in between leaves nothing behind at either end, and the next
//! attempt starts over with what is newest then.
//!
//! Invariants: at no end is more than a few chunks in memory; a snapshot that stalls is given up; all snapshots a
//! node sends together keep its rate limit.
//!
//! Not here: how files are built and taken in (state_machine); when a snapshot is needed (openraft).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kv_proto::ids::{ExtentId, NodeId, ReplicaId, ShardId};
use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::pb::raft::v1::send_snapshot_request::Part;
use kv_proto::pb::raft::v1::send_snapshot_response::Part as Answer;
use kv_proto::pb::raft::v1::{
    SendSnapshotRequest, SendSnapshotResponse, SnapshotChunk, SnapshotEnd, SnapshotFile, SnapshotHeader,
    SnapshotProgress, SnapshotReady,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::network::ReplicaAddress;
use super::registry::Inbound;
use super::{Inner, link, messages};
use crate::blocking::spawn_blocking;
use crate::codec;
use crate::failpoint;
use crate::state_machine::{SnapshotData, SnapshotSink, SnapshotSource};
use crate::types::{SnapshotMeta, Vote};

/// How files, chunks and headers are laid out; a receiver refuses what it does not know.
const SNAPSHOT_FORMAT: u32 = 1;

/// Large enough for the disk, small enough that the rate limit is even and memory small.
const CHUNK_BYTES: usize = 256 << 10;
const _: () = assert!(2 * CHUNK_BYTES <= MESSAGE_BYTES_MAX);

/// Chunks handed to HTTP/2 ahead of its flow control.
const CHUNKS_AHEAD: usize = 2;

/// Snapshots a node receives at once; more would only share one disk. A sender that is refused tries again.
const RECEIVED_AT_ONCE: usize = 4;
static RECEIVING: Semaphore = Semaphore::const_new(RECEIVED_AT_ONCE);

/// Snapshots a node sends at once: when a node comes back that was away from hundreds of shards, the others wait here and
/// not as half-built files on one disk.
const SENT_AT_ONCE: usize = 4;
static SENDING: Semaphore = Semaphore::const_new(SENT_AT_ONCE);

/// A snapshot without progress for this long is given up, by either end. Building one file is within it.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Consensus waits for what it is doing before it takes a snapshot in.
const INSTALL_MAX: Duration = Duration::from_secs(300);

/// What is sent where.
pub(super) struct Sending {
    pub(super) from: ReplicaAddress,
    pub(super) to: ReplicaId,
    pub(super) node: NodeId,
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
}

/// A rate in bytes per second that everyone who asks shares.
pub(super) struct Rate {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Rate {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until that many bytes may pass.
    async fn pass(&self, bytes: usize) {
        let wait = self.reserve(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    fn reserve(&self, bytes: usize, now: Instant) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let taken = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock();
        let starts = (*free_at).max(now);
        *free_at = starts + taken;
        starts.saturating_duration_since(now)
    }
}

/// Sends a snapshot and returns the receiver's vote once it is installed.
pub(super) async fn send(inner: &Arc<Inner>, sending: Sending, data: SnapshotData) -> Result<Vote, String> {
    let SnapshotData::View(view) = data else { return Err("there is no state to send yet".to_owned()) };
    failpoint!("snapshot.send");
    let _permit = SENDING.acquire().await.map_err(|error| error.to_string())?;
    let mut client = link::connect(inner, sending.node).await?;
    let (parts, requests) = mpsc::channel(CHUNKS_AHEAD);
    put(&parts, Part::Header(header(inner, &sending))).await?;
    let opened = tokio::time::timeout(STALL_MAX, client.send_snapshot(ReceiverStream::new(requests)));
    let answers = opened.await.map_err(stalled)?.map_err(refused)?.into_inner();
    let mut answers = Answers { stream: answers };
    let extent = answers.ready().await?;
    let source = SnapshotSource::new(view, extent).map_err(|e| e.to_string())?;
    tracing::info!(shard = %sending.from.shard, to = %sending.to, node = %sending.node, "sending snapshot");
    let begun = Instant::now();
    let sent = {
        let files = send_files(inner, source, parts);
        let installed = answers.installed();
        // Answers are read while files are sent: a refusal ends the sending at once.
        tokio::pin!(files, installed);
        tokio::select! {
            biased;
            answer = &mut installed => return answer,
            sent = &mut files => sent?,
        }
    };
    let vote = tokio::time::timeout(INSTALL_MAX, answers.installed()).await.map_err(stalled)??;
    let (shard, to) = (sending.from.shard, sending.to);
    tracing::info!(%shard, %to, bytes = sent, taken = ?begun.elapsed(), "snapshot sent and installed");
    Ok(vote)
}

fn header(inner: &Inner, sending: &Sending) -> SnapshotHeader {
    let mut meta = BytesMut::new();
    codec::encode_optional_log_id(sending.meta.last_log_id.as_ref(), &mut meta);
    codec::encode_stored_membership(&sending.meta.last_membership, &mut meta);
    SnapshotHeader {
        cluster_id: inner.config.cluster_id.clone(),
        from_node_id: inner.config.node.0,
        to_node_id: sending.node.0,
        shard_id: sending.from.shard.0,
        from_replica_id: sending.from.replica.0,
        to_replica_id: sending.to.0,
        meta: meta.freeze(),
        format: SNAPSHOT_FORMAT,
        vote: messages::encode_vote_alone(&sending.vote),
    }
}

/// All files and the end; returns how many bytes that was.
async fn send_files(
    inner: &Inner,
    mut source: SnapshotSource,
    parts: mpsc::Sender<SendSnapshotRequest>,
) -> Result<u64, String> {
    let (mut files, mut bytes) = (0, 0);
    while let Some(file) = source.next_file().await.map_err(|e| e.to_string())? {
        let announced =
            SnapshotFile { file: file.file, table: file.table.to_owned(), bytes: file.bytes, checksum: file.checksum };
        put(&parts, Part::File(announced)).await?;
        send_file(inner, file.file, &file.path, &parts).await?;
        files += 1;
        bytes += file.bytes;
    }
    failpoint!("snapshot.send_end");
    put(&parts, Part::End(SnapshotEnd { files })).await?;
    Ok(bytes)
}

async fn send_file(
    inner: &Inner,
    file: u32,
    path: &Path,
    parts: &mpsc::Sender<SendSnapshotRequest>,
) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let opened = path.to_owned();
    let source = spawn_blocking(move || File::open(opened)).await.map_err(|e| e.to_string())?;
    let source = Arc::new(source.map_err(failed)?);
    let mut offset = 0;
    loop {
        let read = (Arc::clone(&source), offset);
        let data = spawn_blocking(move || read_chunk(&read.0, read.1)).await.map_err(|e| e.to_string())?;
        let data = data.map_err(failed)?;
        if data.is_empty() {
            return Ok(());
        }
        failpoint!("snapshot.send_chunk", "a failpoint".to_owned());
        let length = data.len();
        inner.snapshot_rate.pass(length).await;
        let checksum = crc32c::crc32c(&data);
        put(parts, Part::Chunk(SnapshotChunk { file, offset, data, checksum })).await?;
        offset += u64::try_from(length).unwrap_or(0);
        inner.metrics.snapshot_bytes_sent.inc_by(u64::try_from(length).unwrap_or(0));
    }
}

/// What follows an offset, at most a chunk; nothing at the end. Blocking.
fn read_chunk(source: &File, offset: u64) -> std::io::Result<Bytes> {
    let mut data = vec![0; CHUNK_BYTES];
    let mut filled = 0;
    while let Some(rest) = data.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let read = source.read_at(rest, offset + filled as u64)?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    data.truncate(filled);
    Ok(data.into())
}

async fn put(parts: &mpsc::Sender<SendSnapshotRequest>, part: Part) -> Result<(), String> {
    let sent = parts.send(SendSnapshotRequest { part: Some(part) });
    tokio::time::timeout(STALL_MAX, sent).await.map_err(stalled)?.map_err(|_| "the connection was closed".to_owned())
}

fn stalled(_: tokio::time::error::Elapsed) -> String {
    "no progress for too long".to_owned()
}

fn refused(status: Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// What the receiver says, in the order it must.
struct Answers {
    stream: Streaming<SendSnapshotResponse>,
}

impl Answers {
    async fn next(&mut self) -> Result<Answer, String> {
        let answer = self.stream.message().await.map_err(refused)?;
        answer.and_then(|answer| answer.part).ok_or_else(|| "the receiver ended the stream".to_owned())
    }

    async fn ready(&mut self) -> Result<ExtentId, String> {
        match tokio::time::timeout(STALL_MAX, self.next()).await.map_err(stalled)?? {
            Answer::Ready(ready) => Ok(ExtentId(ready.extent_id)),
            Answer::Progress(_) | Answer::Installed(_) => Err("the receiver did not name its extent".to_owned()),
        }
    }

    /// Takes progress as it comes. Dropping this loses nothing but progress.
    async fn installed(&mut self) -> Result<Vote, String> {
        loop {
            match self.next().await? {
                Answer::Progress(_) => {}
                Answer::Installed(vote) => return messages::decode_vote_alone(&vote).map_err(|e| e.to_string()),
                Answer::Ready(_) => return Err("the receiver named its extent twice".to_owned()),
            }
        }
    }
}

type Responses = mpsc::Sender<Result<SendSnapshotResponse, Status>>;

/// Receives one snapshot.
pub(super) async fn serve(
    inner: Arc<Inner>,
    mut parts: Streaming<SendSnapshotRequest>,
) -> Result<ReceiverStream<Result<SendSnapshotResponse, Status>>, Status> {
    let Some(Part::Header(header)) = next_part(&mut parts).await? else {
        return Err(Status::invalid_argument("a snapshot begins with its header"));
    };
    failpoint!("snapshot.accept");
    let replica = accept(&inner, &header)?;
    let vote = messages::decode_vote_alone(&header.vote).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let meta = decode_meta(header.meta.clone()).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let permit = RECEIVING.try_acquire().map_err(|_| Status::resource_exhausted("too many snapshots are received"))?;
    let (beginning, its_meta) = (Arc::clone(&replica), meta.clone());
    let sink = spawn_blocking(move || beginning.begin_snapshot(its_meta))
        .await
        .map_err(|e| Status::internal(e.to_string()))?
        .map_err(Status::unavailable)?;
    let (responses, stream) = mpsc::channel(CHUNKS_AHEAD);
    let cancel = inner.cancel.child_token();
    let receiving = Arc::clone(&inner);
    inner.tasks.spawn(async move {
        let _permit = permit;
        let received = receive(&receiving, replica, sink, parts, &responses, (vote, meta));
        if let Some(Err(status)) = cancel.run_until_cancelled(received).await {
            tracing::info!(shard = header.shard_id, from = header.from_node_id, %status, "snapshot was not received");
            let _ = responses.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(stream))
}

fn accept(inner: &Inner, header: &SnapshotHeader) -> Result<Arc<dyn Inbound>, Status> {
    if header.format != SNAPSHOT_FORMAT {
        let reason = format!("snapshot format {} is not known, only {SNAPSHOT_FORMAT}", header.format);
        return Err(Status::failed_precondition(reason));
    }
    if header.cluster_id != inner.config.cluster_id || header.to_node_id != inner.config.node.0 {
        return Err(Status::failed_precondition(format!(
            "meant for node {} of cluster {:?}, this is node {} of {:?}",
            header.to_node_id, header.cluster_id, inner.config.node, inner.config.cluster_id
        )));
    }
    let held = inner.registry.find(ShardId(header.shard_id), ReplicaId(header.to_replica_id));
    held.map_err(Status::not_found)
}

fn decode_meta(mut bytes: Bytes) -> Result<SnapshotMeta, codec::CodecError> {
    let last_log_id = codec::decode_optional_log_id(&mut bytes)?;
    let last_membership = codec::decode_stored_membership(&mut bytes)?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}

async fn next_part(parts: &mut Streaming<SendSnapshotRequest>) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(STALL_MAX, parts.message());
    let message = message.await.map_err(|_| Status::deadline_exceeded("the sender stalled"))??;
    Ok(message.and_then(|message| message.part))
}

async fn respond(responses: &Responses, part: Answer) -> Result<(), Status> {
    let sent = responses.send(Ok(SendSnapshotResponse { part: Some(part) })).await;
    sent.map_err(|_| Status::cancelled("the sender has gone"))
}

async fn receive(
    inner: &Inner,
    replica: Arc<dyn Inbound>,
    mut sink: SnapshotSink,
    mut parts: Streaming<SendSnapshotRequest>,
    responses: &Responses,
    (vote, meta): (Vote, SnapshotMeta),
) -> Result<(), Status> {
    let failed = |e: crate::data_engine::DataError| Status::data_loss(e.to_string());
    respond(responses, Answer::Ready(SnapshotReady { extent_id: sink.extent().0 })).await?;
    let files = loop {
        match next_part(&mut parts).await? {
            Some(Part::File(file)) => {
                sink.begin_file(file.file, &file.table, file.bytes, file.checksum).await.map_err(failed)?;
            }
            Some(Part::Chunk(chunk)) => {
                let length = u64::try_from(chunk.data.len()).unwrap_or(0);
                let progress = SnapshotProgress { file: chunk.file, offset: chunk.offset + length };
                sink.write_chunk(chunk.file, chunk.offset, chunk.data, chunk.checksum).await.map_err(failed)?;
                inner.metrics.snapshot_bytes_received.inc_by(length);
                respond(responses, Answer::Progress(progress)).await?;
            }
            Some(Part::End(end)) => break end.files,
            Some(Part::Header(_)) => return Err(Status::invalid_argument("a second header")),
            None => return Err(Status::cancelled("the sender ended the stream")),
        }
    };
    let data = sink.finish(files).await.map_err(failed)?;
    let answer = replica.install_snapshot(vote, meta, data).await.map_err(Status::unavailable)?;
    inner.metrics.snapshots_installed.inc();
    failpoint!("snapshot.answer");
    respond(responses, Answer::Installed(messages::encode_vote_alone(&answer))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_shared_and_does_not_save_up() {
        let rate = Rate::new(1000);
        let now = Instant::now() + Duration::from_secs(100);
        assert_eq!(rate.reserve(500, now), Duration::ZERO);
        assert_eq!(rate.reserve(500, now), Duration::from_millis(500));
        assert_eq!(rate.reserve(1, now), Duration::from_secs(1));
        assert_eq!(Rate::new(0).reserve(usize::MAX, now), Duration::ZERO);
    }
}
