//! A cluster in one process that behaves as scripts tell it: nodes that serve, refuse, point elsewhere, stay silent,
//! drop their streams, or die. Data is one map that all nodes share, since replication is not what is tested here.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod node;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_client::ServiceError;
use kv_proto::ids::KeyspaceId;
use kv_proto::key_range::KeyRange;
use kv_proto::keys;
use kv_proto::pb::v1 as pb;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub use store::Store;

pub const CLUSTER: &str = "fake-cluster";
pub const KEYSPACE: KeyspaceId = KeyspaceId(2);

/// Most time any condition may take; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a node does with the next call instead of serving it.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers so.
    Fail(ServiceError),
    /// Answers that another node leads; 0: it does not know which.
    NotLeader(u64),
    /// Never answers.
    Hold,
    /// Breaks the stream without having applied the call.
    DropBefore,
    /// Applies the call, then breaks the stream.
    DropAfter,
}

/// A call as a node received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub node: u64,
    pub kind: &'static str,
    pub shard: u64,
    pub epoch: u64,
    pub session: Option<(Bytes, u64)>,
    pub lowest_unfinished: u64,
    /// Whether it named the cluster.
    pub named: bool,
}

#[derive(Clone, Debug)]
pub struct Shard {
    pub id: u64,
    pub epoch: u64,
    pub range: KeyRange,
    /// Who serves it.
    pub leader: u64,
    /// Who the routes say serves it.
    pub told: u64,
}

pub struct Inner {
    pub hashed: bool,
    pub shards: Vec<Shard>,
    pub addresses: BTreeMap<u64, String>,
    pub store: Store,
    pub scripts: BTreeMap<u64, VecDeque<Act>>,
    pub sent: Vec<Sent>,
    /// Pipelined messages and the calls they held.
    pub messages: Vec<usize>,
    /// Answers within a message go out in reverse order.
    pub reverse: bool,
    pub routes_asked: usize,
}

pub struct State {
    pub inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

impl State {
    pub fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.inner.lock());
        self.changed.send_modify(|version| *version += 1);
        result
    }
}

impl Inner {
    pub fn shard(&self, id: u64) -> Option<&Shard> {
        self.shards.iter().find(|shard| shard.id == id)
    }

    pub fn route(&self, shard: &Shard, leader: u64) -> pb::ShardRoute {
        let replica = |(node_id, address): (&u64, &String)| pb::RouteReplica {
            node_id: *node_id,
            address: address.clone(),
            voter: true,
        };
        pb::ShardRoute {
            shard_id: shard.id,
            epoch: shard.epoch,
            start: shard.range.start().clone(),
            end: shard.range.end().clone(),
            leader_node_id: leader,
            replicas: self.addresses.iter().map(replica).collect(),
            keyspace_id: KEYSPACE.0,
        }
    }
}

pub struct Fake {
    pub state: Arc<State>,
    runtimes: BTreeMap<u64, Runtime>,
}

impl Fake {
    /// A hash keyspace whose shards are led by the nodes in turn.
    pub fn hashed(nodes: u64, shards: u16) -> Self {
        Self::start(nodes, true, keys::split_by_slots(KEYSPACE, shards))
    }

    /// A range keyspace cut at these keys.
    pub fn ranged(nodes: u64, cuts: &[&'static str]) -> Self {
        let cuts: Vec<Bytes> = cuts.iter().map(|cut| Bytes::from(*cut)).collect();
        Self::start(nodes, false, keys::split_by_keys(KEYSPACE, &cuts).unwrap())
    }

    fn start(nodes: u64, hashed: bool, ranges: Vec<KeyRange>) -> Self {
        let shard = |(index, range)| {
            let (index, leader) = (index as u64, index as u64 % nodes + 1);
            Shard { id: 10 + index, epoch: 1, range, leader, told: leader }
        };
        let inner = Inner {
            hashed,
            shards: ranges.into_iter().enumerate().map(shard).collect(),
            addresses: BTreeMap::new(),
            store: Store::default(),
            scripts: BTreeMap::new(),
            sent: vec![],
            messages: vec![],
            reverse: false,
            routes_asked: 0,
        };
        let state = Arc::new(State { inner: Mutex::new(inner), changed: watch::channel(0).0 });
        let mut fake = Self { state, runtimes: BTreeMap::new() };
        for node in 1..=nodes {
            let (address, runtime) = node::start(node, "127.0.0.1:0", &fake.state);
            fake.state.inner.lock().addresses.insert(node, address);
            fake.runtimes.insert(node, runtime);
        }
        fake
    }

    pub fn address(&self, node: u64) -> String {
        self.state.inner.lock().addresses[&node].clone()
    }

    pub fn addresses(&self) -> Vec<String> {
        self.state.inner.lock().addresses.values().cloned().collect()
    }

    /// What the node does with its next calls.
    pub fn script(&self, node: u64, acts: impl IntoIterator<Item = Act>) {
        self.state.inner.lock().scripts.entry(node).or_default().extend(acts);
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.state.inner.lock())
    }

    pub fn sent(&self) -> Vec<Sent> {
        self.state.inner.lock().sent.clone()
    }

    /// Closes everything the node has open, as kill -9 does.
    pub fn kill(&mut self, node: u64) {
        let runtime = self.runtimes.remove(&node).unwrap();
        // A runtime cannot be waited for inside of another one.
        std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE)).join().unwrap();
    }

    /// Starts the node again where it was.
    pub fn restart(&mut self, node: u64) {
        let (_, runtime) = node::start(node, &self.address(node), &self.state);
        self.runtimes.insert(node, runtime);
    }

    /// All shards are led by this node, and the routes say so or not.
    pub fn lead(&self, node: u64, told: u64) {
        for shard in &mut self.state.inner.lock().shards {
            (shard.leader, shard.told) = (node, told);
        }
    }

    /// Splits a shard at an encoded key; the right half is a new shard.
    pub fn split(&self, shard: u64, at: Bytes) {
        let mut inner = self.state.inner.lock();
        let next = inner.shards.iter().map(|shard| shard.id).max().unwrap() + 1;
        let position = inner.shards.iter().position(|known| known.id == shard).unwrap();
        let parent = inner.shards[position].clone();
        let left = KeyRange::new(parent.range.start().clone(), at.clone()).unwrap();
        let right = KeyRange::new(at, parent.range.end().clone()).unwrap();
        let epoch = parent.epoch + 1;
        inner.shards[position] = Shard { epoch, range: left, ..parent.clone() };
        inner.shards.insert(position + 1, Shard { id: next, epoch, range: right, ..parent });
    }

    /// Waits until what nodes have seen satisfies the condition.
    pub async fn until(&self, condition: impl Fn(&Inner) -> bool) {
        let mut changes = self.state.changed.subscribe();
        let satisfied = changes.wait_for(|_| condition(&self.state.inner.lock()));
        tokio::time::timeout(PATIENCE, satisfied).await.expect("the condition comes true").unwrap();
    }

    pub async fn client(&self) -> kv_client::Client {
        kv_client::Client::connect(self.addresses()).await.unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        for (_, runtime) in std::mem::take(&mut self.runtimes) {
            runtime.shutdown_background();
        }
    }
}

pub fn not_leader(inner: &Inner, shard: u64, leader: u64) -> ServiceError {
    let shard = inner.shard(shard).map(|shard| inner.route(shard, leader));
    ServiceError::NotLeader { hint: Box::new(pb::RouteHint { shard, current: vec![] }) }
}

pub fn stale_route(inner: &Inner) -> ServiceError {
    let current = inner.shards.iter().map(|shard| inner.route(shard, shard.leader)).collect();
    ServiceError::StaleRoute { hint: Box::new(pb::RouteHint { shard: None, current }) }
}

/// A port that takes connections and says nothing, as a node that was stopped does.
pub struct Silent {
    pub address: String,
    pub connections: Arc<std::sync::atomic::AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Silent {
    pub fn start() -> Self {
        let runtime = node::runtime();
        let listener = node::bind("127.0.0.1:0");
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = connections.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut open = vec![];
            while let Ok((connection, _)) = listener.accept().await {
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                open.push(connection);
            }
        });
        Self { address, connections, runtime: Some(runtime) }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
