//! What every command works with: the client, the options, the output; and the reads many commands share.
//!
//! Not here: retries and routes (kv-client).

use bytes::Bytes;
use kv_client::{Client, Consistency, Keyspace};
use kv_proto::pb::admin::v1::{
    Action, KeyspaceKind, ListActionsRequest, ListNodesRequest, ListShardsRequest, NodeListing, ShardListing,
};
use kv_proto::timestamp::Timestamp;

use crate::args::{Global, Promise};
use crate::exit::{Explain as _, Failure};
use crate::output::Output;
use crate::shard_view::Kinds;

/// What every command works with.
pub(crate) struct Context {
    /// Connects when first used.
    pub(crate) client: Client,
    /// As given.
    pub(crate) global: Global,
    /// Where results go.
    pub(crate) output: Output,
}

impl Context {
    /// Fails only if an endpoint is no address.
    pub(crate) fn new(global: Global) -> Result<Self, Failure> {
        let output = Output::detect(global.format(), global.color);
        let client = Client::builder()
            .endpoints(global.endpoints.clone())
            .keyspace(&global.keyspace)
            .timeout(global.timeout)
            .build_lazy()
            .map_err(|error| error.read(""))?;
        Ok(Self { client, global, output })
    }

    /// The same connections with the options of another command line.
    pub(crate) fn with(&self, global: Global) -> Result<Self, Failure> {
        if global.endpoints != self.global.endpoints || global.timeout != self.global.timeout {
            return Self::new(global);
        }
        let output = Output::detect(global.format(), global.color);
        Ok(Self { client: self.client.clone(), global, output })
    }

    /// The keyspace that keys belong to.
    pub(crate) fn here(&self) -> Keyspace {
        self.client.keyspace(&self.global.keyspace)
    }

    /// A key as written on the command line.
    pub(crate) fn key(&self, text: &str) -> Result<Bytes, Failure> {
        self.global.key_encoding.decode("key", text)
    }

    /// A key for people.
    pub(crate) fn show_key(&self, key: &[u8]) -> String {
        self.global.key_encoding.show(key)
    }

    /// What reads promise.
    pub(crate) fn consistency(&self) -> Consistency {
        match self.global.consistency {
            Promise::Linearizable => Consistency::Linearizable,
            Promise::Lease => Consistency::Lease,
            Promise::Stale(max) => Consistency::Stale { max: max.unwrap_or_default() },
            Promise::Snapshot(at) => Consistency::Snapshot { at: Timestamp(at) },
        }
    }

    /// The admin interface at any endpoint.
    pub(crate) fn admin(&self) -> kv_client::Admin {
        self.client.admin()
    }

    /// All nodes, with what each says of itself.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeListing>, Failure> {
        let response = self.admin().list_nodes(ListNodesRequest {}).await;
        let mut nodes = response.map_err(|error| error.read("list nodes"))?.nodes;
        nodes.sort_by_key(|listing| listing.node.as_ref().map(|node| node.node_id));
        Ok(nodes)
    }

    /// Shards of a keyspace (empty: all), or one shard (0: all).
    pub(crate) async fn shards(&self, keyspace: &str, shard_id: u64) -> Result<Vec<ShardListing>, Failure> {
        let request = ListShardsRequest { keyspace: keyspace.to_owned(), shard_id };
        Ok(self.admin().list_shards(request).await.map_err(|error| error.read("list shards"))?.shards)
    }

    /// Long actions.
    pub(crate) async fn actions(&self, running: bool) -> Result<Vec<Action>, Failure> {
        let response = self.admin().list_actions(ListActionsRequest { running }).await;
        Ok(response.map_err(|error| error.read("list actions"))?.actions)
    }

    /// Kind of each keyspace by id.
    pub(crate) async fn kinds(&self) -> Result<Kinds, Failure> {
        let keyspaces = self.keyspaces().await?.into_iter().filter_map(|listing| listing.keyspace);
        let mut kinds: Kinds = keyspaces.map(|keyspace| (keyspace.keyspace_id, keyspace.kind())).collect();
        kinds.entry(kv_proto::ids::SYSTEM_KEYSPACE.0).or_insert(KeyspaceKind::Range);
        Ok(kinds)
    }
}
