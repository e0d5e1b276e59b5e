//! The loop around the plan: look, plan, execute.
//!
//! Invariants: nothing is done while shard 1 is led elsewhere; a plan that asks for anything is made again from the
//! records as shard 1's leader has them now; each round ends before the next begins.
//!
//! Not here: what to do (plan).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use kv_proto::errors::ServiceError;
use kv_proto::ids::{NodeId, SYSTEM_SHARD};
use kv_proto::pb::admin::v1::{GetNodeStatusRequest, NodeStatus};
use kv_proto::pb::raft::v1::replica_step_request::Step as WireStep;
use kv_proto::pb::raft::v1::{
    AddLearnerStep, ChangeVotersStep, RemoveLearnerStep, ReplicaStepRequest, ReportStep, TransferLeaderStep,
};
use kv_raft::failpoint;
use kv_raft::replica::Replica;
use kv_raft::types::LogId;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::observed::Observed;
use super::plan::plan;
use super::step::{GroupCheck, GroupStep, GroupStepKind, Step};
use crate::catalog::current::CurrentCatalog;
use crate::catalog::store;
use crate::catalog::{Records, view};
use crate::host::Host;
use crate::peers::Peers;

/// Between rounds while nothing is to do; balance and the end of an outage are noticed this late. Each asks every node for
/// an account of all its replicas, which is most of what a thousand idle shards cost.
const IDLE: Duration = Duration::from_secs(2);

/// Between rounds while something goes on.
const BUSY: Duration = Duration::from_millis(150);

/// Between looks whether shard 1 is led here.
const LOOK: Duration = Duration::from_millis(100);

/// Nothing is balanced until everything has been quiet for this long: after a restart leaders come home slowly.
const CALM_AFTER: Duration = Duration::from_secs(5);

/// A leader that could not be moved is left where it is for this long, when it is moved for balance only.
const STUCK: Duration = Duration::from_secs(30);

/// Steps on groups at once.
const STEPS_AT_ONCE: usize = 8;

/// Nodes asked at once.
const NODES_AT_ONCE: usize = 32;

/// Longest wait for one step on a group.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs where shard 1's leader is.
pub struct Controller {
    cluster_id: String,
    host: Arc<Host>,
    current: Arc<CurrentCatalog>,
    peers: Peers,
    /// Told of every change of the catalog.
    changed: Arc<Notify>,
    disturbed: Instant,
    alive: BTreeSet<u64>,
    /// Shards whose leader could not be moved, and when.
    stuck: BTreeMap<u64, Instant>,
    /// The records as of the last look, and the entry of shard 1 they were read at.
    read: Option<(Option<LogId>, Arc<Records>)>,
}

impl Controller {
    /// Does nothing before [`Controller::run`].
    #[must_use]
    pub fn new(
        cluster_id: String,
        host: Arc<Host>,
        current: Arc<CurrentCatalog>,
        peers: Peers,
        changed: Arc<Notify>,
    ) -> Self {
        let (disturbed, alive, stuck) = (Instant::now(), BTreeSet::new(), BTreeMap::new());
        Self { cluster_id, host, current, peers, changed, disturbed, alive, stuck, read: None }
    }

    /// Until cancelled. What waits for other nodes then is given up: they may be stopping as well, and what became of it the next
    /// leader's controller finds out as if this node had crashed.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut leads = false;
        let mut version = self.current.watch();
        while !cancel.is_cancelled() {
            let replica = self.host.replica(SYSTEM_SHARD).filter(|replica| replica.is_leader());
            if leads != replica.is_some() {
                leads = !leads;
                self.disturbed = Instant::now();
                tracing::info!(leads, "placement controller");
            }
            let pause = match replica {
                None => LOOK,
                Some(replica) => match cancel.run_until_cancelled(self.round(&replica)).await {
                    Some(true) => BUSY,
                    Some(false) => IDLE,
                    None => return,
                },
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                changed = version.changed(), if leads => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// One round; tells whether anything goes on.
    async fn round(&mut self, replica: &Replica) -> bool {
        let Some(records) = self.local_records().await else { return true };
        let mut observed = self.observe(&records).await;
        observed.calm = self.is_calm(&observed);
        self.stuck.retain(|_, since| since.elapsed() < STUCK);
        observed.stuck = self.stuck.keys().copied().collect();
        if plan(&records, &observed).is_empty() {
            return records.actions.values().any(crate::catalog::records::runs);
        }
        // Something is to do: decide from what the leader has now.
        let records = match store::read(replica).await {
            Ok(records) => records,
            Err(error) => {
                tracing::info!(%error, "the catalog cannot be read now");
                return true;
            }
        };
        failpoint!("controller.plan");
        let steps = plan(&records, &observed);
        self.disturbed = Instant::now();
        let (groups, catalog): (Vec<Step>, Vec<Step>) =
            steps.into_iter().partition(|step| matches!(step, Step::Group(_)));
        for step in catalog {
            if !self.change(replica, &records, step).await {
                return true;
            }
        }
        let taken = stream::iter(groups).map(|step| self.group(step)).buffer_unordered(STEPS_AT_ONCE);
        let stuck: Vec<u64> = taken.filter_map(futures::future::ready).collect().await;
        self.stuck.extend(stuck.into_iter().map(|shard| (shard, Instant::now())));
        true
    }

    /// What is applied here, without asking anyone: changes are conditional, so an old state does no harm.
    async fn local_records(&mut self) -> Option<Arc<Records>> {
        let view = match self.host.context().data().view(SYSTEM_SHARD) {
            Ok(view) => view,
            Err(error) => {
                tracing::warn!(%error, "the catalog cannot be read");
                return None;
            }
        };
        let applied = view.applied();
        if let Some((_, records)) = self.read.as_ref().filter(|(read_at, _)| *read_at == applied) {
            return Some(Arc::clone(records));
        }
        let loaded = kv_raft::blocking::spawn_blocking(move || store::load(&view));
        match loaded.await {
            Ok(Ok(records)) => {
                let records = Arc::new(records);
                self.read = Some((applied, Arc::clone(&records)));
                Some(records)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the catalog cannot be read");
                None
            }
            Err(_) => None,
        }
    }

    async fn observe(&self, records: &Records) -> Observed {
        let members = records.nodes.values().filter(|node| view::is_member(node)).map(|node| node.node_id);
        let asked = GetNodeStatusRequest { without_sizes: true, ..Default::default() };
        let ask = |node: u64| async move { (node, self.peers.status(NodeId(node), asked).await) };
        let answers = stream::iter(members.collect::<Vec<_>>()).map(ask).buffer_unordered(NODES_AT_ONCE);
        let answered = |(node, answer): (u64, Result<NodeStatus, ServiceError>)| async move {
            answer
                .inspect_err(|error| tracing::debug!(node, %error, "does not answer"))
                .ok()
                .map(|status| (node, status))
        };
        let answers: BTreeMap<u64, NodeStatus> = answers.filter_map(answered).collect().await;
        Observed::new(now_ms(), &answers)
    }

    fn is_calm(&mut self, observed: &Observed) -> bool {
        if observed.alive != self.alive {
            self.alive.clone_from(&observed.alive);
            self.disturbed = Instant::now();
        }
        self.disturbed.elapsed() >= CALM_AFTER
    }

    /// False if the catalog is not as the plan thought.
    async fn change(&self, replica: &Replica, records: &Records, step: Step) -> bool {
        let Step::Catalog { change, why, check } = step else { return true };
        if let Some(check) = check
            && let Err(reason) = self.check(&check).await
        {
            tracing::info!(shard = check.shard, why, reason, "not yet");
            return true;
        }
        match store::apply(replica, records, &change).await {
            Ok(_) => {
                tracing::info!(why, "catalog changed");
                self.changed.notify_one();
                true
            }
            Err(error) => {
                tracing::info!(why, %error, "the catalog was not changed");
                false
            }
        }
    }

    /// Whether the group's committed membership really dropped what is about to leave the catalog.
    async fn check(&self, check: &GroupCheck) -> Result<(), String> {
        let request = self.request(check.shard, check.epoch, WireStep::Report(ReportStep {}));
        let response = self.peers.replica_step(NodeId(check.leader_node), request, STEP_TIMEOUT).await;
        let leader = response.map_err(|error| error.to_string())?.leader.unwrap_or_default();
        let named = leader.voter_replica_ids.iter().chain(&leader.learner_replica_ids);
        match named.into_iter().find(|replica| check.gone.contains(replica)) {
            Some(replica) => Err(format!("replica {replica} is still in the group")),
            None => Ok(()),
        }
    }

    /// Takes a step; the shard if its leader could not be moved.
    async fn group(&self, step: Step) -> Option<u64> {
        let Step::Group(step) = step else { return None };
        let GroupStep { shard, epoch, leader_node, .. } = step;
        tracing::info!(%step, "step");
        let request = self.request(shard, epoch, wire(&step.kind));
        if let Err(error) = self.peers.replica_step(NodeId(leader_node), request, STEP_TIMEOUT).await {
            tracing::info!(%step, %error, "the step was not taken; the next round looks again");
            return matches!(step.kind, GroupStepKind::TransferLeader { .. }).then_some(shard);
        }
        None
    }

    fn request(&self, shard_id: u64, planned_epoch: u64, step: WireStep) -> ReplicaStepRequest {
        ReplicaStepRequest { cluster_id: self.cluster_id.clone(), shard_id, planned_epoch, step: Some(step) }
    }
}

fn wire(kind: &GroupStepKind) -> WireStep {
    match kind {
        GroupStepKind::AddLearner { replica, node } => {
            WireStep::AddLearner(AddLearnerStep { replica_id: *replica, node_id: *node })
        }
        GroupStepKind::ChangeVoters { voters } => {
            WireStep::ChangeVoters(ChangeVotersStep { voter_replica_ids: voters.iter().copied().collect() })
        }
        GroupStepKind::RemoveLearner { replica } => WireStep::RemoveLearner(RemoveLearnerStep { replica_id: *replica }),
        GroupStepKind::TransferLeader { replica } => {
            WireStep::TransferLeader(TransferLeaderStep { replica_id: *replica })
        }
    }
}

/// Wall clock in milliseconds since the epoch.
#[must_use]
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
