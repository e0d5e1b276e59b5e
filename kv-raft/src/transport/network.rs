//! openraft's network, over links.
//!
//! Invariants: every call ends within its time limit; a pre-vote is asked, never assumed.
//!
//! Not here: how frames travel (link); which appends are sent when (appends); snapshots (snapshot).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::Stream;
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_proto::pb::raft::v1::{Frame, FrameKind};
use openraft::base::{BoxFuture as RaftFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, RPCError as Error, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::appends::{Append, Appended, Appends, Holding, Request};
use super::link::{CallError, Link};
use super::messages::{self, MessageError};
use super::{Inner, snapshot};
use crate::metrics::Stage;
use crate::state_machine::SnapshotData;
use crate::types::{Member, ShardRaft, SnapshotMeta, Vote};

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
    /// For whom what is held is wanted now.
    hurry: Mutex<BTreeMap<ReplicaId, Arc<Notify>>>,
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

    /// What is held for a replica is sent at once, or else what would be held next: it waits for what it does not have yet.
    pub(crate) fn hurry(&self, to: ReplicaId) {
        if let Some(hurry) = self.hurry.lock().get(&to) {
            hurry.notify_one();
        }
    }

    /// Told when what is held for a replica is wanted.
    pub(crate) fn hurry_of(&self, to: ReplicaId) -> Arc<Notify> {
        Arc::clone(self.hurry.lock().entry(to).or_default())
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
        let (inner, outbound) = (Arc::clone(&self.inner), Arc::clone(&self.outbound));
        let hurry = outbound.hurry_of(to);
        Connection { inner, link, from: self.from, to, outbound, hurry }
    }
}

/// One replica's way to another.
pub(crate) struct Connection {
    inner: Arc<Inner>,
    link: Arc<Link>,
    from: ReplicaAddress,
    to: ReplicaId,
    outbound: Arc<Outbound>,
    hurry: Arc<Notify>,
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

    /// What a call's error is to openraft.
    fn error(&self, action: RPCTypes) -> impl Fn(CallError) -> RPCError<ShardRaft> + use<> {
        let (id, target) = (self.from.replica.0, self.to.0);
        move |error| match error {
            CallError::Unreachable { .. } | CallError::Refused { .. } => {
                Error::Unreachable(Unreachable::from_string(error))
            }
            CallError::QueueFull(_) => Error::Network(NetworkError::from_string(error)),
            CallError::Timeout { after, .. } => Error::Timeout(Timeout { action, id, target, timeout: after }),
        }
    }

    /// The call is queued now; the future waits for the answer.
    fn append(&self, request: &Request, within: Duration) -> Append {
        let error = self.error(RPCTypes::AppendEntries);
        if request.entries.is_empty() && self.outbound.is_silent() {
            let silent =
                CallError::Unreachable { node: self.link.node(), reason: "no majority answers: silent".to_owned() };
            return Append { answer: Box::pin(std::future::ready(Err(error(silent)))), bytes: 0 };
        }
        self.outbound.tell_committed(request.leader_commit.map_or(0, |id| id.index));
        let body = messages::encode_append(request);
        let bytes = body.len();
        let observed = (!request.entries.is_empty()).then(|| Arc::clone(&self.inner.metrics));
        let sent = Instant::now();
        let answer = self.call(FrameKind::Append, body, within);
        let answer = async move {
            let answer = answer.await.map_err(error)?;
            if let Some(metrics) = observed {
                metrics.observe(Stage::Replicate, sent);
            }
            decoded(messages::decode_appended(&answer))
        };
        Append { answer: Box::pin(answer), bytes }
    }
}

impl RaftNetworkV2<ShardRaft> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<ShardRaft>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<ShardRaft>, RPCError<ShardRaft>> {
        self.append(&request, option.soft_ttl()).answer.await
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
            let this = &*self;
            let send = move |request: &Request| this.append(request, within);
            let appends = Appends::new(input, send, Holding::until(Arc::clone(&this.hurry)));
            Ok(Box::pin(futures::stream::unfold(appends, Appends::next)) as BoxStream<'s, Appended>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<ShardRaft>,
        option: RPCOption,
    ) -> Result<VoteResponse<ShardRaft>, RPCError<ShardRaft>> {
        let body = messages::encode_vote_request(&request);
        let answer = self.call(FrameKind::Vote, body, option.soft_ttl()).await;
        decoded(messages::decode_vote_response(&answer.map_err(self.error(RPCTypes::Vote))?))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<ShardRaft>,
        option: RPCOption,
    ) -> Result<VoteResponse<ShardRaft>, RPCError<ShardRaft>> {
        let body = messages::encode_vote_request(&request);
        let answer = self.call(FrameKind::PreVote, body, option.soft_ttl()).await;
        decoded(messages::decode_vote_response(&answer.map_err(self.error(RPCTypes::Vote))?))
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
        decoded(messages::decode_transferred(&answer.map_err(self.error(RPCTypes::TransferLeader))?))
    }
}

fn decoded<T>(message: Result<T, MessageError>) -> Result<T, RPCError<ShardRaft>> {
    message.map_err(|error| Error::Network(NetworkError::from_string(error)))
}
