//! Our end of the stream to one node: a bounded queue of frames, the calls that wait for their answers, and the task
//! that keeps the stream up.
//!
//! Invariants: an answer reaches the call with its request id, at most once; when a stream breaks, every call that
//! waits fails at once and what was queued is dropped, so nothing is ever sent twice; a call that is dropped leaves
//! nothing behind.
//!
//! Not here: what frames hold (messages); the other end (service).

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::ids::NodeId;
use kv_proto::pb::raft::v1::transport_service_client::TransportServiceClient;
use kv_proto::pb::raft::v1::{ExchangeRequest, ExchangeResponse, Frame};
use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::peers::PeerCell;
use super::{Inner, MESSAGE_BYTES_TARGET, TRANSPORT_MESSAGE_BYTES_MAX};
use crate::failpoint;

/// Frames that may wait for one peer: a window of appends, a heartbeat and a vote for each of a thousand shards
/// would not fill it unless the peer hangs.
const LINK_QUEUE_FRAMES: usize = 8192;

/// Bytes that may wait for one peer; a peer that hangs costs no more.
const LINK_QUEUE_BYTES: usize = 64 << 20;

/// Calls that may wait for answers of one peer; they hold no bodies.
const LINK_CALLS_MAX: usize = 65_536;

/// Frames taken from the queue at once.
const GATHER_FRAMES: usize = 1024;

/// Messages handed to HTTP/2 ahead of its flow control: one is on its way while the next gathers.
const MESSAGES_AHEAD: usize = 1;

/// First and longest pause between attempts to connect.
const RECONNECT_MIN: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_millis(500);

/// HTTP/2 windows: a message at its target must not wait for a window update.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// There is no stream to the node, or it broke while the call waited.
    #[error("node {node} is not reachable: {reason}")]
    Unreachable { node: NodeId, reason: String },
    /// Too much waits for the node already.
    #[error("too many frames wait for node {0}")]
    QueueFull(NodeId),
    /// No answer in time.
    #[error("node {node} did not answer within {after:?}")]
    Timeout { node: NodeId, after: Duration },
    /// The node refused the frame before Raft saw it.
    #[error("node {node} refused: {reason}")]
    Refused { node: NodeId, reason: String },
}

type Answer = oneshot::Sender<Result<Bytes, CallError>>;

/// One link; its task holds the receiving end of the queue.
pub(crate) struct Link {
    node: NodeId,
    queue: mpsc::Sender<Frame>,
    queued_bytes: AtomicUsize,
    /// False while the last attempt to connect failed: calls fail at once instead of waiting.
    reachable: AtomicBool,
    next_request: AtomicU64,
    waiting: Mutex<HashMap<u64, Answer>>,
    cancel: CancellationToken,
}

/// Removes a call that is dropped before its answer came.
struct WaitingCall {
    link: Arc<Link>,
    request: u64,
}

impl Drop for WaitingCall {
    fn drop(&mut self) {
        self.link.waiting.lock().remove(&self.request);
    }
}

impl Link {
    pub(super) fn new(node: NodeId, cancel: CancellationToken) -> (Arc<Self>, mpsc::Receiver<Frame>) {
        let (queue, frames) = mpsc::channel(LINK_QUEUE_FRAMES);
        let link = Self {
            node,
            queue,
            queued_bytes: AtomicUsize::new(0),
            reachable: AtomicBool::new(true),
            next_request: AtomicU64::new(1),
            waiting: Mutex::default(),
            cancel,
        };
        (Arc::new(link), frames)
    }

    pub(super) fn close(&self) {
        self.cancel.cancel();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.cancel.is_cancelled()
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// Queues the frame now, so that calls made in order are sent in order; the future waits for the answer.
    pub(crate) fn call(
        self: &Arc<Self>,
        mut frame: Frame,
        within: Duration,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send + use<> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        frame.request_id = request;
        let (answer, answered) = oneshot::channel();
        let queued = self.enqueue(frame, answer);
        let waiting = WaitingCall { link: Arc::clone(self), request };
        async move {
            queued?;
            let link = &waiting.link;
            match tokio::time::timeout(within, answered).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(link.unreachable("the link was closed")),
                Err(_) => Err(CallError::Timeout { node: link.node, after: within }),
            }
        }
    }

    fn enqueue(&self, frame: Frame, answer: Answer) -> Result<(), CallError> {
        if !self.reachable.load(Ordering::Relaxed) {
            return Err(self.unreachable("connecting"));
        }
        let bytes = frame.body.len();
        if self.queued_bytes.load(Ordering::Relaxed) >= LINK_QUEUE_BYTES {
            return Err(CallError::QueueFull(self.node));
        }
        let request = frame.request_id;
        {
            let mut waiting = self.waiting.lock();
            if waiting.len() >= LINK_CALLS_MAX {
                return Err(CallError::QueueFull(self.node));
            }
            waiting.insert(request, answer);
        }
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queue.try_send(frame).map_err(|error| {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.waiting.lock().remove(&request);
            match error {
                mpsc::error::TrySendError::Full(_) => CallError::QueueFull(self.node),
                mpsc::error::TrySendError::Closed(_) => self.unreachable("the link is closed"),
            }
        })
    }

    fn unreachable(&self, reason: impl Into<String>) -> CallError {
        CallError::Unreachable { node: self.node, reason: reason.into() }
    }

    fn answer(&self, frame: Frame) {
        let Some(answer) = self.waiting.lock().remove(&frame.request_id) else { return };
        let result = if frame.refusal.is_empty() {
            Ok(frame.body)
        } else {
            Err(CallError::Refused { node: self.node, reason: frame.refusal })
        };
        // A call that was dropped meanwhile does not want its answer.
        let _ = answer.send(result);
    }

    /// Fails what waits and drops what is queued.
    fn broken(&self, queue: &mut mpsc::Receiver<Frame>, reason: &str) {
        while let Ok(frame) = queue.try_recv() {
            self.queued_bytes.fetch_sub(frame.body.len(), Ordering::Relaxed);
        }
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for answer in waiting.into_values() {
            let _ = answer.send(Err(self.unreachable(reason)));
        }
    }
}

/// Keeps the stream up until the link is closed.
pub(super) async fn run(inner: Arc<Inner>, link: Arc<Link>, mut queue: mpsc::Receiver<Frame>) {
    let cell = inner.peers.cell(link.node);
    let mut pause = RECONNECT_MIN;
    let mut told = false;
    loop {
        let session = session(&inner, &link, &cell, &mut queue);
        let Some(ended) = link.cancel.run_until_cancelled(session).await else { break };
        cell.set_connected(false);
        link.reachable.store(false, Ordering::Relaxed);
        link.broken(&mut queue, &ended.reason);
        if ended.was_up {
            (pause, told) = (RECONNECT_MIN, false);
        }
        if told {
            tracing::debug!(peer = %link.node, reason = ended.reason, "still no link");
        } else {
            tracing::info!(peer = %link.node, reason = ended.reason, "no link to node");
            told = true;
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        if link.cancel.run_until_cancelled(tokio::time::sleep(jittered)).await.is_none() {
            break;
        }
        pause = (pause * 2).min(RECONNECT_MAX);
    }
    cell.set_connected(false);
    link.reachable.store(false, Ordering::Relaxed);
    queue.close();
    link.broken(&mut queue, "the link was closed");
}

struct Ended {
    was_up: bool,
    reason: String,
}

/// One connection from first to last message; says why it ended.
async fn session(inner: &Arc<Inner>, link: &Arc<Link>, cell: &PeerCell, queue: &mut mpsc::Receiver<Frame>) -> Ended {
    let (outgoing, incoming) = match open(inner, link.node).await {
        Ok(opened) => opened,
        Err(reason) => return Ended { was_up: false, reason },
    };
    inner.metrics.links_opened.inc();
    cell.set_connected(true);
    link.reachable.store(true, Ordering::Relaxed);
    tracing::info!(peer = %link.node, "link to node is up");
    let reason = exchange(inner, link, cell, queue, outgoing, incoming).await;
    Ended { was_up: true, reason }
}

/// A connection of its own to a node, as all of the transport makes them.
pub(super) async fn connect(inner: &Inner, node: NodeId) -> Result<TransportServiceClient<Channel>, String> {
    failpoint!("transport.connect", "a failpoint".to_owned());
    let address = inner.directory.address(node).ok_or_else(|| format!("the address of node {node} is not known"))?;
    let timing = &inner.config.timing;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| format!("address {address:?}: {e}"))?
        .tcp_nodelay(true)
        .connect_timeout(timing.election_max)
        .http2_keep_alive_interval(timing.election_max)
        .keep_alive_timeout(timing.election_max * 2)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(2 * STREAM_WINDOW_BYTES);
    #[cfg(not(kv_sim))]
    let connected = endpoint.connect().await;
    #[cfg(kv_sim)]
    let connected = kv_proto::simulated::connect(&endpoint).await;
    let channel = connected.map_err(|e| format!("{address}: {}", chain(&e)))?;
    Ok(TransportServiceClient::new(channel)
        .max_decoding_message_size(TRANSPORT_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(TRANSPORT_MESSAGE_BYTES_MAX))
}

/// An error with its sources, since transports hide the reason in the last one.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

type Opened = (mpsc::Sender<ExchangeRequest>, Streaming<ExchangeResponse>);

async fn open(inner: &Arc<Inner>, node: NodeId) -> Result<Opened, String> {
    let mut client = connect(inner, node).await?;
    let (outgoing, requests) = mpsc::channel(MESSAGES_AHEAD);
    let hello = ExchangeRequest { hello: Some(inner.hello(node)), frames: Vec::new() };
    outgoing.try_send(hello).map_err(|e| e.to_string())?;
    let opened = client.exchange(ReceiverStream::new(requests));
    let response = tokio::time::timeout(inner.config.timing.election_max * 2, opened)
        .await
        .map_err(|_| "the node did not answer the first message".to_owned())?
        .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    Ok((outgoing, response.into_inner()))
}

/// Sends what is queued and takes answers until something ends it.
async fn exchange(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    cell: &PeerCell,
    queue: &mut mpsc::Receiver<Frame>,
    outgoing: mpsc::Sender<ExchangeRequest>,
    mut incoming: Streaming<ExchangeResponse>,
) -> String {
    let timing = &inner.config.timing;
    let mut hellos = interval(timing.heartbeat);
    hellos.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut gathered = VecDeque::new();
    let mut taken = Vec::new();
    let mut hello_due = false;
    let mut hello_sent = Instant::now();
    let mut last_answer = Instant::now();
    loop {
        let something = hello_due || !gathered.is_empty();
        tokio::select! {
            answer = incoming.message() => {
                let answer = match answer {
                    Ok(Some(answer)) => answer,
                    Ok(None) => return "the node ended the stream".to_owned(),
                    Err(status) => return format!("{:?}: {}", status.code(), status.message()),
                };
                failpoint!("transport.answered");
                last_answer = Instant::now();
                cell.heard();
                if let Some(hello) = answer.hello {
                    if let Err(reason) = inner.check_hello(&hello, Some(link.node)) {
                        return reason;
                    }
                    cell.introduced(hello.incarnation);
                    cell.measured_offset(offset_ms(hello.wall_ms, inner.clock.wall_millis(), hello_sent.elapsed()));
                }
                for frame in answer.frames {
                    link.answer(frame);
                }
            }
            permit = outgoing.reserve(), if something => {
                let Ok(permit) = permit else { return "the connection was closed".to_owned() };
                // What is ready to run may bring more frames; it costs nothing if nothing is.
                tokio::task::yield_now().await;
                while let Ok(frame) = queue.try_recv() {
                    gathered.push_back(frame);
                    if gathered.len() >= GATHER_FRAMES {
                        break;
                    }
                }
                let mut message = ExchangeRequest { hello: None, frames: cut(link, &mut gathered) };
                if hello_due {
                    message.hello = Some(inner.hello(link.node));
                    (hello_due, hello_sent) = (false, Instant::now());
                }
                inner.metrics.messages_sent.inc();
                inner.metrics.frames_sent.inc_by(u64::try_from(message.frames.len()).unwrap_or(0));
                failpoint!("transport.send");
                permit.send(message);
            }
            count = queue.recv_many(&mut taken, GATHER_FRAMES), if gathered.is_empty() => {
                if count == 0 {
                    return "the link was closed".to_owned();
                }
                gathered.extend(taken.drain(..));
            }
            _ = hellos.tick() => {
                hello_due = true;
                if last_answer.elapsed() > timing.silence() * 2 {
                    return format!("the node was silent for {:?}", last_answer.elapsed());
                }
            }
        }
    }
}

/// The frames of the next message: until the target size is reached, at least one.
fn cut(link: &Link, gathered: &mut VecDeque<Frame>) -> Vec<Frame> {
    let mut frames = Vec::with_capacity(gathered.len());
    let mut bytes = 0;
    while bytes < MESSAGE_BYTES_TARGET {
        let Some(frame) = gathered.pop_front() else { break };
        bytes += frame.body.len();
        link.queued_bytes.fetch_sub(frame.body.len(), Ordering::Relaxed);
        frames.push(frame);
    }
    frames
}

/// How far the peer's clock is ahead, taking its word to be half a round trip old.
fn offset_ms(peer_wall_ms: u64, own_wall_ms: u64, round_trip: Duration) -> i64 {
    let half = i64::try_from(round_trip.as_millis() / 2).unwrap_or(0);
    let peer = i64::try_from(peer_wall_ms).unwrap_or(i64::MAX);
    let own = i64::try_from(own_wall_ms).unwrap_or(i64::MAX);
    peer.saturating_sub(own).saturating_add(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> Frame {
        Frame { body: vec![0; bytes].into(), ..Frame::default() }
    }

    fn link() -> (Arc<Link>, mpsc::Receiver<Frame>) {
        Link::new(NodeId(2), CancellationToken::new())
    }

    #[tokio::test]
    async fn answers_reach_their_calls_in_any_order_and_refusals_stay_refusals() {
        let (link, mut queue) = link();
        let within = Duration::from_secs(60);
        let (first, second) = (link.call(frame(1), within), link.call(frame(1), within));
        let (one, two) = (queue.recv().await.unwrap(), queue.recv().await.unwrap());
        assert!(one.request_id < two.request_id, "calls are sent in the order they were made");
        link.answer(Frame { request_id: two.request_id, refusal: "no".to_owned(), ..Frame::default() });
        link.answer(Frame { request_id: one.request_id, body: Bytes::from_static(b"yes"), ..Frame::default() });
        assert_eq!(first.await, Ok(Bytes::from_static(b"yes")));
        assert_eq!(second.await, Err(CallError::Refused { node: NodeId(2), reason: "no".to_owned() }));
        assert!(link.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn a_full_queue_fails_the_new_call_and_a_dropped_call_leaves_nothing() {
        let (link, _queue) = link();
        let within = Duration::from_secs(60);
        let mut calls = vec![link.call(frame(LINK_QUEUE_BYTES), within)];
        assert_eq!(link.call(frame(1), within).await, Err(CallError::QueueFull(NodeId(2))));
        assert_eq!(link.waiting.lock().len(), 1);
        let call = calls.pop().unwrap();
        assert_eq!(tokio::time::timeout(Duration::ZERO, call).await.ok(), None);
        assert!(link.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn a_broken_link_fails_what_waits_and_drops_what_is_queued() {
        let (link, mut queue) = link();
        let call = link.call(frame(10), Duration::from_secs(60));
        link.broken(&mut queue, "cut");
        assert!(matches!(call.await, Err(CallError::Unreachable { .. })));
        assert_eq!(link.queued_bytes.load(Ordering::Relaxed), 0);
        assert!(queue.try_recv().is_err());
    }

    #[test]
    fn a_message_ends_at_its_target_and_holds_at_least_one_frame() {
        let (link, _queue) = link();
        link.queued_bytes.store(usize::MAX / 2, Ordering::Relaxed);
        let mut gathered = VecDeque::from([frame(3 * MESSAGE_BYTES_TARGET), frame(1), frame(MESSAGE_BYTES_TARGET)]);
        assert_eq!(cut(&link, &mut gathered).len(), 1);
        assert_eq!(cut(&link, &mut gathered).len(), 2);
        assert!(cut(&link, &mut gathered).is_empty());
    }

    #[test]
    fn clock_offsets_allow_for_the_way() {
        assert_eq!(offset_ms(1050, 1000, Duration::from_millis(20)), 60);
        assert_eq!(offset_ms(900, 1000, Duration::ZERO), -100);
    }
}
