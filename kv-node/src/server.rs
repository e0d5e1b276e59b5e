//! The gRPC listener: connections within limits, all services on one port.
//!
//! Invariants: a connection that says nothing costs a socket for [`Config::handshake_timeout`] and no more; more than
//! [`Config::connections_max`] are closed at once, so that memory stays bounded.
//!
//! Not here: what the services do (services); budgets over all connections (admission).

mod accept;

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

use crate::config::Config;
use crate::metrics::EdgeMetrics;
use crate::net::TcpListener;
use crate::serve::Server;
use crate::services::kv::KvApi;

/// HTTP/2 flow control: enough for one largest message on its way, per stream.
const STREAM_WINDOW: u32 = 2 << 20;

/// The same for all streams of a connection together.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// No header of ours is longer; bounds what a connection may make the node hold.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;

/// Streams that a client opened and reset at once (a known attack) before its connection is closed.
const PENDING_RESETS_MAX: usize = 64;

/// How long streams may take to end once the node stops.
const STREAMS_END: Duration = Duration::from_secs(2);

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Takes a port, before anything else is touched.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// The listener while it runs.
pub struct Grpc {
    tasks: TaskTracker,
    streams: TaskTracker,
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
            stop_streams: CancellationToken::new(),
            stop: CancellationToken::new(),
            health,
        };
        let api = KvApi::new(services.server, grpc.streams.clone(), grpc.stop_streams.clone());
        let api = KvServiceServer::new(api)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut routes = services.others.add_service(api).add_service(health_service);
        if let Some(reflection) = reflection() {
            routes = routes.add_service(reflection);
        }
        let routes = routes.into_axum_router().layer(axum::middleware::map_response(crate::malformed::respond));
        let incoming = accept::incoming(listener, config, metrics, (&grpc.tasks, &grpc.stop));
        let stop = grpc.stop.clone();
        let serving = Transport::builder()
            .max_concurrent_streams(config.connection_requests_max)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
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

    /// What `grpc.health.v1` says, for the node as a whole and for the data interface.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.health.set_service_status("", status).await;
        self.health.set_service_status("kv.v1.KvService", status).await;
    }

    /// Ends pipelined streams once they answered what they have, then closes all connections.
    pub async fn shutdown(self) {
        self.stop_streams.cancel();
        self.streams.close();
        if tokio::time::timeout(STREAMS_END, self.streams.wait()).await.is_err() {
            tracing::info!(streams = self.streams.len(), "streams that did not end in time are cut");
        }
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STREAMS_END, self.tasks.wait()).await.is_err() {
            tracing::info!("connections that did not end in time are cut");
        }
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
