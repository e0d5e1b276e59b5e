//! Changes the catalog on behalf of services: reads, decides, applies, and decides again if somebody was faster.
//!
//! Invariants: only where shard 1's leader is; a decision is applied to exactly the records it was made from.
//!
//! Not here: the decisions (catalog, edits); the controller's own changes (controller).

use std::sync::Arc;
use std::time::Duration;

use kv_proto::errors::ServiceError;
use kv_proto::ids::{NodeId, SYSTEM_SHARD};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::catalog::store::{self, StoreError};
use crate::catalog::{CatalogView, Change, Leaders, Records};
use crate::host::Host;

/// Decisions that lost a race this often tell of a bug, not of a busy catalog.
const TRIES: usize = 16;

/// Between two looks for a leader.
const PAUSE: Duration = Duration::from_millis(50);

/// Where shard 1's leader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Here,
    /// On another one.
    There(NodeId),
}

/// Why a change was not made here.
#[derive(Debug)]
pub enum EditError {
    /// Shard 1 is led elsewhere, or by nobody now.
    NotLeader,
    /// To be told to the caller.
    Service(ServiceError),
}

/// Changes the catalog; clones share everything.
#[derive(Clone)]
pub struct Editor {
    host: Arc<Host>,
    leaders: Arc<Leaders>,
    changed: Arc<Notify>,
}

impl Editor {
    /// `changed` is told of every change made here, so that the view follows at once.
    #[must_use]
    pub fn new(host: Arc<Host>, leaders: Arc<Leaders>, changed: Arc<Notify>) -> Self {
        Self { host, leaders, changed }
    }

    /// Where the catalog is changed, waiting for an election if need be.
    pub async fn place(&self, view: &CatalogView, until: Instant) -> Result<Place, ServiceError> {
        loop {
            if let Some(place) = self.look(view) {
                return Ok(place);
            }
            if Instant::now() + PAUSE > until {
                return Err(StoreError::NotLeader(None).into_service());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn look(&self, view: &CatalogView) -> Option<Place> {
        if let Some(replica) = self.host.replica(SYSTEM_SHARD) {
            if replica.is_leader() {
                return Some(Place::Here);
            }
            return replica.leader().map(|leader| Place::There(leader.node));
        }
        let known = self.leaders.leader(SYSTEM_SHARD).map(|leader| leader.node);
        // Any node that holds the shard knows better than this one.
        let holder = || view.shard(SYSTEM_SHARD).and_then(|info| info.nodes().next());
        known.or_else(holder).map(Place::There)
    }

    /// Forgets a leader that does not answer.
    pub fn forget(&self, node: NodeId) {
        self.leaders.forget(SYSTEM_SHARD, node);
    }

    /// Decides and applies; tells also the version of a catalog that shows the change.
    pub async fn edit<T>(
        &self,
        decide: impl Fn(&Records) -> Result<(Change, T), ServiceError>,
    ) -> Result<(T, u64), EditError> {
        let service = |error: StoreError| EditError::Service(error.into_service());
        for _ in 0..TRIES {
            let replica = self.host.replica(SYSTEM_SHARD).filter(|replica| replica.is_leader());
            let replica = replica.ok_or(EditError::NotLeader)?;
            let records = match store::read(&replica).await {
                Ok(records) => records,
                Err(StoreError::NotLeader(_)) => return Err(EditError::NotLeader),
                Err(error) => return Err(service(error)),
            };
            let (change, answer) = decide(&records).map_err(EditError::Service)?;
            match store::apply(&replica, &records, &change).await {
                Ok(version) => {
                    self.changed.notify_one();
                    return Ok((answer, version));
                }
                Err(StoreError::Changed) => {}
                Err(StoreError::NotLeader(_)) => return Err(EditError::NotLeader),
                Err(error) => return Err(service(error)),
            }
        }
        Err(service(StoreError::Changed))
    }
}
