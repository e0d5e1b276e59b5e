//! The pool: one [`NodeConnection`] per address, opened when it is first needed.
//!
//! Invariants: at most one connection attempt per node at a time; every task belongs to the pool and ends with it.
//!
//! Not here: the stream itself (pipeline).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kv_proto::pb::v1::{pipeline_call, pipeline_reply};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use super::circuit::{Admission, Circuit, WAIT_MIN};
use super::error::{CallError, ConnectionError};
use super::pipeline::{Link, Reader, describe};

/// How nodes are connected to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionOptions {
    /// Most time to connect and be answered once.
    pub connect_timeout: Duration,
    /// How often a silent connection is pinged.
    pub keepalive_interval: Duration,
    /// How long the answer to a ping may take before the connection counts as dead.
    pub keepalive_timeout: Duration,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            keepalive_interval: Duration::from_millis(500),
            keepalive_timeout: Duration::from_secs(1),
        }
    }
}

/// Connections to nodes by address. Cheap to clone.
#[derive(Clone)]
pub struct NodePool(Arc<Pool>);

struct Pool {
    options: Arc<ConnectionOptions>,
    nodes: Mutex<HashMap<Arc<str>, NodeConnection>>,
    owner: Owner,
}

/// Who the tasks belong to.
#[derive(Clone)]
struct Owner {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.owner.stop.cancel();
    }
}

impl NodePool {
    /// An empty pool; nothing connects before it is used.
    #[must_use]
    pub fn new(options: ConnectionOptions) -> Self {
        let owner = Owner { tasks: TaskTracker::new(), stop: CancellationToken::new() };
        Self(Arc::new(Pool { options: Arc::new(options), nodes: Mutex::default(), owner }))
    }

    /// The connection to `address`, given as `host:port`.
    #[must_use]
    pub fn get(&self, address: &str) -> NodeConnection {
        let mut nodes = self.0.nodes.lock();
        if let Some(node) = nodes.get(address) {
            return node.clone();
        }
        let address: Arc<str> = Arc::from(address);
        let node = NodeConnection::new(address.clone(), self.0.options.clone(), self.0.owner.clone());
        nodes.insert(address, node.clone());
        node
    }

    /// Fails what is in flight and waits until all tasks of the pool have ended. The pool is of no use afterwards.
    pub async fn close(&self) {
        self.0.owner.stop.cancel();
        self.0.owner.tasks.close();
        self.0.owner.tasks.wait().await;
    }
}

impl fmt::Debug for NodePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodePool").field("nodes", &self.0.nodes.lock().len()).finish_non_exhaustive()
    }
}

/// A node by its address. Cheap to clone.
#[derive(Clone)]
pub struct NodeConnection(Arc<Node>);

struct Node {
    address: Arc<str>,
    options: Arc<ConnectionOptions>,
    owner: Owner,
    state: Mutex<NodeState>,
}

struct NodeState {
    circuit: Circuit,
    link: LinkState,
}

type Connected = Result<Arc<Link>, ConnectionError>;

enum LinkState {
    Down,
    Connecting(watch::Receiver<Option<Connected>>),
    Up(Arc<Link>),
}

impl NodeConnection {
    fn new(address: Arc<str>, options: Arc<ConnectionOptions>, owner: Owner) -> Self {
        let state = Mutex::new(NodeState { circuit: Circuit::new(), link: LinkState::Down });
        Self(Arc::new(Node { address, options, owner, state }))
    }

    /// As given to [`NodePool::get`].
    #[must_use]
    pub fn address(&self) -> &Arc<str> {
        &self.0.address
    }

    /// Sends one request on the node's stream and waits for its reply, at most until `deadline`, which is kept by the
    /// runtime that first called the node. Dropping the future gives the call up. `request` is given the id of the cluster
    /// it is to name: `cluster`, the same for all calls of a pool, until the node has served one on this stream, then
    /// nothing.
    ///
    /// # Errors
    /// What the node answered, or why it did not.
    pub async fn call(
        &self,
        cluster: &str,
        request: impl FnOnce(String) -> pipeline_call::Request,
        deadline: Instant,
    ) -> Result<pipeline_reply::Response, CallError> {
        let link = self.link(deadline).await?;
        link.call(cluster, request, deadline).await
    }

    /// A channel for calls that are not pipelined (admin, routes); it shares the connection.
    ///
    /// # Errors
    /// Why the node cannot be reached.
    pub async fn channel(&self, deadline: Instant) -> Result<Channel, ConnectionError> {
        Ok(self.link(deadline).await?.channel())
    }

    /// Whether a call would be tried now, not refused by the circuit. Where a probe of the node is due this begins it, so
    /// that a node nobody calls any more because it failed is still found alive again.
    #[must_use]
    pub fn is_available(&self) -> bool {
        let mut state = self.0.state.lock();
        if !state.circuit.is_open() {
            return true;
        }
        if !self.0.owner.stop.is_cancelled() && state.circuit.admit(Instant::now()) == Admission::Probe {
            state.link = LinkState::Connecting(self.0.connect());
        }
        false
    }

    /// Calls that wait for their reply now.
    #[must_use]
    pub fn pending(&self) -> usize {
        match &self.0.state.lock().link {
            LinkState::Up(link) => link.pending(),
            LinkState::Down | LinkState::Connecting(_) => 0,
        }
    }

    async fn link(&self, deadline: Instant) -> Connected {
        match self.0.acquire()? {
            Acquired::Up(link) => Ok(link),
            // Boxed: every call would carry the space of this rare way.
            Acquired::Connecting(connecting) => Box::pin(self.connected(connecting, deadline)).await,
        }
    }

    async fn connected(&self, mut connecting: watch::Receiver<Option<Connected>>, deadline: Instant) -> Connected {
        let connected = timeout_at(deadline, connecting.wait_for(Option::is_some)).await;
        match connected {
            Ok(Ok(result)) => result.clone().unwrap_or(Err(ConnectionError::Closed)),
            Ok(Err(_)) => Err(ConnectionError::Closed),
            Err(_) => Err(ConnectionError::TimedOut { address: self.0.address.clone(), sent: false }),
        }
    }
}

impl fmt::Debug for NodeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConnection").field("address", &self.0.address).finish_non_exhaustive()
    }
}

enum Acquired {
    Up(Arc<Link>),
    Connecting(watch::Receiver<Option<Connected>>),
}

impl Node {
    /// The open stream, or the attempt to open it; begins one where the circuit allows.
    fn acquire(self: &Arc<Self>) -> Result<Acquired, ConnectionError> {
        if self.owner.stop.is_cancelled() {
            return Err(ConnectionError::Closed);
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        match &state.link {
            LinkState::Up(link) => match link.closed() {
                None => return Ok(Acquired::Up(link.clone())),
                Some(closed) if closed.failed => state.circuit.failed(closed.at, rand::random()),
                Some(_) => {}
            },
            LinkState::Connecting(_) if state.circuit.is_open() => return Err(self.open(WAIT_MIN)),
            LinkState::Connecting(connecting) => return Ok(Acquired::Connecting(connecting.clone())),
            LinkState::Down => {}
        }
        state.link = LinkState::Down;
        match state.circuit.admit(Instant::now()) {
            Admission::Go => {
                let connecting = self.connect();
                state.link = LinkState::Connecting(connecting.clone());
                Ok(Acquired::Connecting(connecting))
            }
            Admission::Probe => {
                state.link = LinkState::Connecting(self.connect());
                Err(self.open(WAIT_MIN))
            }
            Admission::Refused { retry_after } => Err(self.open(retry_after)),
        }
    }

    fn open(&self, retry_after: Duration) -> ConnectionError {
        ConnectionError::CircuitOpen { address: self.address.clone(), retry_after }
    }

    /// One task connects, tells everyone who waits, then reads replies until the stream ends.
    fn connect(self: &Arc<Self>) -> watch::Receiver<Option<Connected>> {
        let (sender, receiver) = watch::channel(None);
        let (address, options, node) = (self.address.clone(), self.options.clone(), Arc::downgrade(self));
        let stop = self.owner.stop.clone();
        self.owner.tasks.spawn(async move {
            let run = async {
                let limit = options.connect_timeout;
                let opened = match timeout(limit, open(&address, &options)).await {
                    Ok(opened) => opened,
                    Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
                };
                let (connected, reader) = match opened {
                    Ok((link, reader)) => (Ok(Arc::new(link)), Some(reader)),
                    Err(why) => (Err(ConnectionError::Unreachable { address: address.clone(), why }), None),
                };
                report(&node, &connected);
                // Nobody may wait any more.
                let _ = sender.send(Some(connected));
                drop(sender);
                if let Some(reader) = reader {
                    reader.run().await;
                }
            };
            stop.run_until_cancelled(run).await;
        });
        receiver
    }
}

fn report(node: &Weak<Node>, connected: &Connected) {
    let Some(node) = node.upgrade() else { return };
    let mut state = node.state.lock();
    match connected {
        Ok(link) => {
            state.circuit.succeeded();
            state.link = LinkState::Up(link.clone());
        }
        Err(error) => {
            tracing::debug!(address = %node.address, %error, "node is not reachable");
            state.circuit.failed(Instant::now(), rand::random());
            state.link = LinkState::Down;
        }
    }
}

async fn open(address: &Arc<str>, options: &ConnectionOptions) -> Result<(Link, Reader), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let endpoint = endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(10)))
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(false);
    #[cfg(not(kv_sim))]
    let connected = endpoint.connect().await;
    #[cfg(kv_sim)]
    let connected = kv_proto::simulated::connect(&endpoint).await;
    let channel = connected.map_err(|error| causes(&error))?;
    Link::open(address.clone(), channel).await.map_err(|status| describe(&status))
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
