//! The other end of links: takes frames, hands them to replicas, and answers.
//!
//! Invariants: nothing of a stream is read before its introduction is accepted; frames are handed over in the order
//! they came; a stream has a bounded number of frames at work and stops reading beyond it, which holds back that peer
//! only.
//!
//! Not here: snapshots (snapshot); our end of links (link).

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _, poll};
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_proto::pb::raft::v1::transport_service_server::TransportService;
use kv_proto::pb::raft::v1::{ExchangeRequest, ExchangeResponse, Frame, SendSnapshotRequest, SendSnapshotResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::peers::PeerCell;
use super::registry::Origin;
use super::{Inner, MESSAGE_BYTES_TARGET, snapshot};
use crate::failpoint;

/// Frames of one stream at work at once: a full window of appends for each of many shards. They wait for the log's
/// fsync, so fewer would hold back shards that have nothing to do with each other.
const FRAMES_AT_WORK: usize = 4096;

/// The same in bytes of their bodies, which a replica holds until they are written. One frame is always at work.
const BYTES_AT_WORK: usize = 64 << 20;

/// Answers handed to HTTP/2 ahead of its flow control: one is on its way while the next gathers.
const ANSWERS_AHEAD: usize = 1;

/// The service other nodes call.
pub struct Service {
    inner: Arc<Inner>,
}

impl Service {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }
}

type ResponseStream<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl TransportService for Service {
    type ExchangeStream = ResponseStream<ExchangeResponse>;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut incoming = request.into_inner();
        failpoint!("transport.accept");
        let first = tokio::time::timeout(self.inner.config.timing.election_max * 2, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the stream did not introduce itself"))??;
        let hello = first
            .as_ref()
            .and_then(|first| first.hello.as_ref())
            .ok_or_else(|| Status::invalid_argument("a stream begins with a hello"))?;
        let node = self.inner.check_hello(hello, None).map_err(Status::failed_precondition)?;
        let cell = self.inner.peers.cell(node);
        cell.introduced(hello.incarnation);
        let (answers, responses) = mpsc::channel(ANSWERS_AHEAD);
        let introduction = ExchangeResponse { hello: Some(self.inner.hello(node)), frames: Vec::new() };
        answers.try_send(Ok(introduction)).map_err(|e| Status::internal(e.to_string()))?;
        let stream = Stream { inner: Arc::clone(&self.inner), node, cell };
        let cancel = self.inner.cancel.child_token();
        self.inner.tasks.spawn(async move {
            cancel.run_until_cancelled(stream.serve(incoming, answers)).await;
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    type SendSnapshotStream = ResponseStream<SendSnapshotResponse>;

    async fn send_snapshot(
        &self,
        request: Request<Streaming<SendSnapshotRequest>>,
    ) -> Result<Response<Self::SendSnapshotStream>, Status> {
        snapshot::serve(Arc::clone(&self.inner), request.into_inner().boxed()).await.map(Response::new)
    }
}

/// One accepted stream.
struct Stream {
    inner: Arc<Inner>,
    node: NodeId,
    cell: Arc<PeerCell>,
}

/// Ends with the length of the frame's body and its answer.
type Work = Pin<Box<dyn Future<Output = (usize, Frame)> + Send>>;

/// What a stream has in its hands.
#[derive(Default)]
struct Hands {
    work: FuturesUnordered<Work>,
    /// Of the bodies at work.
    bytes: usize,
    /// Answers to be sent.
    done: Vec<Frame>,
}

impl Hands {
    fn have_room(&self) -> bool {
        self.work.len() + self.done.len() < FRAMES_AT_WORK && self.bytes < BYTES_AT_WORK
    }

    fn finish(&mut self, (bytes, frame): (usize, Frame)) {
        self.bytes -= bytes;
        self.done.push(frame);
    }

    fn finish_ready(&mut self) {
        while let Some(Some(finished)) = self.work.next().now_or_never() {
            self.finish(finished);
        }
    }
}

impl Stream {
    async fn serve(
        self,
        mut incoming: Streaming<ExchangeRequest>,
        answers: mpsc::Sender<Result<ExchangeResponse, Status>>,
    ) {
        let mut hands = Hands::default();
        let mut hello_due = false;
        loop {
            let something = hello_due || !hands.done.is_empty();
            tokio::select! {
                message = incoming.message(), if hands.have_room() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return,
                        Err(status) => {
                            tracing::debug!(peer = %self.node, %status, "stream from node broke");
                            return;
                        }
                    };
                    self.cell.heard();
                    if let Some(hello) = &message.hello {
                        if let Err(reason) = self.inner.check_hello(hello, Some(self.node)) {
                            let _ = answers.send(Err(Status::failed_precondition(reason))).await;
                            return;
                        }
                        self.cell.introduced(hello.incarnation);
                        hello_due = true;
                    }
                    failpoint!("transport.receive");
                    for frame in message.frames {
                        self.begin(frame, &mut hands).await;
                    }
                }
                Some(finished) = hands.work.next(), if !hands.work.is_empty() => {
                    hands.finish(finished);
                    hands.finish_ready();
                }
                permit = answers.reserve(), if something => {
                    let Ok(permit) = permit else { return };
                    // What is ready to run may bring more answers; it costs nothing if nothing is.
                    tokio::task::yield_now().await;
                    hands.finish_ready();
                    failpoint!("transport.answer");
                    let hello = hello_due.then(|| self.inner.hello(self.node));
                    hello_due = false;
                    permit.send(Ok(ExchangeResponse { hello, frames: cut(&mut hands.done) }));
                }
            }
        }
    }

    /// Hands a frame over, in order: its first poll, unhindered by the scheduler's budget, reaches the replica.
    async fn begin(&self, frame: Frame, hands: &mut Hands) {
        hands.bytes += frame.body.len();
        let mut handled: Work = Box::pin(tokio::task::unconstrained(self.handle(frame)));
        match poll!(handled.as_mut()) {
            std::task::Poll::Ready(finished) => hands.finish(finished),
            std::task::Poll::Pending => hands.work.push(handled),
        }
    }

    fn handle(&self, mut frame: Frame) -> impl Future<Output = (usize, Frame)> + Send + use<> {
        let bytes = frame.body.len();
        let body = std::mem::take(&mut frame.body);
        let handled = self.dispatch(&frame, body);
        async move {
            match handled.await {
                Ok(body) => frame.body = body,
                Err(refusal) => frame.refusal = refusal,
            }
            std::mem::swap(&mut frame.from_replica_id, &mut frame.to_replica_id);
            (bytes, frame)
        }
    }

    fn dispatch(&self, frame: &Frame, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let origin = Origin { node: self.node, replica: ReplicaId(frame.from_replica_id) };
        match self.inner.registry.find(ShardId(frame.shard_id), ReplicaId(frame.to_replica_id)) {
            Ok(replica) => replica.handle(origin, frame.kind(), body),
            Err(refusal) => futures::future::ready(Err(refusal)).boxed(),
        }
    }
}

/// The answers of the next message: until the target size is reached.
fn cut(done: &mut Vec<Frame>) -> Vec<Frame> {
    let mut bytes = 0;
    let count = done
        .iter()
        .take_while(|frame| {
            let fits = bytes < MESSAGE_BYTES_TARGET;
            bytes += frame.body.len() + frame.refusal.len();
            fits
        })
        .count();
    let rest = done.split_off(count);
    std::mem::replace(done, rest)
}
