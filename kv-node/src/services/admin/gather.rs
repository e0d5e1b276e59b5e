//! Asks all nodes at once how they are, and puts their answers beside what the catalog says.
//!
//! Invariants: a node that does not answer costs its time limit once, for all of them together; it appears as down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use kv_proto::errors::ServiceError;
use kv_proto::ids::{KeyspaceId, NodeId, ShardId};
use kv_proto::pb::admin::v1::{
    GetNodeStatusRequest, ListShardsRequest, NodeListing, NodeStatus, ReplicaStatus, ShardListing,
};
use tokio::time::Instant;

use crate::catalog::view::is_member;
use crate::catalog::{CatalogView, ShardInfo};
use crate::node::NodeShared;

/// Nodes asked at once.
const AT_ONCE: usize = 64;

/// Between looks for a leader.
const ELECTION: Duration = Duration::from_millis(200);

type Answers = BTreeMap<u64, Result<NodeStatus, ServiceError>>;

/// Every node of the catalog with its own account.
pub(super) async fn nodes(shared: &Arc<NodeShared>) -> Vec<NodeListing> {
    let view = shared.view.load_full();
    let mut answers = ask(shared, &view, GetNodeStatusRequest::default()).await;
    let listing = |node: &kv_proto::pb::admin::v1::Node| {
        let (status, unreachable_reason) = match answers.remove(&node.node_id) {
            Some(Ok(status)) => (Some(status), String::new()),
            Some(Err(ServiceError::NotReady { why, .. })) => (None, why),
            Some(Err(error)) => (None, error.to_string()),
            None => (None, "it is not a member any more".to_owned()),
        };
        NodeListing { node: Some(node.clone()), status, unreachable_reason }
    };
    view.catalog().nodes.iter().map(listing).collect()
}

/// The shards asked for, with each replica's own account.
pub(super) async fn shards(
    shared: &Arc<NodeShared>,
    request: &ListShardsRequest,
) -> Result<Vec<ShardListing>, ServiceError> {
    let view = shared.view.load_full();
    let wanted = select(&view, request)?;
    let answers = ask(shared, &view, GetNodeStatusRequest::default()).await;
    let mut held: BTreeMap<(u64, u64), &ReplicaStatus> = BTreeMap::new();
    for status in answers.values().flatten().flat_map(|status| &status.replicas) {
        held.insert((status.shard_id, status.replica_id), status);
    }
    let listing = |info: Arc<ShardInfo>| {
        let shard = info.descriptor.clone();
        let replicas = shard.replicas.iter().map(|replica| {
            let down = || ReplicaStatus {
                shard_id: shard.shard_id,
                replica_id: replica.replica_id,
                node_id: replica.node_id,
                role: "down".to_owned(),
                ..Default::default()
            };
            held.get(&(shard.shard_id, replica.replica_id)).map_or_else(down, |status| (*status).clone())
        });
        let replicas = replicas.collect();
        let keyspace = view.keyspace_by_id(info.keyspace()).map_or_else(String::new, |keyspace| keyspace.name.clone());
        ShardListing { replicas, shard: Some(shard), keyspace }
    };
    Ok(wanted.into_iter().map(listing).collect())
}

/// The node that leads a shard and its account. An election is waited for, until then.
pub(super) async fn leader(
    shared: &Arc<NodeShared>,
    shard: ShardId,
    until: Instant,
) -> Result<(u64, ReplicaStatus), ServiceError> {
    loop {
        let missing = || ServiceError::NoLeader { shard, retry_after: ELECTION };
        let view = shared.view.load_full();
        let asked = GetNodeStatusRequest { without_sizes: true, ..Default::default() };
        let answers = tokio::time::timeout_at(until, ask(shared, &view, asked)).await.map_err(|_| missing())?;
        let replicas = answers.values().flatten().flat_map(|status| &status.replicas);
        let leads =
            |status: &&ReplicaStatus| status.shard_id == shard.0 && status.role == "leader" && !status.no_quorum;
        if let Some(leader) = replicas.filter(leads).max_by_key(|status| status.term) {
            return Ok((leader.node_id, leader.clone()));
        }
        if Instant::now() + ELECTION > until {
            return Err(missing());
        }
        tokio::time::sleep(ELECTION).await;
    }
}

fn select(view: &CatalogView, request: &ListShardsRequest) -> Result<Vec<Arc<ShardInfo>>, ServiceError> {
    let mut wanted: Vec<Arc<ShardInfo>> = if request.keyspace.is_empty() {
        view.shards().cloned().collect()
    } else {
        let name = &request.keyspace;
        let missing = || ServiceError::KeyspaceNotFound { name: name.clone() };
        view.shards_of(KeyspaceId(view.keyspace(name).ok_or_else(missing)?.keyspace_id))
    };
    if request.shard_id != 0 {
        wanted.retain(|info| info.id().0 == request.shard_id);
        if wanted.is_empty() {
            return Err(ServiceError::ShardNotFound { shard: ShardId(request.shard_id) });
        }
    }
    Ok(wanted)
}

async fn ask(shared: &Arc<NodeShared>, view: &CatalogView, asked: GetNodeStatusRequest) -> Answers {
    let members: Vec<u64> =
        view.catalog().nodes.iter().filter(|node| is_member(node)).map(|node| node.node_id).collect();
    let ask = |node: u64| async move { (node, shared.peers.status(NodeId(node), asked).await) };
    stream::iter(members).map(ask).buffer_unordered(AT_ONCE).collect().await
}
