//! Long actions on one shard: who may start which, and what ends them.
//!
//! Invariants: one action per shard at a time, none while the shard is being created; an action that names a stale epoch
//! is a conflict; no action leaves a shard without a majority of living voters it was not forced to.
//!
//! Not here: their steps (controller, actions).

use std::collections::BTreeSet;

use kv_proto::errors::ServiceError;
use kv_proto::ids::ShardId;
use kv_proto::pb::admin::v1::{
    Action, ActionKind, ActionState, AddLearnerRequest, ChangeVotersRequest, MoveReplicaRequest, NodeState,
    PromoteLearnerRequest, RemoveReplicaRequest, ReplicaRole, Shard,
};

use super::nodes::{ended, find, state_name};
use super::{FORCE_QUORUM, check_force, cluster, forced, refused, replica_on, voter_nodes};
use crate::catalog::change::Change;
use crate::catalog::records::{Record, RecordKey, Records, runs};

type Started = Result<(Change, Action), ServiceError>;

/// How an action was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Wall clock.
    pub now_ms: u64,
    /// The epoch the caller planned from; 0 does not check.
    pub epoch: u64,
    /// Checks that are switched off.
    pub force: &'a [String],
}

/// Adds a learner on a node.
pub fn add_learner(records: &Records, request: &AddLearnerRequest, now_ms: u64) -> Started {
    let caller = Caller { now_ms, epoch: request.epoch, force: &[] };
    let shard = idle_shard(records, request.shard_id, &caller)?;
    check_takes(records, shard, request.node_id)?;
    let action = Action { kind: ActionKind::AddLearner.into(), to_node_id: request.node_id, ..Default::default() };
    start(records, shard, action, &caller)
}

/// Makes a learner a voter.
pub fn promote(records: &Records, request: &PromoteLearnerRequest, now_ms: u64) -> Started {
    let caller = Caller { now_ms, epoch: request.epoch, force: &[] };
    let shard = idle_shard(records, request.shard_id, &caller)?;
    match replica_on(shard, request.node_id).map(|replica| replica.role()) {
        Some(ReplicaRole::Learner) => {}
        Some(ReplicaRole::Voter | ReplicaRole::Unspecified) => {
            return Err(refused(format!("the replica on node {} is a voter already", request.node_id), ""));
        }
        None => return Err(no_replica(shard, request.node_id)),
    }
    let action = Action { kind: ActionKind::Promote.into(), to_node_id: request.node_id, ..Default::default() };
    start(records, shard, action, &caller)
}

/// Moves a replica, learner or voter, from one node to another.
pub fn move_replica(records: &Records, request: &MoveReplicaRequest, now_ms: u64) -> Started {
    let caller = Caller { now_ms, epoch: request.epoch, force: &[] };
    let shard = idle_shard(records, request.shard_id, &caller)?;
    replica_on(shard, request.from_node_id).ok_or_else(|| no_replica(shard, request.from_node_id))?;
    check_takes(records, shard, request.to_node_id)?;
    let action = movement(shard, request.from_node_id, request.to_node_id, 0, &caller);
    start(records, shard, action, &caller)
}

/// Removes a replica.
pub fn remove_replica(records: &Records, request: &RemoveReplicaRequest, now_ms: u64) -> Started {
    check_force(&request.force, &[FORCE_QUORUM])?;
    let caller = Caller { now_ms, epoch: request.epoch, force: &request.force };
    let shard = idle_shard(records, request.shard_id, &caller)?;
    let replica = replica_on(shard, request.node_id).ok_or_else(|| no_replica(shard, request.node_id))?;
    if replica.role() == ReplicaRole::Voter {
        let mut left = voter_nodes(shard);
        left.remove(&request.node_id);
        check_voters(records, shard, &left, &request.force)?;
    }
    let action = removal(shard, request.node_id, 0, &caller);
    start(records, shard, action, &caller)
}

/// Changes the voters to exactly the replicas on these nodes, adding and removing as needed.
pub fn change_voters(records: &Records, request: &ChangeVotersRequest, now_ms: u64) -> Started {
    check_force(&request.force, &[FORCE_QUORUM])?;
    let caller = Caller { now_ms, epoch: request.epoch, force: &request.force };
    let shard = idle_shard(records, request.shard_id, &caller)?;
    let wanted: BTreeSet<u64> = request.node_ids.iter().copied().collect();
    if wanted.len() != request.node_ids.len() {
        return Err(ServiceError::invalid("node_ids", "names a node twice"));
    }
    for node in wanted.iter().filter(|node| replica_on(shard, **node).is_none()) {
        check_takes(records, shard, *node)?;
    }
    check_voters(records, shard, &wanted, &request.force)?;
    let action = voters(shard, &wanted, 0, &caller);
    start(records, shard, action, &caller)
}

/// Ends an action before its next step; what it did so far stays.
pub fn cancel(records: &Records, action_id: u64, now_ms: u64) -> Started {
    let missing = || ServiceError::NotFound { what: "action".into(), name: action_id.to_string() };
    let action = records.actions.get(&action_id).ok_or_else(missing)?;
    if !runs(action) {
        return Err(refused(format!("action {action_id} has ended already"), ""));
    }
    let ended = ended(action, ActionState::Cancelled, "cancelled", now_ms);
    let mut change = Change::default();
    change.put(Record::Action(ended.clone()));
    Ok((change, ended))
}

/// A move that has not been started yet.
#[must_use]
pub fn movement(shard: &Shard, from: u64, to: u64, action_id: u64, caller: &Caller<'_>) -> Action {
    let action = Action {
        kind: ActionKind::MoveReplica.into(),
        from_node_id: from,
        to_node_id: to,
        action_id,
        ..Default::default()
    };
    running(action, shard, caller)
}

/// A removal that has not been started yet.
#[must_use]
pub fn removal(shard: &Shard, from: u64, action_id: u64, caller: &Caller<'_>) -> Action {
    let action = Action { kind: ActionKind::RemoveReplica.into(), from_node_id: from, action_id, ..Default::default() };
    running(action, shard, caller)
}

/// A change of voters that has not been started yet.
#[must_use]
pub fn voters(shard: &Shard, nodes: &BTreeSet<u64>, action_id: u64, caller: &Caller<'_>) -> Action {
    let voter_node_ids = nodes.iter().copied().collect();
    let action = Action { kind: ActionKind::ChangeVoters.into(), voter_node_ids, action_id, ..Default::default() };
    running(action, shard, caller)
}

fn running(action: Action, shard: &Shard, caller: &Caller<'_>) -> Action {
    Action {
        shard_id: shard.shard_id,
        state: ActionState::Running.into(),
        progress: "waiting for its turn".to_owned(),
        started_ms: caller.now_ms,
        forced: caller.force.to_vec(),
        planned_epoch: shard.epoch,
        ..action
    }
}

fn start(records: &Records, shard: &Shard, action: Action, caller: &Caller<'_>) -> Started {
    let mut cluster = cluster(records)?;
    let action = running(Action { action_id: cluster.next_action_id, ..action }, shard, caller);
    cluster.next_action_id += 1;
    let mut change = Change::default();
    change.put(Record::Cluster(cluster)).put(Record::Action(action.clone()));
    watch(&mut change, &action);
    Ok((change, action))
}

/// Makes a change that starts an action depend on its shard, and on the nodes that shall take or leave a replica: none
/// of them may begin to drain, or return, at the same moment.
pub fn watch(change: &mut Change, action: &Action) {
    change.watch(RecordKey::Shard(action.shard_id));
    let nodes = [action.from_node_id, action.to_node_id].into_iter().chain(action.voter_node_ids.iter().copied());
    for node in nodes.filter(|node| *node != 0) {
        change.watch(RecordKey::Node(node));
    }
}

fn idle_shard<'a>(records: &'a Records, id: u64, caller: &Caller<'_>) -> Result<&'a Shard, ServiceError> {
    let shard = records.shards.get(&id).ok_or(ServiceError::ShardNotFound { shard: ShardId(id) })?;
    if caller.epoch != 0 && caller.epoch != shard.epoch {
        let what = format!("shard {id}");
        return Err(ServiceError::Conflict { what, planned: caller.epoch, found: shard.epoch });
    }
    if shard.creating {
        return Err(refused(format!("shard {id} has not elected its first leader yet: wait"), ""));
    }
    if let Some(action) = records.running_action(id) {
        let action = action.action_id;
        return Err(refused(format!("action {action} runs on shard {id}: wait for it or cancel it"), ""));
    }
    Ok(shard)
}

fn check_takes(records: &Records, shard: &Shard, node_id: u64) -> Result<(), ServiceError> {
    let node = find(records, node_id)?;
    if node.state() != NodeState::Active {
        return Err(refused(format!("node {node_id} is {}: it takes no replicas", state_name(node)), ""));
    }
    if replica_on(shard, node_id).is_some() {
        return Err(refused(format!("node {node_id} has a replica of shard {} already", shard.shard_id), ""));
    }
    Ok(())
}

fn check_voters(records: &Records, shard: &Shard, left: &BTreeSet<u64>, force: &[String]) -> Result<(), ServiceError> {
    let id = shard.shard_id;
    if left.is_empty() {
        return Err(refused(format!("shard {id} would have no voter left and lose all its data"), ""));
    }
    let asked = records.keyspaces.get(&shard.keyspace_id).map_or(1, |keyspace| keyspace.replicas);
    if left.len() < usize::try_from(asked).unwrap_or(usize::MAX) && !forced(force, FORCE_QUORUM) {
        let why = format!("shard {id} would have {} voters, its keyspace asks for {asked}", left.len());
        return Err(refused(why, FORCE_QUORUM));
    }
    Ok(())
}

fn no_replica(shard: &Shard, node_id: u64) -> ServiceError {
    ServiceError::NotFound { what: "replica".into(), name: format!("of shard {} on node {node_id}", shard.shard_id) }
}
