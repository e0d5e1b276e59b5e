//! The gRPC listener: connections within limits, all services on one port; and the order in which it and the node stop.
//!
//! Invariants: a connection that says nothing costs a socket for [`Config::handshake_timeout`] and no more; more than
//! [`Config::connections_max`] are closed at once, so that memory stays bounded.
//!
//! Not here: what the services do (services); budgets over all connections (admission).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::pb::v1::kv_service_server::KvServiceServer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server as Transport;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use crate::accept;
use crate::config::Config;
use crate::metrics::EdgeMetrics;
use crate::net::TcpListener;
use crate::node::{Node, Readiness};
use crate::serve::Server;
use crate::services::kv::KvApi;
use crate::unsent::Unsent;

/// HTTP/2 flow control: enough for one largest message on its way, per stream.
const STREAM_WINDOW: u32 = 2 << 20;

/// The same for all streams of a connection together.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// What one HTTP/2 frame to a node may carry: entries of many callers in one piece. HTTP/2's own limit, 16 KiB, takes a write
/// to the socket for each frame, and wakes whoever reads it as often. As much is held of a frame that never ends, and six times
/// as much of a header that never does (h2), until the connection is found dead.
const FRAME_BYTES_MAX: u32 = 128 << 10;

/// No header of ours is longer; bounds what the headers of a request may make the node hold.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;

/// Streams that a client opened and reset at once (a known attack) before its connection is closed.
const PENDING_RESETS_MAX: usize = 64;

/// Between looks at the readiness; whoever balances load looks less often.
const HEALTH: Duration = Duration::from_millis(500);

/// Whose health is told: of the node as a whole, under the empty name that probes ask for, and of each service that is for
/// others than its peers.
const HEALTH_OF: [&str; 3] = ["", "kv.v1.KvService", "kv.admin.v1.AdminService"];

/// How long streams may take to end once the node stops.
const STREAMS_END: Duration = Duration::from_secs(2);

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// A second handle of a port; of both, only one accepts at a time.
pub fn share(listener: TcpListener, address: SocketAddr) -> Result<(TcpListener, TcpListener), BindError> {
    crate::net::share(listener).map_err(|source| BindError { address, source })
}

/// Takes a port, before anything else is touched.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// The listener while it runs.
pub struct Grpc {
    tasks: TaskTracker,
    streams: TaskTracker,
    stop_accepting: CancellationToken,
    stop_streams: CancellationToken,
    stop: CancellationToken,
    health: HealthReporter,
}

/// What is served.
pub struct Services {
    /// The data interface is made from this.
    pub server: Server,
    /// The other services of the node: admin, peers, Raft.
    pub others: Routes,
}

impl Grpc {
    /// Begins to serve.
    #[must_use]
    pub fn start(listener: TcpListener, services: Services, config: &Config, metrics: &Arc<EdgeMetrics>) -> Self {
        let (health, health_service) = tonic_health::server::health_reporter();
        let grpc = Self {
            tasks: TaskTracker::new(),
            streams: TaskTracker::new(),
            stop_accepting: CancellationToken::new(),
            stop_streams: CancellationToken::new(),
            stop: CancellationToken::new(),
            health,
        };
        let admission = Arc::clone(&services.server.shared().admission);
        let api = KvApi::new(services.server, grpc.streams.clone(), grpc.stop_streams.clone());
        let api = KvServiceServer::new(api)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut routes = services.others.add_service(api).add_service(health_service);
        if let Some(reflection) = reflection() {
            routes = routes.add_service(reflection);
        }
        let unsent = Unsent::default();
        grpc.tasks.spawn(unsent.clone().run(admission, grpc.stop.clone()));
        let watch = move |response| {
            let watched = unsent.watch(response);
            async { watched }
        };
        let routes = routes
            .into_axum_router()
            .layer(axum::middleware::map_response(crate::malformed::respond))
            .layer(axum::middleware::from_fn(crate::overdue::answer))
            .layer(axum::middleware::map_response(watch));
        let incoming = accept::incoming(listener, config, metrics, (&grpc.tasks, &grpc.stop_accepting));
        let stop = grpc.stop.clone();
        let serving = Transport::builder()
            .max_concurrent_streams(config.connection_requests_max)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keepalive_interval(Some(config.keepalive_interval))
            .http2_keepalive_timeout(Some(config.keepalive_timeout))
            .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
            .add_routes(Routes::from(routes))
            .serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
        grpc.tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the gRPC listener ended");
            }
        });
        grpc
    }

    /// Has `grpc.health.v1` say what `/readyz` does, for the node as a whole and for each service that clients call.
    pub async fn follow(&self, readiness: Arc<Readiness>) {
        let (health, stop) = (self.health.clone(), self.stop.clone());
        let mut said = readiness.is_ready();
        set_serving(&health, said).await;
        self.tasks.spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(HEALTH)).await.is_some() {
                if said != readiness.is_ready() {
                    said = !said;
                    set_serving(&health, said).await;
                }
            }
        });
    }

    /// Stops serving and the node behind it. In this order: the port is closed, leadership handed over, streams are ended, the node
    /// is shut down, connections are closed.
    pub async fn stop(self, node: Node) {
        self.stop_accepting().await;
        node.hand_over().await;
        self.end_streams().await;
        node.shutdown().await;
        self.shutdown().await;
    }

    /// Closes the port. Connections are told to go away and keep the streams they have: the other nodes' messages, which
    /// a hand-over of leadership takes, and requests that are being answered.
    async fn stop_accepting(&self) {
        set_serving(&self.health, false).await;
        self.stop_accepting.cancel();
    }

    /// Ends pipelined streams once they answered what they have.
    async fn end_streams(&self) {
        self.stop_streams.cancel();
        self.streams.close();
        if tokio::time::timeout(STREAMS_END, self.streams.wait()).await.is_err() {
            tracing::info!(streams = self.streams.len(), "streams that did not end in time are cut");
        }
    }

    /// Closes all connections.
    async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STREAMS_END, self.tasks.wait()).await.is_err() {
            tracing::info!("connections that did not end in time are cut");
        }
    }
}

async fn set_serving(health: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in HEALTH_OF {
        health.set_service_status(service, status).await;
    }
}

/// So that tools need no .proto files.
fn reflection() -> Option<ServerReflectionServer<impl ServerReflection>> {
    let built = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(kv_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    match built {
        Ok(service) => Some(service),
        Err(error) => {
            tracing::warn!(%error, "reflection is not served");
            None
        }
    }
}
