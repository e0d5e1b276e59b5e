//! The client: connects, hands out keyspaces.
//!
//! Not here: the requests (requests), administration (admin).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::errors::{Outcome, ServiceError};
use parking_lot::Mutex;

use crate::admin::Admin;
use crate::connection::{CallError, ConnectionOptions, NodePool};
use crate::core::{Core, Timeouts};
use crate::data::Data;
use crate::error::{Error, Result};
use crate::execute::Deadline;
use crate::keyspace::Keyspace;
use crate::requests::{Batch, BatchGet, CompareAndSet, Delete, Get, Put, Scan};
use crate::routes::Routes;
use crate::scope::DEFAULT;

/// Time a request gets unless it says otherwise: several elections of a shard fit.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that neither answers nor breaks the connection costs this; well above a slow answer, below a request's time.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// Handles kept by name, so that asking for a keyspace again finds its routes. More are not kept.
const KEYSPACES_KEPT_MAX: usize = 1024;

/// A connection to a cluster. Cheap to clone; clones share connections, routes and the retry budget.
///
/// ```no_run
/// use kv_client::Client;
///
/// # async fn run() -> Result<(), kv_client::Error> {
/// let client = Client::connect(["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"]).await?;
/// client.put("greeting", "hello").await?;
/// let entry = client.get("greeting").await?.expect("just written");
/// assert_eq!(entry.value, "hello");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    default: Keyspace,
    keyspaces: Arc<Mutex<BTreeMap<Arc<str>, Keyspace>>>,
}

/// How to connect; made by [`Client::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    timeouts: Timeouts,
    connection: ConnectionOptions,
    cluster_id: Option<Arc<str>>,
    keyspace: Arc<str>,
}

impl ClientBuilder {
    /// Addresses of nodes, `host:port`; any one that answers is enough, the others are learned from it.
    pub fn endpoints<E: Into<String>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// Time a request gets, retries included, unless it sets its own. Default 5 s, at most 60 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.request = timeout;
        self
    }

    /// Time one attempt gets before another node is asked. Default 2 s.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.attempt = timeout;
        self
    }

    /// Time a node gets to accept a connection. Default 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connection.connect_timeout = timeout;
        self
    }

    /// How often a silent connection is pinged, and how long the answer may take. Default 500 ms and 1 s.
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.connection.keepalive_interval = interval;
        self.connection.keepalive_timeout = timeout;
        self
    }

    /// Refuse any other cluster. Without it the first answer tells which cluster this client is of.
    pub fn cluster_id(mut self, id: impl AsRef<str>) -> Self {
        self.cluster_id = Some(Arc::from(id.as_ref()));
        self
    }

    /// The keyspace of requests that begin at the client itself; `default` unless set.
    pub fn keyspace(mut self, name: impl AsRef<str>) -> Self {
        self.keyspace = Arc::from(name.as_ref());
        self
    }

    /// A client that connects when it is first used.
    ///
    /// # Errors
    /// [`Error::Usage`] without endpoints, or if one is no `host:port`.
    pub fn build_lazy(self) -> Result<Client> {
        if self.endpoints.is_empty() {
            return Err(Error::usage("at least one endpoint is needed"));
        }
        let endpoints: Vec<Arc<str>> =
            self.endpoints.iter().map(|endpoint| address(endpoint)).collect::<Result<_>>()?;
        let pool = NodePool::new(self.connection);
        let core = Arc::new(Core::new(pool, endpoints, self.timeouts, self.cluster_id));
        let default = Keyspace::new(core.clone(), self.keyspace.clone());
        let keyspaces = Arc::new(Mutex::new(BTreeMap::from([(self.keyspace, default.clone())])));
        Ok(Client { core, default, keyspaces })
    }

    /// A client that has reached the cluster.
    ///
    /// # Errors
    /// As [`ClientBuilder::build_lazy`], or if no endpoint answers within the timeout.
    pub async fn build(self) -> Result<Client> {
        let client = self.build_lazy()?;
        client.reach().await?;
        Ok(client)
    }

    /// The same as [`ClientBuilder::build`].
    ///
    /// # Errors
    /// As there.
    pub async fn connect(self) -> Result<Client> {
        self.build().await
    }
}

/// `host:port`, also if given as a URL.
fn address(endpoint: &str) -> Result<Arc<str>> {
    let address = endpoint.trim().trim_start_matches("http://").trim_end_matches('/');
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty() && !host.contains('/'))
        .map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(Arc::from(address)),
        Some(Err(_)) | None => Err(Error::usage(format!("endpoint {endpoint:?} is not host:port"))),
    }
}

impl Client {
    /// Connects with default options.
    ///
    /// # Errors
    /// If no endpoint answers.
    pub async fn connect<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Result<Self> {
        Self::builder().endpoints(endpoints).build().await
    }

    /// Begins with default options.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            endpoints: vec![],
            timeouts: Timeouts { request: REQUEST_TIMEOUT, attempt: ATTEMPT_TIMEOUT },
            connection: ConnectionOptions::default(),
            cluster_id: None,
            keyspace: Arc::from(DEFAULT),
        }
    }

    /// A keyspace by name. It need not exist yet; requests on it fail until it does.
    #[must_use]
    pub fn keyspace(&self, name: &str) -> Keyspace {
        let mut keyspaces = self.keyspaces.lock();
        if let Some(keyspace) = keyspaces.get(name) {
            return keyspace.clone();
        }
        let name: Arc<str> = Arc::from(name);
        let keyspace = Keyspace::new(self.core.clone(), name.clone());
        if keyspaces.len() < KEYSPACES_KEPT_MAX {
            keyspaces.insert(name, keyspace.clone());
        }
        keyspace
    }

    /// Nodes, keyspaces, shards, membership.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.core.clone())
    }

    /// The cluster's id, once a node has told it.
    #[must_use]
    pub fn cluster_id(&self) -> Option<&str> {
        self.core.cluster().map(|id| &**id)
    }

    /// Reads a key; see [`Keyspace::get`].
    pub fn get(&self, key: impl Into<Data>) -> Get {
        self.default.get(key)
    }

    /// Writes a key; see [`Keyspace::put`].
    pub fn put(&self, key: impl Into<Data>, value: impl Into<Data>) -> Put {
        self.default.put(key, value)
    }

    /// Deletes a key; see [`Keyspace::delete`].
    pub fn delete(&self, key: impl Into<Data>) -> Delete {
        self.default.delete(key)
    }

    /// Changes a key if it is as expected; see [`Keyspace::compare_and_set`].
    pub fn compare_and_set(&self, key: impl Into<Data>) -> CompareAndSet {
        self.default.compare_and_set(key)
    }

    /// Reads many keys; see [`Keyspace::batch_get`].
    pub fn batch_get<K: Into<Data>>(&self, keys: impl IntoIterator<Item = K>) -> BatchGet {
        self.default.batch_get(keys)
    }

    /// Collects writes; see [`Keyspace::batch`].
    pub fn batch(&self) -> Batch {
        self.default.batch()
    }

    /// Reads ranges of keys; see [`Keyspace::scan`].
    pub fn scan(&self) -> Scan {
        self.default.scan()
    }

    /// Where the keyspace's shards are served; see [`Keyspace::routes`].
    ///
    /// # Errors
    /// As there.
    pub async fn routes(&self) -> Result<Arc<Routes>> {
        self.default.routes().await
    }

    /// Fails what is in flight, closes all connections and waits for it. Dropping all clones closes them as well,
    /// without waiting.
    pub async fn close(&self) {
        self.core.pool.close().await;
    }

    /// Any node's answer will do: a cluster that is still starting has no keyspace yet.
    async fn reach(&self) -> Result<()> {
        let deadline = Deadline::after(self.core.timeouts.request);
        match self.default.0.routes.refresh(deadline.at).await {
            Ok(_) => Ok(()),
            Err(CallError::Service(error @ ServiceError::ClusterMismatch { .. })) => Err(Error::foreseen(error)),
            Err(CallError::Service(_)) => Ok(()),
            Err(error @ CallError::Connection(_)) => Err(Error::from_call(error, Outcome::NotApplied, 1)),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.core.endpoints()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::pb::ListNodesRequest;
    use std::future::IntoFuture as _;

    fn sent<T: Send>(_: &T) {}

    #[test]
    fn every_request_can_move_between_threads() {
        let client = Client::builder().endpoints(["127.0.0.1:1"]).build_lazy().unwrap();
        sent(&client.put("a", "b").into_future());
        sent(&client.scan().stream());
        let admin = client.admin();
        sent(&admin.list_nodes(ListNodesRequest {}));
        sent(&client.routes());
    }

    #[test]
    fn an_endpoint_is_host_and_port() {
        let build = |endpoint: &str| Client::builder().endpoints([endpoint]).build_lazy();
        for good in ["127.0.0.1:7001", "localhost:1", "http://node.example:80/", "[::1]:7001"] {
            assert!(build(good).is_ok(), "{good}");
        }
        for bad in ["", "7001", ":7001", "host", "host:port", "host:70000"] {
            assert!(matches!(build(bad), Err(Error::Usage { .. })), "{bad}");
        }
        assert!(Client::builder().build_lazy().is_err());
    }
}
