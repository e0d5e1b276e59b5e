//! One running node: what its parts share, how they start, and the order in which they stop.
//!
//! Invariants: a node whose data folder belongs elsewhere does not start and touches nothing; the shutdown order
//! is written once, in [`Grpc::stop`](crate::server::Grpc::stop) and, from the controller on, in [`Node::shutdown`].
//!
//! Not here: what is listened on and served (main, services).

pub mod follow;
pub mod start;
pub mod status;
pub mod shared;
pub mod readiness;

use std::future::Future;
use std::sync::Arc;

use kv_raft::failpoint;
use kv_raft::transport::Transport;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use readiness::Readiness;
pub use shared::NodeShared;
pub use start::{StartError, StartParts};

use crate::identity::DataFolder;

/// A stop waits one part in so many of the time it may take for leaderships to be handed over.
const HAND_OVER_PART: u32 = 3;

/// A running node.
pub struct Node {
    shared: Arc<NodeShared>,
    transport: Transport,
    /// Held until the last file is closed.
    _folder: DataFolder,
    controller: Owned,
    background: Owned,
}

/// Tasks that end together.
#[derive(Default)]
struct Owned {
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Owned {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, run: impl FnOnce(CancellationToken) -> F) {
        self.tasks.spawn(run(self.cancel.clone()));
    }

    async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Node {
    /// What services take.
    #[must_use]
    pub fn shared(&self) -> &Arc<NodeShared> {
        &self.shared
    }

    /// For the gRPC server: its service, and to see who is connected.
    #[must_use]
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Completes once storage or consensus of this node has failed, with the reason: the process must end at once.
    pub async fn failed(&self) -> String {
        self.shared.host.context().failed().await
    }

    /// Hands leadership over while replicas and network still run, so that nobody waits for an election; after the caller
    /// stopped accepting connections, before [`Node::shutdown`].
    pub(crate) async fn hand_over(&self) {
        tracing::info!("stopping: handing leadership over");
        failpoint!("stop.hand_over");
        self.shared.host.hand_over(self.shared.config.shutdown_timeout / HAND_OVER_PART).await;
    }

    /// Stops everything after the last request was answered: the controller, the replicas, the network; last the engines
    /// are flushed and closed.
    pub(crate) async fn shutdown(self) {
        let host = &self.shared.host;
        let context = host.context().clone();
        tracing::info!("stopping: controller and replicas");
        failpoint!("stop.controller");
        self.controller.stop().await;
        self.background.stop().await;
        host.stop().await;
        context.shutdown().await;
        failpoint!("stop.network");
        self.transport.shutdown().await;
        self.shared.pool.close().await;
        tracing::info!("stopping: engines");
        failpoint!("stop.flush");
        if let Err(error) = context.data().flush().await {
            tracing::warn!(%error, "the data was not flushed; the log still holds it");
        }
        context.data().close().await;
        failpoint!("stop.log");
        context.log().close().await;
        tracing::info!("stopped");
    }
}
