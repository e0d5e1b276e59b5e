//! The stream of appends from a leader's replica to another.
//!
//! What nobody waits for is held for a moment, for company: a request that only tells a newer committed index, and a lone caller's
//! entries for a follower that a majority does without (thrift). A follower that waits for what is held says so.
//!
//! Invariants: requests are sent and answered in the order of the log, several at a time; nothing is held for longer than it
//! may; an error ends the stream, and openraft starts over from what it knows to match.
//!
//! Not here: how a request travels (network, link).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, Stream, StreamExt as _};
use openraft::EntryPayload;
use openraft::errors::{NetworkError, RPCError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::thrift::Thrift;
use crate::codec;
use crate::types::{LogId, ShardRaft};

/// Append requests on their way to one replica at once: enough to hide a round trip and an fsync; what the follower
/// has not answered, it holds in memory.
const IN_FLIGHT: usize = 16;

/// The same in bytes.
const BYTES_IN_FLIGHT: usize = 8 << 20;

/// How long a request that carries nothing but a newer committed index waits for entries to travel with. Nobody waits for it but the
/// follower's own state, and under load it would double the messages. tokio's timers add up to a millisecond.
const NOTICE_WAITS: Duration = Duration::from_millis(2);

/// How long entries for a spared follower wait, and what is told of commits meanwhile. A lone caller's writes, most of a
/// millisecond each, come to ten or so in one message; twice as many hardly cost less.
const SPARED_WAITS: Duration = Duration::from_millis(10);

/// Entries of so many commands are those of a lone caller: what more callers wait for together is worth a message, and whichever follower
/// is faster at the moment had better commit it.
const LONE_COMMANDS: usize = 2;

/// And of so many bytes, which a batch of a hundred short rows has. Above it they cost more than their message.
const LONE_BYTES: usize = 32 << 10;

/// What waits has at most so many bytes: those of a lone caller for as long as they wait. All shards together hold what the disk takes in
/// that time.
const WAITING_BYTES: usize = 256 << 10;

pub(super) type Request = AppendEntriesRequest<ShardRaft>;
pub(super) type Answer = Result<AppendEntriesResponse<ShardRaft>, RPCError<ShardRaft>>;
pub(super) type Appended = Result<StreamAppendResult<ShardRaft>, RPCError<ShardRaft>>;

/// A request on its way.
pub(super) struct Append {
    pub(super) answer: BoxFuture<'static, Answer>,
    /// Its size.
    pub(super) bytes: usize,
}

/// When what is held is sent at the latest.
pub(super) struct Holding {
    /// At once.
    hurry: Arc<Notify>,
    notice: Duration,
    spared: Duration,
}

impl Holding {
    /// For the usual times, or until somebody is in a hurry.
    pub(super) fn until(hurry: Arc<Notify>) -> Self {
        Self { hurry, notice: NOTICE_WAITS, spared: SPARED_WAITS }
    }
}

/// See the module. `send` queues a request at once.
pub(super) struct Appends<S, F> {
    /// None once it ended, or after an error.
    input: Option<S>,
    send: F,
    in_flight: FuturesOrdered<BoxFuture<'static, Answer>>,
    sent: VecDeque<Sent>,
    bytes: usize,
    held: Option<Held>,
    holding: Holding,
    /// Entries were sent: what follows them is no probe.
    begun: bool,
    thrift: Thrift,
}

/// What an answer is about.
#[derive(Clone, Copy)]
struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
    /// Of a lone caller, sent at once, and not known to be committed: whether the follower is late shows in it.
    shows: bool,
}

/// A request that waits for company.
struct Held {
    request: Request,
    /// Of its entries.
    bytes: usize,
    until: Instant,
}

impl Held {
    /// Whether these are entries that a request continues, and there is room for it.
    fn takes(&self, request: &Request, bytes: usize) -> bool {
        let last = self.request.entries.last().map(|entry| entry.log_id);
        last.is_some() && request.prev_log_id == last && self.bytes + bytes <= WAITING_BYTES
    }

    fn add(&mut self, request: Request, bytes: usize) {
        self.bytes += bytes;
        self.request.leader_commit = request.leader_commit;
        self.request.entries.extend(request.entries);
    }
}

impl<S, F> Appends<S, F>
where
    S: Stream<Item = Request> + Send + Unpin,
    F: Fn(&Request) -> Append + Send,
{
    pub(super) fn new(input: S, send: F, holding: Holding) -> Self {
        Self {
            input: Some(input),
            send,
            in_flight: FuturesOrdered::new(),
            sent: VecDeque::new(),
            bytes: 0,
            held: None,
            holding,
            begun: false,
            thrift: Thrift::default(),
        }
    }

    /// The next answer; for [`futures::stream::unfold`].
    pub(super) async fn next(mut self) -> Option<(Appended, Self)> {
        loop {
            let has_room = self.sent.len() < IN_FLIGHT && self.bytes < BYTES_IN_FLIGHT;
            if self.input.is_none() {
                self.send_held(false);
            }
            if self.sent.is_empty() && self.input.is_none() {
                return None;
            }
            let held_until = self.held.as_ref().map(|held| held.until);
            tokio::select! {
                // What has come tells whether what is held is committed.
                biased;
                Some(answer) = self.in_flight.next(), if !self.sent.is_empty() => {
                    let appended = self.appended(answer);
                    if !matches!(appended, Ok(Ok(_))) {
                        self.input = None;
                        self.held = None;
                        self.in_flight.clear();
                        self.sent.clear();
                    }
                    return Some((appended, self));
                }
                request = next_of(&mut self.input), if has_room && self.input.is_some() => match request {
                    Some(request) => self.accept(request),
                    None => self.input = None,
                },
                () = passed(held_until), if held_until.is_some() => self.send_held(true),
                () = self.holding.hurry.notified(), if held_until.is_some() => self.send_held(false),
            }
        }
    }

    /// Sends a request, or holds it.
    fn accept(&mut self, request: Request) {
        self.note_committed(request.leader_commit);
        let bytes = request.entries.iter().map(codec::entry_bytes).sum();
        let lone = is_lone(&request, bytes);
        if let Some(held) = self.held.as_mut().filter(|held| lone && held.takes(&request, bytes)) {
            held.add(request, bytes);
            return;
        }
        // What was held to tell a committed index is told by this one: an answer speaks for all that was asked before.
        let told = self.held.take_if(|held| held.request.entries.is_empty());
        self.send_held(false);
        let until = if request.entries.is_empty() {
            self.begun.then(|| told.map_or_else(|| Instant::now() + self.holding.notice, |held| held.until))
        } else {
            self.begun = true;
            (lone && self.thrift.is_spared()).then(|| Instant::now() + self.holding.spared)
        };
        match until {
            Some(until) => self.held = Some(Held { request, bytes, until }),
            None => self.send_now(&request, lone),
        }
    }

    /// Sends what is held. Only once its time is over does it say that the follower was missed if it is not committed.
    fn send_held(&mut self, time_is_over: bool) {
        let Some(held) = self.held.take() else { return };
        if let Some(first) = held.request.entries.first() {
            self.thrift.has_waited(!time_is_over || held.request.leader_commit >= Some(first.log_id));
        }
        self.send_now(&held.request, false);
    }

    fn send_now(&mut self, request: &Request, shows: bool) {
        let Append { answer, bytes } = (self.send)(request);
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id);
        let shows = shows && last > request.leader_commit;
        self.bytes += bytes;
        self.sent.push_back(Sent { prev, last: last.or(prev), bytes, shows });
        self.in_flight.push_back(answer);
    }

    fn note_committed(&mut self, committed: Option<LogId>) {
        for sent in self.sent.iter_mut().filter(|sent| sent.shows && sent.last <= committed) {
            sent.shows = false;
            self.thrift.was_late();
        }
    }

    fn appended(&mut self, answer: Answer) -> Appended {
        let sent = self.sent.pop_front().expect("there is one sent request per call in flight");
        self.bytes -= sent.bytes;
        let response = answer?;
        if sent.shows {
            self.thrift.was_in_time();
        }
        if response.is_conflict() && sent.prev.is_none() {
            return Err(RPCError::Network(NetworkError::from_string("a conflict with the very beginning of the log")));
        }
        Ok(response.into_stream_result(sent.prev, sent.last))
    }
}

/// Whether a request may wait for company.
fn is_lone(request: &Request, bytes: usize) -> bool {
    let commands = request.entries.iter().map(|entry| match &entry.payload {
        EntryPayload::Normal(batch) => batch.count(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    });
    bytes <= LONE_BYTES && commands.sum::<usize>() <= LONE_COMMANDS
}

/// Never, if there is no time to wait for.
async fn passed(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn next_of<S: Stream + Unpin>(input: &mut Option<S>) -> Option<S::Item> {
    match input {
        Some(input) => input.next().await,
        None => None,
    }
}

#[cfg(test)]
mod tests;
