//! One run of a node, from its ports to its last flush.
//!
//! Invariants: both ports are taken before the data folder is touched; once told to stop, a node takes no connection
//! and answers what it has until its leadership is handed over, then nothing; a second signal ends the process at once,
//! which a restart recovers from.
//!
//! Not here: starting and stopping the node itself (node), and the order of a stop (server).

use std::sync::Arc;

use kv_raft::log_store::LogMetrics;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::config::Config;
use crate::disk;
use crate::http::{Http, Status};
use crate::metrics::Telemetry;
use crate::node::readiness::{Check, Readiness};
use crate::node::{Node, StartError, StartParts};
use crate::serve::Server;
use crate::server::{BindError, Grpc, Services, bind, share};
use crate::services;
use crate::waiting::Door;

/// Why a run ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A port is taken.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The node does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(std::io::Error),
    /// Storage or consensus failed.
    #[error("{0}")]
    Failed(String),
    /// The shutdown did not end in time.
    #[error("the shutdown did not end within {0:?}")]
    Stuck(std::time::Duration),
}

impl RunError {
    /// Whether the configuration is what must change.
    #[must_use]
    pub fn is_of_config(&self) -> bool {
        matches!(self, Self::Start(StartError::WhichCluster(_)))
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, RunError> {
        let listen = |kind| signal(kind).map_err(RunError::Signals);
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs a node until a signal, or until it cannot go on.
pub async fn run(config: Config) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let config = Arc::new(config);
    let (grpc_listener, early_listener) = share(bind(config.listen).await?, config.listen)?;
    let http_listener = bind(config.http_listen).await?;
    let mut telemetry = Telemetry::new();
    let log_metrics = LogMetrics::new(&mut telemetry.registry);
    let telemetry = Arc::new(telemetry);
    let readiness = Arc::new(Readiness::default());
    let status = Arc::new(Status::new(Arc::clone(&telemetry), Arc::clone(&readiness)));
    let http = Http::start(http_listener, Arc::clone(&status));
    let admission = Arc::new(Admission::new(config.requests_max, config.memory().requests));
    let cancel = CancellationToken::new();
    let parts = StartParts {
        config: Arc::clone(&config),
        readiness: Arc::clone(&readiness),
        raft_metrics: Arc::clone(&telemetry.raft),
        log_metrics,
        admission,
        door: Some(Door { listener: early_listener, metrics: Arc::clone(&telemetry.edge) }),
        cancel: cancel.clone(),
    };
    let node = tokio::select! {
        started = Node::start(parts) => started?,
        () = signals.next() => {
            // Nothing was acknowledged yet, and whatever is on disk is recovered from.
            tracing::info!("stopped while starting");
            cancel.cancel();
            return Ok(());
        }
    };
    let shared = Arc::clone(node.shared());
    let server = Server::new(Arc::clone(&shared), Arc::clone(&telemetry.edge));
    let services = Services { server, others: services::node_routes(&node) };
    let grpc = Grpc::start(grpc_listener, services, &config, &telemetry.edge);
    grpc.follow(Arc::clone(&readiness)).await;
    status.started(Arc::clone(&shared));
    let watchers = TaskTracker::new();
    let tell = move |room, why: Option<String>| {
        shared.host.context().set_room(room);
        shared.host.set_disk(why.clone());
        shared.admission.set_read_only(why);
    };
    watchers.spawn(disk::watch(Arc::clone(&config), Arc::clone(&readiness), cancel.clone(), tell));
    tracing::info!(listen = %config.listen, http = %config.http_listen, "serving");

    let failure = tokio::select! {
        why = node.failed() => Some(why),
        () = signals.next() => None,
    };
    if let Some(why) = failure {
        // Nothing may be acknowledged any more: not even a shutdown is tried.
        tracing::error!(why, "storage or consensus failed: the process ends");
        return Err(RunError::Failed(why));
    }
    readiness.set("node", Check::Failed("it is stopping".to_owned()));
    let stopping = async {
        grpc.stop(node).await;
        cancel.cancel();
        watchers.close();
        watchers.wait().await;
        http.shutdown().await;
    };
    tokio::select! {
        ended = tokio::time::timeout(config.shutdown_timeout, stopping) => {
            ended.map_err(|_| RunError::Stuck(config.shutdown_timeout))
        }
        () = signals.next() => {
            tracing::warn!("a second signal: the process ends at once");
            std::process::abort();
        }
    }
}
