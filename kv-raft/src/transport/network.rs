//! openraft's network, over links.
//!
//! Invariants: appends to one replica are sent and answered in order, several at a time; every call ends within its
//! time limit; a pre-vote is asked, never assumed.
//!
//! Not here: how frames travel (link); snapshots (snapshot).

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, Stream, StreamExt as _};
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_proto::pb::raft::v1::{Frame, FrameKind};
use openraft::base::{BoxFuture as RaftFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, RPCError as Error, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};

use super::link::{CallError, Link};
use super::messages::{self, MessageError};
use super::{Inner, snapshot};
use crate::metrics::Stage;
use crate::state_machine::SnapshotData;
use crate::types::{LogId, Member, ShardRaft, SnapshotMeta, Vote};

/// Append requests on their way to one replica at once: enough to hide a round trip and an fsync; what the follower
/// has not answered, it holds in memory.
const APPENDS_IN_FLIGHT: usize = 16;

/// The same in bytes.
const APPEND_BYTES_IN_FLIGHT: usize = 8 << 20;

/// How long a request that carries nothing but a newer committed index waits for entries to travel with. Nobody waits
/// for it but the follower's own state, and under load it would double the messages.
const COMMIT_NOTICE_DELAY: Duration = Duration::from_millis(2);

/// Sender and shard of what a replica sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplicaAddress {
    pub(crate) shard: ShardId,
    pub(crate) replica: ReplicaId,
}

/// What a replica and its way to the others know of each other.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    committed: AtomicU64,
    silent: AtomicBool,
}

impl Outbound {
    /// The highest committed index that another replica may have been told; it rises before one is.
    pub(crate) fn told_committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub(crate) fn tell_committed(&self, committed: u64) {
        self.committed.fetch_max(committed, Ordering::AcqRel);
    }

    /// While silent no append without entries is sent.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Release);
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire)
    }
}

/// One replica's way to the other replicas of its shard.
pub(crate) struct Network {
    inner: Arc<Inner>,
    from: ReplicaAddress,
    outbound: Arc<Outbound>,
}

impl Network {
    pub(crate) fn new(inner: Arc<Inner>, from: ReplicaAddress, outbound: Arc<Outbound>) -> Self {
        Self { inner, from, outbound }
    }
}

impl RaftNetworkFactory<ShardRaft> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, member: &Member) -> Connection {
        let to = ReplicaId(target);
        let link = self.inner.link(NodeId(member.node));
        Connection { inner: Arc::clone(&self.inner), link, from: self.from, to, outbound: Arc::clone(&self.outbound) }
    }
}

/// One replica's way to another.
pub(crate) struct Connection {
    inner: Arc<Inner>,
    link: Arc<Link>,
    from: ReplicaAddress,
    to: ReplicaId,
    outbound: Arc<Outbound>,
}

impl Connection {
    /// The link; another one if the node was dropped and is named again.
    fn link(&self) -> Arc<Link> {
        let node = self.link.node();
        if self.link.is_closed() && self.inner.directory.address(node).is_some() {
            return self.inner.link(node);
        }
        Arc::clone(&self.link)
    }

    fn call(
        &self,
        kind: FrameKind,
        body: Bytes,
        within: Duration,
    ) -> impl Future<Output = Result<Bytes, CallError>> + use<> {
        self.link().call(
            Frame {
                shard_id: self.from.shard.0,
                from_replica_id: self.from.replica.0,
                to_replica_id: self.to.0,
                request_id: 0,
                kind: kind.into(),
                body,
                refusal: String::new(),
            },
            within,
        )
    }

    fn error(&self, action: RPCTypes, error: CallError) -> RPCError<ShardRaft> {
        match error {
            CallError::Unreachable { .. } | CallError::Refused { .. } => {
                Error::Unreachable(Unreachable::from_string(error))
            }
            CallError::QueueFull(_) => Error::Network(NetworkError::from_string(error)),
            CallError::Timeout { after, .. } => {
                Error::Timeout(Timeout { action, id: self.from.replica.0, target: self.to.0, timeout: after })
            }
        }
    }

    /// The call is queued now; the future waits for the answer.
    fn append(&self, request: &AppendEntriesRequest<ShardRaft>, within: Duration) -> Append {
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        if request.entries.is_empty() && self.outbound.is_silent() {
            let silent =
                CallError::Unreachable { node: self.link.node(), reason: "no majority answers: silent".to_owned() };
            return Append { answered: Box::pin(std::future::ready(Err(silent))), sent: Sent { prev, last, bytes: 0 } };
        }
        self.outbound.tell_committed(request.leader_commit.map_or(0, |id| id.index));
        let body = messages::encode_append(request);
        let bytes = body.len();
        let observed = (!request.entries.is_empty()).then(|| Arc::clone(&self.inner.metrics));
        let sent = Instant::now();
        let answer = self.call(FrameKind::Append, body, within);
        let answered = async move {
            let answer = answer.await?;
            if let Some(metrics) = observed {
                metrics.observe(Stage::Replicate, sent);
            }
            Ok(answer)
        };
        Append { answered: Box::pin(answered), sent: Sent { prev, last, bytes } }
    }
}

struct Append {
    answered: BoxFuture<'static, Result<Bytes, CallError>>,
    sent: Sent,
}

/// What an answer is about.
#[derive(Clone, Copy)]
struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
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
struct Pipeline<'s, S> {
    connection: &'s Connection,
    /// None once it ended, or after an error.
    input: Option<S>,
    in_flight: FuturesOrdered<BoxFuture<'static, Result<Bytes, CallError>>>,
    sent: VecDeque<Sent>,
    /// A request without entries that waits for company, and until when.
    held: Option<(AppendEntriesRequest<ShardRaft>, Instant)>,
    /// Entries were sent: what follows them is no probe.
    begun: bool,
    bytes: usize,
    within: Duration,
}

type Appended = Result<StreamAppendResult<ShardRaft>, RPCError<ShardRaft>>;

impl<'s, S> Pipeline<'s, S>
where
    S: Stream<Item = AppendEntriesRequest<ShardRaft>> + Send + Unpin,
{
    fn new(connection: &'s Connection, input: S, within: Duration) -> Self {
        Self {
            connection,
            input: Some(input),
            in_flight: FuturesOrdered::new(),
            sent: VecDeque::new(),
            held: None,
            begun: false,
            bytes: 0,
            within,
        }
    }

    async fn next(mut self) -> Option<(Appended, Self)> {
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

    /// Sends a request, or holds it back if it only tells a newer committed index. A later request tells it as well:
    /// what is held then need not be sent, since an answer speaks for all that was asked before.
    fn accept(&mut self, request: AppendEntriesRequest<ShardRaft>) {
        let held = self.held.take();
        if self.begun && request.entries.is_empty() {
            let until = held.map_or_else(|| Instant::now() + COMMIT_NOTICE_DELAY, |(_, until)| until);
            self.held = Some((request, until));
        } else {
            self.begun |= !request.entries.is_empty();
            self.send(&request);
        }
    }

    fn send(&mut self, request: &AppendEntriesRequest<ShardRaft>) {
        let append = self.connection.append(request, self.within);
        self.bytes += append.sent.bytes;
        self.sent.push_back(append.sent);
        self.in_flight.push_back(append.answered);
    }

    fn appended(&mut self, answer: Result<Bytes, CallError>) -> Appended {
        let sent = self.sent.pop_front().expect("there is one sent request per call in flight");
        self.bytes -= sent.bytes;
        let answer = answer.map_err(|error| self.connection.error(RPCTypes::AppendEntries, error))?;
        messages::decode_appended(&answer)
            .map_err(MessageOrConflict::from)
            .and_then(|response| sent.result(response))
            .map_err(|error| Error::Network(NetworkError::from_string(error)))
    }
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

impl RaftNetworkV2<ShardRaft> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<ShardRaft>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<ShardRaft>, RPCError<ShardRaft>> {
        let append = self.append(&request, option.soft_ttl());
        let answer = append.answered.await.map_err(|error| self.error(RPCTypes::AppendEntries, error))?;
        decoded(messages::decode_appended(&answer))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> RaftFuture<'s, Result<BoxStream<'s, Appended>, RPCError<ShardRaft>>>
    where
        S: Stream<Item = AppendEntriesRequest<ShardRaft>> + OptionalSend + Unpin + 'static,
    {
        // The option's time is a heartbeat's; entries wait for an fsync as well.
        let within = option.soft_ttl().max(self.inner.config.timing.append_answer());
        Box::pin(async move {
            let answers = futures::stream::unfold(Pipeline::new(self, input, within), Pipeline::next);
            Ok(Box::pin(answers) as BoxStream<'s, Appended>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<ShardRaft>,
        option: RPCOption,
    ) -> Result<VoteResponse<ShardRaft>, RPCError<ShardRaft>> {
        let body = messages::encode_vote_request(&request);
        let answer = self.call(FrameKind::Vote, body, option.soft_ttl()).await;
        decoded(messages::decode_vote_response(&answer.map_err(|error| self.error(RPCTypes::Vote, error))?))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<ShardRaft>,
        option: RPCOption,
    ) -> Result<VoteResponse<ShardRaft>, RPCError<ShardRaft>> {
        let body = messages::encode_vote_request(&request);
        let answer = self.call(FrameKind::PreVote, body, option.soft_ttl()).await;
        decoded(messages::decode_vote_response(&answer.map_err(|error| self.error(RPCTypes::Vote, error))?))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<ShardRaft, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<ShardRaft>, StreamingError<ShardRaft>> {
        let meta: SnapshotMeta = snapshot.meta;
        let sending = snapshot::Sending { from: self.from, to: self.to, node: self.link.node(), vote, meta };
        tokio::select! {
            sent = snapshot::send(&self.inner, sending, snapshot.snapshot) => {
                sent.map(SnapshotResponse::new).map_err(|error| {
                    tracing::info!(shard = %self.from.shard, to = %self.to, %error, "snapshot was not sent");
                    StreamingError::Unreachable(Unreachable::from_string(error))
                })
            }
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<ShardRaft>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<ShardRaft>, RPCError<ShardRaft>> {
        let body = messages::encode_transfer(&request);
        let answer = self.call(FrameKind::TransferLeader, body, option.soft_ttl()).await;
        decoded(messages::decode_transferred(&answer.map_err(|error| self.error(RPCTypes::TransferLeader, error))?))
    }
}

fn decoded<T>(message: Result<T, MessageError>) -> Result<T, RPCError<ShardRaft>> {
    message.map_err(|error| Error::Network(NetworkError::from_string(error)))
}
