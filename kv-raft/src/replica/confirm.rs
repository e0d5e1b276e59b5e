//! A quorum round for reads that leaves consensus alone.
//!
//! What an elected leader has applied in its own term, together with what it told others to be committed, holds
//! everything that was acknowledged or applied anywhere, unless another was elected since. None was if, after that was
//! looked up, a majority of the voters still have this leader in their durable vote: one of them would have had to vote
//! for the other, and a vote is durable before it is given (Raft, section 6.4). So each voter looks into its log's
//! memory, and nobody's consensus has to run.
//!
//! Invariants: an index is told only after a majority confirmed a vote of the term in which this replica applied last;
//! whatever is unusual (a leader that has applied nothing of its own term, a follower that has not heard of it, silence)
//! is left to consensus itself.
//!
//! Not here: who waits for a round (reads).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kv_proto::ids::NodeId;
use kv_proto::pb::raft::v1::FrameKind;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;

use super::Replica;
use super::quorum::has_majority;
use crate::transport;

impl Replica {
    /// An index with everything acknowledged, or applied anywhere, before the call; None if consensus must tell it.
    pub(super) async fn confirmed_index(&self) -> Option<u64> {
        let applied = self.view().ok()?.applied()?;
        let index = applied.index.max(self.outbound.told_committed());
        let vote = self.log.vote().filter(|vote| vote.leader_id == applied.leader_id)?;
        let membership = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            // A process that just began finds its vote for itself, and need not have applied what it acknowledged.
            let leads = metrics.state == ServerState::Leader && metrics.vote.leader_id == vote.leader_id;
            leads.then(|| Arc::clone(&metrics.membership_config))?
        };
        let membership = membership.membership();
        let body = transport::encode_vote_alone(&vote);
        let within = self.votes_within();
        let others = membership.voter_ids().filter(|voter| *voter != self.replica.0);
        let ask = |voter| {
            let node = NodeId(membership.get_node(&voter)?.node);
            let answer = self.send(node, voter, FrameKind::Confirm, body.clone(), within);
            Some(async move { (voter, answer.await) })
        };
        let mut asked: FuturesUnordered<_> = others.filter_map(ask).collect();
        let mut follow = BTreeSet::from([self.replica.0]);
        while !has_majority(membership, |voter| follow.contains(&voter)) {
            let (voter, answer) = asked.next().await?;
            // Consensus will not wait for the others longer than this would.
            if !answer.is_ok_and(|answer| transport::decode_agreement(&answer).unwrap_or(false)) {
                return None;
            }
            follow.insert(voter);
        }
        Some(index)
    }

    /// How long voters are waited for: as long as a heartbeat is, and once more on a busy machine.
    pub(super) fn votes_within(&self) -> Duration {
        self.context.timing.heartbeat * 2
    }

    /// A voter's answer: whether its vote is still for the leader that asks.
    pub(super) fn confirm(&self, body: &[u8]) -> Result<Bytes, String> {
        let leader = transport::decode_vote_alone(body).map_err(|e| e.to_string())?;
        let follows = self.log.vote().is_some_and(|vote| vote.leader_id == leader.leader_id);
        Ok(transport::encode_agreement(follows))
    }
}
