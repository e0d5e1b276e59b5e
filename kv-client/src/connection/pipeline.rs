//! One pipelined stream to one node: many callers, one message for all that wait at the same moment.
//!
//! Callers put their calls into a queue. Whenever the transport can take a message it pulls one from [`Gather`], which
//! joins everything that waits then: alone a call leaves at once, under load they share a message. Nothing lingers.
//!
//! Invariants:
//! - a call is in `calls` from before it is queued until it is answered, failed or given up;
//! - once the stream is closed, every call in it has been failed and no other one enters;
//! - a call given up before it was pulled is never sent.
//!
//! Not here: when to connect (pool).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::Stream;
use kv_proto::errors::ServiceError;
use kv_proto::limits::{MESSAGE_BYTES_MAX, PIPELINE_CALLS_MAX};
use kv_proto::pb::v1::kv_service_client::KvServiceClient;
use kv_proto::pb::v1::{PipelineCall, PipelineReply, PipelineRequest, PipelineResponse, pipeline_call, pipeline_reply};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::error::{CallError, ConnectionError};

/// Two messages' worth: one being written, one gathering. Callers beyond wait in their own tasks.
const CALLS_QUEUED_MAX: usize = 2 * PIPELINE_CALLS_MAX;

/// A message that holds several calls stays around this size: more only delays the first of them.
const GATHERED_BYTES_MAX: usize = 1 << 20;

/// Field tags and lengths around one call, generously.
const CALL_OVERHEAD_BYTES: usize = 32;

const _: () = assert!(GATHERED_BYTES_MAX < MESSAGE_BYTES_MAX, "gathered calls fit into a message");

type Answer = Result<pipeline_reply::Response, CallError>;

/// Why a stream ended.
#[derive(Clone, Debug)]
pub(crate) struct Closed {
    /// Whether the node is to blame; false if it ended the stream in order.
    pub(crate) failed: bool,
    pub(crate) why: String,
    pub(crate) at: Instant,
}

struct Waiting {
    sent: bool,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    closed: Option<Closed>,
}

/// The unanswered calls of one stream.
pub(crate) struct Calls {
    address: Arc<str>,
    state: Mutex<State>,
}

impl Calls {
    fn new(address: Arc<str>) -> Self {
        Self { address, state: Mutex::default() }
    }

    fn enter(&self, id: u64, answer: oneshot::Sender<Answer>) -> Result<(), ConnectionError> {
        let mut state = self.state.lock();
        if let Some(closed) = &state.closed {
            return Err(self.lost(closed, false));
        }
        state.waiting.insert(id, Waiting { sent: false, answer });
        Ok(())
    }

    /// Takes a call out; whether it was sent, None if it had left already.
    fn leave(&self, id: u64) -> Option<bool> {
        self.state.lock().waiting.remove(&id).map(|waiting| waiting.sent)
    }

    /// Drops what was given up meanwhile and marks the rest as sent.
    fn send(&self, calls: &mut Vec<PipelineCall>) {
        let mut state = self.state.lock();
        calls.retain(|call| state.waiting.get_mut(&call.id).map(|waiting| waiting.sent = true).is_some());
    }

    fn complete(&self, replies: Vec<PipelineReply>) {
        let mut answers = Vec::with_capacity(replies.len());
        {
            let mut state = self.state.lock();
            for reply in replies {
                if let Some(waiting) = state.waiting.remove(&reply.id) {
                    answers.push((waiting.answer, reply.response));
                }
            }
        }
        for (answer, response) in answers {
            // A caller that just gave up does not listen any more.
            let _ = answer.send(to_answer(response));
        }
    }

    pub(crate) fn close(&self, failed: bool, why: String) {
        let closed = Closed { failed, why, at: Instant::now() };
        let waiting = {
            let mut state = self.state.lock();
            if state.closed.is_some() {
                return;
            }
            state.closed = Some(closed.clone());
            std::mem::take(&mut state.waiting)
        };
        for waiting in waiting.into_values() {
            let _ = waiting.answer.send(Err(self.lost(&closed, waiting.sent).into()));
        }
    }

    fn lost(&self, closed: &Closed, sent: bool) -> ConnectionError {
        ConnectionError::Lost { address: self.address.clone(), why: closed.why.clone(), sent }
    }
}

fn to_answer(response: Option<pipeline_reply::Response>) -> Answer {
    match response {
        Some(pipeline_reply::Response::Failure(failure)) => Err(ServiceError::from_failure(failure).into()),
        Some(response) => Ok(response),
        None => {
            let message = "the node's reply holds no response this client knows".to_owned();
            Err(ServiceError::Foreign { code: Code::Unimplemented, message }.into())
        }
    }
}

struct Queued {
    call: PipelineCall,
    bytes: usize,
}

/// A call that has begun: what takes it out again, where its answer comes, and the call itself if the queue was full.
type Begun<'a> = (GiveUp<'a>, oneshot::Receiver<Answer>, Option<Box<Queued>>);

/// The request half: pulled by the transport whenever it can write.
struct Gather {
    queue: mpsc::Receiver<Queued>,
    /// Was pulled and did not fit into the last message.
    carried: Option<Queued>,
    calls: Arc<Calls>,
}

impl Gather {
    /// Everything that waits now; None once the queue has ended, pending if nothing waits.
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<PipelineCall>>> {
        let mut gathered: Vec<PipelineCall> = vec![];
        let mut bytes = 0;
        while gathered.len() < PIPELINE_CALLS_MAX {
            let next = match self.carried.take() {
                Some(queued) => Poll::Ready(Some(queued)),
                None => self.queue.poll_recv(cx),
            };
            match next {
                Poll::Ready(Some(queued)) if !gathered.is_empty() && bytes + queued.bytes > GATHERED_BYTES_MAX => {
                    self.carried = Some(queued);
                    break;
                }
                Poll::Ready(Some(queued)) => {
                    bytes += queued.bytes;
                    gathered.push(queued.call);
                }
                Poll::Ready(None) if gathered.is_empty() => return Poll::Ready(None),
                Poll::Pending if gathered.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(gathered))
    }
}

impl Stream for Gather {
    type Item = PipelineRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PipelineRequest>> {
        loop {
            let Some(mut calls) = std::task::ready!(self.poll_gather(cx)) else { return Poll::Ready(None) };
            self.calls.send(&mut calls);
            if !calls.is_empty() {
                return Poll::Ready(Some(PipelineRequest { calls }));
            }
        }
    }
}

/// The handle of an open stream. The request half ends once the last handle is dropped.
pub(crate) struct Link {
    channel: Channel,
    queue: mpsc::Sender<Queued>,
    calls: Arc<Calls>,
    next_id: AtomicU64,
}

impl Link {
    /// Opens the stream; the node has answered once this returns. The reader must be driven for replies to arrive.
    pub(crate) async fn open(address: Arc<str>, channel: Channel) -> Result<(Self, Reader), Status> {
        let (queue, receiver) = mpsc::channel(CALLS_QUEUED_MAX);
        let calls = Arc::new(Calls::new(address));
        let gather = Gather { queue: receiver, carried: None, calls: calls.clone() };
        let mut client = KvServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let replies = client.pipeline(gather).await?.into_inner();
        let reader = Reader { replies, calls: calls.clone() };
        Ok((Self { channel, queue, calls, next_id: AtomicU64::new(1) }, reader))
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.calls.state.lock().closed.clone()
    }

    /// Calls without an answer yet.
    pub(crate) fn pending(&self) -> usize {
        self.calls.state.lock().waiting.len()
    }

    /// Sends one call and waits for its answer. Dropping the future gives the call up.
    pub(crate) async fn call(&self, request: pipeline_call::Request, deadline: Instant) -> Answer {
        let (given_up, receiver, unsent) = self.begin(request)?;
        let answered = async {
            if let Some(unsent) = unsent
                && self.queue.send(*unsent).await.is_err()
            {
                self.end();
            }
            receiver.await
        };
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.lost_answer(&given_up).into()),
            Err(_) => {
                let sent = given_up.now().unwrap_or(true);
                Err(ConnectionError::TimedOut { address: self.calls.address.clone(), sent }.into())
            }
        }
    }

    /// Queues a call if there is room; else it is to be sent when there is. The request is not part of what waits for the
    /// answer, which every caller holds and moves.
    fn begin(&self, request: pipeline_call::Request) -> Result<Begun<'_>, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let call = PipelineCall { id, request: Some(request) };
        let queued = Queued { bytes: call.encoded_len() + CALL_OVERHEAD_BYTES, call };
        if queued.bytes > MESSAGE_BYTES_MAX {
            // The transport would end the stream, and with it everyone's calls.
            let why = format!("holds {} bytes, at most {MESSAGE_BYTES_MAX} fit into a message", queued.bytes);
            return Err(ServiceError::invalid("request", why).into());
        }
        let (sender, receiver) = oneshot::channel();
        self.calls.enter(id, sender)?;
        let given_up = GiveUp { calls: &self.calls, id };
        let unsent = match self.queue.try_send(queued) {
            Ok(()) => None,
            Err(TrySendError::Full(queued)) => Some(Box::new(queued)),
            Err(TrySendError::Closed(_)) => {
                self.end();
                None
            }
        };
        Ok((given_up, receiver, unsent))
    }

    /// The transport dropped the request half: the reader is about to close the stream.
    fn end(&self) {
        self.calls.close(true, "the stream ended".to_owned());
    }

    fn lost_answer(&self, given_up: &GiveUp<'_>) -> ConnectionError {
        let sent = given_up.now().unwrap_or(true);
        let why = "the answer was dropped".to_owned();
        ConnectionError::Lost { address: self.calls.address.clone(), why, sent }
    }
}

/// Takes the call out when its caller stops waiting, for whatever reason.
struct GiveUp<'a> {
    calls: &'a Calls,
    id: u64,
}

impl GiveUp<'_> {
    fn now(&self) -> Option<bool> {
        self.calls.leave(self.id)
    }
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.now();
    }
}

/// The response half.
pub(crate) struct Reader {
    replies: Streaming<PipelineResponse>,
    calls: Arc<Calls>,
}

impl Reader {
    /// Hands out replies until the stream ends, then fails what is left.
    pub(crate) async fn run(mut self) {
        loop {
            match self.replies.message().await {
                Ok(Some(response)) => self.calls.complete(response.replies),
                Ok(None) => return self.calls.close(false, "the node ended the stream".to_owned()),
                Err(status) => return self.calls.close(true, describe(&status)),
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.calls.close(false, "the connection was closed".to_owned());
    }
}

/// A status with the causes that the transport hides behind it.
pub(crate) fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    if text.is_empty() { status.code().description().to_owned() } else { text }
}
