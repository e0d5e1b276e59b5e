//! One pipelined stream to one node: many callers, one message for all that wait at the same moment.
//!
//! Callers put their calls into a queue. Whenever the transport can take a message it pulls one from [`Gather`], which
//! joins everything that waits then: alone a call leaves at once, under load they share a message. Nothing lingers.
//!
//! Invariants:
//! - a call is in `calls` from before it is queued until it is answered, failed or given up;
//! - once the stream is closed, every call in it has been failed and no other one enters;
//! - a call given up before it was pulled is never sent;
//! - each call ends by its deadline: the reader fails those whose time is up, with one timer for all;
//! - calls name the cluster they are meant for until one of them was served; a stream leads to one node to its end.
//!
//! Not here: when to connect (pool).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::Stream;
use kv_proto::errors::ServiceError;
use kv_proto::limits::{MESSAGE_BYTES_MAX, PIPELINE_CALLS_MAX};
use kv_proto::pb::v1::kv_service_client::KvServiceClient;
use kv_proto::pb::v1::{PipelineCall, PipelineReply, PipelineRequest, PipelineResponse, pipeline_call, pipeline_reply};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
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
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    /// When the reader next looks whose time is up: by the first deadline of all that wait.
    next_look: Option<Instant>,
    closed: Option<Closed>,
}

/// The unanswered calls of one stream.
pub(crate) struct Calls {
    address: Arc<str>,
    state: Mutex<State>,
    /// The next look is due earlier than the reader believes.
    look_earlier: Notify,
}

impl Calls {
    fn new(address: Arc<str>) -> Self {
        Self { address, state: Mutex::default(), look_earlier: Notify::new() }
    }

    fn enter(&self, id: u64, deadline: Instant, answer: oneshot::Sender<Answer>) -> Result<(), ConnectionError> {
        let is_first = {
            let mut state = self.state.lock();
            if let Some(closed) = &state.closed {
                return Err(self.lost(closed, false));
            }
            state.waiting.insert(id, Waiting { sent: false, deadline, answer });
            let is_first = state.next_look.is_none_or(|at| deadline < at);
            if is_first {
                state.next_look = Some(deadline);
            }
            is_first
        };
        if is_first {
            self.look_earlier.notify_one();
        }
        Ok(())
    }

    /// Takes a call out; whether it was sent, None if it had left already.
    fn leave(&self, id: u64) -> Option<bool> {
        self.state.lock().waiting.remove(&id).map(|waiting| waiting.sent)
    }

    /// Drops what was given up meanwhile or is late, and marks the rest as sent.
    fn send(&self, calls: &mut Vec<PipelineCall>, now: Instant) {
        let mut state = self.state.lock();
        calls.retain(|call| {
            let waiting = state.waiting.get_mut(&call.id).filter(|waiting| waiting.deadline > now);
            waiting.map(|waiting| waiting.sent = true).is_some()
        });
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

    /// Fails the calls whose time is up at `now`; when the first of the others ends.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let (expired, next_look) = {
            let mut state = self.state.lock();
            let expired: Vec<Waiting> =
                state.waiting.extract_if(|_, waiting| waiting.deadline <= now).map(|(_, waiting)| waiting).collect();
            state.next_look = state.waiting.values().map(|waiting| waiting.deadline).min();
            (expired, state.next_look)
        };
        for Waiting { sent, answer, .. } in expired {
            let _ = answer.send(Err(ConnectionError::TimedOut { address: self.address.clone(), sent }.into()));
        }
        next_look
    }

    /// Fails each call when its time is up.
    async fn keep_deadlines(&self) {
        loop {
            match self.expire(Instant::now()) {
                None => self.look_earlier.notified().await,
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = self.look_earlier.notified() => {}
                },
            }
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

/// A call that has begun.
struct Begun<'a> {
    give_up: GiveUp<'a>,
    answer: oneshot::Receiver<Answer>,
    /// The call itself if the queue was full.
    unsent: Option<Box<Queued>>,
    /// Whether it names the cluster.
    names: bool,
}

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
            self.calls.send(&mut calls, Instant::now());
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
    /// The node served a call that named the cluster.
    is_confirmed: AtomicBool,
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
        let (next_id, is_confirmed) = (AtomicU64::new(1), AtomicBool::new(false));
        Ok((Self { channel, queue, calls, next_id, is_confirmed }, reader))
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

    /// Sends one call and waits for its answer. Dropping the future gives the call up. The request is made of what it is
    /// to name as its cluster: `cluster`, or nothing once the node has served a call that named it.
    pub(crate) async fn call(
        &self,
        cluster: &str,
        request: impl FnOnce(String) -> pipeline_call::Request,
        deadline: Instant,
    ) -> Answer {
        let Begun { give_up, mut answer, unsent, names } = self.begin(cluster, request, deadline)?;
        let ended = match unsent {
            // Boxed: every call would carry the space of this rare way.
            Some(unsent) => Box::pin(self.send(*unsent, &mut answer)).await,
            None => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => answer.await,
        };
        let Ok(answer) = ended else { return Err(self.lost_answer(&give_up).into()) };
        give_up.answered();
        if names && answer.is_ok() {
            self.is_confirmed.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Queues a call if there is room; else it is to be sent when there is. The request is not part of what waits for the
    /// answer, which every caller holds and moves.
    fn begin(
        &self,
        cluster: &str,
        request: impl FnOnce(String) -> pipeline_call::Request,
        deadline: Instant,
    ) -> Result<Begun<'_>, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let named = if self.is_confirmed.load(Ordering::Relaxed) { "" } else { cluster };
        let call = PipelineCall { id, request: Some(request(named.to_owned())) };
        let queued = Queued { bytes: call.encoded_len() + CALL_OVERHEAD_BYTES, call };
        if queued.bytes > MESSAGE_BYTES_MAX {
            // The transport would end the stream, and with it everyone's calls.
            let why = format!("holds {} bytes, at most {MESSAGE_BYTES_MAX} fit into a message", queued.bytes);
            return Err(ServiceError::invalid("request", why).into());
        }
        let (sender, answer) = oneshot::channel();
        self.calls.enter(id, deadline, sender)?;
        let give_up = GiveUp { calls: &self.calls, id };
        let unsent = match self.queue.try_send(queued) {
            Ok(()) => None,
            Err(TrySendError::Full(queued)) => Some(Box::new(queued)),
            Err(TrySendError::Closed(_)) => {
                self.end();
                None
            }
        };
        Ok(Begun { give_up, answer, unsent, names: !named.is_empty() })
    }

    /// Waits for room; how the call ended if it did before there was any.
    async fn send(
        &self,
        unsent: Queued,
        answer: &mut oneshot::Receiver<Answer>,
    ) -> Option<Result<Answer, oneshot::error::RecvError>> {
        tokio::select! {
            ended = answer => Some(ended),
            sent = self.queue.send(unsent) => {
                if sent.is_err() {
                    self.end();
                }
                None
            }
        }
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

    /// It has left already.
    fn answered(self) {
        std::mem::forget(self);
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
    /// Hands out replies and fails calls whose time is up until the stream ends, then fails what is left.
    pub(crate) async fn run(mut self) {
        let calls = Arc::clone(&self.calls);
        tokio::select! {
            () = self.read() => {}
            () = calls.keep_deadlines() => {}
        }
    }

    async fn read(&mut self) {
        loop {
            match self.replies.message().await {
                Ok(Some(response)) => {
                    self.calls.complete(response.replies);
                    // Deadlines are looked at also while one message follows another.
                    tokio::task::consume_budget().await;
                }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;
    use kv_proto::pb::v1::GetRequest;
    use tonic::transport::Endpoint;

    use super::*;

    /// A stream whose transport takes nothing, with room for one call.
    fn stuck() -> (Link, mpsc::Receiver<Queued>) {
        let (queue, receiver) = mpsc::channel(1);
        let link = Link {
            channel: Endpoint::from_static("http://127.0.0.1:1").connect_lazy(),
            queue,
            calls: Arc::new(Calls::new(Arc::from("nowhere"))),
            next_id: AtomicU64::new(1),
            is_confirmed: AtomicBool::new(false),
        };
        (link, receiver)
    }

    async fn call(link: &Link, deadline: Instant) -> ConnectionError {
        match link.call("", |_| pipeline_call::Request::Get(GetRequest::default()), deadline).await {
            Err(CallError::Connection(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn calls_that_wait_for_room_end_by_their_deadlines_and_are_never_sent() {
        let (link, mut queue) = stuck();
        let begun = Instant::now();
        let ends = |after| {
            let link = &link;
            async move {
                let error = call(link, begun + after).await;
                assert!(matches!(error, ConnectionError::TimedOut { sent: false, .. }), "{error}");
                begun.elapsed()
            }
        };
        let (queued, waiting) = (Duration::from_millis(200), Duration::from_millis(100));
        let ended = async { tokio::join!(ends(queued), ends(waiting)) };
        let ended = tokio::select! {
            ended = ended => ended,
            () = link.calls.keep_deadlines() => panic!("it goes on for ever"),
        };
        assert!(ended.0 >= queued && ended.1 >= waiting, "{ended:?}");
        assert_eq!(link.pending(), 0);
        assert!(queue.recv().now_or_never().flatten().is_some() && queue.recv().now_or_never().is_none());
    }

    #[tokio::test]
    async fn calls_that_wait_for_room_fail_with_the_stream() {
        let (link, _queue) = stuck();
        let deadline = Instant::now() + Duration::from_secs(60);
        let close = async { link.calls.close(true, "broken".to_owned()) };
        let (queued, waiting, ()) = tokio::join!(call(&link, deadline), call(&link, deadline), close);
        for error in [queued, waiting] {
            assert!(matches!(error, ConnectionError::Lost { sent: false, .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_call_that_is_late_when_it_could_be_sent_is_not() {
        let calls = Calls::new(Arc::from("nowhere"));
        let now = Instant::now();
        let (sender, mut answer) = oneshot::channel();
        calls.enter(1, now, sender).unwrap();
        let mut message = vec![PipelineCall { id: 1, request: None }];
        calls.send(&mut message, now);
        assert!(message.is_empty());
        assert_eq!(calls.expire(now), None);
        let error = answer.try_recv().unwrap().unwrap_err();
        assert!(matches!(error, CallError::Connection(ConnectionError::TimedOut { sent: false, .. })), "{error}");
    }
}
