//! A node of one shard in memory, with just enough of both services to run every kind of command against it.
//!
//! Not here: real clusters (kv-tests).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use kv_proto::errors::ServiceError;
use kv_proto::ids::KeyspaceId;
use kv_proto::keys;
use kv_proto::pb::admin::v1 as admin;
use kv_proto::pb::admin::v1::admin_service_server::{AdminService, AdminServiceServer};
use kv_proto::pb::v1 as pb;
use kv_proto::pb::v1::kv_service_server::{KvService, KvServiceServer};
use kv_proto::pb::v1::pipeline_call::Request as Call;
use kv_proto::pb::v1::pipeline_reply::Response as Reply;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

const KEYSPACE: KeyspaceId = KeyspaceId(2);
const SHARD: u64 = 4;
/// 2023-11-14T22:13:20Z.
const FIRST_VERSION: u64 = 1_700_000_000_000 << 16;

#[derive(Default)]
struct State {
    data: BTreeMap<Bytes, (Bytes, u64)>,
    writes: u64,
    action: admin::Action,
}

/// The node; ends with its runtime.
#[derive(Clone)]
pub(crate) struct Fake {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Fake {
    /// Listens on a free port of the loopback.
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let fake = Self { address, state: Arc::default() };
        let server = tonic::transport::Server::builder()
            .add_service(KvServiceServer::new(fake.clone()))
            .add_service(AdminServiceServer::new(fake.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        // It serves until the test's process ends.
        tokio_util::task::TaskTracker::new().spawn(server);
        fake
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn answer(&self, call: Call) -> Result<Reply, ServiceError> {
        let mut state = self.state.lock().unwrap();
        let next = FIRST_VERSION + state.writes;
        let header = Some(pb::ResponseHeader { shard_id: SHARD, epoch: 1, node_id: 1 });
        let entry = |state: &State, key: &Bytes| {
            state.data.get(key).map(|(value, version)| pb::KeyValue {
                key: key.clone(),
                value: value.clone(),
                commit_timestamp: *version,
            })
        };
        Ok(match call {
            Call::Get(get) => Reply::Get(pb::GetResponse { header, entry: entry(&state, &get.key) }),
            Call::Put(put) if put.key.is_empty() => return Err(ServiceError::invalid("key", "must not be empty")),
            Call::Put(put) => {
                state.writes += 1;
                state.data.insert(put.key, (put.value, next));
                Reply::Put(pb::PutResponse { header, commit_timestamp: next })
            }
            Call::Delete(delete) => {
                state.writes += 1;
                let deleted = state.data.remove(&delete.key).is_some();
                Reply::Delete(pb::DeleteResponse { header, commit_timestamp: next, deleted })
            }
            Call::CompareAndSet(cas) => {
                let condition = cas.condition.unwrap_or_default();
                let current = entry(&state, &condition.key);
                let succeeded = match condition.expected {
                    Some(pb::condition::Expected::Value(value)) => current.as_ref().is_some_and(|e| e.value == value),
                    Some(pb::condition::Expected::CommitTimestamp(at)) => {
                        current.as_ref().is_some_and(|e| e.commit_timestamp == at)
                    }
                    Some(pb::condition::Expected::Exists(exists)) => current.is_some() == exists,
                    None => false,
                };
                if let (true, Some(value)) = (succeeded, cas.new_value) {
                    state.data.insert(condition.key, (value, next));
                } else if succeeded {
                    state.data.remove(&condition.key);
                }
                state.writes += 1;
                let current = current.filter(|_| !succeeded);
                Reply::CompareAndSet(pb::CompareAndSetResponse { header, succeeded, commit_timestamp: next, current })
            }
            Call::BatchWrite(batch) => {
                let mut deleted = 0;
                for operation in batch.operations {
                    match operation.operation {
                        Some(pb::write_operation::Operation::Put(put)) => {
                            state.data.insert(put.key, (put.value, next));
                        }
                        Some(pb::write_operation::Operation::Delete(delete)) => {
                            deleted += u32::from(state.data.remove(&delete.key).is_some());
                        }
                        None => return Err(ServiceError::invalid("operations", "must be set")),
                    }
                }
                state.writes += 1;
                let response = pb::BatchWriteResponse {
                    header,
                    succeeded: true,
                    commit_timestamp: next,
                    deleted,
                    ..pb::BatchWriteResponse::default()
                };
                Reply::BatchWrite(response)
            }
            Call::Scan(scan) => {
                let from = if scan.cursor.is_empty() { scan.start.clone() } else { scan.cursor.clone() };
                let fits = |key: &Bytes| {
                    *key >= from && (scan.end.is_empty() || *key < scan.end) && key.starts_with(&scan.prefix)
                };
                let keys: Vec<Bytes> = state.data.keys().filter(|key| fits(key)).cloned().collect();
                let size = usize::try_from(scan.page_size).unwrap();
                let entries = keys.iter().take(size).filter_map(|key| entry(&state, key));
                let entries =
                    entries.map(|e| if scan.keys_only { pb::KeyValue { value: Bytes::new(), ..e } } else { e });
                let cursor = keys.get(size).cloned().unwrap_or_default();
                Reply::Scan(pb::ScanResponse { header, entries: entries.collect(), cursor })
            }
            Call::BatchGet(_) => return Err(ServiceError::NotFound { what: "call".into(), name: "batch get".into() }),
        })
    }

    fn shard(&self) -> admin::Shard {
        let range = keys::keyspace_range(KEYSPACE);
        admin::Shard {
            shard_id: SHARD,
            keyspace_id: KEYSPACE.0,
            start: range.start().clone(),
            end: range.end().clone(),
            epoch: 1,
            replicas: vec![admin::Replica { replica_id: 1, node_id: 1, role: admin::ReplicaRole::Voter.into() }],
            ..admin::Shard::default()
        }
    }

    fn replica(&self) -> admin::ReplicaStatus {
        admin::ReplicaStatus {
            shard_id: SHARD,
            replica_id: 1,
            node_id: 1,
            role: "leader".into(),
            term: 2,
            last_index: 1234,
            committed_index: 1234,
            applied_index: 1234,
            data_bytes: 3 << 20,
            ..admin::ReplicaStatus::default()
        }
    }

    fn node(&self) -> admin::Node {
        admin::Node {
            node_id: 1,
            address: self.address.clone(),
            http_address: "127.0.0.1:7101".into(),
            state: admin::NodeState::Active.into(),
            version: "0.1.0".into(),
            joined_ms: 1_700_000_000_000,
            ..admin::Node::default()
        }
    }

    fn status(&self) -> admin::NodeStatus {
        admin::NodeStatus {
            node_id: 1,
            version: "0.1.0".into(),
            uptime_seconds: 90,
            resident_bytes: 40 << 20,
            processor_seconds: 1.5,
            disk_total_bytes: 100 << 30,
            disk_free_bytes: 50 << 30,
            may_lead: true,
            replicas: vec![self.replica()],
            pid: 4711,
            data_dir: "/data/1".into(),
            ..admin::NodeStatus::default()
        }
    }

    fn keyspace(&self) -> admin::Keyspace {
        admin::Keyspace {
            keyspace_id: KEYSPACE.0,
            name: "default".into(),
            kind: admin::KeyspaceKind::Range.into(),
            replicas: 1,
            state: admin::KeyspaceState::Ready.into(),
            ..admin::Keyspace::default()
        }
    }

    /// Begins an action that is done after it was asked for twice, or fails.
    fn begin(&self, kind: admin::ActionKind, fails: bool) -> admin::Action {
        let mut state = self.state.lock().unwrap();
        state.action = admin::Action {
            action_id: 7,
            kind: kind.into(),
            shard_id: SHARD,
            to_node_id: 1,
            state: admin::ActionState::Running.into(),
            progress: if fails { "node 9 is gone" } else { "catching up" }.into(),
            started_ms: 1_700_000_000_000,
            ended_ms: 1_700_000_002_500,
            ..admin::Action::default()
        };
        state.action.clone()
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<pb::PipelineResponse, Status>> + Send>>;

fn unknown<T>(name: &str) -> Result<Response<T>, Status> {
    Err(ServiceError::NotFound { what: "call".into(), name: name.into() }.into())
}

#[tonic::async_trait]
impl KvService for Fake {
    type ScanStreamStream = futures::stream::Empty<Result<pb::ScanStreamResponse, Status>>;
    type PipelineStream = Replies;

    async fn pipeline(&self, request: Request<Streaming<pb::PipelineRequest>>) -> Result<Response<Replies>, Status> {
        let fake = self.clone();
        let replies = request.into_inner().map(move |request| {
            let replies = request?.calls.into_iter().map(|call| {
                let answer = fake.answer(call.request.unwrap());
                let response = answer.unwrap_or_else(|error| Reply::Failure(error.to_failure()));
                pb::PipelineReply { id: call.id, response: Some(response) }
            });
            Ok(pb::PipelineResponse { replies: replies.collect() })
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn list_routes(
        &self,
        request: Request<pb::ListRoutesRequest>,
    ) -> Result<Response<pb::ListRoutesResponse>, Status> {
        let name = request.into_inner().header.unwrap_or_default().keyspace;
        if !matches!(name.as_str(), "" | "default") {
            return Err(ServiceError::KeyspaceNotFound { name }.into());
        }
        let shard = self.shard();
        let route = pb::ShardRoute {
            shard_id: SHARD,
            epoch: 1,
            start: shard.start,
            end: shard.end,
            leader_node_id: 1,
            replicas: vec![pb::RouteReplica { node_id: 1, address: self.address.clone(), voter: true }],
            keyspace_id: KEYSPACE.0,
        };
        Ok(Response::new(pb::ListRoutesResponse {
            cluster_id: "fake".into(),
            catalog_version: 1,
            keyspace: "default".into(),
            keyspace_id: KEYSPACE.0,
            hashed: false,
            shards: vec![route],
        }))
    }

    async fn get(&self, _: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        unknown("get")
    }
    async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        unknown("put")
    }
    async fn delete(&self, _: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteResponse>, Status> {
        unknown("delete")
    }
    async fn compare_and_set(
        &self,
        _: Request<pb::CompareAndSetRequest>,
    ) -> Result<Response<pb::CompareAndSetResponse>, Status> {
        unknown("compare and set")
    }
    async fn batch_get(&self, _: Request<pb::BatchGetRequest>) -> Result<Response<pb::BatchGetResponse>, Status> {
        unknown("batch get")
    }
    async fn batch_write(&self, _: Request<pb::BatchWriteRequest>) -> Result<Response<pb::BatchWriteResponse>, Status> {
        unknown("batch write")
    }
    async fn scan(&self, _: Request<pb::ScanRequest>) -> Result<Response<pb::ScanResponse>, Status> {
        unknown("scan")
    }
    async fn scan_stream(&self, _: Request<pb::ScanStreamRequest>) -> Result<Response<Self::ScanStreamStream>, Status> {
        unknown("scan stream")
    }
}

macro_rules! admin {
    ($($name:ident($request:ident) -> $response:ident = |$fake:ident, $input:ident| $answer:expr;)+) => {
        #[tonic::async_trait]
        impl AdminService for Fake {
            $(async fn $name(&self, request: Request<admin::$request>) -> Result<Response<admin::$response>, Status> {
                let ($fake, $input) = (self, request.into_inner());
                let answer: Result<admin::$response, ServiceError> = $answer;
                Ok(Response::new(answer?))
            })+
        }
    };
}

fn refused<T>() -> Result<T, ServiceError> {
    Err(ServiceError::Refused { why: "one voter would be left".into(), force: "quorum".into() })
}

admin! {
    get_catalog(GetCatalogRequest) -> GetCatalogResponse = |fake, _input| {
        let catalog = admin::Catalog {
            cluster_id: "fake".into(),
            nodes: vec![fake.node()],
            keyspaces: vec![fake.keyspace()],
            shards: vec![fake.shard()],
            ..admin::Catalog::default()
        };
        Ok(admin::GetCatalogResponse { catalog: Some(catalog) })
    };
    list_nodes(ListNodesRequest) -> ListNodesResponse = |fake, _input| {
        let listing = admin::NodeListing { node: Some(fake.node()), status: Some(fake.status()), ..Default::default() };
        Ok(admin::ListNodesResponse { nodes: vec![listing] })
    };
    get_node_status(GetNodeStatusRequest) -> GetNodeStatusResponse = |fake, _input| {
        Ok(admin::GetNodeStatusResponse { cluster_id: "fake".into(), status: Some(fake.status()) })
    };
    drain_node(DrainNodeRequest) -> DrainNodeResponse = |_fake, _input| refused();
    undrain_node(UndrainNodeRequest) -> UndrainNodeResponse = |fake, _input| {
        Ok(admin::UndrainNodeResponse { node: Some(fake.node()) })
    };
    remove_node(RemoveNodeRequest) -> RemoveNodeResponse = |_fake, input| {
        Err(ServiceError::NotFound { what: "node".into(), name: input.node_id.to_string() })
    };
    create_keyspace(CreateKeyspaceRequest) -> CreateKeyspaceResponse = |_fake, input| {
        Err(ServiceError::AlreadyExists { what: "keyspace".into(), name: input.name })
    };
    list_keyspaces(ListKeyspacesRequest) -> ListKeyspacesResponse = |fake, _input| {
        let listing = admin::KeyspaceListing { keyspace: Some(fake.keyspace()), shards: 1 };
        Ok(admin::ListKeyspacesResponse { keyspaces: vec![listing] })
    };
    delete_keyspace(DeleteKeyspaceRequest) -> DeleteKeyspaceResponse = |_fake, input| {
        Err(ServiceError::KeyspaceNotFound { name: input.name })
    };
    list_shards(ListShardsRequest) -> ListShardsResponse = |fake, _input| {
        let listing =
            admin::ShardListing { shard: Some(fake.shard()), keyspace: "default".into(), replicas: vec![fake.replica()] };
        Ok(admin::ListShardsResponse { shards: vec![listing] })
    };
    add_learner(AddLearnerRequest) -> AddLearnerResponse = |fake, _input| {
        Ok(admin::AddLearnerResponse { action: Some(fake.begin(admin::ActionKind::AddLearner, false)) })
    };
    promote_learner(PromoteLearnerRequest) -> PromoteLearnerResponse = |fake, _input| {
        Ok(admin::PromoteLearnerResponse { action: Some(fake.begin(admin::ActionKind::Promote, true)) })
    };
    change_voters(ChangeVotersRequest) -> ChangeVotersResponse = |_fake, _input| refused();
    remove_replica(RemoveReplicaRequest) -> RemoveReplicaResponse = |_fake, _input| refused();
    move_replica(MoveReplicaRequest) -> MoveReplicaResponse = |fake, _input| {
        Ok(admin::MoveReplicaResponse { action: Some(fake.begin(admin::ActionKind::MoveReplica, false)) })
    };
    transfer_leader(TransferLeaderRequest) -> TransferLeaderResponse = |_fake, _input| {
        Ok(admin::TransferLeaderResponse { leader_node_id: 1 })
    };
    check_shard(CheckShardRequest) -> CheckShardResponse = |_fake, _input| {
        Ok(admin::CheckShardResponse { index: 9, equal_replica_ids: vec![1, 2, 3], ..Default::default() })
    };
    list_actions(ListActionsRequest) -> ListActionsResponse = |fake, _input| {
        let mut state = fake.state.lock().unwrap();
        let actions = Some(state.action.clone()).filter(|action| action.action_id > 0).into_iter().collect();
        state.action.percent += 50;
        if state.action.percent >= 100 {
            let fails = state.action.progress.contains("gone");
            state.action.state = if fails { admin::ActionState::Failed } else { admin::ActionState::Done }.into();
        }
        Ok(admin::ListActionsResponse { actions })
    };
    cancel_action(CancelActionRequest) -> CancelActionResponse = |_fake, input| {
        Err(ServiceError::NotFound { what: "action".into(), name: input.action_id.to_string() })
    };
}
