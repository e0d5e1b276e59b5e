//! Steps on a shard's membership and leadership, each safe on its own.
//!
//! Invariants: one step at a time; a step that would make the shard wait for a dead or distant replica is refused
//! before it begins; a step that is already done succeeds.
//!
//! Not here: which steps to take, and the epoch they are conditional on (kv-node, controller).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kv_proto::ids::{NodeId, ReplicaId};
use openraft::ChangeMembers;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;

use super::{MembershipError, ReadError, Replica};
use crate::failpoint;
use crate::types::{Member, ReplicaState, ShardRaft};

/// A replica this far behind may become a voter: it has the rest within the time of a request.
const PROMOTE_LAG_MAX: u64 = 1000;

/// A replica this far behind may become leader: the transfer waits for it, and writes wait for the transfer.
const TRANSFER_LAG_MAX: u64 = 256;

type Changed = Result<ClientWriteResponse<ShardRaft>, RaftError<ShardRaft, ClientWriteError<ShardRaft>>>;

impl Replica {
    /// Adds a replica that follows without a vote. Does not wait until it has caught up.
    pub async fn add_learner(&self, replica: ReplicaId, node: NodeId) -> Result<(), MembershipError> {
        let _alone = self.changing.try_lock().map_err(|_| MembershipError::Busy)?;
        let status = self.confirmed_status().await?;
        if let Some((_, held)) = members(&status).find(|(member, _)| *member == replica) {
            return if held == node {
                Ok(())
            } else {
                Err(MembershipError::Refused(format!("replica {replica} is on node {held}, not {node}")))
            };
        }
        if members(&status).any(|(_, held)| held == node) {
            return Err(MembershipError::Refused(format!("node {node} holds another replica of the shard")));
        }
        tracing::info!(shard = %self.shard, %replica, %node, "adding a learner");
        failpoint!("membership.add_learner");
        self.changed(self.raft.add_learner(replica.0, Member { node: node.0 }, false).await)
    }

    /// Drops a learner from the group; it learns so only by its node.
    pub async fn remove_learner(&self, replica: ReplicaId) -> Result<(), MembershipError> {
        let _alone = self.changing.try_lock().map_err(|_| MembershipError::Busy)?;
        let status = self.confirmed_status().await?;
        if !members(&status).any(|(member, _)| member == replica) {
            return Ok(());
        }
        if status.voters.iter().any(|(voter, _)| *voter == replica) {
            return Err(MembershipError::Refused(format!("replica {replica} is a voter")));
        }
        tracing::info!(shard = %self.shard, %replica, "removing a learner");
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([replica.0]));
        self.changed(self.raft.change_membership(change, false).await)
    }

    /// Changes the voters to exactly these, through joint consensus; voters that leave are dropped from the group.
    /// A change that was cut short by the loss of a leader is finished by asking again.
    pub async fn change_voters(&self, voters: BTreeSet<ReplicaId>) -> Result<(), MembershipError> {
        let _alone = self.changing.try_lock().map_err(|_| MembershipError::Busy)?;
        let status = self.confirmed_status().await?;
        if voters.is_empty() {
            return Err(MembershipError::Refused("a shard needs voters".to_owned()));
        }
        let now: BTreeSet<ReplicaId> = status.voters.iter().map(|(voter, _)| *voter).collect();
        if now == voters && !status.joint {
            return Ok(());
        }
        for replica in voters.difference(&now) {
            self.check_target(&status, *replica, PROMOTE_LAG_MAX)?;
        }
        tracing::info!(shard = %self.shard, from = ?now, to = ?voters, "changing the voters");
        let voters: BTreeSet<u64> = voters.into_iter().map(|replica| replica.0).collect();
        failpoint!("membership.change_voters");
        self.changed(self.raft.change_membership(voters, false).await)
    }

    /// Hands leadership to a voter and waits until it leads.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), MembershipError> {
        let _alone = self.changing.try_lock().map_err(|_| MembershipError::Busy)?;
        let status = self.confirmed_status().await?;
        if to == self.replica {
            return Ok(());
        }
        if !status.voters.iter().any(|(voter, _)| *voter == to) {
            return Err(MembershipError::Refused(format!("replica {to} is no voter")));
        }
        self.check_target(&status, to, TRANSFER_LAG_MAX)?;
        tracing::info!(shard = %self.shard, %to, "handing leadership over");
        failpoint!("membership.transfer_leader");
        self.outbound.hurry(to);
        self.raft.trigger().transfer_leader(to.0).await.map_err(|_| MembershipError::Stopped)?;
        let mut leader = self.watch_leader();
        let passed = leader.wait_for(|leader| leader.is_some_and(|leader| leader.replica != self.replica));
        let within = self.context.timing.election_max * 2;
        match tokio::time::timeout(within, passed).await {
            Ok(Ok(leader)) if leader.is_some_and(|leader| leader.replica == to) => Ok(()),
            Ok(Ok(_)) | Err(_) => Err(MembershipError::OutcomeUnknown),
            Ok(Err(_)) => Err(MembershipError::Stopped),
        }
    }

    /// The voter best placed to lead next: alive, with room on its disk, and furthest; None if there is none, or this
    /// replica does not lead.
    #[must_use]
    pub fn best_successor(&self) -> Option<ReplicaId> {
        let status = self.standing();
        let is_voter = |replica: ReplicaId| status.voters.iter().any(|(voter, _)| *voter == replica);
        let fit = status.followers.iter().filter(|follower| {
            is_voter(follower.replica)
                && follower.lag <= TRANSFER_LAG_MAX
                && self.context.transport.has_room(follower.node)
        });
        fit.max_by_key(|follower| (follower.matched, std::cmp::Reverse(follower.replica))).map(|best| best.replica)
    }

    /// Hands leadership to whoever may have it, until this replica does not lead or may lead again.
    pub(super) async fn step_aside(self: Arc<Self>) {
        let is_due = || self.is_leader() && !self.leads_if_elected();
        // One task at a time; looks again after the flag is down, since what came before found it up.
        while is_due() && !self.stepping_aside.swap(true, Ordering::AcqRel) {
            // Pauses first: among replicas of which none may lead, leadership would go round without a rest.
            let pause = tokio::time::sleep(self.context.timing.election_max);
            let stopped = self.stopping.run_until_cancelled(pause).await.is_none();
            if !stopped
                && is_due()
                && let Some(to) = self.best_successor()
                && let Err(error) = self.transfer_leader(to).await
            {
                tracing::info!(shard = %self.shard, %to, %error, "leadership was not handed over yet");
            }
            self.stepping_aside.store(false, Ordering::Release);
            if stopped {
                return;
            }
        }
    }

    /// The status, once a majority has confirmed that this replica leads; wakes the shard.
    async fn confirmed_status(&self) -> Result<ReplicaState, MembershipError> {
        if !self.is_leader() {
            return Err(MembershipError::NotLeader { leader: self.leader() });
        }
        self.used();
        let index = self.quorum_round().await.map_err(from_read)?;
        self.wait_applied(index).await.map_err(from_read)?;
        Ok(self.status())
    }

    fn check_target(&self, status: &ReplicaState, replica: ReplicaId, lag_max: u64) -> Result<(), MembershipError> {
        let Some(follower) = status.followers.iter().find(|follower| follower.replica == replica) else {
            return if replica == self.replica {
                Ok(())
            } else {
                Err(MembershipError::Refused(format!("replica {replica} is no member")))
            };
        };
        if !self.context.transport.alive(follower.node) {
            return Err(MembershipError::NotAlive { replica, node: follower.node });
        }
        if follower.lag > lag_max {
            return Err(MembershipError::Lagging { replica, lag: follower.lag });
        }
        Ok(())
    }

    fn changed(&self, changed: Changed) -> Result<(), MembershipError> {
        match changed {
            Ok(_) => Ok(()),
            Err(RaftError::Fatal(_)) => Err(MembershipError::Stopped),
            // A change of voters has two entries: the first may be in the log when the second is not accepted.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_))) => {
                Err(MembershipError::OutcomeUnknown)
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                let busy = matches!(
                    error,
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)
                );
                Err(if busy { MembershipError::Busy } else { MembershipError::Refused(error.to_string()) })
            }
            Err(RaftError::APIError(ClientWriteError::PreconditionFailed(error))) => {
                Err(MembershipError::Refused(error.to_string()))
            }
        }
    }
}

fn members(status: &ReplicaState) -> impl Iterator<Item = (ReplicaId, NodeId)> + '_ {
    status.voters.iter().chain(&status.learners).copied()
}

fn from_read(error: ReadError) -> MembershipError {
    match error {
        ReadError::NotLeader { leader } => MembershipError::NotLeader { leader },
        ReadError::NoQuorum | ReadError::TooFarAhead(_) => MembershipError::NoQuorum,
        ReadError::Overloaded { .. } => MembershipError::Busy,
        ReadError::Stopped | ReadError::Fatal(_) => MembershipError::Stopped,
    }
}
