//! Keyspaces that come and go.

use bytes::Bytes;
use kv_proto::errors::{ServiceError, Violation};
use kv_proto::ids::KeyspaceId;
use kv_proto::key_range::KeyRange;
use kv_proto::keys;
use kv_proto::limits::{KEY_BYTES_MAX, KEYSPACE_SHARDS_MAX, NAME_BYTES_MAX};
use kv_proto::pb::admin::v1::{
    Cluster, CreateKeyspaceRequest, Keyspace, KeyspaceKind, KeyspaceState, Replica, ReplicaRole, Shard,
};

use super::bootstrap::{DEFAULT_KEYSPACE_ID, DEFAULT_NAME, SYSTEM_NAME};
use super::{REPLICAS_MAX, cluster, refused};
use crate::catalog::change::Change;
use crate::catalog::placement::{Loads, Spread};
use crate::catalog::records::{Record, RecordKey, Records};

/// Longest retention: ten years of history are a backup, not a setting.
const RETENTION_SECONDS_MAX: u64 = 10 * 366 * 24 * 3600;

/// Replicas of a keyspace that does not say.
const REPLICAS_DEFAULT: u32 = 3;

/// What [`ServiceError::AlreadyExists`] calls a keyspace that is what was asked for.
const IDENTICAL: &str = "keyspace with these settings";

/// What it calls one that is not, or that is being deleted.
const OTHER: &str = "keyspace with other settings";

/// Creates a keyspace with its shards, replicas and preferred leaders spread evenly over the nodes in `usable`.
pub fn create(
    records: &Records,
    request: &CreateKeyspaceRequest,
    usable: impl Fn(u64) -> bool,
) -> Result<(Change, Keyspace), ServiceError> {
    let mut cluster = cluster(records)?;
    let loads = Loads::of(records).only(usable);
    let violations = violations(request, loads.iter().count());
    if !violations.is_empty() {
        return Err(ServiceError::Invalid { violations });
    }
    if let Some(keyspace) = records.keyspaces.values().find(|keyspace| keyspace.name == request.name) {
        let what = if is_as_asked(records, keyspace, request) { IDENTICAL } else { OTHER };
        return Err(ServiceError::AlreadyExists { what: what.into(), name: request.name.clone() });
    }
    let id = if request.name == DEFAULT_NAME && !records.keyspaces.contains_key(&DEFAULT_KEYSPACE_ID) {
        DEFAULT_KEYSPACE_ID
    } else {
        cluster.next_keyspace_id += 1;
        cluster.next_keyspace_id - 1
    };
    let plan = Plan { request, id, replicas: replicas(request, loads.iter().count()) };
    plan.change(cluster, loads)
}

/// Whether a keyspace is what a request asks for, as far as the request says: then a creation whose outcome was unknown
/// was made, by this caller or another one.
fn is_as_asked(records: &Records, keyspace: &Keyspace, request: &CreateKeyspaceRequest) -> bool {
    let plan = Plan { request, id: keyspace.keyspace_id, replicas: keyspace.replicas };
    let mut shards: Vec<&Shard> =
        records.shards.values().filter(|shard| shard.keyspace_id == keyspace.keyspace_id).collect();
    shards.sort_by(|one, other| one.start.cmp(&other.start));
    let is_cut_by_default = plan.kind() == KeyspaceKind::Hash && request.shards == 0;
    let ranges = plan.ranges(0);
    let is_cut_so = shards.len() == ranges.len()
        && shards.iter().zip(&ranges).all(|(shard, range)| shard.start == *range.start() && shard.end == *range.end());
    keyspace.kind() == plan.kind()
        && keyspace.retention_seconds == request.retention_seconds
        && (request.replicas == 0 || keyspace.replicas == request.replicas)
        && (is_cut_by_default || is_cut_so)
        && keyspace.state() != KeyspaceState::Deleting
}

struct Plan<'a> {
    request: &'a CreateKeyspaceRequest,
    id: u32,
    replicas: u32,
}

impl Plan<'_> {
    fn change(&self, mut cluster: Cluster, mut loads: Loads) -> Result<(Change, Keyspace), ServiceError> {
        let mut change = Change::default();
        for range in self.ranges(cluster.default_shards) {
            let voters = usize::try_from(self.replicas).unwrap_or(usize::MAX);
            let too_few = || refused(format!("{} replicas need as many active nodes that answer", self.replicas), "");
            let spread = loads.place(voters).ok_or_else(too_few)?;
            change.put(Record::Shard(new_shard(cluster.next_shard_id, self.id, &range, &spread)));
            cluster.next_shard_id += 1;
        }
        let keyspace = Keyspace {
            keyspace_id: self.id,
            name: self.request.name.clone(),
            kind: self.kind().into(),
            replicas: self.replicas,
            retention_seconds: self.request.retention_seconds,
            state: KeyspaceState::Creating.into(),
            epoch: 1,
        };
        change.put(Record::Keyspace(keyspace.clone())).put(Record::Cluster(cluster));
        Ok((change, keyspace))
    }

    fn kind(&self) -> KeyspaceKind {
        match self.request.kind() {
            KeyspaceKind::Unspecified | KeyspaceKind::Hash => KeyspaceKind::Hash,
            KeyspaceKind::Range => KeyspaceKind::Range,
        }
    }

    /// A hash keyspace that does not say has `default` shards.
    fn ranges(&self, default: u32) -> Vec<KeyRange> {
        let id = KeyspaceId(self.id);
        if self.kind() == KeyspaceKind::Range {
            return keys::split_by_keys(id, &self.request.split_keys).unwrap_or_default();
        }
        let shards = if self.request.shards == 0 { default.max(1) } else { self.request.shards };
        keys::split_by_slots(id, u16::try_from(shards).unwrap_or(u16::MAX))
    }
}

fn replicas(request: &CreateKeyspaceRequest, nodes: usize) -> u32 {
    match (request.replicas, u32::try_from(nodes).unwrap_or(u32::MAX)) {
        (0, 0..=2) => 1,
        (0, _) => REPLICAS_DEFAULT,
        (asked, _) => asked,
    }
}

fn new_shard(id: u64, keyspace: u32, range: &KeyRange, spread: &Spread) -> Shard {
    let replicas: Vec<Replica> = (1..)
        .zip(&spread.nodes)
        .map(|(replica_id, node_id)| Replica { replica_id, node_id: *node_id, role: ReplicaRole::Voter.into() })
        .collect();
    let preferred = replicas.iter().find(|replica| replica.node_id == spread.leader);
    Shard {
        shard_id: id,
        keyspace_id: keyspace,
        start: range.start().clone(),
        end: range.end().clone(),
        epoch: 1,
        next_replica_id: replicas.iter().map(|replica| replica.replica_id).max().unwrap_or(0) + 1,
        preferred_leader_replica_id: preferred.map_or(1, |replica| replica.replica_id),
        replicas,
        creating: true,
    }
}

fn violations(request: &CreateKeyspaceRequest, nodes: usize) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut fault = |field: &str, description: String| found.push(Violation { field: field.into(), description });
    let name = &request.name;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        fault("name", format!("must be 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-' and '_'"));
    }
    if name == SYSTEM_NAME {
        fault("name", format!("{SYSTEM_NAME:?} is the catalog's own"));
    }
    if request.replicas != 0 && (request.replicas.is_multiple_of(2) || request.replicas > REPLICAS_MAX) {
        fault("replicas", format!("must be odd and at most {REPLICAS_MAX}, or 0 for the default"));
    } else if usize::try_from(request.replicas).is_ok_and(|replicas| replicas > nodes) {
        fault("replicas", format!("is {}, but only {nodes} active nodes answer", request.replicas));
    }
    if request.retention_seconds > RETENTION_SECONDS_MAX {
        fault("retention_seconds", format!("must be at most {RETENTION_SECONDS_MAX}"));
    }
    if request.shards > KEYSPACE_SHARDS_MAX || request.split_keys.len() >= KEYSPACE_SHARDS_MAX as usize {
        fault("shards", format!("must be at most {KEYSPACE_SHARDS_MAX}"));
    }
    match KeyspaceKind::try_from(request.kind) {
        Err(_) => fault("kind", "is not known".to_owned()),
        Ok(KeyspaceKind::Hash | KeyspaceKind::Unspecified) if !request.split_keys.is_empty() => {
            fault("split_keys", "are for range keyspaces; a hash keyspace is cut evenly".to_owned());
        }
        Ok(KeyspaceKind::Hash | KeyspaceKind::Unspecified) => {}
        Ok(KeyspaceKind::Range) => split_violations(request, &mut fault),
    }
    found
}

fn split_violations(request: &CreateKeyspaceRequest, fault: &mut impl FnMut(&str, String)) {
    let shards = request.split_keys.len() + 1;
    if request.shards != 0 && usize::try_from(request.shards).is_ok_and(|asked| asked != shards) {
        fault("shards", format!("is {}, but {shards} follow from split_keys", request.shards));
    }
    let too_long = |key: &Bytes| key.len() > KEY_BYTES_MAX;
    if request.split_keys.iter().any(too_long) || keys::split_by_keys(KeyspaceId(0), &request.split_keys).is_none() {
        fault("split_keys", format!("must ascend, be distinct, not empty and at most {KEY_BYTES_MAX} bytes each"));
    }
}

/// Begins to delete a keyspace: from here on no request may name it.
pub fn delete(records: &Records, name: &str) -> Result<(Change, Keyspace), ServiceError> {
    if name == SYSTEM_NAME {
        return Err(refused("the system keyspace holds the catalog", ""));
    }
    let found = records.keyspaces.values().find(|keyspace| keyspace.name == name);
    let mut keyspace = found.ok_or_else(|| ServiceError::KeyspaceNotFound { name: name.to_owned() })?.clone();
    let mut change = Change::default();
    if keyspace.state() != KeyspaceState::Deleting {
        keyspace.set_state(KeyspaceState::Deleting);
        keyspace.epoch += 1;
        change.put(Record::Keyspace(keyspace.clone()));
    }
    Ok((change, keyspace))
}

/// Ends the deletion: no shard, no action and no record of the keyspace is left; nodes destroy what they hold of it.
#[must_use]
pub fn erase(records: &Records, keyspace_id: u32) -> Change {
    let mut change = Change::default();
    let shards = records.shards.values().filter(|shard| shard.keyspace_id == keyspace_id);
    for shard in shards {
        change.delete(RecordKey::Shard(shard.shard_id));
        for action in records.actions.values().filter(|action| action.shard_id == shard.shard_id) {
            change.delete(RecordKey::Action(action.action_id));
        }
    }
    change.delete(RecordKey::Keyspace(keyspace_id));
    change
}

/// The `default` keyspace of a cluster that is complete.
pub fn create_default(records: &Records, usable: impl Fn(u64) -> bool) -> Result<Change, ServiceError> {
    let request = CreateKeyspaceRequest { name: DEFAULT_NAME.to_owned(), ..Default::default() };
    let (mut change, _) = create(records, &request, usable)?;
    let after = change.applied_to(records, kv_proto::timestamp::Timestamp(0));
    change.put(Record::Cluster(Cluster { bootstrap_nodes: 0, ..cluster(&after)? }));
    Ok(change)
}
