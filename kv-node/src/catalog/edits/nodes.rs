//! Nodes that join, drain, return and leave.

use std::collections::BTreeSet;

use kv_proto::errors::ServiceError;
use kv_proto::pb::admin::v1::{Action, ActionState, Node, NodeState};
use kv_proto::pb::raft::v1::JoinRequest;

use super::actions::{self, Caller};
use super::{BY_DRAIN, FORCE_NOT_DRAINED, FORCE_QUORUM, check_force, cluster, forced, refused, replica_on};
use crate::catalog::change::Change;
use crate::catalog::placement::Loads;
use crate::catalog::records::{Record, Records, runs};

/// Lets a node in, or finds it again by its instance id. A node that answers at the address of another instance has
/// taken its place: the other one's data is gone, and it is marked lost.
pub fn join(records: &Records, request: &JoinRequest, now_ms: u64) -> Result<(Change, Node), ServiceError> {
    let mut cluster = cluster(records)?;
    if !request.cluster_id.is_empty() && request.cluster_id != cluster.cluster_id {
        return Err(ServiceError::ClusterMismatch { ours: cluster.cluster_id, theirs: request.cluster_id.clone() });
    }
    if request.instance_id.len() != 16 {
        return Err(ServiceError::invalid("instance_id", "must be 16 bytes"));
    }
    if request.address.is_empty() {
        return Err(ServiceError::invalid("address", "must be the address others reach the node by"));
    }
    let mut change = Change::default();
    let known = records.nodes.values().find(|node| node.instance_id == request.instance_id);
    let node = match known {
        Some(node) if matches!(node.state(), NodeState::Removed | NodeState::Lost) => {
            let (id, state) = (node.node_id, state_name(node));
            return Err(refused(format!("node {id} is {state}: start it with a new data folder"), ""));
        }
        Some(node) => Node {
            address: request.address.clone(),
            http_address: request.http_address.clone(),
            version: request.version.clone(),
            ..node.clone()
        },
        None => {
            let node_id = cluster.next_node_id;
            cluster.next_node_id += 1;
            change.put(Record::Cluster(cluster));
            Node {
                node_id,
                address: request.address.clone(),
                http_address: request.http_address.clone(),
                state: NodeState::Active.into(),
                instance_id: request.instance_id.clone(),
                version: request.version.clone(),
                joined_ms: now_ms,
            }
        }
    };
    if known != Some(&node) {
        change.put(Record::Node(node.clone()));
        for other in records.nodes.values() {
            if other.node_id != node.node_id && other.address == node.address && is_present(other) {
                change.put(Record::Node(Node { state: NodeState::Lost.into(), ..other.clone() }));
            }
        }
    }
    Ok((change, node))
}

/// Begins to drain a node. Refused if its replicas have nowhere to go; forced, shards do with fewer.
pub fn drain(
    records: &Records,
    node_id: u64,
    force: &[String],
    now_ms: u64,
) -> Result<(Change, Node, Vec<Action>), ServiceError> {
    check_force(force, &[FORCE_QUORUM])?;
    let node = find(records, node_id)?;
    match node.state() {
        NodeState::Active => {}
        NodeState::Draining | NodeState::Drained => {
            let of_node = |action: &&Action| runs(action) && action.from_node_id == node_id;
            let actions = records.actions.values().filter(of_node).cloned().collect();
            return Ok((Change::default(), node.clone(), actions));
        }
        NodeState::Lost | NodeState::Removed | NodeState::Unspecified => {
            return Err(refused(format!("node {node_id} is {}: only an active node drains", state_name(node)), ""));
        }
    }
    let mut node = node.clone();
    node.set_state(NodeState::Draining);
    let mut change = Change::default();
    change.put(Record::Node(node.clone()));
    let after = change.applied_to(records, kv_proto::timestamp::Timestamp(0));
    let targets = Loads::of(&after);
    let mut started = Vec::new();
    let mut cluster = cluster(records)?;
    for shard in records.shards.values().filter(|shard| replica_on(shard, node_id).is_some()) {
        let holders: BTreeSet<u64> = shard.replicas.iter().map(|replica| replica.node_id).collect();
        if targets.least(&holders).is_some() {
            continue;
        }
        let id = shard.shard_id;
        if shard.replicas.len() == 1 {
            let why = format!("shard {id} has its only replica on node {node_id} and no other active node can take it");
            return Err(refused(why, ""));
        }
        if !forced(force, FORCE_QUORUM) {
            let why = format!(
                "no active node without a replica of shard {id} is left to take the one of node {node_id}: the shard would have fewer replicas than its keyspace asks for; add a node first"
            );
            return Err(refused(why, FORCE_QUORUM));
        }
        if records.running_action(id).is_none() {
            let force = [FORCE_QUORUM.to_owned(), BY_DRAIN.to_owned()];
            let caller = Caller { now_ms, epoch: 0, force: &force };
            let action = actions::removal(shard, node_id, cluster.next_action_id, &caller);
            cluster.next_action_id += 1;
            change.put(Record::Action(action.clone()));
            actions::watch(&mut change, &action);
            started.push(action);
        }
    }
    if !started.is_empty() {
        change.put(Record::Cluster(cluster));
    }
    Ok((change, node, started))
}

/// Takes a drain back: the node takes replicas again, and moves away from it end before their next step.
pub fn undrain(records: &Records, node_id: u64, now_ms: u64) -> Result<(Change, Node), ServiceError> {
    let mut node = find(records, node_id)?.clone();
    let mut change = Change::default();
    match node.state() {
        NodeState::Active => return Ok((change, node)),
        NodeState::Draining | NodeState::Drained => node.set_state(NodeState::Active),
        NodeState::Lost | NodeState::Removed | NodeState::Unspecified => {
            return Err(refused(format!("node {node_id} is {}: it cannot return", state_name(&node)), ""));
        }
    }
    change.put(Record::Node(node.clone()));
    for action in records.actions.values().filter(|action| runs(action) && action.from_node_id == node_id) {
        change.put(Record::Action(ended(action, ActionState::Cancelled, "the drain was taken back", now_ms)));
    }
    Ok((change, node))
}

/// Removes a node that holds nothing; a dead one is, if forced, declared lost first, so that its replicas are replaced.
pub fn remove(
    records: &Records,
    node_id: u64,
    force: &[String],
    alive: impl Fn(u64) -> bool,
) -> Result<(Change, Node), ServiceError> {
    check_force(force, &[FORCE_NOT_DRAINED])?;
    let mut node = find(records, node_id)?.clone();
    let mut change = Change::default();
    let holds: Vec<u64> = holds(records, node_id);
    match node.state() {
        NodeState::Removed => return Ok((change, node)),
        NodeState::Drained | NodeState::Lost if holds.is_empty() => node.set_state(NodeState::Removed),
        NodeState::Lost => {
            let why = format!("node {node_id} is lost and {} of its replicas are still being replaced", holds.len());
            return Err(refused(why, ""));
        }
        NodeState::Active | NodeState::Draining | NodeState::Drained | NodeState::Unspecified => {
            if !forced(force, FORCE_NOT_DRAINED) {
                let why = format!(
                    "node {node_id} is {} in the catalog and holds {} replicas: drain it first",
                    state_name(&node),
                    holds.len()
                );
                return Err(refused(why, FORCE_NOT_DRAINED));
            }
            if alive(node_id) {
                return Err(refused(
                    format!(
                        "node {node_id} was heard from just now: drain it; or, if it is gone for good, try again in a few seconds"
                    ),
                    "",
                ));
            }
            check_survival(records, node_id, alive)?;
            node.set_state(NodeState::Lost);
        }
    }
    change.put(Record::Node(node.clone()));
    Ok((change, node))
}

/// Refuses to give up a voter that its shard needs for a majority of living ones: while the node may come back, so may
/// the shard.
fn check_survival(records: &Records, node_id: u64, alive: impl Fn(u64) -> bool) -> Result<(), ServiceError> {
    for shard in records.shards.values().filter(|shard| replica_on(shard, node_id).is_some()) {
        let is_left = |id: &u64| *id != node_id && alive(*id) && records.nodes.get(id).is_some_and(is_present);
        let voters = super::voter_nodes(shard);
        let left = voters.iter().filter(|id| is_left(id)).count();
        if voters.contains(&node_id) && left * 2 <= voters.len() {
            let id = shard.shard_id;
            let why = format!(
                "shard {id} would keep {left} of {} voters that answer, which is no majority; if the node's data is really gone, see `kv-node unsafe-recover-shard`",
                voters.len()
            );
            return Err(refused(why, ""));
        }
    }
    Ok(())
}

/// The shards with a replica on a node.
#[must_use]
pub fn holds(records: &Records, node_id: u64) -> Vec<u64> {
    let shards = records.shards.values().filter(|shard| replica_on(shard, node_id).is_some());
    shards.map(|shard| shard.shard_id).collect()
}

/// An action that has ended.
#[must_use]
pub fn ended(action: &Action, state: ActionState, progress: &str, now_ms: u64) -> Action {
    let percent = if state == ActionState::Done { 100 } else { action.percent };
    Action { state: state.into(), progress: progress.to_owned(), percent, ended_ms: now_ms, ..action.clone() }
}

pub(super) fn find(records: &Records, node_id: u64) -> Result<&Node, ServiceError> {
    let missing = || ServiceError::NotFound { what: "node".into(), name: node_id.to_string() };
    records.nodes.get(&node_id).ok_or_else(missing)
}

/// Neither lost nor removed.
pub(super) fn is_present(node: &Node) -> bool {
    crate::catalog::view::is_member(node)
}

/// As people read it.
#[must_use]
pub fn state_name(node: &Node) -> &'static str {
    match node.state() {
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Drained => "drained",
        NodeState::Removed => "removed",
        NodeState::Lost => "lost",
        NodeState::Unspecified => "in an unknown state",
    }
}
