//! A keyspace: the handle that requests on keys begin at.
//!
//! Not here: the requests themselves (requests).

use std::fmt;
use std::sync::Arc;

use crate::core::Core;
use crate::data::Data;
use crate::error::{Error, Result};
use crate::requests::{Batch, BatchGet, CompareAndSet, Delete, Get, Put, Scan};
use crate::routes::Routes;
use crate::scope::Scope;

/// A keyspace of the cluster. Cheap to clone; all clones share one route cache.
///
/// ```no_run
/// # async fn run() -> Result<(), kv_client::Error> {
/// let client = kv_client::Client::connect(["127.0.0.1:7001"]).await?;
/// let events = client.keyspace("events");
/// events.put("2024-05-01/1", "started").await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Keyspace(pub(crate) Arc<Scope>);

impl Keyspace {
    pub(crate) fn new(core: Arc<Core>, name: Arc<str>) -> Self {
        Self(Scope::new(core, name))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Reads a key: `Option<Entry>`.
    pub fn get(&self, key: impl Into<Data>) -> Get {
        Get::new(&self.0, key.into())
    }

    /// Writes a key: its new version.
    pub fn put(&self, key: impl Into<Data>, value: impl Into<Data>) -> Put {
        Put::new(&self.0, key.into(), value.into())
    }

    /// Deletes a key; deleting an absent one succeeds and says so.
    pub fn delete(&self, key: impl Into<Data>) -> Delete {
        Delete::new(&self.0, key.into())
    }

    /// Writes or deletes a key if it is as expected.
    pub fn compare_and_set(&self, key: impl Into<Data>) -> CompareAndSet {
        CompareAndSet::new(&self.0, key.into())
    }

    /// Reads many keys, from all their shards at once.
    pub fn batch_get<K: Into<Data>>(&self, keys: impl IntoIterator<Item = K>) -> BatchGet {
        BatchGet::new(&self.0, keys.into_iter().map(Into::into).collect())
    }

    /// Collects writes that are applied together.
    pub fn batch(&self) -> Batch {
        Batch::new(&self.0)
    }

    /// Reads ranges of keys.
    pub fn scan(&self) -> Scan {
        Scan::new(&self.0)
    }

    /// Where the keyspace's shards are served, as the cluster knows it now.
    ///
    /// # Errors
    /// If no node can be reached, or the keyspace does not exist.
    pub async fn routes(&self) -> Result<Arc<Routes>> {
        let deadline = self.0.deadline(None);
        let fetched = self.0.routes.refresh(deadline.at).await;
        fetched.map_err(|error| Error::from_call(error, kv_proto::errors::Outcome::NotApplied, 1))
    }
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace").field("name", &self.0.name).finish_non_exhaustive()
    }
}
