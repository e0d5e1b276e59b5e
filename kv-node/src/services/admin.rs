//! Nodes, keyspaces, shards, membership and status, for people and their tools.
//!
//! Any node answers. What changes the catalog is decided where shard 1's leader is, and sent on there otherwise.
//!
//! Invariants: nothing here decides; a request is sent on at most [`HOPS_MAX`] times.
//!
//! Not here: what is refused and why (catalog, edits); the steps that follow (controller).

mod gather;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::errors::ServiceError;
use kv_proto::ids::{NodeId, ReplicaId, SYSTEM_SHARD, ShardId};
use kv_proto::limits::HOPS_MAX;
use kv_proto::pb::admin::v1::admin_service_server::AdminService;
use kv_proto::pb::admin::v1::{
    AddLearnerRequest, AddLearnerResponse, CancelActionRequest, CancelActionResponse, ChangeVotersRequest,
    ChangeVotersResponse, CheckShardRequest, CheckShardResponse, CreateKeyspaceRequest, CreateKeyspaceResponse,
    DeleteKeyspaceRequest, DeleteKeyspaceResponse, DrainNodeRequest, DrainNodeResponse, GetCatalogRequest,
    GetCatalogResponse, GetNodeStatusRequest, GetNodeStatusResponse, Keyspace, KeyspaceListing, KeyspaceState,
    ListActionsRequest, ListActionsResponse, ListKeyspacesRequest, ListKeyspacesResponse, ListNodesRequest,
    ListNodesResponse, ListShardsRequest, ListShardsResponse, MoveReplicaRequest, MoveReplicaResponse,
    PromoteLearnerRequest, PromoteLearnerResponse, RemoveNodeRequest, RemoveNodeResponse, RemoveReplicaRequest,
    RemoveReplicaResponse, TransferLeaderRequest, TransferLeaderResponse, UndrainNodeRequest, UndrainNodeResponse,
};
use kv_proto::pb::raft::v1::replica_step_request::Step;
use kv_proto::pb::raft::v1::{CheckStep, ReplicaStepRequest, TransferLeaderStep};
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use super::peer::lost;
use crate::catalog::edits::{actions, keyspaces, nodes};
use crate::catalog::records::runs;
use crate::catalog::{CatalogView, Records};
use crate::controller::run::now_ms;
use crate::editor::{EditError, Place};
use crate::node::NodeShared;
use crate::node::status::node_status;
use crate::peers::timed;
use crate::validate::{GrpcTimeout, due, grpc_timeout};

/// Time for an election of shard 1, then for the change itself, if the caller names none.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most a caller may name.
const PATIENCE_MAX: Duration = Duration::from_secs(60);

/// A new keyspace is shown once its shards have leaders, or after this long.
const READY: Duration = Duration::from_secs(5);

/// After an attempt that met no leader.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest wait for this node's view to show a change that was made.
const SHOWN: Duration = Duration::from_secs(1);

/// A check is answered with what is known after this long; large replicas take longer.
const CHECK_WAIT: Duration = Duration::from_secs(3);

/// In responses: the version of the first catalog that shows the change.
const VERSION: &str = "kv-catalog-version";

/// How often a request has been sent on.
const HOPS: &str = "kv-hops";

/// The service.
pub struct AdminApi {
    shared: Arc<NodeShared>,
}

/// Runs a decision where shard 1's leader is: here, or by sending the request on.
macro_rules! at_leader {
    ($self:ident, $request:ident, $method:ident, $decide:expr) => {{
        let hops = hops(&$request)?;
        let until = until(&$request);
        let message = $request.into_inner();
        loop {
            let view = $self.shared.view.load_full();
            let error = match $self.shared.editor.place(&view, until).await? {
                Place::Here => match $self.shared.editor.edit(|records| $decide(records, &message)).await {
                    Ok((answer, version)) => return Ok($self.shown(Response::new(answer), version, until).await),
                    Err(EditError::Service(error)) => return Err(error.into()),
                    Err(EditError::NotLeader) => no_leader(),
                },
                Place::There(_) if hops >= HOPS_MAX => no_leader(),
                Place::There(leader) => {
                    let address = $self.shared.peers.address(leader)?;
                    match $self.shared.peers.admin(&address, until.saturating_duration_since(Instant::now())).await {
                        Ok(mut client) => {
                            let onward = onward(message.clone(), hops + 1, until);
                            match client.$method(onward).await {
                                Ok(response) => {
                                    let version = version_of(&response);
                                    return Ok($self.shown(response, version, until).await);
                                }
                                Err(status) => match ServiceError::from_status(&status) {
                                    error @ (ServiceError::NoLeader { .. } | ServiceError::NotReady { .. }) => error,
                                    ServiceError::Foreign { .. } => {
                                        $self.shared.editor.forget(leader);
                                        return Err(lost_sight(&status).into());
                                    }
                                    error => return Err(error.into()),
                                },
                            }
                        }
                        Err(error) => {
                            $self.shared.editor.forget(leader);
                            error
                        }
                    }
                }
            };
            if Instant::now() + PAUSE > until {
                return Err(error.into());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }};
}

impl AdminApi {
    /// Of this node.
    #[must_use]
    pub fn new(shared: Arc<NodeShared>) -> Self {
        Self { shared }
    }

    fn is_alive(&self, node: u64) -> bool {
        self.shared.host.context().transport().alive(NodeId(node))
    }

    /// Waits until the view satisfies a condition, or not; whoever looks afterwards sees which.
    async fn wait(&self, within: Duration, done: impl Fn(&CatalogView) -> bool) {
        let mut version = self.shared.current.watch();
        let waited = async { while !done(&self.shared.view.load()) && version.changed().await.is_ok() {} };
        // What is not so in time is shown as it is.
        let _ = tokio::time::timeout(within, waited).await;
    }

    /// The response to a change, once this node's own view shows it: whoever asks here next sees what was done.
    async fn shown<T>(&self, mut response: Response<T>, version: u64, until: Instant) -> Response<T> {
        let within = SHOWN.min(until.saturating_duration_since(Instant::now()));
        self.wait(within, |view| view.version() >= version).await;
        response.metadata_mut().insert(VERSION, MetadataValue::from(version));
        response
    }

    async fn created(
        &self,
        request: Request<CreateKeyspaceRequest>,
    ) -> Result<Response<CreateKeyspaceResponse>, Status> {
        let decide = |records: &Records, message: &CreateKeyspaceRequest| {
            let (change, keyspace) = keyspaces::create(records, message, |node| self.is_alive(node))?;
            Ok((change, CreateKeyspaceResponse { keyspace: Some(keyspace) }))
        };
        at_leader!(self, request, create_keyspace, decide)
    }

    async fn transfer(&self, message: &TransferLeaderRequest, until: Instant) -> Result<u64, ServiceError> {
        let shard = ShardId(message.shard_id);
        let info = self.shared.view.load().shard(shard).cloned().ok_or(ServiceError::ShardNotFound { shard })?;
        let to = match message.to_node_id {
            0 => self.best_heir(shard, until).await?,
            node => {
                let name = format!("of shard {shard} on node {node}");
                let missing = || ServiceError::NotFound { what: "replica".into(), name };
                info.replica_on(NodeId(node)).ok_or_else(missing)?
            }
        };
        let target = info.descriptor.replicas.iter().find(|replica| replica.replica_id == to.0);
        let (leader, _) = gather::leader(&self.shared, shard, until).await?;
        let request = ReplicaStepRequest {
            cluster_id: self.shared.cluster_id().to_owned(),
            shard_id: shard.0,
            planned_epoch: if message.epoch == 0 { info.descriptor.epoch } else { message.epoch },
            step: Some(Step::TransferLeader(TransferLeaderStep { replica_id: to.0 })),
        };
        let within = until.saturating_duration_since(Instant::now());
        match self.shared.peers.replica_step(NodeId(leader), request, within).await {
            Err(ServiceError::Foreign { .. }) => Err(ServiceError::OutcomeUnknown { shard, retry_after: PAUSE }),
            Err(error) => Err(error),
            Ok(_) => Ok(target.map_or(0, |replica| replica.node_id)),
        }
    }

    async fn check(&self, message: &CheckShardRequest, until: Instant) -> Result<CheckShardResponse, ServiceError> {
        let shard = ShardId(message.shard_id);
        let info = self.shared.view.load().shard(shard).cloned().ok_or(ServiceError::ShardNotFound { shard })?;
        let (leader, _) = gather::leader(&self.shared, shard, until).await?;
        let within = until.saturating_duration_since(Instant::now());
        let wait = CHECK_WAIT.min(within.saturating_sub(PAUSE));
        let request = ReplicaStepRequest {
            cluster_id: self.shared.cluster_id().to_owned(),
            shard_id: shard.0,
            planned_epoch: info.descriptor.epoch,
            step: Some(Step::Check(CheckStep { wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX) })),
        };
        let response = self.shared.peers.replica_step(NodeId(leader), request, within).await?;
        Ok(response.check.unwrap_or_default())
    }

    async fn best_heir(&self, shard: ShardId, until: Instant) -> Result<ReplicaId, ServiceError> {
        let (_, status) = gather::leader(&self.shared, shard, until).await?;
        let voters: BTreeSet<u64> = status.voter_replica_ids.iter().copied().collect();
        let heirs = status.followers.iter().filter(|follower| voters.contains(&follower.replica_id));
        let heir = heirs.max_by_key(|follower| follower.matched_index).map(|follower| ReplicaId(follower.replica_id));
        let why = format!("shard {shard} has no other voter");
        heir.ok_or(ServiceError::Refused { why, force: String::new() })
    }
}

fn no_leader() -> ServiceError {
    ServiceError::NoLeader { shard: SYSTEM_SHARD, retry_after: PAUSE }
}

fn hops<T>(request: &Request<T>) -> Result<u32, ServiceError> {
    let Some(value) = request.metadata().get(HOPS) else { return Ok(0) };
    let hops = value.to_str().ok().and_then(|text| text.parse().ok());
    hops.ok_or_else(|| ServiceError::invalid(HOPS, "must be a number"))
}

fn version_of<T>(response: &Response<T>) -> u64 {
    let value = response.metadata().get(VERSION).and_then(|value| value.to_str().ok());
    value.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Not an answer of the leader: its connection broke, or the time ran out there. It may have made the change.
fn lost_sight(status: &Status) -> ServiceError {
    tracing::info!(%status, "an administrative request was sent on and not answered");
    ServiceError::OutcomeUnknown { shard: SYSTEM_SHARD, retry_after: PAUSE }
}

/// When an answer is due.
fn until<T>(request: &Request<T>) -> Instant {
    let header = request.metadata().get("grpc-timeout").map(|value| value.as_encoded_bytes());
    let within = match grpc_timeout(header) {
        GrpcTimeout::Given(given) => due(given.min(PATIENCE_MAX)),
        GrpcTimeout::Absent | GrpcTimeout::Malformed => PATIENCE,
    };
    Instant::now() + within
}

fn onward<T>(message: T, hops: u32, until: Instant) -> Request<T> {
    let mut request = timed(message, until.saturating_duration_since(Instant::now()));
    request.metadata_mut().insert(HOPS, MetadataValue::from(hops));
    request
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn get_catalog(&self, _: Request<GetCatalogRequest>) -> Result<Response<GetCatalogResponse>, Status> {
        let catalog = Some(self.shared.view.load().catalog().clone());
        Ok(Response::new(GetCatalogResponse { catalog }))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        Ok(Response::new(ListNodesResponse { nodes: gather::nodes(&self.shared).await }))
    }

    async fn get_node_status(
        &self,
        request: Request<GetNodeStatusRequest>,
    ) -> Result<Response<GetNodeStatusResponse>, Status> {
        let (shared, asked) = (Arc::clone(&self.shared), request.into_inner());
        let status = kv_raft::blocking::spawn_blocking(move || node_status(&shared, asked)).await;
        let status = Some(status.map_err(|error| lost(&error))?);
        Ok(Response::new(GetNodeStatusResponse { cluster_id: self.shared.cluster_id().to_owned(), status }))
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        let decide = |records: &Records, message: &DrainNodeRequest| {
            let (change, node, actions) = nodes::drain(records, message.node_id, &message.force, now_ms())?;
            Ok((change, DrainNodeResponse { node: Some(node), actions }))
        };
        at_leader!(self, request, drain_node, decide)
    }

    async fn undrain_node(
        &self,
        request: Request<UndrainNodeRequest>,
    ) -> Result<Response<UndrainNodeResponse>, Status> {
        let decide = |records: &Records, message: &UndrainNodeRequest| {
            let (change, node) = nodes::undrain(records, message.node_id, now_ms())?;
            Ok((change, UndrainNodeResponse { node: Some(node) }))
        };
        at_leader!(self, request, undrain_node, decide)
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeResponse>, Status> {
        let decide = |records: &Records, message: &RemoveNodeRequest| {
            let (change, node) = nodes::remove(records, message.node_id, &message.force, |node| self.is_alive(node))?;
            Ok((change, RemoveNodeResponse { node: Some(node) }))
        };
        at_leader!(self, request, remove_node, decide)
    }

    async fn create_keyspace(
        &self,
        request: Request<CreateKeyspaceRequest>,
    ) -> Result<Response<CreateKeyspaceResponse>, Status> {
        let until = until(&request);
        let mut response = self.created(request).await?;
        let Some(created) = &mut response.get_mut().keyspace else { return Ok(response) };
        let id = kv_proto::ids::KeyspaceId(created.keyspace_id);
        let is_ready = |view: &CatalogView| {
            view.keyspace_by_id(id).is_some_and(|keyspace| keyspace.state() != KeyspaceState::Creating)
        };
        self.wait(READY.min(until.saturating_duration_since(Instant::now())), is_ready).await;
        if let Some(keyspace) = self.shared.view.load().keyspace_by_id(id) {
            created.clone_from(keyspace);
        }
        Ok(response)
    }

    async fn list_keyspaces(
        &self,
        _: Request<ListKeyspacesRequest>,
    ) -> Result<Response<ListKeyspacesResponse>, Status> {
        let view = self.shared.view.load();
        let listing = |keyspace: &Keyspace| {
            let shards = view.shards_of(kv_proto::ids::KeyspaceId(keyspace.keyspace_id)).len();
            KeyspaceListing { keyspace: Some(keyspace.clone()), shards: u32::try_from(shards).unwrap_or(u32::MAX) }
        };
        let keyspaces = view.catalog().keyspaces.iter().map(listing).collect();
        Ok(Response::new(ListKeyspacesResponse { keyspaces }))
    }

    async fn delete_keyspace(
        &self,
        request: Request<DeleteKeyspaceRequest>,
    ) -> Result<Response<DeleteKeyspaceResponse>, Status> {
        let decide = |records: &Records, message: &DeleteKeyspaceRequest| {
            let (change, keyspace) = keyspaces::delete(records, &message.name)?;
            Ok((change, DeleteKeyspaceResponse { keyspace: Some(keyspace) }))
        };
        at_leader!(self, request, delete_keyspace, decide)
    }

    async fn list_shards(&self, request: Request<ListShardsRequest>) -> Result<Response<ListShardsResponse>, Status> {
        Ok(Response::new(ListShardsResponse { shards: gather::shards(&self.shared, request.get_ref()).await? }))
    }

    async fn add_learner(&self, request: Request<AddLearnerRequest>) -> Result<Response<AddLearnerResponse>, Status> {
        let decide = |records: &Records, message: &AddLearnerRequest| {
            let (change, action) = actions::add_learner(records, message, now_ms())?;
            Ok((change, AddLearnerResponse { action: Some(action) }))
        };
        at_leader!(self, request, add_learner, decide)
    }

    async fn promote_learner(
        &self,
        request: Request<PromoteLearnerRequest>,
    ) -> Result<Response<PromoteLearnerResponse>, Status> {
        let decide = |records: &Records, message: &PromoteLearnerRequest| {
            let (change, action) = actions::promote(records, message, now_ms())?;
            Ok((change, PromoteLearnerResponse { action: Some(action) }))
        };
        at_leader!(self, request, promote_learner, decide)
    }

    async fn change_voters(
        &self,
        request: Request<ChangeVotersRequest>,
    ) -> Result<Response<ChangeVotersResponse>, Status> {
        let decide = |records: &Records, message: &ChangeVotersRequest| {
            let (change, action) = actions::change_voters(records, message, now_ms())?;
            Ok((change, ChangeVotersResponse { action: Some(action) }))
        };
        at_leader!(self, request, change_voters, decide)
    }

    async fn remove_replica(
        &self,
        request: Request<RemoveReplicaRequest>,
    ) -> Result<Response<RemoveReplicaResponse>, Status> {
        let decide = |records: &Records, message: &RemoveReplicaRequest| {
            let (change, action) = actions::remove_replica(records, message, now_ms())?;
            Ok((change, RemoveReplicaResponse { action: Some(action) }))
        };
        at_leader!(self, request, remove_replica, decide)
    }

    async fn move_replica(
        &self,
        request: Request<MoveReplicaRequest>,
    ) -> Result<Response<MoveReplicaResponse>, Status> {
        let decide = |records: &Records, message: &MoveReplicaRequest| {
            let (change, action) = actions::move_replica(records, message, now_ms())?;
            Ok((change, MoveReplicaResponse { action: Some(action) }))
        };
        at_leader!(self, request, move_replica, decide)
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let leader_node_id = self.transfer(request.get_ref(), until(&request)).await?;
        Ok(Response::new(TransferLeaderResponse { leader_node_id }))
    }

    async fn check_shard(&self, request: Request<CheckShardRequest>) -> Result<Response<CheckShardResponse>, Status> {
        Ok(Response::new(self.check(request.get_ref(), until(&request)).await?))
    }

    async fn list_actions(
        &self,
        request: Request<ListActionsRequest>,
    ) -> Result<Response<ListActionsResponse>, Status> {
        let only_running = request.get_ref().running;
        let view = self.shared.view.load();
        let actions = view.catalog().actions.iter().filter(|action| !only_running || runs(action)).cloned().collect();
        Ok(Response::new(ListActionsResponse { actions }))
    }

    async fn cancel_action(
        &self,
        request: Request<CancelActionRequest>,
    ) -> Result<Response<CancelActionResponse>, Status> {
        let decide = |records: &Records, message: &CancelActionRequest| {
            let (change, action) = actions::cancel(records, message.action_id, now_ms())?;
            Ok((change, CancelActionResponse { action: Some(action) }))
        };
        at_leader!(self, request, cancel_action, decide)
    }
}
