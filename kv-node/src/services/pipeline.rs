//! One pipelined stream: many calls in flight, replies gathered as they become ready.
//!
//! Invariants:
//! - a stream has a bounded number of calls and bytes in flight (but for the message it is reading) and of unsent
//!   replies: beyond either nothing more is read from it, so a slow reader slows only itself;
//! - what a reply holds is held until the transport asks for more than the message it is in (a small message it gathers
//!   into a piece with the next one);
//! - when the client vanishes, all it had in flight is dropped;
//! - a call at fault fails alone; every call read is answered once, unless the stream ends first.
//!
//! Not here: what a call does (serve); clients that are there and read nothing (unsent).

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, Stream, StreamExt as _};
use kv_proto::errors::ServiceError;
use kv_proto::limits::{MESSAGE_BYTES_MAX, PAGE_BYTES_MAX, PIPELINE_CALLS_MAX, VALUE_BYTES_MAX};
use kv_proto::pb::v1::pipeline_call::Request;
use kv_proto::pb::v1::pipeline_reply::Response;
use kv_proto::pb::v1::{PipelineCall, PipelineReply, PipelineRequest, PipelineResponse};
use kv_raft::replica::Answer;
use prost::Message as _;
use slab::Slab;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::admission;
use crate::metrics::EdgeMetrics;
use crate::serve::{Begun, Served};

/// Messages handed to the transport and not taken yet: one is sent while the next is gathered.
pub const MESSAGES_UNSENT: usize = 2;

/// Replies gathered into one message end here; one more may be as large as a page.
const GATHERED_BYTES: usize = 1 << 20;

/// With this many bytes of replies waiting to be sent, nothing more is read and no call goes on.
const UNSENT_BYTES: usize = 4 << 20;

const _: () = assert!(GATHERED_BYTES + PAGE_BYTES_MAX + VALUE_BYTES_MAX + (1 << 20) < MESSAGE_BYTES_MAX);

/// How much one stream may have in flight.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Calls.
    pub calls: usize,
    /// Bytes of their requests.
    pub bytes: u64,
}

/// A message for the transport with what its replies hold.
type Outgoing<H> = (Result<PipelineResponse, Status>, Vec<H>);

/// Replies that wait to be sent, with what they hold.
struct Ready<H> {
    replies: VecDeque<(PipelineReply, usize, Option<H>)>,
    bytes: usize,
}

impl<H> Ready<H> {
    fn push(&mut self, (reply, held): (PipelineReply, Option<H>)) {
        let bytes = reply.encoded_len();
        self.bytes += bytes;
        self.replies.push_back((reply, bytes, held));
    }

    /// One message.
    fn take(&mut self, metrics: &EdgeMetrics) -> Outgoing<H> {
        let mut replies = Vec::with_capacity(self.replies.len());
        let mut holds = Vec::with_capacity(self.replies.len());
        let mut bytes = 0;
        while bytes < GATHERED_BYTES
            && let Some((reply, size, held)) = self.replies.pop_front()
        {
            bytes += size;
            replies.push(reply);
            holds.extend(held);
        }
        self.bytes -= bytes;
        metrics.stream_messages.inc();
        metrics.stream_replies.inc_by(u64::try_from(replies.len()).unwrap_or(0));
        (Ok(PipelineResponse { replies }), holds)
    }
}

/// The messages of a stream as the transport asks for them.
pub struct Unread<H> {
    messages: mpsc::Receiver<Outgoing<H>>,
    /// Of the message that the transport is sending.
    holds: Vec<H>,
}

impl<H> Unread<H> {
    /// What [`run`] hands on.
    #[must_use]
    pub fn new(messages: mpsc::Receiver<Outgoing<H>>) -> Self {
        Self { messages, holds: Vec::new() }
    }
}

impl<H: Unpin> Stream for Unread<H> {
    type Item = Result<PipelineResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.holds.clear();
        let Some((message, holds)) = ready!(self.messages.poll_recv(context)) else { return Poll::Ready(None) };
        self.holds = holds;
        Poll::Ready(Some(message))
    }
}

/// A call that was begun: what it came to, or what it waits for.
pub type Beginning<S> = ControlFlow<Served<<S as Serve>::Held>, Begun<<S as Serve>::Proposed, <S as Serve>::Running>>;

/// How the calls of one stream are served.
pub trait Serve {
    /// What a call holds until its reply is sent.
    type Held;
    /// A call that waits for its answer.
    type Proposed;
    /// A call that goes on by itself.
    type Running: Future<Output = Served<Self::Held>>;

    /// Begins a call; if it waits for an answer, that comes under this number, once.
    fn begin(&self, request: Request, number: usize) -> Beginning<Self>;

    /// Answers that are there, by their numbers.
    fn poll_answers(&mut self, context: &mut Context<'_>) -> Poll<Vec<(usize, Answer)>>;

    /// Ends a call that has its answer, or lets it go on.
    fn answered(&self, call: Self::Proposed, answer: Answer) -> ControlFlow<Served<Self::Held>, Self::Running>;
}

/// Runs a stream until its client closed it and everything is answered, or the client vanished, or `stop`.
pub async fn run<S: Serve>(
    inbound: impl Stream<Item = Result<PipelineRequest, Status>>,
    outbound: mpsc::Sender<Outgoing<S::Held>>,
    mut serve: S,
    limits: StreamLimits,
    (metrics, stop): (&EdgeMetrics, CancellationToken),
) {
    let mut inbound = std::pin::pin!(inbound);
    // Most writes wait in here: a future for each would cost more than all else that is done for it.
    let mut proposed = Slab::new();
    let mut answers = VecDeque::new();
    let mut running = FuturesUnordered::new();
    let mut running_bytes = 0_u64;
    let mut ready = Ready { replies: VecDeque::new(), bytes: 0 };
    let mut open = true;
    loop {
        // Everything that is done by now goes into one message. Beyond the bound calls stand still and answers wait, so that
        // those in flight do not all read their values for a client that takes none.
        if answers.is_empty() {
            answers.extend(poll_fn(|context| serve.poll_answers(context)).now_or_never().into_iter().flatten());
        }
        while ready.bytes < UNSENT_BYTES
            && let Some((number, answer)) = answers.pop_front()
        {
            let (id, bytes, call) = proposed.remove(number);
            match serve.answered(call, answer) {
                ControlFlow::Continue(call) => running.push(to_reply(id, bytes, call)),
                ControlFlow::Break(served) => {
                    running_bytes -= bytes;
                    ready.push(reply(id, served));
                }
            }
        }
        while ready.bytes < UNSENT_BYTES
            && let Some(Some((reply, bytes))) = running.next().now_or_never()
        {
            running_bytes -= bytes;
            ready.push(reply);
        }
        while !ready.replies.is_empty() {
            match outbound.try_reserve() {
                Ok(permit) => permit.send(ready.take(metrics)),
                Err(TrySendError::Full(())) => break,
                Err(TrySendError::Closed(())) => return,
            }
        }
        if !answers.is_empty() && ready.bytes < UNSENT_BYTES {
            continue;
        }
        if !open && running.is_empty() && proposed.is_empty() && ready.replies.is_empty() {
            return;
        }
        let room = running.len() + proposed.len() + ready.replies.len() < limits.calls
            && running_bytes < limits.bytes
            && ready.bytes < UNSENT_BYTES;
        let unsent = !ready.replies.is_empty();
        tokio::select! {
            Some((reply, bytes)) = running.next(), if ready.bytes < UNSENT_BYTES => {
                running_bytes -= bytes;
                ready.push(reply);
            }
            some = poll_fn(|context| serve.poll_answers(context)), if answers.is_empty() => answers.extend(some),
            message = inbound.next(), if open && room => match message {
                Some(Ok(message)) => {
                    for (position, PipelineCall { id, request }) in message.calls.into_iter().enumerate() {
                        match request {
                            Some(request) if position < PIPELINE_CALLS_MAX => {
                                let bytes = admission::cost(&request);
                                running_bytes += bytes;
                                let place = proposed.vacant_entry();
                                match serve.begin(request, place.key()) {
                                    ControlFlow::Continue(Begun::Proposed(call)) => {
                                        place.insert((id, bytes, call));
                                    }
                                    ControlFlow::Continue(Begun::Runs(call)) => {
                                        running.push(to_reply(id, bytes, call));
                                    }
                                    ControlFlow::Break(served) => {
                                        running_bytes -= bytes;
                                        ready.push(reply(id, served));
                                    }
                                }
                            }
                            request => ready.push(reply(id, Err(refused(request.is_some())))),
                        }
                    }
                }
                Some(Err(status)) => {
                    // If the client is there at all, it learns what it sent.
                    let _ = outbound.try_send((Err(status), Vec::new()));
                    return;
                }
                None => open = false,
            },
            permit = outbound.reserve(), if unsent => match permit {
                Ok(permit) => permit.send(ready.take(metrics)),
                Err(_) => return,
            },
            () = outbound.closed() => return,
            () = stop.cancelled(), if open => open = false,
        }
    }
}

fn refused(has_request: bool) -> ServiceError {
    if has_request {
        ServiceError::invalid("calls", format!("one message carries at most {PIPELINE_CALLS_MAX}"))
    } else {
        ServiceError::invalid("request", "is needed")
    }
}

/// Mapped: an async block would have room for the call twice, before and while it runs.
fn to_reply<H>(
    id: u64,
    bytes: u64,
    call: impl Future<Output = Served<H>>,
) -> impl Future<Output = ((PipelineReply, Option<H>), u64)> {
    call.map(move |served| (reply(id, served), bytes))
}

fn reply<H>(id: u64, served: Served<H>) -> (PipelineReply, Option<H>) {
    let (response, held) = match served {
        Ok((response, held)) => (response, Some(held)),
        Err(error) => (Response::Failure(error.to_failure()), None),
    };
    (PipelineReply { id, response: Some(response) }, held)
}

#[cfg(test)]
mod tests;
