//! Answers what other nodes ask: to be let in, the catalog, a step on a shard's membership.
//!
//! Invariants: only nodes of this cluster are answered; a step is taken only by the shard's leader and only if this node
//! knows the shard at the very epoch the step was planned from.
//!
//! Not here: Raft messages (kv-raft, transport); what joins mean (catalog, edits).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_proto::pb::admin::v1::{CheckShardResponse, ContentDigest, Node, ReplicaStatus};
use kv_proto::pb::raft::v1::peer_service_server::PeerService;
use kv_proto::pb::raft::v1::replica_step_request::Step;
use kv_proto::pb::raft::v1::{
    FetchCatalogRequest, FetchCatalogResponse, IntroduceRequest, IntroduceResponse, JoinRequest, JoinResponse,
    LedShard, ReplicaStepRequest, ReplicaStepResponse,
};
use kv_raft::replica::{CheckOutcome, MembershipError, Replica};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::catalog::edits::nodes;
use crate::catalog::view::is_member;
use crate::catalog::{CatalogView, ShardInfo};
use crate::controller::run::now_ms;
use crate::editor::{EditError, Place};
use crate::host::report::replica_status;
use crate::node::NodeShared;
use crate::router::Situation;

/// Longest time an answer is held for a newer catalog.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Time for an election, for this node's view to follow, or for entries to commit.
const PATIENCE: Duration = Duration::from_secs(3);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A request to join is sent on once, to shard 1's leader; once more if that has just moved.
const JOIN_HOPS_MAX: u32 = 2;

/// The service.
pub struct PeerApi {
    shared: Arc<NodeShared>,
}

impl PeerApi {
    /// Of this node.
    #[must_use]
    pub fn new(shared: Arc<NodeShared>) -> Self {
        Self { shared }
    }

    fn check_cluster(&self, theirs: &str) -> Result<(), ServiceError> {
        let ours = self.shared.cluster_id();
        if theirs.is_empty() || theirs == ours {
            return Ok(());
        }
        Err(ServiceError::ClusterMismatch { ours: ours.to_owned(), theirs: theirs.to_owned() })
    }

    async fn let_in(&self, request: &JoinRequest) -> Result<JoinResponse, ServiceError> {
        self.check_cluster(&request.cluster_id)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.shared.editor.place(&self.shared.view.load_full(), until).await? {
                Place::Here => {
                    let decide = |records: &crate::catalog::Records| {
                        let (change, node) = nodes::join(records, request, now_ms())?;
                        self.check_vacant(records, &node)?;
                        let after = change.applied_to(records, kv_proto::timestamp::Timestamp(0));
                        Ok((change, (node, after.to_catalog())))
                    };
                    match self.shared.editor.edit(decide).await {
                        Ok(((node, catalog), _)) => {
                            let cluster_id = self.shared.cluster_id().to_owned();
                            tracing::info!(node = node.node_id, address = node.address, "node is a member");
                            return Ok(JoinResponse { cluster_id, node_id: node.node_id, catalog: Some(catalog) });
                        }
                        Err(EditError::NotLeader) => tokio::time::sleep(PAUSE).await,
                        Err(EditError::Service(error)) => return Err(error),
                    }
                }
                Place::There(leader) => {
                    if request.hops >= JOIN_HOPS_MAX {
                        let retry_after = PAUSE;
                        return Err(ServiceError::NoLeader { shard: kv_proto::ids::SYSTEM_SHARD, retry_after });
                    }
                    let onward = JoinRequest { hops: request.hops + 1, ..request.clone() };
                    let address = self.shared.peers.address(leader)?;
                    let answer = self.shared.peers.join(&address, onward, PATIENCE).await;
                    return answer.inspect_err(|_| self.shared.editor.forget(leader));
                }
            }
        }
    }

    /// Whoever takes the place of a node makes it lost: not while that one is heard of, which tells of one address
    /// given twice. A node that was wiped and started again falls silent within a second.
    fn check_vacant(&self, records: &crate::catalog::Records, joins: &Node) -> Result<(), ServiceError> {
        let transport = self.shared.host.context().transport();
        let lives = |node: &&Node| {
            let is_other = node.node_id != joins.node_id && node.address == joins.address && is_member(node);
            is_other && transport.alive(NodeId(node.node_id))
        };
        let Some(other) = records.nodes.values().find(lives) else { return Ok(()) };
        let why = format!("it is not let in: node {} at its address {} is alive", other.node_id, other.address);
        Err(ServiceError::NotReady { why, retry_after: PATIENCE })
    }

    async fn newer(&self, request: &FetchCatalogRequest) -> Result<FetchCatalogResponse, ServiceError> {
        self.check_cluster(&request.cluster_id)?;
        let wait = Duration::from_millis(u64::from(request.wait_ms)).min(WAIT_MAX);
        let mut version = self.shared.current.watch();
        let is_newer = |version: &u64| *version > request.have_version;
        let waited = tokio::time::timeout(wait, version.wait_for(is_newer)).await;
        let found = matches!(waited, Ok(Ok(_))) || self.shared.view.load().version() > request.have_version;
        let catalog = found.then(|| self.shared.view.load().catalog().clone());
        let led = self.shared.host.replicas().into_iter().filter_map(|replica| {
            let leader = replica.leader()?;
            // Of a shard that sleeps only its leader goes on telling: it was awake while a leader was elected.
            if leader.replica != replica.replica() && replica.is_hibernated() {
                return None;
            }
            let (shard_id, term, leader_node_id) = (replica.shard().0, leader.term, leader.node.0);
            Some(LedShard { shard_id, term, leader_node_id })
        });
        Ok(FetchCatalogResponse { catalog, led: led.collect() })
    }

    async fn step(&self, request: ReplicaStepRequest) -> Result<ReplicaStepResponse, ServiceError> {
        self.check_cluster(&request.cluster_id)?;
        let shard = ShardId(request.shard_id);
        let info = self.at_epoch(shard, request.planned_epoch).await?;
        let not_leader = || {
            let route = self.shared.view.load().route(&info, &self.shared.leaders);
            let hint = kv_proto::pb::v1::RouteHint { shard: Some(route), current: Vec::new() };
            ServiceError::NotLeader { hint: Box::new(hint) }
        };
        let replica = self.shared.host.replica(shard).filter(|replica| replica.is_leader()).ok_or_else(not_leader)?;
        if let Some(Step::Check(step)) = &request.step {
            let outcome = replica.check(Duration::from_millis(step.wait_ms.into())).await;
            let view = self.shared.view.load();
            let situation = Situation { view: &view, leaders: &self.shared.leaders, node: self.shared.node() };
            let outcome = outcome.map_err(|error| crate::errors::propose(error, &situation, &info))?;
            return Ok(ReplicaStepResponse { leader: None, check: Some(check_shard(&outcome)) });
        }
        let is_transfer = matches!(request.step, Some(Step::TransferLeader(_)));
        let taken = match request.step {
            Some(Step::AddLearner(step)) => replica.add_learner(ReplicaId(step.replica_id), NodeId(step.node_id)).await,
            Some(Step::RemoveLearner(step)) => replica.remove_learner(ReplicaId(step.replica_id)).await,
            Some(Step::ChangeVoters(step)) => {
                let voters: BTreeSet<ReplicaId> = step.voter_replica_ids.into_iter().map(ReplicaId).collect();
                replica.change_voters(voters).await
            }
            Some(Step::TransferLeader(step)) => replica.transfer_leader(ReplicaId(step.replica_id)).await,
            Some(Step::Report(_) | Step::Check(_)) => Ok(()),
            None => return Err(ServiceError::invalid("step", "is missing")),
        };
        taken.map_err(|error| membership(shard, error, &not_leader))?;
        let leader = if is_transfer { self.status(&replica, &info) } else { self.committed(&replica, &info).await? };
        Ok(ReplicaStepResponse { leader: Some(leader), check: None })
    }

    /// Waits until this node's view has reached the epoch; conflicts if it has passed it.
    async fn at_epoch(&self, shard: ShardId, planned: u64) -> Result<Arc<ShardInfo>, ServiceError> {
        let known = |view: &CatalogView| view.shard(shard).cloned();
        let mut version = self.shared.current.watch();
        let reached = async {
            while known(&self.shared.view.load()).is_none_or(|info| info.descriptor.epoch < planned) {
                if version.changed().await.is_err() {
                    return;
                }
            }
        };
        // What is not reached in time is a conflict below.
        let _ = tokio::time::timeout(PATIENCE, reached).await;
        let info = known(&self.shared.view.load()).ok_or(ServiceError::ShardNotFound { shard })?;
        if info.descriptor.epoch != planned {
            let found = info.descriptor.epoch;
            return Err(ServiceError::Conflict { what: format!("shard {shard}"), planned, found });
        }
        Ok(info)
    }

    /// The leader's account once everything in its log is committed, its membership among it.
    async fn committed(&self, replica: &Replica, info: &ShardInfo) -> Result<ReplicaStatus, ServiceError> {
        let seen = replica.status();
        let until = Instant::now() + PATIENCE;
        loop {
            let now = replica.status();
            if now.term != seen.term || !replica.is_leader() || Instant::now() > until {
                return Err(ServiceError::NoLeader { shard: info.id(), retry_after: PAUSE });
            }
            if now.committed >= seen.last {
                return Ok(replica_status(&seen, self.shared.node().0, info.epoch()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn status(&self, replica: &Replica, info: &ShardInfo) -> ReplicaStatus {
        replica_status(&replica.status(), self.shared.node().0, info.epoch())
    }
}

fn check_shard(outcome: &CheckOutcome) -> CheckShardResponse {
    let ids = |replicas: &BTreeSet<ReplicaId>| replicas.iter().map(|replica| replica.0).collect();
    let digest = |(replica, digest): (&ReplicaId, &u64)| ContentDigest { replica_id: replica.0, digest: *digest };
    CheckShardResponse {
        index: outcome.index,
        equal_replica_ids: ids(&outcome.equal),
        wrong_replica_ids: ids(&outcome.wrong),
        missing_replica_ids: ids(&outcome.missing),
        undecided_replica_ids: ids(&outcome.undecided),
        digests: outcome.digests.iter().map(digest).collect(),
    }
}

/// As the caller is told.
fn membership(shard: ShardId, error: MembershipError, not_leader: &impl Fn() -> ServiceError) -> ServiceError {
    let retry_after = PATIENCE / 10;
    match error {
        MembershipError::NotLeader { .. } => not_leader(),
        MembershipError::NoQuorum => ServiceError::NoLeader { shard, retry_after },
        MembershipError::OutcomeUnknown => ServiceError::OutcomeUnknown { shard, retry_after },
        MembershipError::Stopped => ServiceError::NotReady { why: error.to_string(), retry_after },
        MembershipError::Busy => ServiceError::Overloaded { queue: format!("shard {shard}'s membership"), retry_after },
        MembershipError::Refused(_) | MembershipError::NotAlive { .. } | MembershipError::Lagging { .. } => {
            ServiceError::Refused { why: error.to_string(), force: String::new() }
        }
    }
}

/// An error of a task that was lost, which only a stopping runtime causes.
pub(super) fn lost(error: &tokio::task::JoinError) -> ServiceError {
    ServiceError::Internal { why: error.to_string(), outcome: Outcome::Unknown }
}

#[tonic::async_trait]
impl PeerService for PeerApi {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Ok(Response::new(self.let_in(request.get_ref()).await?))
    }

    async fn introduce(&self, _: Request<IntroduceRequest>) -> Result<Response<IntroduceResponse>, Status> {
        let (instance_id, cluster_id) =
            (self.shared.identity.instance_bytes().into(), self.shared.cluster_id().to_owned());
        Ok(Response::new(IntroduceResponse { instance_id, cluster_id, seeds: Vec::new() }))
    }

    async fn fetch_catalog(
        &self,
        request: Request<FetchCatalogRequest>,
    ) -> Result<Response<FetchCatalogResponse>, Status> {
        Ok(Response::new(self.newer(request.get_ref()).await?))
    }

    async fn replica_step(
        &self,
        request: Request<ReplicaStepRequest>,
    ) -> Result<Response<ReplicaStepResponse>, Status> {
        // Dropped with a caller that has gone; the driver of the action asks for the step again.
        Ok(Response::new(self.step(request.into_inner()).await?))
    }
}
