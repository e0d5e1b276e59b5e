//! Receiving a snapshot, over as many streams as it takes.
//!
//! Invariants: a part that is refused ends the snapshot, and nothing of it is kept; only a stream that broke can be
//! followed by another; a later stream of a snapshot takes the place of an earlier one that does not know yet that it
//! is dead; what is kept goes when its time is over, another snapshot of the shard begins, or the replica stops.
//!
//! Not here: finding what a stream goes on with (arriving); writing it (state_machine, sink).

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kv_proto::ids::{ExtentId, ReplicaId, ShardId};
use kv_proto::pb::raft::v1::send_snapshot_request::Part;
use kv_proto::pb::raft::v1::send_snapshot_response::Part as Answer;
use kv_proto::pb::raft::v1::{
    SendSnapshotRequest, SendSnapshotResponse, SnapshotChunk, SnapshotHeader, SnapshotProgress, SnapshotReady,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::arriving::Arrival;
use super::{CHUNKS_AHEAD, Position, SNAPSHOT_FORMAT, STALL_MAX};
use crate::blocking::spawn_blocking;
use crate::codec;
use crate::data_engine::DataError;
use crate::failpoint;
use crate::state_machine::SnapshotSink;
use crate::transport::registry::Inbound;
use crate::transport::{Inner, messages};
use crate::types::{SnapshotMeta, Vote};

type Parts = BoxStream<'static, Result<SendSnapshotRequest, Status>>;
type Responses = mpsc::Sender<Result<SendSnapshotResponse, Status>>;

/// A stream whose header was read.
pub(super) struct Incoming {
    parts: Parts,
    responses: Responses,
}

/// Why a stream brings nothing more.
enum Ended {
    /// It broke; what came before may be gone on with.
    Broken(Status),
    /// It was refused, or the sender gave up.
    Refused(Status),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// Receives one snapshot, or the rest of one.
pub(in crate::transport) async fn serve(
    inner: Arc<Inner>,
    mut parts: Parts,
) -> Result<ReceiverStream<Result<SendSnapshotResponse, Status>>, Status> {
    let first = next_part(&mut parts).await.map_err(|(Ended::Broken(status) | Ended::Refused(status))| status)?;
    let Part::Header(header) = first else {
        return Err(Status::invalid_argument("a snapshot begins with its header"));
    };
    failpoint!("snapshot.accept");
    let replica = accept(&inner, &header)?;
    let (responses, stream) = mpsc::channel(CHUNKS_AHEAD);
    let incoming = Incoming { parts, responses };
    let Some(incoming) = hand_over(&inner, &header, incoming)? else { return Ok(ReceiverStream::new(stream)) };
    let announced = Announced::read(header).map_err(Status::invalid_argument)?;
    let permit = place(&inner)?;
    inner.clone().tasks.spawn(async move {
        let cancel = inner.cancel.child_token();
        let begun = begin(&inner, replica, announced, incoming, permit);
        cancel.run_until_cancelled(begun).await;
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

/// Gives the stream back unless it brings the rest of a snapshot that is here.
fn hand_over(inner: &Inner, header: &SnapshotHeader, incoming: Incoming) -> Result<Option<Incoming>, Status> {
    let Some(streams) = inner.snapshots.arriving.find(header) else { return Ok(Some(incoming)) };
    match streams.try_send(incoming) {
        Ok(()) => Ok(None),
        Err(mpsc::error::TrySendError::Closed(incoming)) => Ok(Some(incoming)),
        Err(mpsc::error::TrySendError::Full(_)) => Err(Status::unavailable("an earlier stream is still to be taken")),
    }
}

fn place(inner: &Inner) -> Result<OwnedSemaphorePermit, Status> {
    let place = Arc::clone(&inner.snapshots.receiving).try_acquire_owned();
    place.map_err(|_| Status::resource_exhausted("too many snapshots are received"))
}

async fn next_part(parts: &mut Parts) -> Result<Part, Ended> {
    let next = tokio::time::timeout(STALL_MAX, parts.next()).await;
    match next.map_err(|_| Status::deadline_exceeded("the sender stalled"))? {
        None => Err(Status::cancelled("the sender ended the stream").into()),
        Some(Err(status)) => Err(Ended::Broken(status)),
        Some(Ok(SendSnapshotRequest { part: None })) => Err(Status::invalid_argument("an empty message").into()),
        Some(Ok(SendSnapshotRequest { part: Some(part) })) => Ok(part),
    }
}

async fn respond(responses: &Responses, part: Answer) -> Result<(), Ended> {
    let sent = tokio::time::timeout(STALL_MAX, responses.send(Ok(SendSnapshotResponse { part: Some(part) })));
    let sent = sent.await.map_err(|_| Status::deadline_exceeded("the sender takes no answers"))?;
    sent.map_err(|_| Ended::Broken(Status::cancelled("the sender has gone")))
}

/// The first answer on each stream: where keys must lie, and what came before.
fn ready(inner: &Inner, extent: ExtentId, have: Option<Position>) -> Answer {
    if have.is_some() {
        inner.metrics.snapshots_resumed.inc();
    }
    Answer::Ready(SnapshotReady { extent_id: extent.0, have: have.map(Into::into) })
}

fn failed(error: DataError) -> Ended {
    Ended::Refused(Status::data_loss(error.to_string()))
}

/// Tells the sender, unless it has gone.
async fn tell(responses: &Responses, status: Status) -> Status {
    let told = tokio::time::timeout(STALL_MAX, responses.send(Err(status.clone())));
    drop(told.await);
    status
}

/// What a header says.
struct Announced {
    header: SnapshotHeader,
    vote: Vote,
    meta: SnapshotMeta,
}

impl Announced {
    fn read(header: SnapshotHeader) -> Result<Self, String> {
        let vote = messages::decode_vote_alone(&header.vote).map_err(|e| e.to_string())?;
        let mut bytes = header.meta.clone();
        let last_log_id = codec::decode_optional_log_id(&mut bytes).map_err(|e| e.to_string())?;
        let last_membership = codec::decode_stored_membership(&mut bytes).map_err(|e| e.to_string())?;
        Ok(Self { header, vote, meta: SnapshotMeta { last_log_id, last_membership } })
    }
}

async fn begin(
    inner: &Inner,
    replica: Arc<dyn Inbound>,
    announced: Announced,
    stream: Incoming,
    permit: OwnedSemaphorePermit,
) {
    let Announced { header, vote, meta } = announced;
    let (shard, from) = (header.shard_id, header.from_node_id);
    // What is kept of another snapshot of the shard is let go of, though perhaps not before room is made for this one.
    let arrival = inner.snapshots.arriving.begin(header);
    let (beginning, its_meta) = (Arc::clone(&replica), meta.clone());
    let begun = spawn_blocking(move || beginning.begin_snapshot(its_meta)).await;
    let received = match begun.map_err(|e| e.to_string()).and_then(|begun| begun) {
        Ok(sink) => Receiving { inner, replica, arrival, sink }.run(stream, permit, (vote, meta)).await,
        Err(reason) => Err(tell(&stream.responses, Status::unavailable(reason)).await),
    };
    if let Err(status) = received {
        tracing::info!(shard, from, %status, "snapshot was not received");
    }
}

/// A snapshot that has begun to come.
struct Receiving<'a> {
    inner: &'a Inner,
    replica: Arc<dyn Inbound>,
    arrival: Arrival<'a>,
    sink: SnapshotSink,
}

impl Receiving<'_> {
    /// Receives until it is installed, or says why not after it told the sender.
    async fn run(
        mut self,
        mut stream: Incoming,
        mut permit: OwnedSemaphorePermit,
        announced: (Vote, SnapshotMeta),
    ) -> Result<(), Status> {
        let files = loop {
            match self.take(&mut stream).await {
                Ok(files) => break files,
                Err(Ended::Refused(status)) => return Err(tell(&stream.responses, status).await),
                Err(Ended::Broken(status)) => {
                    drop(stream.responses.try_send(Err(status.clone())));
                    drop((stream, permit));
                    (stream, permit) = self.wait(&status).await.ok_or(status)?;
                }
            }
        };
        match self.install(files, announced, &mut stream).await {
            Ok(vote) => {
                failpoint!("snapshot.answer");
                let told = Answer::Installed(messages::encode_vote_alone(&vote));
                respond(&stream.responses, told)
                    .await
                    .map_err(|(Ended::Broken(status) | Ended::Refused(status))| status)
            }
            Err(status) => Err(tell(&stream.responses, status).await),
        }
    }

    /// Takes what the stream brings, or a later one in its place; ends with how many files there were.
    async fn take(&mut self, stream: &mut Incoming) -> Result<u32, Ended> {
        let stopping = self.replica.stopping();
        let mut answer = Some(self.ready());
        loop {
            let turn = async {
                if let Some(answer) = answer.take() {
                    respond(&stream.responses, answer).await?;
                }
                next_part(&mut stream.parts).await
            };
            // What was read is written before anything else is looked at: a write is never left to itself.
            let part = tokio::select! {
                biased;
                () = stopping.cancelled() => return Err(Status::unavailable("the replica stops").into()),
                Some(later) = self.arrival.streams.recv() => {
                    *stream = later;
                    answer = Some(self.ready());
                    continue;
                }
                part = turn => part?,
            };
            match part {
                Part::File(file) => {
                    self.sink.begin_file(file.file, &file.table, file.bytes, file.checksum).await.map_err(failed)?;
                }
                Part::Chunk(chunk) => answer = Some(Answer::Progress(self.write(chunk).await?)),
                Part::End(end) => return Ok(end.files),
                Part::Header(_) => return Err(Status::invalid_argument("a second header").into()),
            }
        }
    }

    async fn write(&mut self, chunk: SnapshotChunk) -> Result<SnapshotProgress, Ended> {
        let length = u64::try_from(chunk.data.len()).unwrap_or(0);
        let progress = SnapshotProgress { file: chunk.file, offset: chunk.offset.saturating_add(length) };
        self.sink.write_chunk(chunk.file, chunk.offset, chunk.data, chunk.checksum).await.map_err(failed)?;
        self.inner.metrics.snapshot_bytes_received.inc_by(length);
        Ok(progress)
    }

    fn ready(&self) -> Answer {
        ready(self.inner, self.sink.extent(), self.have())
    }

    /// None if nothing came yet.
    fn have(&self) -> Option<Position> {
        let (file, offset) = self.sink.position();
        Some(Position { file, offset }).filter(|have| *have > Position::default())
    }

    /// A stream that goes on with what came; None if it is not worth waiting for, or nobody comes.
    async fn wait(&mut self, broken: &Status) -> Option<(Incoming, OwnedSemaphorePermit)> {
        let have = self.have().filter(|_| self.arrival.may_go_on())?;
        let snapshots = &self.inner.snapshots;
        let _kept = snapshots.kept.try_acquire().ok()?;
        tracing::info!(?have, status = %broken, "snapshot was interrupted, what came is kept");
        let (inner, streams) = (self.inner, &mut self.arrival.streams);
        let next = async {
            loop {
                let next = streams.recv().await?;
                match place(inner) {
                    Ok(permit) => return Some((next, permit)),
                    // Its sender tries again within the time.
                    Err(status) => drop(next.responses.try_send(Err(status))),
                }
            }
        };
        let stopping = self.replica.stopping();
        let next = tokio::time::timeout(snapshots.keep_for, next);
        stopping.run_until_cancelled(next).await.and_then(Result::ok).flatten()
    }

    /// Hands all files to consensus. Meanwhile a later stream may take the place of one that the sender lost.
    async fn install(
        self,
        files: u32,
        (vote, meta): (Vote, SnapshotMeta),
        stream: &mut Incoming,
    ) -> Result<Vote, Status> {
        let (extent, have) = (self.sink.extent(), self.have());
        let Self { inner, replica, mut arrival, sink } = self;
        let data = sink.finish(files).await.map_err(|error| Status::data_loss(error.to_string()))?;
        let mut installing = replica.install_snapshot(vote, meta, data);
        let installed = loop {
            tokio::select! {
                biased;
                installed = &mut installing => break installed.map_err(Status::aborted)?,
                Some(later) = arrival.streams.recv() => {
                    *stream = later;
                    let part = Some(ready(inner, extent, have));
                    drop(stream.responses.try_send(Ok(SendSnapshotResponse { part })));
                }
            }
        };
        inner.metrics.snapshots_installed.inc();
        Ok(installed)
    }
}
