//! The stream of appends to one replica: several on their way at once, those that can wait joined.
//!
//! A request that only tells a newer committed index waits a moment for entries to travel with, and entries for a follower that is
//! not needed for a majority wait for more ([`Prompt`](super::prompt::Prompt)).
//!
//! Invariants: requests are sent and answered in order; joined requests say what they said apart.
//!
//! Not here: a single call (network); who needs entries at once (prompt).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, Stream, StreamExt as _};
use openraft::errors::{NetworkError, RPCError, RPCError as Error};
use openraft::network::RPCTypes;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};

use super::link::CallError;
use super::messages::{self, MessageError};
use super::network::Connection;
use crate::codec::entry_bytes;
use crate::types::{LogId, ShardRaft};

/// Append requests on their way to one replica at once: enough to hide a round trip and an fsync; what the follower
/// has not answered, it holds in memory.
const APPENDS_IN_FLIGHT: usize = 16;

/// The same in bytes.
const APPEND_BYTES_IN_FLIGHT: usize = 8 << 20;

/// How long a request that carries nothing but a newer committed index waits for entries to travel with. Nobody waits
/// for it but the follower's own state, and under load it would double the messages.
const COMMIT_NOTICE_DELAY: Duration = Duration::from_millis(2);

/// How long entries for a follower that is not needed for a majority wait for more: what it is behind, and what a write
/// takes longer until the leader finds that it is needed after all.
const SPARE_DELAY: Duration = Duration::from_millis(8);

/// They wait only where the next ones come this soon, so that several are joined: else waiting would spare nothing, and a majority
/// would be those two that are always asked, not the two that are fastest.
const SOON: Duration = Duration::from_millis(2);

/// Joined entries are sent once they have so many bytes together.
const JOINED_BYTES: usize = 256 << 10;

/// An append that was queued.
pub(super) struct Append {
    pub(super) answered: BoxFuture<'static, Result<Bytes, CallError>>,
    pub(super) sent: Sent,
}

/// What an answer is about.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub(super) prev: Option<LogId>,
    pub(super) last: Option<LogId>,
    pub(super) bytes: usize,
    pub(super) at: Instant,
}

impl Sent {
    fn result(
        self,
        response: AppendEntriesResponse<ShardRaft>,
    ) -> Result<StreamAppendResult<ShardRaft>, MessageOrConflict> {
        if response.is_conflict() && self.prev.is_none() {
            return Err(MessageOrConflict::Conflict);
        }
        Ok(response.into_stream_result(self.prev, self.last))
    }
}

/// An answer that makes no sense.
#[derive(Debug, thiserror::Error)]
enum MessageOrConflict {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("a conflict with the very beginning of the log")]
    Conflict,
}

/// The state of a stream of appends.
pub(super) struct Pipeline<'s, S> {
    connection: &'s Connection,
    /// None once it ended, or after an error.
    input: Option<S>,
    in_flight: FuturesOrdered<BoxFuture<'static, Result<Bytes, CallError>>>,
    sent: VecDeque<Sent>,
    /// What waits for company, and until when.
    held: Option<(AppendEntriesRequest<ShardRaft>, Instant)>,
    /// When entries came last; before that, what comes is a probe.
    entries_at: Option<Instant>,
    bytes: usize,
    within: Duration,
}

pub(super) type Appended = Result<StreamAppendResult<ShardRaft>, RPCError<ShardRaft>>;

impl<'s, S> Pipeline<'s, S>
where
    S: Stream<Item = AppendEntriesRequest<ShardRaft>> + Send + Unpin,
{
    pub(super) fn new(connection: &'s Connection, input: S, within: Duration) -> Self {
        Self {
            connection,
            input: Some(input),
            in_flight: FuturesOrdered::new(),
            sent: VecDeque::new(),
            held: None,
            entries_at: None,
            bytes: 0,
            within,
        }
    }

    pub(super) async fn next(mut self) -> Option<(Appended, Self)> {
        loop {
            let has_room = self.sent.len() < APPENDS_IN_FLIGHT && self.bytes < APPEND_BYTES_IN_FLIGHT;
            if self.input.is_none()
                && let Some((request, _)) = self.held.take()
            {
                self.send(&request);
            }
            if self.sent.is_empty() && self.input.is_none() {
                return None;
            }
            let held_until = self.held.as_ref().map(|(_, until)| *until);
            tokio::select! {
                Some(answer) = self.in_flight.next(), if !self.sent.is_empty() => {
                    let appended = self.appended(answer);
                    if !matches!(appended, Ok(Ok(_))) {
                        // openraft starts over from what it knows to match.
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
                () = passed(held_until), if held_until.is_some() => {
                    if let Some((request, _)) = self.held.take() {
                        self.send(&request);
                    }
                }
            }
        }
    }

    /// Sends a request, joined with what was held, or holds it back.
    fn accept(&mut self, request: AppendEntriesRequest<ShardRaft>) {
        let now = Instant::now();
        let carries = !request.entries.is_empty();
        let delay = match self.entries_at {
            None => None,
            Some(_) if !carries => Some(COMMIT_NOTICE_DELAY),
            Some(at) => (now - at < SOON && self.connection.may_wait(now)).then_some(SPARE_DELAY),
        };
        if carries {
            self.entries_at = Some(now);
        }
        let (request, until) = match self.held.take() {
            Some((held, until)) if are_in_row(&held, &request) => {
                let goes_on = !(held.entries.is_empty() && carries);
                (joined(held, request), goes_on.then_some(until))
            }
            Some((held, _)) => {
                self.send(&held);
                (request, None)
            }
            None => (request, None),
        };
        match delay.map(|delay| until.unwrap_or(now + delay)) {
            Some(until) if bytes(&request) < JOINED_BYTES => self.held = Some((request, until)),
            Some(_) | None => self.send(&request),
        }
    }

    fn send(&mut self, request: &AppendEntriesRequest<ShardRaft>) {
        let append = self.connection.append(request, self.within);
        self.bytes += append.sent.bytes;
        self.connection.note_sent(append.sent.at);
        self.sent.push_back(append.sent);
        self.in_flight.push_back(append.answered);
    }

    fn appended(&mut self, answer: Result<Bytes, CallError>) -> Appended {
        let sent = self.sent.pop_front().expect("there is one sent request per call in flight");
        self.bytes -= sent.bytes;
        let answer = answer.map_err(|error| self.connection.error(RPCTypes::AppendEntries, error));
        let appended = answer.and_then(|answer| {
            let response = messages::decode_appended(&answer).map_err(MessageOrConflict::from);
            let result = response.and_then(|response| sent.result(response));
            result.map_err(|error| Error::Network(NetworkError::from_string(error)))
        });
        let rest = self.sent.front().map(|sent| sent.at);
        self.connection.note_answer(matches!(appended, Ok(Ok(_))).then_some(rest));
        appended
    }
}

/// Whether one request can say what two said.
fn are_in_row(held: &AppendEntriesRequest<ShardRaft>, next: &AppendEntriesRequest<ShardRaft>) -> bool {
    let last = held.entries.last().map(|entry| entry.log_id);
    last.is_none() || (held.vote == next.vote && next.prev_log_id == last)
}

fn joined(
    mut held: AppendEntriesRequest<ShardRaft>,
    next: AppendEntriesRequest<ShardRaft>,
) -> AppendEntriesRequest<ShardRaft> {
    if held.entries.is_empty() {
        // An answer speaks for all that was asked before.
        return next;
    }
    held.entries.extend(next.entries);
    held.leader_commit = next.leader_commit.max(held.leader_commit);
    held
}

fn bytes(request: &AppendEntriesRequest<ShardRaft>) -> usize {
    request.entries.iter().map(entry_bytes).sum()
}

/// Never, if there is no time to wait for.
async fn passed(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
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
mod tests {
    use bytes::Bytes as Value;
    use kv_proto::timestamp::Timestamp;
    use openraft::EntryPayload;

    use super::*;
    use crate::command::{Command, CommandBatch, EncodedCommand, Operation};
    use crate::types::{Entry, LeaderId, Vote};

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 3, node_id: 1 }, index)
    }

    fn request(prev: u64, last: u64, commit: u64) -> AppendEntriesRequest<ShardRaft> {
        let value = Value::from_static(b"v");
        let operations = vec![Operation::Put { key: b"k", value: &value }];
        let command = EncodedCommand::new(&Command { session: None, conditions: Vec::new(), operations });
        let entry = |index| Entry {
            log_id: id(index),
            payload: EntryPayload::Normal(CommandBatch::new(Timestamp(1), std::slice::from_ref(&command))),
        };
        AppendEntriesRequest {
            vote: Vote::new_committed(3, 1),
            prev_log_id: Some(id(prev)),
            entries: (prev + 1..=last).map(entry).collect(),
            leader_commit: Some(id(commit)),
        }
    }

    #[test]
    fn requests_in_a_row_are_joined_and_say_the_same() {
        let joined_all = [request(5, 6, 4), request(6, 6, 6), request(6, 9, 6), request(9, 9, 8)]
            .into_iter()
            .reduce(|held, next| {
                assert!(are_in_row(&held, &next));
                joined(held, next)
            })
            .unwrap();
        let whole = request(5, 9, 8);
        assert_eq!(joined_all.entries, whole.entries);
        assert_eq!((joined_all.prev_log_id, joined_all.leader_commit), (whole.prev_log_id, whole.leader_commit));
    }

    #[test]
    fn what_is_not_in_a_row_is_not_joined() {
        let held = request(5, 6, 4);
        assert!(!are_in_row(&held, &request(7, 8, 4)), "a gap");
        assert!(!are_in_row(&held, &request(5, 8, 4)), "it begins anew");
        let later = AppendEntriesRequest { vote: Vote::new_committed(4, 2), ..request(6, 7, 4) };
        assert!(!are_in_row(&held, &later), "another leader");
        assert!(are_in_row(&request(6, 6, 5), &request(2, 3, 5)), "nothing is held but what is committed");
    }
}
