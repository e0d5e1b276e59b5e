//! Messages of other replicas to this one.
//!
//! Invariants: any message of consensus wakes a sleeping replica (a question about its vote does not); within an election
//! timeout of its process's start a replica grants no vote, because its former self may have given the leader a lease that
//! still runs; without room on the disk nothing is taken that has to be written, but for votes.
//!
//! Not here: decoding (transport, messages); what Raft answers (openraft).

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kv_proto::ids::ReplicaId;
use kv_proto::pb::raft::v1::FrameKind;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::{AppendEntriesRequest, VoteRequest, VoteResponse};
use openraft::storage::Snapshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Replica;
use crate::failpoint;
use crate::state_machine::{SnapshotData, SnapshotSink};
use crate::transport::{self, Inbound, Origin};
use crate::types::{ShardRaft, SnapshotMeta, Vote};

impl Inbound for Replica {
    fn replica(&self) -> ReplicaId {
        self.replica
    }

    fn handle(
        self: Arc<Self>,
        from: Origin,
        kind: FrameKind,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        match kind {
            FrameKind::Append => async move { self.append(body).await }.boxed(),
            FrameKind::Vote => async move { self.vote(&body, false).await }.boxed(),
            FrameKind::PreVote => async move { self.vote(&body, true).await }.boxed(),
            FrameKind::TransferLeader => async move { self.transferred(&body).await }.boxed(),
            FrameKind::Hibernate => async move { self.fall_asleep(from.node, &body) }.boxed(),
            FrameKind::Wake => async move {
                self.used();
                Ok(Bytes::new())
            }
            .boxed(),
            FrameKind::Checked => async move { self.checked(from.replica, &body) }.boxed(),
            FrameKind::ReadIndex => async move { self.tell_index(from.replica).await }.boxed(),
            FrameKind::Confirm => futures::future::ready(self.confirm(&body)).boxed(),
            FrameKind::Unspecified => async { Err("a frame of no known kind".to_owned()) }.boxed(),
        }
    }

    fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    fn begin_snapshot(&self, meta: SnapshotMeta) -> Result<SnapshotSink, String> {
        self.context.check_room()?;
        self.context.data.receive_snapshot(self.shard, meta).map_err(|e| e.to_string())
    }

    fn install_snapshot(
        self: Arc<Self>,
        vote: Vote,
        meta: SnapshotMeta,
        data: SnapshotData,
    ) -> BoxFuture<'static, Result<Vote, String>> {
        async move {
            self.roused();
            let snapshot = Snapshot { meta, snapshot: data };
            let installed = self.raft.install_full_snapshot(vote, snapshot).await.map_err(|e| e.to_string())?;
            Ok(installed.vote)
        }
        .boxed()
    }
}

impl Replica {
    async fn append(&self, body: Bytes) -> Result<Bytes, String> {
        let bytes = body.len();
        let request: AppendEntriesRequest<ShardRaft> = transport::decode_append(body).map_err(|e| e.to_string())?;
        self.heard_leader();
        if !request.entries.is_empty() {
            self.context.check_room()?;
            self.context.count_log_bytes(bytes);
            self.noticed();
        }
        failpoint!("replica.append");
        let appended = self.raft.append_entries(request);
        self.roused();
        let response = appended.await.map_err(|e| e.to_string())?;
        failpoint!("replica.appended");
        Ok(transport::encode_appended(&response))
    }

    async fn vote(&self, body: &[u8], pre_vote: bool) -> Result<Bytes, String> {
        let request: VoteRequest<ShardRaft> = transport::decode_vote_request(body).map_err(|e| e.to_string())?;
        let too_early = self.votes_from.is_some_and(|from| Instant::now() < from);
        // The leader of a sleeping shard sends no heartbeats, but its node lives: nobody need replace it. Nor one that has
        // just begun to ask, whose lease nobody renewed while it slept.
        let asks_again = self.is_leader() && self.asks_for() < self.context.timing.election_max;
        let leader_lives = pre_vote && (self.sleeps_under_living_leader() || asks_again);
        if self.roused() {
            self.wake_leader();
        }
        let response = if too_early || leader_lives {
            let vote = self.raft.server_metrics().borrow_watched().vote;
            VoteResponse::new(vote, None, false)
        } else if pre_vote {
            self.raft.pre_vote(request).await.map_err(|e| e.to_string())?
        } else {
            self.raft.vote(request).await.map_err(|e| e.to_string())?
        };
        failpoint!("replica.voted");
        Ok(transport::encode_vote_response(&response))
    }

    async fn transferred(&self, body: &[u8]) -> Result<Bytes, String> {
        let request = transport::decode_transfer(body).map_err(|e| e.to_string())?;
        // Also one that may not lead takes over and hands on: a leader whose transfer was refused would wait for ever.
        self.roused();
        let response = self.raft.handle_transfer_leader(request).await.map_err(|e| e.to_string())?;
        Ok(transport::encode_transferred(&response))
    }
}
