//! One replica of a shard: consensus, log and data behind the calls the rest of the node makes.
//!
//! Invariants: consensus of a replica runs at most once per node; a replica whose consensus ends unasked reports a
//! failure that ends the process, at once; every task of a replica has ended when [`Replica::stop`] returns.
//!
//! Not here: which replicas a node holds and when they change (kv-node, host and controller).

mod company;

mod confirm;

mod context;

mod keeper;

mod proposals;

mod answers;

mod reads;

mod inbound;

mod sleep;

mod elections;

mod membership;

mod quorum;

mod checks;

mod status;

mod errors;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::blocking::spawn_blocking;
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_proto::key_range::KeyRange;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::ForwardToLeader;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::answers::{Answer, Answers};
pub use self::checks::CheckOutcome;
pub use self::context::{ContextParts, RaftContext, Room};
pub use self::errors::{MembershipError, ProposeError, ReadError, StartError};
pub use self::reads::ReadMode;

use self::checks::Checks;
use self::context::Shared;
use self::proposals::Proposals;
use self::reads::Reads;
use self::sleep::Asleep;
use crate::data_engine::{CreateError, DataEngine, DataError, NewReplica, ReplicaRecord};
use crate::failpoint;
use crate::log_store::{LogEngine, LogStore};
use crate::state_machine::StateMachine;
use crate::transport::{Network, Outbound, ReplicaAddress};
use crate::types::{LeaderInfo, Member, ShardRaft};

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSpec {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// The encoded keys it holds; used only when it is created.
    pub range: KeyRange,
    /// How long overwritten versions are kept; used only when it is created.
    pub retention: Duration,
    /// Begins the group with these voters if, and only if, its log is empty.
    pub initialize: Option<BTreeMap<ReplicaId, NodeId>>,
}

/// A running replica.
pub struct Replica {
    shard: ShardId,
    replica: ReplicaId,
    context: Arc<Shared>,
    raft: openraft::Raft<ShardRaft, StateMachine>,
    this: Weak<Self>,
    proposals: Proposals,
    reads: Reads,
    log: LogStore,
    outbound: Arc<Outbound>,
    leader: watch::Sender<Option<LeaderInfo>>,
    /// Milliseconds since the context began.
    last_used: AtomicU64,
    /// Mirrors whether `asleep` is Some, for the way of every request and for looks at all replicas.
    hibernated: Arc<AtomicBool>,
    asleep: Mutex<Option<Asleep>>,
    /// A hibernation is being agreed.
    dozing: AtomicBool,
    may_lead: AtomicBool,
    /// A task hands leadership over.
    stepping_aside: AtomicBool,
    /// When a leader was heard last, in milliseconds since the context began.
    heard: AtomicU64,
    /// From when on it counts against its quorum that nobody answers this leader, in milliseconds since the context
    /// began.
    asking_since: AtomicU64,
    /// Whether the last look at this leader's quorum found it unanswered.
    unanswered: AtomicBool,
    /// Since when there is no leader, in milliseconds since the context began; 0 while it is.
    leaderless: AtomicU64,
    /// Until then this process grants no votes and stands for none; None if it never gave a lease away.
    votes_from: Option<Instant>,
    /// Last index known to be applied durably.
    durable: AtomicU64,
    checks: Checks,
    /// Index of the check that found its content wrong.
    quarantined: watch::Receiver<Option<u64>>,
    changing: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Replica {
    /// Opens a replica this node holds, or creates it. When this returns, it takes messages.
    pub async fn start(context: &RaftContext, spec: ReplicaSpec) -> Result<Arc<Self>, StartError> {
        let shared = Arc::clone(context.shared());
        let (shard, replica) = (spec.shard, spec.replica);
        if shared.replica(shard).is_some() {
            return Err(StartError::Running(shard));
        }
        failpoint!("replica.start");
        let (record, created) = open_data(&shared.data, &spec).await?;
        failpoint!("replica.data_opened");
        let store = open_log(&shared.log, &record).await?;
        let wait = Arc::new(shared.log.log_wait(shard)?);
        let (data, metrics) = (shared.data.clone(), Arc::clone(&shared.metrics));
        let machine = spawn_blocking(move || data.state_machine(shard, wait, metrics));
        let mut machine = machine.await.map_err(|e| StartError::Consensus(e.to_string()))??;
        let (views, quarantined) = (machine.checks(), shared.data.holding(shard)?.watch_quarantine());

        // A process that just began does not know to whom its former self gave a lease; a replica created now has none.
        let votes_from = (!created).then(|| Instant::from(shared.started) + shared.timing.election_max);
        let votes_from = votes_from.filter(|from| *from > Instant::now());
        let config = shared.raft_config(shard, votes_from.is_none()).map_err(StartError::Consensus)?;
        let outbound = Arc::<Outbound>::default();
        let address = ReplicaAddress { shard, replica };
        let network = Network::new(Arc::clone(shared.transport.inner()), address, Arc::clone(&outbound));
        let log = store.clone();
        failpoint!("replica.log_opened");
        let raft = openraft::Raft::new(replica.0, Arc::new(config), network, store, machine)
            .await
            .map_err(|e| StartError::Consensus(e.to_string()))?;

        let started = Arc::new_cyclic(|this| Self {
            shard,
            replica,
            raft,
            this: Weak::clone(this),
            proposals: Proposals::default(),
            reads: Reads::default(),
            log,
            outbound,
            leader: watch::Sender::new(None),
            last_used: AtomicU64::new(shared.now_ms()),
            hibernated: Arc::default(),
            asleep: Mutex::new(None),
            dozing: AtomicBool::new(false),
            may_lead: AtomicBool::new(true),
            stepping_aside: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            asking_since: AtomicU64::new(0),
            unanswered: AtomicBool::new(false),
            leaderless: AtomicU64::new(0),
            votes_from,
            durable: AtomicU64::new(record.applied.map_or(0, |applied| applied.index)),
            checks: Checks::new(),
            quarantined,
            changing: tokio::sync::Mutex::new(()),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            context: shared,
        });
        failpoint!("replica.begun");
        if !started.context.register(&started) {
            let _ = started.raft.shutdown().await;
            return Err(StartError::Running(shard));
        }
        started.tasks.spawn(Arc::clone(&started).observe());
        started.tasks.spawn(Arc::clone(&started).take_checks(views));
        started.tasks.spawn(Arc::clone(&started).follow_quarantine());
        if let Some(from) = votes_from {
            started.tasks.spawn(Arc::clone(&started).stand_from(from));
        }
        if let Some(voters) = spec.initialize {
            started.initialize(voters).await?;
        }
        tracing::info!(%shard, %replica, created, "replica started");
        Ok(started)
    }

    /// Writes the first membership; a log that is not empty refuses, which is fine.
    async fn initialize(&self, voters: BTreeMap<ReplicaId, NodeId>) -> Result<(), StartError> {
        let members: BTreeMap<u64, Member> =
            voters.into_iter().map(|(replica, node)| (replica.0, Member { node: node.0 })).collect();
        match self.raft.initialize(members).await {
            Ok(()) => tracing::info!(shard = %self.shard, "shard initialized"),
            Err(openraft::errors::RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => {}
            Err(error) => {
                self.stop().await;
                return Err(StartError::Consensus(error.to_string()));
            }
        }
        Ok(())
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The replica.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Who leads, if known.
    #[must_use]
    pub fn leader(&self) -> Option<LeaderInfo> {
        *self.leader.borrow()
    }

    /// Who leads, whenever that changes.
    #[must_use]
    pub fn watch_leader(&self) -> watch::Receiver<Option<LeaderInfo>> {
        self.leader.subscribe()
    }

    /// Whether this replica leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader().is_some_and(|leader| leader.replica == self.replica)
    }

    /// Whether this replica may lead; one that may not hands leadership over and does not stand for election.
    pub fn set_may_lead(&self, may_lead: bool) {
        if self.may_lead.swap(may_lead, Ordering::AcqRel) == may_lead {
            return;
        }
        self.set_elections();
        if !may_lead && let Some(replica) = self.arc() {
            self.tasks.spawn(replica.step_aside());
        }
    }

    /// Whether this replica may lead; one that may not and still does is handing leadership over.
    #[must_use]
    pub fn may_lead(&self) -> bool {
        self.may_lead.load(Ordering::Acquire)
    }

    /// Ends consensus and waits for all tasks. What waits is answered; what was proposed may still apply.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.context.unregister(self.shard, self.replica);
        self.proposals.fail_waiting(&ProposeError::Stopped);
        failpoint!("replica.stop");
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(shard = %self.shard, %error, "consensus did not end cleanly");
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Stops the replica and deletes its data and its log; its id never comes back to this node.
    pub async fn destroy(self: Arc<Self>) -> Result<(), StartError> {
        self.stop().await;
        let (data, shard) = (self.context.data.clone(), self.shard);
        spawn_blocking(move || data.destroy(shard)).await.map_err(|e| StartError::Consensus(e.to_string()))??;
        failpoint!("replica.destroy");
        self.context.log.destroy(shard).await?;
        tracing::info!(%shard, replica = %self.replica, "replica destroyed");
        Ok(())
    }

    fn arc(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    /// Why consensus ended unasked, if it did.
    fn failure(&self) -> Option<String> {
        self.context.failure()
    }

    /// The leader that openraft names.
    fn forwarded(&self, forward: &ForwardToLeader<ShardRaft>) -> Option<LeaderInfo> {
        let named = forward.leader_id.zip(forward.leader_node);
        let known = self.leader().filter(|leader| leader.replica != self.replica);
        match named {
            Some((replica, _)) if replica == self.replica.0 => None,
            Some((replica, member)) => {
                let term = self.raft.server_metrics().borrow_watched().vote.leader_id.term;
                Some(LeaderInfo { replica: ReplicaId(replica), node: NodeId(member.node), term })
            }
            None => known,
        }
    }

    /// Follows role and leader; ends with consensus.
    async fn observe(self: Arc<Self>) {
        let mut watched = self.raft.server_metrics();
        loop {
            let leader = {
                let metrics = watched.borrow_and_update();
                status::leader(&metrics.vote, metrics.membership_config.membership())
            };
            self.leader_is(leader);
            if watched.changed().await.is_err() {
                break;
            }
        }
        if !self.stopping.is_cancelled() {
            let reason = match &self.raft.metrics().borrow_watched().running_state {
                Ok(()) => "consensus ended".to_owned(),
                Err(fatal) => fatal.to_string(),
            };
            self.leader_is(None);
            self.context.fail(&format!("shard {}, replica {}: {reason}", self.shard, self.replica));
            self.proposals.fail_waiting(&ProposeError::Fatal(reason));
        }
    }

    fn leader_is(&self, leader: Option<LeaderInfo>) {
        let leads = |info: Option<LeaderInfo>| info.is_some_and(|info| info.replica == self.replica);
        // Before anyone can see that it leads.
        if leads(leader) && self.leader() != leader {
            self.begins_to_ask();
        }
        let before = self.leader.send_replace(leader);
        if before == leader {
            return;
        }
        if leads(leader) {
            self.context.metrics.elections_won.inc();
            let term = leader.map_or(0, |leader| leader.term);
            tracing::info!(shard = %self.shard, replica = %self.replica, term, "leads");
            self.used();
            if !self.leads_if_elected()
                && let Some(replica) = self.arc()
            {
                self.tasks.spawn(replica.step_aside());
            }
        } else if leads(before) {
            tracing::info!(shard = %self.shard, replica = %self.replica, ?leader, "leads no more");
            self.proposals.fail_waiting(&ProposeError::NotLeader { leader });
        }
    }
}

async fn open_data(data: &DataEngine, spec: &ReplicaSpec) -> Result<(ReplicaRecord, bool), StartError> {
    let held = data.replicas().into_iter().find(|record| record.shard == spec.shard);
    match held {
        Some(record) if record.replica == spec.replica => Ok((record, false)),
        Some(record) => Err(StartError::OtherReplica { shard: spec.shard, held: record.replica, asked: spec.replica }),
        None => {
            let ReplicaSpec { shard, replica, range, retention, initialize: _ } = spec.clone();
            let (data, new) = (data.clone(), NewReplica { shard, replica, range, retention });
            let created = spawn_blocking(move || data.create(new)).await;
            let created = created.map_err(|e| CreateError::Data(DataError::Failed(e.to_string())))?;
            Ok((created?, true))
        }
    }
}

/// The replica's log, which is an empty one for a replica that never applied anything. What lies in its place then is
/// what a destruction that was cut short left behind of an earlier one: its data went first.
async fn open_log(log: &LogEngine, record: &ReplicaRecord) -> Result<LogStore, StartError> {
    let (shard, replica) = (record.shard, record.replica);
    let found = log.shards().get(&shard).copied();
    if found != Some(replica) {
        // Whatever is applied was in the log before, or came by a snapshot after a vote was saved there. And replica
        // ids only rise on a node: the log of a higher one is not what went before this one.
        if record.applied.is_some() || found.is_some_and(|found| found > replica) {
            let folder = log.dir().to_owned();
            return Err(StartError::LogLost { shard, replica, folder, found });
        }
        if let Some(held) = found {
            tracing::info!(%shard, %held, %replica, "deleting the log a destroyed replica left behind");
            log.destroy(shard).await?;
        }
    }
    Ok(log.store(shard, replica)?)
}
