//! One version of the catalog, indexed for the data path. Pure and immutable.
//!
//! Invariants: shards of a keyspace do not overlap; lookups never allocate but where they build an answer.
//!
//! Not here: who leads a shard now (leaders); where the records come from (store, sync).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::ids::{Epoch, KeyspaceId, NodeId, ReplicaId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::keys::Layout;
use kv_proto::pb::admin::v1::{Catalog, Keyspace, KeyspaceKind, KeyspaceState, Node, NodeState, ReplicaRole, Shard};
use kv_proto::pb::v1::{RouteReplica, ShardRoute};

use super::leaders::Leaders;

/// A shard descriptor with its range decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardInfo {
    /// As the catalog holds it.
    pub descriptor: Shard,
    /// Its encoded keys.
    pub range: KeyRange,
}

impl ShardInfo {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> ShardId {
        ShardId(self.descriptor.shard_id)
    }

    /// Its epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(self.descriptor.epoch)
    }

    /// The keyspace it is part of.
    #[must_use]
    pub fn keyspace(&self) -> KeyspaceId {
        KeyspaceId(self.descriptor.keyspace_id)
    }

    /// The replica the catalog wants on a node; None if none.
    #[must_use]
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        let replica = self.descriptor.replicas.iter().find(|replica| replica.node_id == node.0);
        replica.map(|replica| ReplicaId(replica.replica_id))
    }

    /// The nodes of all its replicas.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.descriptor.replicas.iter().map(|replica| NodeId(replica.node_id))
    }
}

/// Why a catalog cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// Written by a newer version of this software.
    #[error("the catalog has format {0}, this node knows only format {known}", known = super::records::FORMAT)]
    Format(u32),
    /// A shard's bounds are not a range.
    #[error("shard {0} has an empty range")]
    Range(ShardId),
}

/// One version of the catalog. The empty view (version 0) is what a node has before it knows any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CatalogView {
    catalog: Catalog,
    keyspaces: BTreeMap<String, Keyspace>,
    shards: BTreeMap<ShardId, Arc<ShardInfo>>,
    /// By first key. System and user keyspaces share one order, since encoded keys begin with the keyspace id.
    by_start: BTreeMap<Bytes, Arc<ShardInfo>>,
}

impl CatalogView {
    /// Indexes a catalog; refuses one this version cannot read.
    pub fn new(catalog: Catalog) -> Result<Self, ViewError> {
        if catalog.version > 0 && catalog.format != super::records::FORMAT {
            return Err(ViewError::Format(catalog.format));
        }
        let keyspaces = catalog.keyspaces.iter().map(|keyspace| (keyspace.name.clone(), keyspace.clone())).collect();
        let mut shards = BTreeMap::new();
        for descriptor in &catalog.shards {
            let range = KeyRange::new(descriptor.start.clone(), descriptor.end.clone())
                .ok_or(ViewError::Range(ShardId(descriptor.shard_id)))?;
            let info = Arc::new(ShardInfo { descriptor: descriptor.clone(), range });
            shards.insert(info.id(), info);
        }
        let by_start = shards.values().map(|info| (info.range.start().clone(), Arc::clone(info))).collect();
        Ok(Self { catalog, keyspaces, shards, by_start })
    }

    /// The records.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Rises with every change; 0 before any catalog is known.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.catalog.version
    }

    /// The cluster's id; empty before any catalog is known.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.catalog.cluster_id
    }

    /// By name.
    #[must_use]
    pub fn keyspace(&self, name: &str) -> Option<&Keyspace> {
        self.keyspaces.get(name)
    }

    /// By id.
    #[must_use]
    pub fn keyspace_by_id(&self, id: KeyspaceId) -> Option<&Keyspace> {
        self.catalog.keyspaces.iter().find(|keyspace| keyspace.keyspace_id == id.0)
    }

    /// By id.
    #[must_use]
    pub fn shard(&self, id: ShardId) -> Option<&Arc<ShardInfo>> {
        self.shards.get(&id)
    }

    /// The shard that holds an encoded key.
    #[must_use]
    pub fn shard_of_key(&self, encoded: &[u8]) -> Option<&Arc<ShardInfo>> {
        let up_to = (Bound::Unbounded, Bound::Included(encoded));
        let (_, info) = self.by_start.range::<[u8], _>(up_to).next_back()?;
        info.range.contains(encoded).then_some(info)
    }

    /// The shards that overlap a range of encoded keys, in key order.
    #[must_use]
    pub fn shards_in(&self, range: &KeyRange) -> Vec<Arc<ShardInfo>> {
        let overlaps = |info: &&Arc<ShardInfo>| info.range.intersection(range).is_some();
        self.by_start.values().filter(overlaps).map(Arc::clone).collect()
    }

    /// All shards of a keyspace, in key order.
    #[must_use]
    pub fn shards_of(&self, keyspace: KeyspaceId) -> Vec<Arc<ShardInfo>> {
        self.by_start.values().filter(|info| info.keyspace() == keyspace).map(Arc::clone).collect()
    }

    /// All shards, by id.
    pub fn shards(&self) -> impl Iterator<Item = &Arc<ShardInfo>> {
        self.shards.values()
    }

    /// By id, also one that is lost or removed.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.catalog.nodes.iter().find(|node| node.node_id == id.0)
    }

    /// Nodes that may answer: neither lost nor removed.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.catalog.nodes.iter().filter(|node| is_member(node))
    }

    /// Where a node can be reached; None if it is not known, lost or removed.
    #[must_use]
    pub fn address(&self, id: NodeId) -> Option<&str> {
        self.node(id).filter(|node| is_member(node)).map(|node| node.address.as_str())
    }

    /// What a client needs to reach a shard.
    #[must_use]
    pub fn route(&self, shard: &ShardInfo, leaders: &Leaders) -> ShardRoute {
        let replicas = shard.descriptor.replicas.iter().filter_map(|replica| {
            let address = self.address(NodeId(replica.node_id))?.to_owned();
            Some(RouteReplica { node_id: replica.node_id, address, voter: replica.role() == ReplicaRole::Voter })
        });
        ShardRoute {
            shard_id: shard.descriptor.shard_id,
            epoch: shard.descriptor.epoch,
            start: shard.descriptor.start.clone(),
            end: shard.descriptor.end.clone(),
            leader_node_id: leaders.leader(shard.id()).map_or(0, |leader| leader.node.0),
            replicas: replicas.collect(),
            keyspace_id: shard.descriptor.keyspace_id,
        }
    }
}

/// Neither lost nor removed.
#[must_use]
pub fn is_member(node: &Node) -> bool {
    match node.state() {
        NodeState::Active | NodeState::Draining | NodeState::Drained => true,
        NodeState::Lost | NodeState::Removed | NodeState::Unspecified => false,
    }
}

/// How a keyspace lays out its keys.
#[must_use]
pub fn layout(keyspace: &Keyspace) -> Layout {
    match keyspace.kind() {
        KeyspaceKind::Hash | KeyspaceKind::Unspecified => Layout::Hash,
        KeyspaceKind::Range => Layout::Range,
    }
}

/// Whether requests may name the keyspace: not once its deletion began.
#[must_use]
pub fn serves(keyspace: &Keyspace) -> bool {
    match keyspace.state() {
        KeyspaceState::Creating | KeyspaceState::Ready => true,
        KeyspaceState::Deleting | KeyspaceState::Unspecified => false,
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::ids::SYSTEM_KEYSPACE;
    use kv_proto::keys;

    use super::*;

    fn view(shards: Vec<Shard>) -> CatalogView {
        let format = super::super::records::FORMAT;
        CatalogView::new(Catalog { format, version: 1, shards, ..Default::default() }).unwrap()
    }

    fn shard(id: u64, range: &KeyRange) -> Shard {
        Shard { shard_id: id, start: range.start().clone(), end: range.end().clone(), ..Default::default() }
    }

    #[test]
    fn every_key_of_a_keyspace_belongs_to_exactly_one_shard() {
        let ranges = keys::split_by_slots(KeyspaceId(2), 7);
        let view = view(ranges.iter().zip(2..).map(|(range, id)| shard(id, range)).collect());
        for number in 0..1000_u32 {
            let key = keys::encode(KeyspaceId(2), Layout::Hash, &number.to_be_bytes());
            let holders: Vec<_> =
                view.shards().filter(|info| info.range.contains(&key)).map(|info| info.id()).collect();
            assert_eq!(holders, [view.shard_of_key(&key).unwrap().id()]);
        }
    }

    #[test]
    fn a_key_of_another_keyspace_belongs_to_no_shard() {
        let view = view(vec![shard(1, &keys::keyspace_range(SYSTEM_KEYSPACE))]);
        assert!(view.shard_of_key(&keys::encode(KeyspaceId(2), Layout::Range, b"a")).is_none());
        assert!(view.shard_of_key(b"").is_none());
    }

    #[test]
    fn a_catalog_of_an_unknown_format_is_refused() {
        let catalog = Catalog { format: 99, version: 1, ..Default::default() };
        assert_eq!(CatalogView::new(catalog), Err(ViewError::Format(99)));
    }
}
