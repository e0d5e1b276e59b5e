//! The replicas this node holds: opened at start, created and destroyed as the catalog says.
//!
//! Invariants:
//! - a replica is destroyed only if a catalog that is newer than the one that wanted it no longer names it: views never
//!   go back, not even over a restart, and an id that was dropped is never given again;
//! - a shard's group is begun only by its preferred replica, only while the catalog says that it has never elected;
//! - one reconciliation at a time.
//!
//! Not here: what the catalog should want (controller).

pub mod clocks;
pub mod leading;
pub mod reconcile;
pub mod report;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_raft::failpoint;
use kv_raft::replica::{RaftContext, Replica, ReplicaSpec, StartError};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use crate::catalog::current::CurrentCatalog;
use crate::catalog::{CatalogView, LeaderRecord, Leaders};
use leading::Refusals;
use reconcile::{HostStep, initial_voters, plan};

/// Replicas created, destroyed or stopped at once: more than this only queue at the disk.
const AT_ONCE: usize = 16;

/// Replicas reopened at once: each holds up to 64 entries of its log in memory while it applies them again.
const REOPENED_AT_ONCE: usize = 4;

/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// Longest wait for one leadership to be handed over when the node stops.
const HAND_OVER: Duration = Duration::from_secs(2);

/// The replicas of this node.
pub struct Host {
    node: NodeId,
    context: RaftContext,
    leaders: Arc<Leaders>,
    replicas: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    /// Stopped replicas whose destruction failed; it is tried again.
    half_destroyed: Mutex<BTreeMap<ShardId, Arc<Replica>>>,
    /// Held while replicas are told, so that the last word said is the last one they hear.
    refusals: Mutex<Refusals>,
    stopping: AtomicBool,
    reconciling: tokio::sync::Mutex<()>,
}

impl Host {
    /// Holds nothing yet.
    #[must_use]
    pub fn new(node: NodeId, context: RaftContext, leaders: Arc<Leaders>) -> Self {
        let (replicas, refusals) = (RwLock::default(), Mutex::default());
        let (stopping, reconciling) = (AtomicBool::new(false), tokio::sync::Mutex::default());
        let half_destroyed = Mutex::default();
        Self { node, context, leaders, replicas, half_destroyed, refusals, stopping, reconciling }
    }

    /// The running replica of a shard.
    #[must_use]
    pub fn replica(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.replicas.read().get(&shard).cloned()
    }

    /// All running replicas, by shard.
    #[must_use]
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().values().cloned().collect()
    }

    /// What the replicas share.
    #[must_use]
    pub fn context(&self) -> &RaftContext {
        &self.context
    }

    /// Why this node refuses to lead, if it does.
    #[must_use]
    pub fn may_not_lead(&self) -> Option<String> {
        self.refusals.lock().reason()
    }

    /// Starts every replica whose data lies here, many at a time; erases logs whose data is gone already, which a
    /// destruction that was cut short leaves behind.
    pub async fn reopen(&self, view: &CatalogView) -> Result<(), StartError> {
        self.context.delete_left_over_logs().await?;
        let held = self.context.data().replicas();
        let specs = held.into_iter().map(|record| ReplicaSpec {
            shard: record.shard,
            replica: record.replica,
            range: record.range,
            retention: record.retention,
            initialize: view.shard(record.shard).and_then(|info| initial_voters(info, record.replica)),
        });
        let mut started = stream::iter(specs).map(|spec| self.start(spec)).buffer_unordered(REOPENED_AT_ONCE);
        while let Some(result) = started.next().await {
            result?;
        }
        Ok(())
    }

    /// Starts a replica, created or reopened.
    pub async fn start(&self, spec: ReplicaSpec) -> Result<Arc<Replica>, StartError> {
        let replica = Replica::start(&self.context, spec).await?;
        self.replicas.write().insert(replica.shard(), Arc::clone(&replica));
        self.review(&self.refusals.lock(), &replica);
        Ok(replica)
    }

    /// Makes the replicas what the view says; what fails is left for the next time. Tells whether all succeeded.
    pub async fn reconcile(&self, view: &CatalogView) -> bool {
        let _alone = self.reconciling.lock().await;
        // A replica that replaces one of another era is created in the round after that one is destroyed.
        loop {
            let steps = plan(view, self.node, &self.held());
            if steps.is_empty() {
                return true;
            }
            // All of them to their end, also if one fails: half a destruction would be left otherwise.
            let done = stream::iter(steps).map(|step| self.take(step)).buffer_unordered(AT_ONCE);
            if done.collect::<Vec<bool>>().await.contains(&false) {
                return false;
            }
        }
    }

    /// Every replica that is here, also in part.
    fn held(&self) -> BTreeMap<ShardId, ReplicaId> {
        let mut held = BTreeMap::new();
        held.extend(self.half_destroyed.lock().iter().map(|(shard, replica)| (*shard, replica.replica())));
        held.extend(self.replicas.read().iter().map(|(shard, replica)| (*shard, replica.replica())));
        held
    }

    async fn take(&self, step: HostStep) -> bool {
        failpoint!("host.step");
        let (shard, result) = match step {
            HostStep::Create(spec) => (spec.shard, self.start(spec).await.map(drop)),
            HostStep::Destroy { shard, replica } => {
                let held = self.replicas.write().remove(&shard);
                tracing::info!(%shard, %replica, "the catalog no longer wants this replica: destroying it");
                let held = held.or_else(|| self.half_destroyed.lock().remove(&shard));
                (shard, self.destroy(held).await)
            }
        };
        if let Err(error) = &result {
            let source = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%shard, %error, source, "a replica was not brought to what the catalog says");
        }
        result.is_ok()
    }

    /// Destroys a replica; one that resists is kept for the next time.
    async fn destroy(&self, replica: Option<Arc<Replica>>) -> Result<(), StartError> {
        let Some(replica) = replica else { return Ok(()) };
        let destroyed = Arc::clone(&replica).destroy().await;
        if destroyed.is_err() {
            self.half_destroyed.lock().insert(replica.shard(), replica);
        }
        destroyed
    }

    /// Reconciles with every new view until cancelled.
    pub async fn follow(&self, current: &CurrentCatalog, cancel: &CancellationToken) {
        let mut version = current.watch();
        loop {
            version.mark_unchanged();
            let view = current.load();
            self.context.transport().set_members(view.members().map(|node| NodeId(node.node_id)));
            self.leaders.retain(|shard| view.shard(shard).is_some());
            let done = self.reconcile(&view).await;
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(RETRY), if !done => {}
                changed = version.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Notes in the leaders table what the replicas here know.
    pub fn note_leaders(&self) {
        for replica in self.replicas.read().values() {
            if let Some(leader) = replica.leader() {
                self.leaders.learn(replica.shard(), LeaderRecord { term: leader.term, node: leader.node });
            }
        }
    }

    /// Refuses to lead because of the clock, with the reason, or not any more.
    pub fn set_clock(&self, refusal: Option<String>) {
        self.refuse(|refusals| refusals.clock = refusal);
    }

    /// The same because of the disk. Said again and again, since it depends on the disks of others.
    pub fn set_disk(&self, refusal: Option<String>) {
        self.refuse(|refusals| refusals.disk = refusal);
    }

    fn refuse(&self, set: impl FnOnce(&mut Refusals)) {
        let mut refusals = self.refusals.lock();
        let before = refusals.reason();
        set(&mut refusals);
        match (before, refusals.reason()) {
            (None, Some(why)) => tracing::warn!(why, "this node refuses to lead"),
            (Some(_), None) => tracing::info!("this node may lead again"),
            (None, None) => return,
            (Some(_), Some(_)) => {}
        }
        for replica in self.replicas() {
            self.review(&refusals, &replica);
        }
    }

    /// Tells a replica whether it may lead now.
    fn review(&self, refusals: &Refusals, replica: &Replica) {
        let has_heir = || {
            let voters = replica.status().voters;
            voters.iter().any(|(_, node)| *node != self.node && self.context.transport().has_room(*node))
        };
        replica.set_may_lead(!self.stopping.load(Ordering::Acquire) && refusals.allow(has_heir));
    }

    /// Hands every leadership to another replica, as far as there is one that can take it, and waits for so long at most; is
    /// elected no more from here on.
    pub async fn hand_over(&self, within: Duration) {
        self.stopping.store(true, Ordering::Release);
        let led = self.replicas().into_iter().filter(|replica| replica.is_leader()).collect();
        let left = left_after(within, led, |replica: Arc<Replica>| async move {
            let Some(heir) = replica.best_successor() else { return };
            let result = tokio::time::timeout(HAND_OVER, replica.transfer_leader(heir)).await;
            let error = match result {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it took too long".to_owned(),
            };
            tracing::info!(shard = %replica.shard(), error, "leadership was not handed over");
        })
        .await;
        if left > 0 {
            tracing::info!(shards = left, ?within, "the time to hand leadership over is up");
        }
        for replica in self.replicas() {
            replica.set_may_lead(false);
        }
    }

    /// Stops all replicas.
    pub async fn stop(&self) {
        let _alone = self.reconciling.lock().await;
        let replicas = std::mem::take(&mut *self.replicas.write());
        stream::iter(replicas.into_values())
            .for_each_concurrent(AT_ONCE, |replica| async move { replica.stop().await })
            .await;
    }
}

/// Acts on each, [`AT_ONCE`] at a time, until the time is up; how many are not done by then.
async fn left_after<T, F: Future<Output = ()>>(within: Duration, items: Vec<T>, act: impl Fn(T) -> F) -> usize {
    let all = items.len();
    let done = stream::iter(items.into_iter().map(act)).buffer_unordered(AT_ONCE);
    all - done.take_until(tokio::time::sleep(within)).count().await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test]
    async fn what_takes_for_ever_is_given_up_and_holds_no_more_places_than_there_are() {
        let begun = AtomicUsize::new(0);
        let act = |ends: bool| {
            begun.fetch_add(1, Ordering::Relaxed);
            async move {
                if !ends {
                    std::future::pending::<()>().await;
                }
            }
        };
        assert_eq!(left_after(Duration::MAX, vec![true; 100], act).await, 0, "nobody waits for the time to be up");
        assert_eq!(begun.swap(0, Ordering::Relaxed), 100);
        assert_eq!(left_after(Duration::from_millis(10), [[true; 50], [false; 50]].concat(), act).await, 50);
        assert_eq!(begun.into_inner(), 50 + AT_ONCE);
    }
}
