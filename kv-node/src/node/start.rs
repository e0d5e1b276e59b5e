//! From a data folder and a configuration to a running node.
//!
//! Order: folder and identity; the way into a cluster, if the folder is new; engines; transport; the replicas held here;
//! then what runs in the background.
//!
//! Not here: the opposite order (node).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kv_client::connection::{ConnectionOptions, NodePool};
use kv_proto::errors::ServiceError;
use kv_proto::ids::{NodeId, SYSTEM_SHARD};
use kv_proto::pb::admin::v1::{Replica, ReplicaRole};
use kv_raft::clock::Clock;
use kv_raft::data_engine::{DataEngine, DataOptions, OpenError as DataOpenError};
use kv_raft::failpoint;
use kv_raft::log_store::{LogEngine, LogMetrics, LogOptions, OpenError as LogOpenError};
use kv_raft::metrics::RaftMetrics;
use kv_raft::replica::{ContextParts, RaftContext};
use kv_raft::timing::Timing;
use kv_raft::transport::{Directory, Registry, Transport, TransportConfig};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::follow::{follow_catalog, follow_leaders, watch_clock};
use super::readiness::{Check, Readiness};
use super::shared::{DISK_READS_MAX, NodeShared};
use super::{Node, Owned};
use crate::admission::Admission;
use crate::bootstrap::{self, BootstrapError, FIRST_NODE};
use crate::catalog::current::CurrentCatalog;
use crate::catalog::{Leaders, ShardInfo};
use crate::config::Config;
use crate::controller::run::Controller;
use crate::editor::Editor;
use crate::host::Host;
use crate::identity::{DataFolder, Identity, IdentityError, Stage, random_id};
use crate::join::seeds::{self, Way};
use crate::join::{self, JoinError};
use crate::peers::Peers;
use crate::waiting::{Door, Waiting};

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder does not fit.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A new folder and nothing said about a cluster, or too much.
    #[error("the data folder {0} is new: say either --bootstrap to begin a cluster or --join with addresses of one")]
    WhichCluster(String),
    /// Not let in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The log does not open.
    #[error("the log does not open: {0}")]
    Log(#[from] LogOpenError),
    /// The data does not open.
    #[error("the data does not open: {0}")]
    Data(#[from] DataOpenError),
    /// The cluster was not made.
    #[error("the cluster cannot be made: {}", chain(.0))]
    Bootstrap(#[from] BootstrapError),
    /// A replica does not start.
    #[error("a replica does not start: {}", chain(.0))]
    Replica(#[from] kv_raft::replica::StartError),
    /// Something is contradictory, or a task was lost.
    #[error("{0}")]
    Other(String),
}

/// What a node is started with.
pub struct StartParts {
    /// As loaded.
    pub config: Arc<Config>,
    /// Filled in while starting; shown while it does.
    pub readiness: Arc<Readiness>,
    /// Registered by the caller.
    pub raft_metrics: Arc<RaftMetrics>,
    /// Registered by the caller.
    pub log_metrics: Arc<LogMetrics>,
    /// What this node takes on.
    pub admission: Arc<Admission>,
    /// Where a node that waits for a cluster answers; without one it answers nobody until it is a member.
    pub door: Option<Door>,
    /// Ends a start that waits for a cluster.
    pub cancel: CancellationToken,
}

/// Addresses from the view.
struct ViewDirectory(Arc<CurrentCatalog>);

impl Directory for ViewDirectory {
    fn address(&self, node: NodeId) -> Option<String> {
        self.0.load().address(node).map(str::to_owned)
    }
}

/// Both engines of a node.
pub struct Engines {
    /// The logs of all replicas.
    pub log: LogEngine,
    /// Their data.
    pub data: DataEngine,
}

impl Node {
    /// Starts a node; returns once its replicas run, which does not need any other node. Only a node that joins for
    /// the first time waits for the cluster.
    pub async fn start(parts: StartParts) -> Result<Self, StartError> {
        let started = Instant::now();
        let StartParts { config, readiness, raft_metrics, log_metrics, admission, door, cancel } = parts;
        let starting = |what: &str| readiness.set("node", Check::Failed(format!("it is {what}")));
        starting("opening its data folder");
        let folder = DataFolder::open(&config.data_dir)?;
        let mut identity = identity(&folder, &config)?;
        let current = Arc::new(CurrentCatalog::open(folder.catalog_file())?);
        check_catalog(&folder, &identity, &current)?;
        check_engines(&folder, &identity, &current)?;
        let pool = NodePool::new(ConnectionOptions::default());
        let peers = Peers::new(pool.clone(), Arc::clone(current.view()));
        if identity.stage == Stage::Joining {
            starting("waiting to be let into the cluster");
            let waiting = door.map(|door| Waiting::start(door, &identity, &config));
            let entry = Entry { folder: &folder, config: &config, peers: &peers, current: &current, cancel: &cancel };
            identity = entry.enter(identity, starting).await?;
            if let Some(waiting) = waiting {
                waiting.end().await;
            }
        }
        failpoint!("start.joined");
        starting("opening its engines");
        for engine in [folder.log_dir(), folder.data_dir()] {
            folder.claim(&engine, &identity)?;
        }
        failpoint!("start.claimed");
        let engines = open_engines(&folder, &config, log_metrics).await?;
        let leaders = Arc::new(Leaders::default());
        let clock = Clock::new(config.clock_offset_max);
        let context = context(&identity, &config, engines, &current, &clock, raft_metrics)?;
        let transport = context.transport().clone();
        let host = Arc::new(Host::new(identity.node(), context, Arc::clone(&leaders)));
        starting("opening its replicas");
        if identity.stage == Stage::Bootstrapping {
            failpoint!("bootstrap.begin");
            bootstrap::bootstrap(&host, &identity, &config).await?;
            failpoint!("bootstrap.written");
            let (cluster_id, node) = (identity.cluster_id.clone(), identity.node());
            identity = identity.into_member(cluster_id, node);
            folder.write_identity(&identity)?;
        } else {
            host.reopen(&current.load()).await?;
        }
        let changed = Arc::new(Notify::new());
        let editor = Editor::new(Arc::clone(&host), Arc::clone(&leaders), Arc::clone(&changed));
        let shared = Arc::new(NodeShared {
            identity,
            config,
            started,
            view: Arc::clone(current.view()),
            current,
            leaders,
            host,
            pool,
            admission,
            disk_reads: Arc::new(Semaphore::new(DISK_READS_MAX)),
            peers,
            editor,
            clock,
            readiness: Arc::clone(&readiness),
        });
        let node =
            Self { transport, _folder: folder, controller: Owned::default(), background: Owned::default(), shared };
        node.begin(changed);
        tracing::info!(node = %node.shared.node(), cluster = node.shared.cluster_id(), "node started");
        for name in ["clock", "disk"] {
            readiness.set_if_new(name, Check::Passed);
        }
        readiness.set("node", Check::Passed);
        Ok(node)
    }

    /// What runs until shutdown.
    fn begin(&self, changed: Arc<Notify>) {
        let shared = &self.shared;
        let controller = Controller::new(
            shared.cluster_id().to_owned(),
            Arc::clone(&shared.host),
            Arc::clone(&shared.current),
            shared.peers.clone(),
            Arc::clone(&changed),
        );
        self.controller.spawn(|cancel| controller.run(cancel));
        self.background.spawn(|cancel| follow_catalog(Arc::clone(shared), changed, cancel));
        self.background.spawn(|cancel| follow_leaders(Arc::clone(shared), cancel));
        self.background.spawn(|cancel| watch_clock(Arc::clone(shared), cancel));
        let (host, current) = (Arc::clone(&shared.host), Arc::clone(&shared.current));
        self.background.spawn(|cancel| async move { host.follow(&current, &cancel).await });
        self.background.spawn(|cancel| announce(Arc::clone(shared), cancel));
    }
}

/// Tells the cluster this node's address and version, in case they changed while it was stopped.
async fn announce(shared: Arc<NodeShared>, cancel: CancellationToken) {
    let is_known = || {
        let (view, config) = (shared.view.load(), &shared.config);
        view.node(shared.node()).is_some_and(|node| {
            node.address == config.advertise
                && node.http_address == config.http_advertise
                && node.version == env!("CARGO_PKG_VERSION")
        })
    };
    let mut version = shared.current.watch();
    // A node that lost its last view and holds nothing of shard 1 knows nobody to ask but the members it once joined by.
    let asks_seeds = || shared.host.replica(SYSTEM_SHARD).is_none() && !shared.config.join.is_empty();
    while shared.view.load().version() == 0 && !asks_seeds() {
        if cancel.run_until_cancelled(version.changed()).await.is_none() {
            return;
        }
    }
    if is_known() {
        return;
    }
    let addresses: Vec<String> = {
        let view = shared.view.load();
        let own = [shared.config.advertise.clone()];
        view.members().map(|node| node.address.clone()).chain(shared.config.join.iter().cloned()).chain(own).collect()
    };
    match join::join(&shared.peers, &addresses, &shared.identity, &shared.config, &cancel).await {
        Ok(answer) => {
            if let Some(catalog) = answer.catalog {
                shared.current.publish(catalog).await;
            }
            tracing::info!(address = shared.config.advertise, "the cluster knows this node's address");
        }
        Err(JoinError::Stopped) => {}
        Err(JoinError::Refused(error)) => tracing::error!(%error, "the cluster refuses this node"),
    }
}

fn identity(folder: &DataFolder, config: &Config) -> Result<Identity, StartError> {
    if let Some(identity) = folder.read_identity()? {
        return Ok(identity);
    }
    let identity = match (config.bootstrap, config.join.is_empty()) {
        (true, true) => Identity::create(Stage::Bootstrapping, random_id(), FIRST_NODE),
        (_, false) => Identity::create(Stage::Joining, String::new(), NodeId(0)),
        (false, true) => return Err(StartError::WhichCluster(folder.path().display().to_string())),
    };
    folder.write_identity(&identity)?;
    Ok(identity)
}

/// Refuses a folder put together from two.
fn check_catalog(folder: &DataFolder, identity: &Identity, current: &CurrentCatalog) -> Result<(), StartError> {
    let view = current.load();
    if view.version() == 0 || identity.stage != Stage::Member {
        return Ok(());
    }
    let is_ours = view.node(identity.node()).is_none_or(|node| node.instance_id == identity.instance_bytes());
    if view.cluster_id() == identity.cluster_id && is_ours {
        return Ok(());
    }
    Err(StartError::Identity(IdentityError::Foreign {
        path: folder.identity_file(),
        ours: identity.cluster_id.clone(),
        our_node: identity.node(),
        theirs: format!("the cluster is {} in {}", view.cluster_id(), folder.catalog_file().display()),
    }))
}

/// Refuses a folder that lost both of its engines: a voter that forgot its votes and its log would help to forget writes
/// that were acknowledged. A node that never ran its engines is no voter.
fn check_engines(folder: &DataFolder, identity: &Identity, current: &CurrentCatalog) -> Result<(), StartError> {
    let is_there = |engine: PathBuf| std::fs::read_dir(engine).is_ok_and(|mut files| files.next().is_some());
    let view = current.load();
    let is_voter = |shard: &Arc<ShardInfo>| {
        let votes = |replica: &Replica| replica.node_id == identity.node().0 && replica.role() == ReplicaRole::Voter;
        !shard.descriptor.creating && shard.descriptor.replicas.iter().any(votes)
    };
    if is_there(folder.log_dir()) || is_there(folder.data_dir()) || !view.shards().any(is_voter) {
        return Ok(());
    }
    let found = format!("a catalog with voters on this node in {}", folder.catalog_file().display());
    Err(IdentityError::Missing { path: folder.log_dir(), found }.into())
}

/// What the way into a cluster takes.
struct Entry<'a> {
    folder: &'a DataFolder,
    config: &'a Config,
    peers: &'a Peers,
    current: &'a CurrentCatalog,
    cancel: &'a CancellationToken,
}

impl Entry<'_> {
    /// Begins a cluster or is let into one; `waits` is told what for.
    async fn enter(&self, identity: Identity, waits: impl Fn(&str)) -> Result<Identity, StartError> {
        let Self { folder, config, peers, current, cancel } = self;
        if config.join.is_empty() {
            return Err(StartError::WhichCluster(folder.path().display().to_string()));
        }
        if config.bootstrap {
            let waits = |why: &str| waits(&format!("waiting for the other nodes of its list: {why}"));
            if seeds::meet(peers, &identity, config, waits, cancel).await? == Way::Begin {
                let identity = identity.into_first(random_id(), FIRST_NODE);
                folder.write_identity(&identity)?;
                tracing::info!(cluster = identity.cluster_id, "every node of the list is new: beginning a cluster");
                return Ok(identity);
            }
        }
        waits("waiting to be let into the cluster");
        let answer = join::join(peers, &config.join, &identity, config, cancel).await?;
        if answer.cluster_id.is_empty() || answer.node_id == 0 {
            let why = "the cluster answered without ids".to_owned();
            return Err(JoinError::Refused(ServiceError::Foreign { code: tonic::Code::Unknown, message: why }).into());
        }
        let identity = identity.into_member(answer.cluster_id, NodeId(answer.node_id));
        folder.write_identity(&identity)?;
        if let Some(catalog) = answer.catalog {
            current.publish(catalog).await;
        }
        tracing::info!(node = %identity.node(), cluster = identity.cluster_id, "joined");
        Ok(identity)
    }
}

/// Opens both engines of a data folder.
pub async fn open_engines(
    folder: &DataFolder,
    config: &Config,
    metrics: Arc<LogMetrics>,
) -> Result<Engines, StartError> {
    let (log_dir, data_dir) = (folder.log_dir(), folder.data_dir());
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let shares = config.memory();
    let log_options = LogOptions { memory_bytes: bytes(shares.log), metrics };
    let data_options = DataOptions {
        cache_bytes: bytes(shares.data_cache),
        write_buffer_bytes: bytes(shares.data_write_buffer),
        ..DataOptions::default()
    };
    let opened = kv_raft::blocking::spawn_blocking(move || -> Result<Engines, StartError> {
        let log = LogEngine::open(&log_dir, log_options)?;
        let data = DataEngine::open(&data_dir, data_options)?;
        Ok(Engines { log, data })
    });
    opened.await.map_err(|error| StartError::Other(error.to_string()))?
}

fn context(
    identity: &Identity,
    config: &Config,
    engines: Engines,
    current: &Arc<CurrentCatalog>,
    clock: &Clock,
    metrics: Arc<RaftMetrics>,
) -> Result<RaftContext, StartError> {
    let timing = Timing {
        heartbeat: config.heartbeat_interval,
        election_min: config.election_timeout_min,
        election_max: config.election_timeout_max,
        hibernate_after: Some(config.hibernate_after.max(config.election_timeout_max)),
        flush_interval: config.flush_interval,
        log_entries_kept: config.log_entries_kept,
        log_bytes_kept: config.log_bytes_kept,
        snapshot_bytes_per_second: config.snapshot_bytes_per_second,
        check_interval: (!config.check_interval.is_zero()).then_some(config.check_interval),
        check_bytes_per_second: config.check_bytes_per_second,
        ..Timing::default()
    };
    let transport = Transport::new(
        TransportConfig {
            cluster_id: identity.cluster_id.clone(),
            node: identity.node(),
            incarnation: rand::random::<u64>().max(1),
            timing: timing.clone(),
        },
        Arc::new(ViewDirectory(Arc::clone(current))),
        Registry::new(),
        clock.clone(),
        Arc::clone(&metrics),
    );
    let Engines { log, data } = engines;
    let parts = ContextParts { log, data, transport, clock: clock.clone(), metrics, timing };
    RaftContext::new(parts).map_err(StartError::Other)
}

/// An error with its causes, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
