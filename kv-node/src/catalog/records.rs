//! The records of the catalog as keys and values of the system keyspace.
//!
//! Key = the system keyspace's prefix, then `cluster`, `node/<id>`, `keyspace/<id>`, `shard/<id>` or `action/<id>`, ids
//! big endian. Value = the protobuf message of kv.admin.v1. `Cluster.format` versions all of them together.
//!
//! Invariants: what is encoded decodes to the same record; a key of another form is an error, never skipped.
//!
//! Not here: how records change (change), how they are read and written (store).

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_proto::ids::SYSTEM_KEYSPACE;
use kv_proto::keys::{self, Layout};
use kv_proto::pb::admin::v1::{Action, ActionState, Catalog, Cluster, Keyspace, Node, Shard};
use kv_proto::timestamp::Timestamp;
use prost::Message as _;

/// The format of records this version reads and writes.
pub const FORMAT: u32 = 1;

/// Names a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKey {
    /// Counters and settings of the cluster.
    Cluster,
    /// By node id.
    Node(u64),
    /// By keyspace id.
    Keyspace(u32),
    /// By shard id.
    Shard(u64),
    /// By action id.
    Action(u64),
}

/// A record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Under `cluster`.
    Cluster(Cluster),
    /// Under `node/`.
    Node(Node),
    /// Under `keyspace/`.
    Keyspace(Keyspace),
    /// Under `shard/`.
    Shard(Shard),
    /// Under `action/`.
    Action(Action),
}

/// Why a stored record cannot be read: damage, or a newer version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("catalog record {key}: {why}")]
pub struct RecordError {
    key: String,
    why: String,
}

const CLUSTER: &[u8] = b"cluster";
const NODE: &[u8] = b"node/";
const KEYSPACE: &[u8] = b"keyspace/";
const SHARD: &[u8] = b"shard/";
const ACTION: &[u8] = b"action/";

impl RecordKey {
    /// The encoded key.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let join = |prefix: &[u8], id: &[u8]| [prefix, id].concat();
        let user = match self {
            Self::Cluster => CLUSTER.to_vec(),
            Self::Node(id) => join(NODE, &id.to_be_bytes()),
            Self::Keyspace(id) => join(KEYSPACE, &id.to_be_bytes()),
            Self::Shard(id) => join(SHARD, &id.to_be_bytes()),
            Self::Action(id) => join(ACTION, &id.to_be_bytes()),
        };
        keys::encode(SYSTEM_KEYSPACE, Layout::Range, &user)
    }

    /// From an encoded key.
    #[must_use]
    pub fn decode(encoded: &Bytes) -> Option<Self> {
        let user = keys::decode(Layout::Range, encoded)?;
        let id = |prefix: &[u8]| Some(u64::from_be_bytes(user.strip_prefix(prefix)?.try_into().ok()?));
        if user == CLUSTER {
            return Some(Self::Cluster);
        }
        if let Some(rest) = user.strip_prefix(KEYSPACE) {
            return Some(Self::Keyspace(u32::from_be_bytes(rest.try_into().ok()?)));
        }
        let node = || id(NODE).map(Self::Node);
        node().or_else(|| id(SHARD).map(Self::Shard)).or_else(|| id(ACTION).map(Self::Action))
    }
}

impl Record {
    /// The key it lies under.
    #[must_use]
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Cluster(_) => RecordKey::Cluster,
            Self::Node(node) => RecordKey::Node(node.node_id),
            Self::Keyspace(keyspace) => RecordKey::Keyspace(keyspace.keyspace_id),
            Self::Shard(shard) => RecordKey::Shard(shard.shard_id),
            Self::Action(action) => RecordKey::Action(action.action_id),
        }
    }

    /// Its value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Cluster(record) => record.encode_to_vec(),
            Self::Node(record) => record.encode_to_vec(),
            Self::Keyspace(record) => record.encode_to_vec(),
            Self::Shard(record) => record.encode_to_vec(),
            Self::Action(record) => record.encode_to_vec(),
        }
    }

    /// From a stored key and value; refuses a value that belongs under another key.
    pub fn decode(encoded: &Bytes, value: &Bytes) -> Result<Self, RecordError> {
        let fail = |why: &str| RecordError { key: encoded.escape_ascii().to_string(), why: why.to_owned() };
        let key = RecordKey::decode(encoded).ok_or_else(|| fail("not a key of this version"))?;
        let bytes = value.as_ref();
        let record = match key {
            RecordKey::Cluster => Cluster::decode(bytes).map(Self::Cluster),
            RecordKey::Node(_) => Node::decode(bytes).map(Self::Node),
            RecordKey::Keyspace(_) => Keyspace::decode(bytes).map(Self::Keyspace),
            RecordKey::Shard(_) => Shard::decode(bytes).map(Self::Shard),
            RecordKey::Action(_) => Action::decode(bytes).map(Self::Action),
        };
        let record = record.map_err(|error| fail(&error.to_string()))?;
        if record.key() != key {
            return Err(fail("holds a record of another key"));
        }
        Ok(record)
    }
}

/// All records of one moment, each with the commit timestamp that left it, which is what changes are conditional on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// Commit timestamp of the newest change.
    pub version: u64,
    /// Absent only before the bootstrap.
    pub cluster: Option<Cluster>,
    /// By id.
    pub nodes: BTreeMap<u64, Node>,
    /// By id.
    pub keyspaces: BTreeMap<u32, Keyspace>,
    /// By id.
    pub shards: BTreeMap<u64, Shard>,
    /// By id.
    pub actions: BTreeMap<u64, Action>,
    /// When each was written.
    pub commits: BTreeMap<RecordKey, Timestamp>,
}

impl Records {
    /// Takes in a record; replaces an earlier one under the same key.
    pub fn insert(&mut self, record: Record, commit: Timestamp) {
        self.commits.insert(record.key(), commit);
        match record {
            Record::Cluster(record) => self.cluster = Some(record),
            Record::Node(record) => _ = self.nodes.insert(record.node_id, record),
            Record::Keyspace(record) => _ = self.keyspaces.insert(record.keyspace_id, record),
            Record::Shard(record) => _ = self.shards.insert(record.shard_id, record),
            Record::Action(record) => _ = self.actions.insert(record.action_id, record),
        }
    }

    /// Takes a record out.
    pub fn remove(&mut self, key: RecordKey) {
        self.commits.remove(&key);
        match key {
            RecordKey::Cluster => self.cluster = None,
            RecordKey::Node(id) => _ = self.nodes.remove(&id),
            RecordKey::Keyspace(id) => _ = self.keyspaces.remove(&id),
            RecordKey::Shard(id) => _ = self.shards.remove(&id),
            RecordKey::Action(id) => _ = self.actions.remove(&id),
        }
    }

    /// As it crosses the wire.
    #[must_use]
    pub fn to_catalog(&self) -> Catalog {
        let cluster = self.cluster.clone().unwrap_or_default();
        Catalog {
            format: cluster.format,
            cluster_id: cluster.cluster_id,
            version: self.version,
            nodes: self.nodes.values().cloned().collect(),
            keyspaces: self.keyspaces.values().cloned().collect(),
            shards: self.shards.values().cloned().collect(),
            actions: self.actions.values().cloned().collect(),
            next_shard_id: cluster.next_shard_id,
        }
    }

    /// The action that runs on a shard; there is at most one.
    #[must_use]
    pub fn running_action(&self, shard: u64) -> Option<&Action> {
        let runs = |action: &&Action| action.shard_id == shard && runs(action);
        self.actions.values().find(runs)
    }
}

/// Whether an action has not ended.
#[must_use]
pub fn runs(action: &Action) -> bool {
    action.state() == ActionState::Running
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_decodes_to_what_was_encoded() {
        let records = [
            Record::Cluster(Cluster { format: 1, next_node_id: 2, ..Default::default() }),
            Record::Node(Node { node_id: 3, address: "a:1".into(), ..Default::default() }),
            Record::Keyspace(Keyspace { keyspace_id: 9, name: "x".into(), ..Default::default() }),
            Record::Shard(Shard { shard_id: 1 << 40, ..Default::default() }),
            Record::Action(Action { action_id: 5, ..Default::default() }),
        ];
        for record in records {
            let value = Bytes::from(record.encode());
            assert_eq!(Record::decode(&record.key().encode(), &value), Ok(record));
        }
    }

    #[test]
    fn a_record_under_a_wrong_key_is_refused() {
        let value = Bytes::from(Record::Node(Node { node_id: 3, ..Default::default() }).encode());
        assert!(Record::decode(&RecordKey::Node(4).encode(), &value).is_err());
        assert!(Record::decode(&keys::encode(SYSTEM_KEYSPACE, Layout::Range, b"other/1"), &value).is_err());
    }
}
