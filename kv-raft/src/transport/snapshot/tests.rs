//! Snapshots between two nodes over a network that breaks, and a receiver driven by hand.

mod by_hand;
mod network;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::pb::raft::v1::FrameKind;
use kv_proto::pb::raft::v1::transport_service_server::TransportServiceServer;
use kv_proto::timestamp::Timestamp;
use openraft::EntryPayload;
use openraft::storage::RaftStateMachine as _;
use parking_lot::{Mutex, RwLock};
use tempfile::TempDir;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::clock::Clock;
use crate::command::{Command, CommandBatch, EncodedCommand, Operation};
use crate::data_engine::{DataEngine, DataOptions, NewReplica};
use crate::metrics::RaftMetrics;
use crate::state_machine::{LogWait, SnapshotData, SnapshotSink, StateMachine};
use crate::transport::network::ReplicaAddress;
use crate::transport::peers::Peers;
use crate::transport::registry::{Inbound, Origin};
use crate::transport::{Directory, Inner, Registry, Service, TransportConfig};
use crate::types::{Entry, LeaderId, LogId, SnapshotMeta, Vote};

const SHARDS: u64 = 6;
const SHARD: ShardId = ShardId(1);
/// Far longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const LATEST_BYTES: u64 = 48 * VALUE_BYTES;
const HISTORY_BYTES: u64 = 32 * VALUE_BYTES;
const VALUE_BYTES: u64 = 64 << 10;

/// A log that is always durable.
struct Durable;

impl LogWait for Durable {
    fn wait_durable(&self, _index: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Where the other node is.
#[derive(Default)]
struct Other(RwLock<Option<SocketAddr>>);

impl Directory for Other {
    fn address(&self, _node: NodeId) -> Option<String> {
        self.0.read().map(|address| address.to_string())
    }
}

/// A replica without consensus.
struct Held {
    shard: ShardId,
    engine: DataEngine,
    machine: tokio::sync::Mutex<StateMachine>,
    stopping: CancellationToken,
    /// How often it was asked to install one.
    asked: AtomicUsize,
    /// Each snapshot that is installed takes one.
    installs: Semaphore,
    votes: Mutex<Vec<Vote>>,
}

impl Inbound for Held {
    fn replica(&self) -> ReplicaId {
        ReplicaId(2)
    }

    fn handle(self: Arc<Self>, _: Origin, _: FrameKind, _: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        async { Err("only snapshots".to_owned()) }.boxed()
    }

    fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    fn begin_snapshot(&self, meta: SnapshotMeta) -> Result<SnapshotSink, String> {
        self.engine.receive_snapshot(self.shard, meta).map_err(|error| error.to_string())
    }

    fn install_snapshot(
        self: Arc<Self>,
        vote: Vote,
        meta: SnapshotMeta,
        data: SnapshotData,
    ) -> BoxFuture<'static, Result<Vote, String>> {
        async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.installs.acquire().await.unwrap().forget();
            self.machine.lock().await.install_snapshot(&meta, data).await.map_err(|error| error.to_string())?;
            self.votes.lock().push(vote);
            Ok(vote)
        }
        .boxed()
    }
}

struct Node {
    _folder: TempDir,
    engine: DataEngine,
    held: BTreeMap<ShardId, Arc<Held>>,
    inner: Arc<Inner>,
    other: Arc<Other>,
    address: SocketAddr,
}

/// How long a node waits when a stream broke, either way.
#[derive(Clone, Copy)]
struct Waits {
    resume_within: Duration,
    keep_for: Duration,
}

const LONG: Waits = Waits { resume_within: PATIENCE, keep_for: PATIENCE };

impl Node {
    /// With a replica of each shard.
    async fn start(id: u64, waits: Waits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = DataOptions { cache_bytes: 12 << 20, write_buffer_bytes: 4 << 20, ..DataOptions::default() };
        let engine = DataEngine::open(folder.path(), options).unwrap();
        let metrics = Arc::new(RaftMetrics::new(&mut prometheus_client::registry::Registry::default()));
        let (registry, other) = (Registry::new(), Arc::new(Other::default()));
        let mut held = BTreeMap::new();
        for shard in (1..=SHARDS).map(ShardId) {
            let retention = Duration::from_secs(3600);
            engine.create(NewReplica { shard, replica: ReplicaId(id), range: KeyRange::all(), retention }).unwrap();
            let machine = engine.state_machine(shard, Arc::new(Durable), Arc::clone(&metrics)).unwrap();
            let replica = Arc::new(Held {
                shard,
                engine: engine.clone(),
                machine: tokio::sync::Mutex::new(machine),
                stopping: CancellationToken::new(),
                asked: AtomicUsize::new(0),
                installs: Semaphore::new(8),
                votes: Mutex::default(),
            });
            let inbound: Arc<dyn Inbound> = Arc::<Held>::clone(&replica);
            assert!(registry.insert(shard, inbound));
            held.insert(shard, replica);
        }
        // A busy machine breaks no connection that is not to break.
        let timing = Timing { election_max: PATIENCE / 3, ..Timing::default() };
        let cluster_id = "test".to_owned();
        let Waits { resume_within, keep_for } = waits;
        let directory: Arc<dyn Directory> = Arc::<Other>::clone(&other);
        let inner = Arc::new(Inner {
            snapshots: Transfers { resume_within, keep_for, ..Transfers::new(&timing) },
            config: TransportConfig { cluster_id, node: NodeId(id), incarnation: id, timing },
            directory,
            registry,
            clock: Clock::new(Duration::from_millis(500)),
            metrics,
            peers: Peers::new(),
            links: Mutex::default(),
            full: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(TransportServiceServer::new(Service::new(Arc::clone(&inner))))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), inner.cancel.clone().cancelled_owned());
        inner.tasks.spawn(serving);
        Self { _folder: folder, engine, held, inner, other, address }
    }

    /// Writes keys, and some of them once more.
    async fn fill(&self) {
        let random = || (0..VALUE_BYTES).map(|_| rand::random()).collect::<Vec<u8>>();
        let entry = |index, keys: u64| {
            let values: Vec<_> = (0..keys).map(|key| (format!("key-{key}"), random())).collect();
            let operations = values.iter().map(|(key, value)| Operation::Put { key: key.as_bytes(), value }).collect();
            let command = EncodedCommand::new(&Command { session: None, conditions: Vec::new(), operations });
            let batch = CommandBatch::new(Timestamp::from_millis(1000 + index), &[command]);
            Entry { log_id: log_id(index), payload: EntryPayload::Normal(batch) }
        };
        let keys = [LATEST_BYTES / VALUE_BYTES, HISTORY_BYTES / VALUE_BYTES];
        let entries = (1..).zip(keys).map(|(index, keys)| Ok((entry(index, keys), None))).collect::<Vec<_>>();
        self.held[&SHARD].machine.lock().await.apply(futures::stream::iter(entries)).await.unwrap();
    }

    /// As consensus does when a follower needs a snapshot.
    async fn send(&self) -> Result<Vote, String> {
        let snapshot = self.held[&SHARD].machine.lock().await.get_current_snapshot().await.unwrap().unwrap();
        let from = ReplicaAddress { shard: SHARD, replica: ReplicaId(1) };
        let sending = Sending { from, to: ReplicaId(2), node: NodeId(2), vote: vote(3), meta: snapshot.meta };
        send(&self.inner, sending, snapshot.snapshot).await
    }

    /// Snapshots that lie here whole or in part.
    fn lying(&self) -> usize {
        std::fs::read_dir(self.engine.scratch()).unwrap().count()
    }

    async fn stop(self) {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        assert_eq!(self.lying(), 0);
    }
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: 1 }, committed: true }
}

/// Polls a condition until it holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}
