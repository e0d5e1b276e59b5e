//! Nodes of a cluster in one process: real folders, real gRPC on loopback.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::ids::{ClientId, NodeId, ReplicaId, Sequence, ShardId};
use kv_proto::key_range::KeyRange;
use kv_raft::clock::Clock;
use kv_raft::command::{Command, EncodedCommand, Operation, Reply, SessionTag};
use kv_raft::data_engine::{DataEngine, DataOptions};
use kv_raft::log_store::{LogEngine, LogMetrics, LogOptions};
use kv_raft::metrics::RaftMetrics;
use kv_raft::replica::{Answer, Answers, ContextParts, ProposeError, RaftContext, ReadMode, Replica, ReplicaSpec};
use kv_raft::timing::Timing;
use kv_raft::transport::{Directory, Registry, Transport, TransportConfig};
use parking_lot::RwLock;
use tempfile::TempDir;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const SHARD: ShardId = ShardId(7);
/// Far longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

static INCARNATION: AtomicU64 = AtomicU64::new(1);

#[derive(Clone, Default)]
pub struct Addresses(Arc<RwLock<BTreeMap<NodeId, SocketAddr>>>);

/// Where one node finds the others, but for those it is cut off from.
struct Reach {
    from: NodeId,
    addresses: Addresses,
    cut: Cut,
}

/// Pairs of nodes that do not reach each other.
type Cut = Arc<RwLock<BTreeSet<[NodeId; 2]>>>;

fn pair(one: NodeId, other: NodeId) -> [NodeId; 2] {
    [one.min(other), one.max(other)]
}

impl Directory for Reach {
    fn address(&self, node: NodeId) -> Option<String> {
        let cut = self.cut.read().contains(&pair(self.from, node));
        (!cut).then(|| self.addresses.0.read().get(&node).map(ToString::to_string))?
    }
}

pub struct TestNode {
    pub id: NodeId,
    pub context: RaftContext,
    pub transport: Transport,
    pub metrics: Arc<RaftMetrics>,
    pub replicas: BTreeMap<ShardId, Arc<Replica>>,
    server: CancellationToken,
    tasks: TaskTracker,
}

impl TestNode {
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replicas[&SHARD]
    }

    pub async fn end(mut self) {
        self.server.cancel();
        for replica in std::mem::take(&mut self.replicas).into_values() {
            replica.stop().await;
        }
        self.context.shutdown().await;
        self.transport.shutdown().await;
        self.context.log().close().await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

pub struct Cluster {
    folder: TempDir,
    addresses: Addresses,
    cut: Cut,
    pub timing: Timing,
    pub nodes: BTreeMap<NodeId, TestNode>,
    sequence: AtomicU64,
}

impl Cluster {
    /// Nodes 1 to `count`, each with a voter of the shard whose replica id is its node's.
    pub async fn start(count: u64, timing: Timing) -> Self {
        let mut cluster = Self::empty(timing);
        for node in 1..=count {
            cluster.start_node(NodeId(node)).await;
        }
        let voters: BTreeMap<_, _> = (1..=count).map(|id| (ReplicaId(id), NodeId(id))).collect();
        for node in (1..=count).rev() {
            let initialize = (node == 1).then(|| voters.clone());
            cluster.start_replica(NodeId(node), ReplicaId(node), initialize).await;
        }
        cluster
    }

    pub fn empty(timing: Timing) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sequence = AtomicU64::new(0);
        let (addresses, cut) = (Addresses::default(), Cut::default());
        Self { folder, addresses, cut, timing, nodes: BTreeMap::new(), sequence }
    }

    pub fn path(&self, node: NodeId) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }

    pub async fn start_node(&mut self, id: NodeId) {
        self.start_node_of("test", id).await;
    }

    pub async fn start_node_of(&mut self, cluster_id: &str, id: NodeId) {
        let path = self.path(id);
        let known = self.addresses.0.read().get(&id).copied();
        let listener = listen(known.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))).await;
        self.addresses.0.write().insert(id, listener.local_addr().unwrap());
        let metrics = Arc::new(RaftMetrics::new(&mut prometheus_client::registry::Registry::default()));
        let options = LogOptions { memory_bytes: 16 << 20, metrics: LogMetrics::unregistered() };
        let log = eventually("the log opens", || LogEngine::open(&path.join("log"), options.clone()).ok()).await;
        let options = DataOptions { cache_bytes: 24 << 20, write_buffer_bytes: 8 << 20, ..DataOptions::default() };
        let data = eventually("the data opens", || DataEngine::open(&path.join("data"), options.clone()).ok()).await;
        let clock = Clock::new(Duration::from_millis(500));
        let transport = Transport::new(
            TransportConfig {
                cluster_id: cluster_id.to_owned(),
                node: id,
                incarnation: INCARNATION.fetch_add(1, Ordering::SeqCst),
                timing: self.timing.clone(),
            },
            Arc::new(Reach { from: id, addresses: self.addresses.clone(), cut: Arc::clone(&self.cut) }),
            Registry::new(),
            clock.clone(),
            Arc::clone(&metrics),
        );
        let server = CancellationToken::new();
        let tasks = TaskTracker::new();
        let serving = tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .add_service(transport.service())
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), server.clone().cancelled_owned());
        tasks.spawn(serving);
        let parts = ContextParts {
            log,
            data,
            transport: transport.clone(),
            clock,
            metrics: Arc::clone(&metrics),
            timing: self.timing.clone(),
        };
        let context = RaftContext::new(parts).unwrap();
        let node = TestNode { id, context, transport, metrics, replicas: BTreeMap::new(), server, tasks };
        self.nodes.insert(id, node);
        for node in self.nodes.values() {
            node.transport.set_members(self.nodes.keys().copied());
        }
    }

    pub async fn start_replica(
        &mut self,
        node: NodeId,
        replica: ReplicaId,
        initialize: Option<BTreeMap<ReplicaId, NodeId>>,
    ) -> Arc<Replica> {
        self.start_replica_of(SHARD, node, replica, initialize).await
    }

    pub async fn start_replica_of(
        &mut self,
        shard: ShardId,
        node: NodeId,
        replica: ReplicaId,
        initialize: Option<BTreeMap<ReplicaId, NodeId>>,
    ) -> Arc<Replica> {
        let node = self.nodes.get_mut(&node).unwrap();
        let range = KeyRange::all();
        let spec = ReplicaSpec { shard, replica, range, retention: Duration::from_secs(3600), initialize };
        let started = Replica::start(&node.context, spec).await.unwrap();
        node.replicas.insert(shard, Arc::clone(&started));
        started
    }

    /// Ends a node without flushing its data, as near to a crash as one process allows.
    pub async fn kill(&mut self, id: NodeId) {
        self.nodes.remove(&id).unwrap().end().await;
    }

    pub async fn restart(&mut self, id: NodeId, replica: ReplicaId) -> Arc<Replica> {
        self.start_node(id).await;
        self.start_replica(id, replica, None).await
    }

    /// Cuts a node off from all others, both ways, until [`Cluster::heal`].
    pub fn isolate(&self, id: NodeId) {
        self.cut(id, &self.nodes.keys().copied().filter(|other| *other != id).collect::<Vec<_>>());
    }

    /// Cuts a node off from some others, both ways, until [`Cluster::heal`].
    pub fn cut(&self, id: NodeId, others: &[NodeId]) {
        self.cut.write().extend(others.iter().map(|other| pair(id, *other)));
        let cut = self.cut.read();
        for (node, running) in &self.nodes {
            let reached = self.nodes.keys().copied().filter(|other| !cut.contains(&pair(*node, *other)));
            running.transport.set_members(reached);
        }
    }

    pub fn heal(&self) {
        self.cut.write().clear();
        for node in self.nodes.values() {
            node.transport.set_members(self.nodes.keys().copied());
        }
    }

    /// In a killed node's place, a listener whose connections nobody reads.
    pub async fn replace_by_a_hole(&self, id: NodeId) -> tokio::net::TcpListener {
        let address = self.addresses.0.read()[&id];
        listen(address).await
    }

    pub async fn stop_all(mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.kill(id).await;
        }
    }

    /// The replica that leads, once one does and the others know it.
    pub async fn leader(&self) -> Arc<Replica> {
        self.leader_of(SHARD).await
    }

    pub async fn leader_of(&self, shard: ShardId) -> Arc<Replica> {
        let replicas: Vec<_> = self.nodes.values().filter_map(|node| node.replicas.get(&shard)).collect();
        let found = eventually("a leader", || {
            let leader = replicas.iter().find(|replica| replica.is_leader())?;
            let term = leader.leader()?.term;
            let known = replicas.iter().all(|replica| replica.leader().is_some_and(|info| info.term == term));
            known.then(|| Arc::clone(leader))
        });
        found.await
    }

    /// A replica that leads in a later term than this one, once one does.
    pub async fn leader_after(&self, term: u64) -> Arc<Replica> {
        let found = eventually("a leader of a later term", || {
            let mut replicas = self.nodes.values().map(TestNode::replica);
            replicas.find(|replica| replica.is_leader() && replica.status().term > term).map(Arc::clone)
        });
        found.await
    }

    /// Writes through whoever leads until it is acknowledged, with one sequence for all attempts.
    pub async fn put(&self, key: &str, value: &str) {
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        let tag = SessionTag { client: ClientId(1), sequence: Sequence(sequence), lowest_unfinished: Sequence(1) };
        let command = put_tagged(Some(tag), key, value);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader().await;
            match tokio::time::timeout(Duration::from_secs(5), leader.propose(command.clone())).await {
                Ok(Ok(Reply::Written { .. })) => return,
                Ok(Ok(reply)) => panic!("{reply:?}"),
                Ok(Err(ProposeError::Fatal(reason))) => panic!("{reason}"),
                Ok(Err(_)) | Err(_) => assert!(Instant::now() < deadline, "no write went through in time"),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Reads from whoever leads.
    pub async fn get(&self, key: &str) -> Option<Bytes> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.leader().await.read(ReadMode::Linearizable).await {
                Ok(view) => return view.get(key.as_bytes()).unwrap().map(|found| found.value),
                Err(error) => assert!(Instant::now() < deadline, "no read went through in time: {error}"),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until every replica of the shard has applied the same, and checks that their states are equal.
    pub async fn converged(&self) {
        eventually("all replicas have the same state", || {
            let sums: Vec<_> = self.nodes.values().map(|node| node.context.data().checksum(SHARD).unwrap()).collect();
            sums.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
        })
        .await;
    }
}

async fn listen(address: SocketAddr) -> tokio::net::TcpListener {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Polls a condition until it gives a value.
pub async fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn put_tagged(session: Option<SessionTag>, key: &str, value: &str) -> EncodedCommand {
    let operations = vec![Operation::Put { key: key.as_bytes(), value: value.as_bytes() }];
    EncodedCommand::new(&Command { session, conditions: Vec::new(), operations })
}

pub fn put(key: &str, value: &str) -> EncodedCommand {
    put_tagged(None, key, value)
}

/// A leader whose followers went at once; its lease lasts on. And who they were.
pub async fn leader_alone() -> (Cluster, Arc<Replica>, Vec<NodeId>) {
    let mut cluster = Cluster::start(3, awake()).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await;
    let others: Vec<_> = [1, 2, 3].map(NodeId).into_iter().filter(|node| node.0 != leader.replica().0).collect();
    let [one, two] = [others[0], others[1]].map(|node| cluster.nodes.remove(&node).expect("it runs"));
    tokio::join!(one.end(), two.end());
    (cluster, leader, others)
}

/// Proposes a command until a deadline.
pub async fn propose_by(replica: &Replica, command: EncodedCommand, deadline: tokio::time::Instant) -> Answer {
    let answers = Answers::default();
    replica.propose_into(command, Some(deadline), &answers, 0)?;
    answers.only().await
}

/// Never sleeps.
pub fn awake() -> Timing {
    Timing { hibernate_after: None, ..Timing::default() }
}
