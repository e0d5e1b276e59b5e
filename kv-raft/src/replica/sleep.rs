//! Hibernation: a shard with nothing to do stops its timers, by agreement of all its replicas.
//!
//! The leader of an idle shard, whose followers have all it has, stops its heartbeats, waits until the last of them
//! has passed, and asks every other replica to sleep. A follower agrees if it follows that leader in that term and its
//! log ends, applied, where the leader's does. If all agree, the leader sleeps too; if one does not, the leader goes on
//! and its next heartbeat wakes the others. Replicas on nodes that are away are not asked, as long as the others are a
//! majority. While a shard sleeps the hellos between nodes stand in for its heartbeats: when the leader's node is lost, or
//! comes back as another process, the followers wake and elect; when a follower's node comes, or comes back as another
//! process, the leader wakes.
//!
//! Invariants: sleep is never needed for safety: a replica that sleeps alone only fails to call elections, and any
//! request or message of consensus wakes it. A request, or a node, that comes while sleep is agreed on is never slept
//! over: each side first writes its own mark, then reads the other's.
//!
//! Not here: when nodes count as alive (transport, peers); who asks for sleep and when (keeper).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{StreamExt as _, future};
use kv_proto::ids::NodeId;
use kv_proto::pb::raft::v1::{Frame, FrameKind};

use openraft::async_runtime::WatchReceiver as _;

use super::Replica;
use super::quorum::has_majority;
use crate::transport::{self, Alive, CallError, Hibernate};
use crate::types::Role;

/// What a sleeping replica must know: of which incarnation the nodes were when it fell asleep.
#[derive(Clone, Debug)]
pub(super) enum Asleep {
    /// The nodes of its followers; None while away.
    Leads(Arc<[(NodeId, Option<u64>)]>),
    Follows {
        leader_node: NodeId,
        incarnation: u64,
    },
}

/// A shard that could sleep.
struct Quiet {
    proposal: Hibernate,
    /// Who has to agree.
    here: Vec<(u64, NodeId)>,
    /// As in [`Asleep::Leads`].
    nodes: Arc<[(NodeId, Option<u64>)]>,
}

impl Replica {
    /// Whether it sleeps.
    #[must_use]
    pub fn is_hibernated(&self) -> bool {
        self.hibernated.load(Ordering::SeqCst)
    }

    /// A request or a busy leader: not idle, and awake.
    pub(super) fn used(&self) {
        self.noticed();
        self.roused();
    }

    /// Not idle.
    pub(super) fn noticed(&self) {
        self.last_used.store(self.context.now_ms(), Ordering::SeqCst);
    }

    /// Wakes this replica if it sleeps; true if it did.
    pub(super) fn roused(&self) -> bool {
        if !self.is_hibernated() {
            return false;
        }
        let slept = {
            let mut slot = self.asleep.lock();
            let Some(slept) = slot.take() else { return false };
            // All of it under the lock: it must not mix with falling asleep again.
            self.begins_to_ask();
            self.hibernated.store(false, Ordering::SeqCst);
            self.noticed();
            self.resume();
            slept
        };
        self.context.metrics.wakes.inc();
        tracing::debug!(shard = %self.shard, replica = %self.replica, ?slept, "woke");
        if let Asleep::Leads(_) = slept
            && let Some(replica) = self.arc()
        {
            self.tasks.spawn(async move {
                // Fails only for a replica that stops.
                let _ = replica.raft.trigger().heartbeat().await;
            });
        }
        true
    }

    fn resume(&self) {
        self.raft.runtime_config().heartbeat(true);
        self.raft.runtime_config().tick(true);
        self.set_elections();
    }

    /// Marks it asleep, unless it was used since; true if it sleeps.
    fn sleep(&self, asleep: Asleep, used_before: u64) -> bool {
        let mut slot = self.asleep.lock();
        self.hibernated.store(true, Ordering::SeqCst);
        if self.last_used.load(Ordering::SeqCst) != used_before || self.stopping.is_cancelled() {
            self.hibernated.store(false, Ordering::SeqCst);
            return false;
        }
        self.raft.runtime_config().heartbeat(false);
        self.raft.runtime_config().elect(false);
        self.raft.runtime_config().tick(false);
        self.leaderless.store(0, Ordering::Release);
        *slot = Some(asleep);
        true
    }

    /// Begins to put the shard to sleep if this replica leads it and all has been quiet for this long.
    pub(super) fn consider_sleep(&self, after: Duration) {
        if self.is_hibernated() || !self.is_leader() || !self.is_idle_for(after) || self.quiet().is_none() {
            return;
        }
        if self.dozing.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(replica) = self.arc() {
            self.tasks.spawn(replica.agree_on_sleep());
        }
    }

    fn is_idle_for(&self, after: Duration) -> bool {
        let idle = self.context.now_ms().saturating_sub(self.last_used.load(Ordering::SeqCst));
        Duration::from_millis(idle) >= after && self.proposals.is_idle() && self.reads.is_idle()
    }

    async fn agree_on_sleep(self: Arc<Self>) {
        let agreed = self.stopping.run_until_cancelled(self.ask_all_to_sleep()).await;
        self.dozing.store(false, Ordering::Release);
        if agreed == Some(true) {
            self.context.metrics.hibernations.inc();
            tracing::debug!(shard = %self.shard, "shard sleeps");
        } else if agreed == Some(false) {
            self.begins_to_ask();
            self.resume();
            // Whoever agreed already wakes by this; it fails only for a replica that stops.
            let _ = self.raft.trigger().heartbeat().await;
            // Not again at the next look.
            self.noticed();
        }
    }

    async fn ask_all_to_sleep(&self) -> bool {
        let used_before = self.last_used.load(Ordering::SeqCst);
        self.raft.runtime_config().heartbeat(false);
        tokio::time::sleep(self.context.timing.heartbeat).await;
        let Some(Quiet { proposal, here, nodes }) = self.quiet() else { return false };
        let body = transport::encode_hibernate(&proposal);
        // The others must not call elections while one of them does not answer.
        let within = self.votes_within();
        let asked = here.into_iter().map(|(replica, node)| {
            let answer = self.send(node, replica, FrameKind::Hibernate, body.clone(), within);
            async move { answer.await.is_ok_and(|answer| transport::decode_agreement(&answer).unwrap_or(false)) }
        });
        // The first that does not agree ends it.
        let all = asked.collect::<FuturesUnordered<_>>().all(future::ready).await;
        if !all || !self.sleep(Asleep::Leads(Arc::clone(&nodes)), used_before) {
            return false;
        }
        // What came before this leader slept has woken nobody.
        if have_come(&nodes, &self.context.transport.watch_alive().borrow()) {
            self.roused();
        }
        true
    }

    /// None unless this replica leads, a majority answers it and is on living nodes, and all of those have all there is.
    fn quiet(&self) -> Option<Quiet> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let status = self.status_of(&metrics);
        let settled = status.role == Role::Leader
            && !status.joint
            && status.committed == status.last
            && status.applied == status.last
            && status.followers.len() + 1 == status.voters.len() + status.learners.len()
            && self.since_answer(&metrics).is_none_or(|since| since < self.context.timing.election_max);
        // As it is published, so that whatever comes after this is published too.
        let alive = self.context.transport.watch_alive();
        let alive = alive.borrow();
        let here = || status.followers.iter().filter(|follower| alive.contains_key(&follower.node));
        let counts = |voter| voter == self.replica.0 || here().any(|follower| follower.replica.0 == voter);
        let quiet = settled
            && has_majority(metrics.membership_config.membership(), counts)
            && here().all(|follower| follower.lag == 0);
        quiet.then(|| Quiet {
            proposal: Hibernate { vote: metrics.vote, last: metrics.last_applied },
            here: here().map(|follower| (follower.replica.0, follower.node)).collect(),
            nodes: status
                .followers
                .iter()
                .map(|follower| (follower.node, alive.get(&follower.node).copied()))
                .collect(),
        })
    }

    /// A follower's answer to its leader.
    pub(super) fn fall_asleep(&self, leader_node: NodeId, body: &[u8]) -> Result<Bytes, String> {
        let proposal = transport::decode_hibernate(body).map_err(|e| e.to_string())?;
        let used_before = self.last_used.load(Ordering::SeqCst);
        let same = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.vote == proposal.vote
                && metrics.last_applied == proposal.last
                && metrics.last_log_index == proposal.last.map(|last| last.index)
        };
        let incarnation = self.context.transport.watch_alive().borrow().get(&leader_node).copied();
        let agreed = same
            && !self.is_leader()
            && incarnation
                .is_some_and(|incarnation| self.sleep(Asleep::Follows { leader_node, incarnation }, used_before));
        Ok(transport::encode_agreement(agreed))
    }

    /// Whether it sleeps as or under a leader whose node is alive.
    pub(super) fn sleeps_under_living_leader(&self) -> bool {
        match &*self.asleep.lock() {
            None => false,
            Some(Asleep::Leads(_)) => true,
            Some(Asleep::Follows { leader_node, .. }) => self.context.transport.alive(*leader_node),
        }
    }

    /// Tells the leader that the shard sleeps no more.
    pub(super) fn wake_leader(&self) {
        let Some(leader) = self.leader().filter(|leader| leader.replica != self.replica) else { return };
        let within = self.context.timing.election_min;
        let told = self.send(leader.node, leader.replica.0, FrameKind::Wake, Bytes::new(), within);
        self.tasks.spawn(async move {
            if let Err(error) = told.await {
                tracing::debug!(%error, "the leader was not woken");
            }
        });
    }

    /// Wakes a leader that sleeps and one of whose followers' nodes came, and a follower that sleeps under a leader whose
    /// node is lost or began anew. Of such followers one wakes at once, the others later, if it has not woken them by then:
    /// so they do not split the votes.
    pub(super) fn nodes_changed(&self, alive: &Alive) {
        if !self.is_hibernated() {
            return;
        }
        let Some(asleep) = self.asleep.lock().clone() else { return };
        let leader_node = match asleep {
            Asleep::Leads(nodes) => {
                if have_come(&nodes, alive) {
                    self.roused();
                }
                return;
            }
            Asleep::Follows { leader_node, incarnation } if alive.get(&leader_node) == Some(&incarnation) => return,
            Asleep::Follows { leader_node, .. } => leader_node,
        };
        let rank = self.rank_without(leader_node);
        if rank == 0 {
            self.roused();
            return;
        }
        let Some(replica) = self.arc() else { return };
        let wait = self.context.timing.election_min * rank;
        self.tasks.spawn(async move {
            if replica.stopping.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
                replica.roused();
            }
        });
    }

    /// How many voters on other living nodes come before this one.
    fn rank_without(&self, lost: NodeId) -> u32 {
        let status = self.standing();
        let before = status
            .voters
            .iter()
            .filter(|(replica, node)| *replica < self.replica && *node != lost && self.context.transport.alive(*node));
        u32::try_from(before.count()).unwrap_or(u32::MAX)
    }

    pub(super) fn send(
        &self,
        node: NodeId,
        replica: u64,
        kind: FrameKind,
        body: Bytes,
        within: Duration,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send + use<> {
        self.context.transport.inner().link(node).call(
            Frame {
                shard_id: self.shard.0,
                from_replica_id: self.replica.0,
                to_replica_id: replica,
                request_id: 0,
                kind: kind.into(),
                body,
                refusal: String::new(),
            },
            within,
        )
    }
}

/// Whether one that was away is there, or is there anew.
fn have_come(nodes: &[(NodeId, Option<u64>)], alive: &Alive) -> bool {
    nodes.iter().any(|(node, incarnation)| alive.get(node).is_some_and(|now| Some(*now) != *incarnation))
}
