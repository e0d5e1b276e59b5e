//! What a node answers before it belongs to a cluster: who it is to other nodes, "not ready" to everything else.
//!
//! Invariants: it says nothing of a cluster and changes nothing; its port is free for the services of the member once
//! [`Waiting::end`] returns.
//!
//! Not here: what a member answers (services); what nodes make of each other's answers (join).

use std::sync::Arc;
use std::time::Duration;

use kv_proto::errors::ServiceError;
use kv_proto::pb::raft::v1::peer_service_server::{PeerService, PeerServiceServer};
use kv_proto::pb::raft::v1::{
    FetchCatalogRequest, FetchCatalogResponse, IntroduceRequest, IntroduceResponse, JoinRequest, JoinResponse,
    ReplicaStepRequest, ReplicaStepResponse,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::accept;
use crate::config::Config;
use crate::identity::Identity;
use crate::metrics::EdgeMetrics;
use crate::net::TcpListener;

/// A waiting node is let in at any moment.
const RETRY: Duration = Duration::from_millis(500);

/// Its answers take no time; longer only a caller that does not read them takes.
const END: Duration = Duration::from_secs(1);

/// Where a waiting node listens.
pub struct Door {
    /// A handle of the port of the gRPC server, which begins later.
    pub listener: TcpListener,
    /// Counts the connections.
    pub metrics: Arc<EdgeMetrics>,
}

/// The listener while the node waits.
pub struct Waiting {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Waiting {
    /// Begins to answer.
    #[must_use]
    pub fn start(door: Door, identity: &Identity, config: &Config) -> Self {
        let waiting = Self { tasks: TaskTracker::new(), stop: CancellationToken::new() };
        let seeds = if config.bootstrap { config.join.clone() } else { Vec::new() };
        let own = IntroduceResponse { instance_id: identity.instance_bytes().into(), cluster_id: String::new(), seeds };
        let routes = Routes::new(PeerServiceServer::new(Newcomer { own }));
        let routes =
            routes.into_axum_router().fallback(async || Status::from(not_ready()).into_http::<axum::body::Body>());
        let incoming = accept::incoming(door.listener, config, &door.metrics, (&waiting.tasks, &waiting.stop));
        let stop = waiting.stop.clone();
        let serving = Server::builder()
            .max_concurrent_streams(config.connection_requests_max)
            .http2_keepalive_interval(Some(config.keepalive_interval))
            .http2_keepalive_timeout(Some(config.keepalive_timeout))
            .add_routes(Routes::from(routes))
            .serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
        let stop = waiting.stop.clone();
        waiting.tasks.spawn(async move {
            let ended = async {
                stop.cancelled().await;
                tokio::time::sleep(END).await;
            };
            tokio::select! {
                served = serving => if let Err(error) = served {
                    tracing::error!(%error, "the listener of a waiting node ended");
                },
                () = ended => {}
            }
        });
        waiting
    }

    /// Closes the listener and its connections.
    pub async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn not_ready() -> ServiceError {
    ServiceError::NotReady { why: "it waits to be let into a cluster".to_owned(), retry_after: RETRY }
}

/// A node without a cluster.
struct Newcomer {
    own: IntroduceResponse,
}

#[tonic::async_trait]
impl PeerService for Newcomer {
    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(not_ready().into())
    }

    async fn introduce(&self, _: Request<IntroduceRequest>) -> Result<Response<IntroduceResponse>, Status> {
        Ok(Response::new(self.own.clone()))
    }

    async fn fetch_catalog(&self, _: Request<FetchCatalogRequest>) -> Result<Response<FetchCatalogResponse>, Status> {
        Err(not_ready().into())
    }

    async fn replica_step(&self, _: Request<ReplicaStepRequest>) -> Result<Response<ReplicaStepResponse>, Status> {
        Err(not_ready().into())
    }
}
