//! What all handles of one client share: options, the connection pool, the cluster's id, the retry budget.
//!
//! Invariants: once the cluster's id is known, an answer of another cluster is an error.
//!
//! Not here: anything about one keyspace (keyspace).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kv_proto::errors::ServiceError;
use kv_proto::limits::TIMEOUT_MS_MAX;
use kv_proto::pb::v1 as pb;
use tokio::time::Instant;

use crate::budget::Budget;
use crate::connection::NodePool;
use crate::routes::Routes;

/// Time limits of requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// Of a whole request, unless it says otherwise.
    pub(crate) request: Duration,
    /// Of one attempt: a node that neither answers nor breaks the connection costs this.
    pub(crate) attempt: Duration,
}

/// Shared by all handles.
pub(crate) struct Core {
    pub(crate) pool: NodePool,
    pub(crate) timeouts: Timeouts,
    pub(crate) budget: Budget,
    endpoints: Vec<Arc<str>>,
    /// Position in `endpoints` of the one that answered last.
    answered: AtomicUsize,
    cluster: OnceLock<Arc<str>>,
}

impl Core {
    pub(crate) fn new(pool: NodePool, endpoints: Vec<Arc<str>>, timeouts: Timeouts, cluster: Option<Arc<str>>) -> Self {
        let cluster = cluster.map_or_else(OnceLock::new, OnceLock::from);
        Self { pool, timeouts, budget: Budget::new(), endpoints, answered: AtomicUsize::new(0), cluster }
    }

    /// Whom to ask for what any node knows: live nodes first, beginning with the one that answered last.
    pub(crate) fn addresses(&self, routes: Option<&Routes>) -> Vec<Arc<str>> {
        let first = self.answered.load(Ordering::Relaxed);
        let endpoints = self.endpoints.iter().cycle().skip(first).take(self.endpoints.len());
        let mut addresses: Vec<Arc<str>> = vec![];
        for address in endpoints.chain(routes.into_iter().flat_map(Routes::addresses)) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses.sort_by_key(|address| !self.pool.get(address).is_available());
        addresses
    }

    /// Remembers who answered.
    pub(crate) fn answered(&self, address: &str) {
        if let Some(position) = self.endpoints.iter().position(|endpoint| **endpoint == *address) {
            self.answered.store(position, Ordering::Relaxed);
        }
    }

    pub(crate) fn endpoints(&self) -> &[Arc<str>] {
        &self.endpoints
    }

    /// The cluster's id, once a node has told it.
    pub(crate) fn cluster(&self) -> Option<&Arc<str>> {
        self.cluster.get()
    }

    /// The same as requests name it.
    pub(crate) fn cluster_name(&self) -> &str {
        self.cluster.get().map_or("", |cluster| cluster)
    }

    pub(crate) fn check_cluster(&self, theirs: &str) -> Result<(), ServiceError> {
        if theirs.is_empty() {
            return Ok(());
        }
        let ours = self.cluster.get_or_init(|| Arc::from(theirs));
        if **ours == *theirs {
            return Ok(());
        }
        // As that node would have answered: it is of one cluster, this client of another.
        Err(ServiceError::ClusterMismatch { ours: theirs.to_owned(), theirs: ours.to_string() })
    }
}

/// Header of a request to this cluster that waits until `deadline`.
pub(crate) fn header(cluster_id: String, deadline: Instant) -> pb::RequestHeader {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    pb::RequestHeader {
        cluster_id,
        timeout_ms: u32::try_from(left).unwrap_or(u32::MAX).clamp(1, TIMEOUT_MS_MAX),
        wrong_node: pb::WrongNode::Redirect.into(),
        ..pb::RequestHeader::default()
    }
}
