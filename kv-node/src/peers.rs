//! What a node asks other nodes besides Raft: to be let in, for the catalog, for a step, for their status.
//!
//! Invariants: every call has a time limit; a dead node costs one connect timeout, then its circuit refuses at once.
//!
//! Not here: answering (services, peer); data requests that are forwarded (pipeline).

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kv_client::connection::NodePool;
use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::ids::NodeId;
use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::pb::admin::v1::admin_service_client::AdminServiceClient;
use kv_proto::pb::admin::v1::{GetNodeStatusRequest, NodeStatus};
use kv_proto::pb::raft::v1::peer_service_client::PeerServiceClient;
use kv_proto::pb::raft::v1::{
    FetchCatalogRequest, FetchCatalogResponse, IntroduceRequest, IntroduceResponse, JoinRequest, JoinResponse,
    ReplicaStepRequest, ReplicaStepResponse,
};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::catalog::CatalogView;

/// A catalog of a thousand keyspaces with a thousand shards each still fits.
const CATALOG_BYTES_MAX: usize = 32 * MESSAGE_BYTES_MAX;

/// Time for a node to say how it is: longer than a garbage-collecting disk stalls, shorter than people wait.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks other nodes; clones share connections.
#[derive(Clone)]
pub struct Peers {
    pool: NodePool,
    view: Arc<ArcSwap<CatalogView>>,
}

impl Peers {
    /// Over these connections, with addresses from the catalog.
    #[must_use]
    pub fn new(pool: NodePool, view: Arc<ArcSwap<CatalogView>>) -> Self {
        Self { pool, view }
    }

    /// Where a node is.
    pub fn address(&self, node: NodeId) -> Result<String, ServiceError> {
        let view = self.view.load();
        let unknown = || ServiceError::NotFound { what: "node".into(), name: node.to_string() };
        view.address(node).map(str::to_owned).ok_or_else(unknown)
    }

    /// Asks to be let in.
    pub async fn join(
        &self,
        address: &str,
        request: JoinRequest,
        within: Duration,
    ) -> Result<JoinResponse, ServiceError> {
        let channel = self.channel(address, within).await?;
        let mut client = PeerServiceClient::new(channel).max_decoding_message_size(CATALOG_BYTES_MAX);
        Ok(client.join(timed(request, within)).await.map_err(|status| failure(&status))?.into_inner())
    }

    /// Asks who answers at an address. Over a connection of its own: a pooled one begins with a stream of requests, which a
    /// node without a cluster does not serve.
    pub async fn introduce(&self, address: &str, within: Duration) -> Result<IntroduceResponse, ServiceError> {
        let unreachable =
            |error: &dyn std::fmt::Display| ServiceError::NotReady { why: error.to_string(), retry_after: within };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| unreachable(&error))?;
        let channel = endpoint.connect_timeout(within).connect().await.map_err(|error| unreachable(&error))?;
        let mut client = PeerServiceClient::new(channel);
        let asked = client.introduce(timed(IntroduceRequest {}, within)).await;
        Ok(asked.map_err(|status| failure(&status))?.into_inner())
    }

    /// Asks for a newer catalog; waits for one up to `request.wait_ms`.
    pub async fn fetch_catalog(
        &self,
        node: NodeId,
        request: FetchCatalogRequest,
    ) -> Result<FetchCatalogResponse, ServiceError> {
        let within = Duration::from_millis(u64::from(request.wait_ms)) + STATUS_TIMEOUT;
        let channel = self.channel(&self.address(node)?, within).await?;
        let mut client = PeerServiceClient::new(channel).max_decoding_message_size(CATALOG_BYTES_MAX);
        Ok(client.fetch_catalog(timed(request, within)).await.map_err(|status| failure(&status))?.into_inner())
    }

    /// Has a shard's leader take a step.
    pub async fn replica_step(
        &self,
        node: NodeId,
        request: ReplicaStepRequest,
        within: Duration,
    ) -> Result<ReplicaStepResponse, ServiceError> {
        let channel = self.channel(&self.address(node)?, within).await?;
        let mut client = PeerServiceClient::new(channel);
        Ok(client.replica_step(timed(request, within)).await.map_err(|status| failure(&status))?.into_inner())
    }

    /// A node's account of itself.
    pub async fn status(&self, node: NodeId, asked: GetNodeStatusRequest) -> Result<NodeStatus, ServiceError> {
        let mut client = self.admin(&self.address(node)?, STATUS_TIMEOUT).await?;
        let request = timed(asked, STATUS_TIMEOUT);
        let response = client.get_node_status(request).await.map_err(|status| failure(&status))?.into_inner();
        let status = response.status.unwrap_or_default();
        if status.node_id != node.0 {
            let why = format!("node {} answers at the address of node {node}", status.node_id);
            return Err(ServiceError::Internal { why, outcome: Outcome::NotApplied });
        }
        Ok(status)
    }

    /// To send an administrative request on.
    pub async fn admin(&self, address: &str, within: Duration) -> Result<AdminServiceClient<Channel>, ServiceError> {
        let client = AdminServiceClient::new(self.channel(address, within).await?);
        Ok(client.max_decoding_message_size(CATALOG_BYTES_MAX))
    }

    async fn channel(&self, address: &str, within: Duration) -> Result<Channel, ServiceError> {
        let unreachable = |error: kv_client::connection::ConnectionError| ServiceError::NotReady {
            why: error.to_string(),
            retry_after: Duration::from_millis(200),
        };
        self.pool.get(address).channel(Instant::now() + within).await.map_err(unreachable)
    }
}

/// A request with its deadline, which the caller also keeps.
pub fn timed<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    request
}

fn failure(status: &Status) -> ServiceError {
    ServiceError::from_status(status)
}
