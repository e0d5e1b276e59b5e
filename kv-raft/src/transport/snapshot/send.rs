//! Sending a snapshot, over as many streams as it takes.
//!
//! Invariants: a file is made once the receiver has confirmed the one before, so that whatever the receiver does not
//! have is still here; a sender goes on only under the extent it began with; between two streams others may send; a
//! refusal is final, only a stream that broke after something was confirmed is followed by another.
//!
//! Not here: making the files (state_machine, source); what the receiver keeps (receive).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kv_proto::ids::{ExtentId, NodeId, ReplicaId};
use kv_proto::pb::raft::v1::send_snapshot_request::Part;
use kv_proto::pb::raft::v1::send_snapshot_response::Part as Answer;
use kv_proto::pb::raft::v1::transport_service_client::TransportServiceClient;
use kv_proto::pb::raft::v1::{
    SendSnapshotRequest, SendSnapshotResponse, SnapshotChunk, SnapshotEnd, SnapshotFile, SnapshotHeader, SnapshotReady,
};
use tokio::sync::{SemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::{CHUNK_BYTES, CHUNKS_AHEAD, INSTALL_MAX, Position, SNAPSHOT_FORMAT, STALL_MAX};
use crate::blocking::spawn_blocking;
use crate::codec;
use crate::data_engine::DataError;
use crate::failpoint;
use crate::state_machine::{SnapshotData, SnapshotFile as MadeFile, SnapshotSource, SnapshotView};
use crate::transport::network::ReplicaAddress;
use crate::transport::{Inner, link, messages};
use crate::types::{SnapshotMeta, Vote};

/// Between two attempts to reach a receiver whose stream broke.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

type Client = TransportServiceClient<Channel>;

/// What is sent where.
pub(in crate::transport) struct Sending {
    pub(in crate::transport) from: ReplicaAddress,
    pub(in crate::transport) to: ReplicaId,
    pub(in crate::transport) node: NodeId,
    pub(in crate::transport) vote: Vote,
    pub(in crate::transport) meta: SnapshotMeta,
}

/// Why a stream ended before the snapshot was installed.
enum Ended {
    /// It broke, or the receiver has no place now; what was confirmed may still be there.
    Broken(String),
    /// For good.
    Refused(String),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        let reason = format!("{:?}: {}", status.code(), status.message());
        let lost = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled, Code::ResourceExhausted];
        if lost.contains(&status.code()) { Self::Broken(reason) } else { Self::Refused(reason) }
    }
}

impl From<DataError> for Ended {
    fn from(error: DataError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// Sends a snapshot and returns the receiver's vote once it is installed.
pub(in crate::transport) async fn send(
    inner: &Arc<Inner>,
    sending: Sending,
    data: SnapshotData,
) -> Result<Vote, String> {
    let SnapshotData::View(view) = data else { return Err("there is no state to send yet".to_owned()) };
    failpoint!("snapshot.send");
    let (shard, to, node) = (sending.from.shard, sending.to, sending.node);
    let mut permit = inner.snapshots.sending.acquire().await.map_err(|error| error.to_string())?;
    let mut client = link::connect(inner, node).await?;
    tracing::info!(%shard, %to, %node, "sending snapshot");
    let begun = Instant::now();
    let mut outgoing = Outgoing::new(inner, &sending, view);
    let mut patience = Patience::new(inner.snapshots.resume_within);
    loop {
        let reason = match outgoing.stream(&mut client).await {
            Ok(vote) => {
                tracing::info!(%shard, %to, bytes = outgoing.bytes, taken = ?begun.elapsed(), "snapshot sent and installed");
                return Ok(vote);
            }
            Err(Ended::Refused(reason)) => return Err(reason),
            Err(Ended::Broken(reason)) => reason,
        };
        drop((permit, client));
        let Some(until) = patience.until(outgoing.confirmed, Instant::now()) else { return Err(reason) };
        tracing::info!(%shard, %to, confirmed = ?outgoing.confirmed, %reason, "snapshot was interrupted");
        (client, permit) = reconnect(inner, node, until).await.ok_or(reason)?;
    }
}

/// A connection and a place among those who send, within the time; None without.
async fn reconnect(inner: &Inner, node: NodeId, until: Instant) -> Option<(Client, SemaphorePermit<'_>)> {
    let _interrupted = inner.snapshots.interrupted.try_acquire().ok()?;
    let connected = async {
        loop {
            tokio::time::sleep(RECONNECT_PAUSE).await;
            if let Ok(client) = link::connect(inner, node).await {
                return Some((client, inner.snapshots.sending.acquire().await.ok()?));
            }
        }
    };
    tokio::time::timeout_at(until, connected).await.ok().flatten()
}

/// Until when to go on trying.
struct Patience {
    within: Duration,
    confirmed: Position,
    until: Option<Instant>,
}

impl Patience {
    fn new(within: Duration) -> Self {
        Self { within, confirmed: Position::default(), until: None }
    }

    /// A stream broke: how long the next may take to come. None if nothing was confirmed, so that there is nothing to
    /// save, or nothing since so long ago.
    fn until(&mut self, confirmed: Position, now: Instant) -> Option<Instant> {
        if confirmed > self.confirmed {
            self.confirmed = confirmed;
            self.until = Some(now + self.within);
        }
        self.until.filter(|until| now < *until)
    }
}

/// Where the files come from.
enum Files {
    /// The receiver's extent is not known yet.
    Of(Box<SnapshotView>),
    From(SnapshotSource),
    /// They cannot be made.
    Nowhere,
}

/// A snapshot on its way out.
struct Outgoing<'a> {
    inner: &'a Inner,
    header: SnapshotHeader,
    files: Files,
    /// Made and not wholly confirmed; None before the first and after the last.
    current: Option<MadeFile>,
    /// Invariant: never behind the file before `current`, never beyond `current`.
    confirmed: Position,
    made: u32,
    bytes: u64,
}

impl<'a> Outgoing<'a> {
    fn new(inner: &'a Inner, sending: &Sending, view: SnapshotView) -> Self {
        let files = Files::Of(Box::new(view));
        let header = header(inner, sending);
        Self { inner, header, files, current: None, confirmed: Position::default(), made: 0, bytes: 0 }
    }

    /// Sends what the receiver does not have over one stream, and returns its vote once all is installed.
    async fn stream(&mut self, client: &mut Client) -> Result<Vote, Ended> {
        let (parts, requests) = mpsc::channel(CHUNKS_AHEAD);
        put(&parts, Part::Header(self.header.clone())).await?;
        let opened = tokio::time::timeout(STALL_MAX, client.send_snapshot(ReceiverStream::new(requests)));
        let mut answers = Answers { stream: opened.await.map_err(stalled)??.into_inner() };
        let ready = answers.ready().await?;
        self.go_on(ready)?;
        while let Some(file) = self.unconfirmed().await? {
            let from = Some(self.confirmed).filter(|at| at.file == file.file).map_or(0, |at| at.offset);
            let sending = async {
                let sent = send_file(self.inner, &file, from, &parts).await;
                if let Err(Ended::Refused(reason)) = sent {
                    return reason;
                }
                // A connection that was closed says why in its answers, and one that stalls is noticed there.
                std::future::pending().await
            };
            tokio::select! {
                biased;
                confirmed = answers.confirm(&mut self.confirmed, end_of(&file)) => confirmed?,
                reason = sending => return Err(Ended::Refused(reason)),
            }
        }
        failpoint!("snapshot.send_end");
        match put(&parts, Part::End(SnapshotEnd { files: self.made })).await {
            // As above: the snapshot may be installed by now.
            Ok(()) | Err(Ended::Broken(_)) => {}
            Err(refused @ Ended::Refused(_)) => return Err(refused),
        }
        tokio::time::timeout(INSTALL_MAX, answers.installed()).await.map_err(stalled)?
    }

    /// Takes in what the receiver has, or refuses to go on with what it has not got from here.
    fn go_on(&mut self, ready: SnapshotReady) -> Result<(), Ended> {
        let extent = ExtentId(ready.extent_id);
        let have = ready.have.map_or_else(Position::default, Position::from);
        match std::mem::replace(&mut self.files, Files::Nowhere) {
            Files::Of(view) => self.files = Files::From(SnapshotSource::new(*view, extent)?),
            Files::From(source) if source.extent() == extent => self.files = Files::From(source),
            Files::From(_) | Files::Nowhere => return refuse("the receiver has let go of what was sent"),
        }
        let end = self.current.as_ref().map_or(self.confirmed, end_of);
        if have < self.confirmed || have > end {
            return refuse(&format!("the receiver has {have:?}, between {:?} and {end:?} was due", self.confirmed));
        }
        self.confirmed = have;
        Ok(())
    }

    /// The file to send next, made if it must be; None after the last.
    async fn unconfirmed(&mut self) -> Result<Option<MadeFile>, Ended> {
        if self.current.as_ref().is_none_or(|file| self.confirmed >= end_of(file)) {
            let Files::From(source) = &mut self.files else { return refuse("no receiver has answered") };
            self.current = source.next_file().await?;
            self.made += u32::from(self.current.is_some());
            self.bytes += self.current.as_ref().map_or(0, |file| file.bytes);
        }
        Ok(self.current.clone())
    }
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
        incarnation: inner.config.incarnation,
        sending: inner.snapshots.next_sending.fetch_add(1, Ordering::Relaxed),
    }
}

fn end_of(file: &MadeFile) -> Position {
    Position { file: file.file, offset: file.bytes }
}

/// Announces a file and sends it from an offset on.
async fn send_file(
    inner: &Inner,
    file: &MadeFile,
    from: u64,
    parts: &mpsc::Sender<SendSnapshotRequest>,
) -> Result<(), Ended> {
    let number = file.file;
    let announced =
        SnapshotFile { file: number, table: file.table.to_owned(), bytes: file.bytes, checksum: file.checksum };
    put(parts, Part::File(announced)).await?;
    let failed = |e: std::io::Error| Ended::Refused(format!("{}: {e}", file.path.display()));
    let stopped = |e: tokio::task::JoinError| Ended::Refused(e.to_string());
    let opened = file.path.clone();
    let source = spawn_blocking(move || File::open(opened)).await.map_err(stopped)?;
    let source = Arc::new(source.map_err(failed)?);
    let mut offset = from;
    loop {
        let read = (Arc::clone(&source), offset);
        let data = spawn_blocking(move || read_chunk(&read.0, read.1)).await.map_err(stopped)?;
        let data = data.map_err(failed)?;
        if data.is_empty() {
            return Ok(());
        }
        failpoint!("snapshot.send_chunk", Ended::Refused("a failpoint".to_owned()));
        let length = data.len();
        inner.snapshots.rate.pass(length).await;
        let checksum = crc32c::crc32c(&data);
        put(parts, Part::Chunk(SnapshotChunk { file: number, offset, data, checksum })).await?;
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

async fn put(parts: &mpsc::Sender<SendSnapshotRequest>, part: Part) -> Result<(), Ended> {
    let sent = parts.send(SendSnapshotRequest { part: Some(part) });
    let closed = |_| Ended::Broken("the connection was closed".to_owned());
    tokio::time::timeout(STALL_MAX, sent).await.map_err(stalled)?.map_err(closed)
}

fn stalled(_: tokio::time::error::Elapsed) -> Ended {
    Ended::Refused("no progress for too long".to_owned())
}

fn refuse<T>(reason: &str) -> Result<T, Ended> {
    Err(Ended::Refused(reason.to_owned()))
}

/// What the receiver says, in the order it must.
struct Answers {
    stream: Streaming<SendSnapshotResponse>,
}

impl Answers {
    async fn next(&mut self) -> Result<Answer, Ended> {
        let answer = self.stream.message().await?.and_then(|answer| answer.part);
        answer.ok_or_else(|| Ended::Broken("the receiver ended the stream".to_owned()))
    }

    async fn ready(&mut self) -> Result<SnapshotReady, Ended> {
        match tokio::time::timeout(STALL_MAX, self.next()).await.map_err(stalled)?? {
            Answer::Ready(ready) => Ok(ready),
            Answer::Progress(_) | Answer::Installed(_) => refuse("the receiver did not name its extent"),
        }
    }

    /// Takes progress as it comes, until all of a file is confirmed.
    async fn confirm(&mut self, confirmed: &mut Position, end: Position) -> Result<(), Ended> {
        while *confirmed < end {
            match tokio::time::timeout(STALL_MAX, self.next()).await.map_err(stalled)?? {
                Answer::Progress(progress) if Position::from(progress) <= end => {
                    *confirmed = Position::from(progress).max(*confirmed);
                }
                Answer::Progress(progress) => return refuse(&format!("{progress:?} is beyond what was sent")),
                Answer::Installed(_) => return refuse("the receiver installed what was not sent to the end"),
                Answer::Ready(_) => return refuse("the receiver named its extent twice"),
            }
        }
        Ok(())
    }

    async fn installed(&mut self) -> Result<Vote, Ended> {
        loop {
            match self.next().await? {
                // All was confirmed before.
                Answer::Progress(_) => {}
                Answer::Installed(vote) => {
                    return messages::decode_vote_alone(&vote).map_err(|error| Ended::Refused(error.to_string()));
                }
                Answer::Ready(_) => return refuse("the receiver named its extent twice"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_patient_only_while_there_is_something_to_save_and_it_goes_forward() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let at = |file, offset| Position { file, offset };
        let mut patience = Patience::new(10 * second);
        assert_eq!(patience.until(at(0, 0), begun), None);
        assert_eq!(patience.until(at(0, 5), begun), Some(begun + 10 * second));
        assert_eq!(patience.until(at(0, 5), begun + 9 * second), Some(begun + 10 * second), "nothing new came over");
        assert_eq!(patience.until(at(0, 5), begun + 10 * second), None);
        assert_eq!(patience.until(at(1, 0), begun + 11 * second), Some(begun + 21 * second));
    }
}
