//! From the catalog and what was observed to the steps of this round. Pure.
//!
//! Order: what is finished is written down; running actions go on; shards without an action are brought to agree with
//! their group; then new actions begin: drained nodes are emptied (leaders first), lost and wrong replicas replaced, groups grown
//! to what their keyspace asks for; last, and only while all is calm, leaders and replicas are balanced.
//!
//! Invariants: at most [`ACTIONS_MAX`] actions go on at once, so that snapshots do not crowd the network; balance never
//! begins anything while something else is to do.
//!
//! Not here: the steps of one action (actions).

use std::collections::BTreeSet;

use kv_proto::errors::ServiceError;
use kv_proto::pb::admin::v1::{Action, KeyspaceState, Node, NodeState, Replica, ReplicaRole, Shard};

use super::actions;
use super::observed::Observed;
use super::step::{GroupStep, GroupStepKind, Step};
use crate::catalog::change::Change;
use crate::catalog::edits::actions::{Caller, movement, removal, voters, watch};
use crate::catalog::edits::nodes::holds;
use crate::catalog::edits::{BY_CHECK, BY_DRAIN, FORCE_QUORUM, keyspaces, replica_on, voter_nodes};
use crate::catalog::placement::Loads;
use crate::catalog::records::{Record, Records, runs};

/// Most actions that go on at once: each may copy a whole shard.
pub const ACTIONS_MAX: usize = 4;

/// Most leaders that move in one round: each costs its shard a few heartbeats without a leader.
const LEADERS_AT_ONCE: usize = 16;

/// Most ended actions kept for people to look at.
const ENDED_KEPT: usize = 100;

/// All steps of this round.
#[must_use]
pub fn plan(records: &Records, observed: &Observed) -> Vec<Step> {
    if records.cluster.is_none() {
        return Vec::new();
    }
    let plan = Plan { records, observed };
    let mut steps: Vec<Step> = Vec::new();
    steps.extend(plan.settle_creation());
    steps.extend(plan.default_keyspace());
    steps.extend(plan.deletions());
    steps.extend(plan.nodes_done());
    steps.extend(plan.go_on());
    steps.extend(plan.settle());
    steps.extend(plan.drain_leaders());
    steps.extend(plan.begin());
    steps.extend(plan.forget_ended());
    if steps.is_empty() && observed.calm && !records.actions.values().any(runs) {
        steps.extend(plan.balance());
    }
    steps
}

struct Plan<'a> {
    records: &'a Records,
    observed: &'a Observed,
}

impl Plan<'_> {
    /// Shards that elected their first leader, and keyspaces all of whose shards did.
    fn settle_creation(&self) -> Option<Step> {
        let mut change = Change::default();
        let elected = |shard: &&Shard| shard.creating && self.observed.groups.contains_key(&shard.shard_id);
        for shard in self.records.shards.values().filter(elected) {
            change.put(Record::Shard(Shard { creating: false, ..shard.clone() }));
        }
        for keyspace in self.records.keyspaces.values() {
            let creates = |shard: &Shard| {
                let elected = self.observed.groups.contains_key(&shard.shard_id);
                shard.keyspace_id == keyspace.keyspace_id && shard.creating && !elected
            };
            if keyspace.state() == KeyspaceState::Creating && !self.records.shards.values().any(creates) {
                let mut ready = keyspace.clone();
                ready.set_state(KeyspaceState::Ready);
                ready.epoch += 1;
                change.put(Record::Keyspace(ready));
            }
        }
        catalog(change, "shards elected their first leaders")
    }

    fn default_keyspace(&self) -> Option<Step> {
        let cluster = self.records.cluster.as_ref()?;
        if cluster.bootstrap_nodes == 0 || usize::try_from(cluster.bootstrap_nodes).ok()? > self.usable_nodes() {
            return None;
        }
        let usable = |node: u64| self.observed.alive.contains(&node);
        match keyspaces::create_default(self.records, usable) {
            Ok(change) => catalog(change, "creates the default keyspace"),
            Err(ServiceError::AlreadyExists { .. }) => {
                let mut change = Change::default();
                let mut cluster = cluster.clone();
                cluster.bootstrap_nodes = 0;
                change.put(Record::Cluster(cluster));
                catalog(change, "finds the default keyspace created already")
            }
            Err(error) => {
                tracing::error!(%error, "the default keyspace cannot be created");
                None
            }
        }
    }

    fn deletions(&self) -> Vec<Step> {
        let deleting = self.records.keyspaces.values().filter(|keyspace| keyspace.state() == KeyspaceState::Deleting);
        let step = |change, name: &str| catalog(change, &format!("erases keyspace {name}"));
        deleting
            .filter_map(|keyspace| step(keyspaces::erase(self.records, keyspace.keyspace_id), &keyspace.name))
            .collect()
    }

    /// Drained nodes that are empty, and lost ones whose replicas have been replaced.
    fn nodes_done(&self) -> Option<Step> {
        let mut change = Change::default();
        for node in self.records.nodes.values().filter(|node| holds(self.records, node.node_id).is_empty()) {
            let involved = |action: &Action| {
                runs(action) && (action.from_node_id == node.node_id || action.to_node_id == node.node_id)
            };
            let next = match node.state() {
                NodeState::Draining if !self.records.actions.values().any(involved) => NodeState::Drained,
                NodeState::Lost => NodeState::Removed,
                NodeState::Draining
                | NodeState::Active
                | NodeState::Drained
                | NodeState::Removed
                | NodeState::Unspecified => continue,
            };
            change.put(Record::Node(Node { state: next.into(), ..node.clone() }));
        }
        catalog(change, "nodes hold nothing any more")
    }

    fn go_on(&self) -> Vec<Step> {
        let mut places = ACTIONS_MAX;
        let mut has_place = |action: &&Action| {
            let takes = usize::from(self.takes_a_place(action));
            let has = takes <= places;
            places = places.saturating_sub(takes);
            has
        };
        let running = self.records.actions.values().filter(|action| runs(action)).filter(|action| has_place(action));
        running.filter_map(|action| actions::next(self.records, self.observed, action)).collect()
    }

    /// Whether an action counts as going on. One that waits for a node or a leader that does not answer copies nothing,
    /// and must not keep others from going on for as long as that lasts.
    fn takes_a_place(&self, action: &Action) -> bool {
        let answers = |node: &u64| *node == 0 || self.observed.alive.contains(node);
        runs(action)
            && self.observed.groups.contains_key(&action.shard_id)
            && answers(&action.to_node_id)
            && action.voter_node_ids.iter().all(answers)
    }

    /// What a cancelled action left behind.
    fn settle(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for shard in self.idle_shards() {
            let Some(group) = self.observed.groups.get(&shard.shard_id) else { continue };
            let named = |replica: &u64| shard.replicas.iter().any(|known| known.replica_id == *replica);
            if let Some(replica) = group.learners.iter().find(|replica| !named(replica)) {
                steps.push(self.group_step(
                    shard,
                    group.leader_node,
                    GroupStepKind::RemoveLearner { replica: *replica },
                ));
            } else if let Some((after, check)) = actions::settled(self.records, shard, group) {
                let mut change = Change::default();
                change.put(Record::Shard(after));
                let why = format!("shard {}: the catalog follows the group", shard.shard_id);
                steps.push(Step::Catalog { change, why, check });
            }
        }
        steps
    }

    /// A node that drains leads nothing for longer than it must.
    fn drain_leaders(&self) -> Vec<Step> {
        let leads_on_draining = |shard: &&Shard| {
            let group = self.observed.groups.get(&shard.shard_id);
            group.is_some_and(|group| self.state(group.leader_node) == NodeState::Draining)
        };
        self.idle_shards().filter(leads_on_draining).filter_map(|shard| self.hand_over(shard)).collect()
    }

    fn hand_over(&self, shard: &Shard) -> Option<Step> {
        let group = self.observed.groups.get(&shard.shard_id)?;
        let fit = |node: u64, replica: u64| {
            !self.is_damaged(shard, replica)
                && self.state(node) == NodeState::Active
                && self.observed.may_lead.contains(&node)
                && group.voters.contains(&replica)
                && group.caught_up(replica)
        };
        let heirs = shard.replicas.iter().filter(|replica| fit(replica.node_id, replica.replica_id));
        let heir = heirs.max_by_key(|replica| group.matched.get(&replica.replica_id))?;
        let kind = GroupStepKind::TransferLeader { replica: heir.replica_id };
        Some(self.group_step(shard, group.leader_node, kind))
    }

    /// New actions: all in one change, since each takes a number from the same counter.
    fn begin(&self) -> Option<Step> {
        let mut cluster = self.records.cluster.clone()?;
        let mut free = ACTIONS_MAX
            .saturating_sub(self.records.actions.values().filter(|action| self.takes_a_place(action)).count());
        let mut loads = Loads::of(self.records).only(|node| self.observed.alive.contains(&node));
        let mut change = Change::default();
        for shard in self.idle_shards() {
            if free == 0 {
                break;
            }
            let Some(action) = self.repair(shard, &mut loads, cluster.next_action_id) else { continue };
            cluster.next_action_id += 1;
            watch(&mut change, &action);
            change.put(Record::Action(action));
            free -= 1;
        }
        if change.is_empty() {
            return None;
        }
        change.put(Record::Cluster(cluster));
        catalog(change, "begins actions")
    }

    /// What a shard needs, if anything.
    fn repair(&self, shard: &Shard, loads: &mut Loads, action_id: u64) -> Option<Action> {
        let holders: BTreeSet<u64> = shard.replicas.iter().map(|replica| replica.node_id).collect();
        let leaves = |node: &&u64| matches!(self.state(**node), NodeState::Draining | NodeState::Lost);
        let caller = Caller { now_ms: self.observed.now_ms, epoch: shard.epoch, force: &[] };
        if let Some(from) = holders.iter().find(leaves) {
            if let Some(to) = loads.least(&holders) {
                loads.add_replica(to);
                return Some(movement(shard, *from, to, action_id, &caller));
            }
            let force = [FORCE_QUORUM.to_owned(), BY_DRAIN.to_owned()];
            let caller = Caller { force: &force, ..caller };
            return self.was_forced(*from).then(|| removal(shard, *from, action_id, &caller));
        }
        if let Some(wrong) = shard.replicas.iter().find(|replica| self.is_damaged(shard, replica.replica_id)) {
            return self.replace(shard, wrong, loads, action_id, &caller);
        }
        let wanted = self.voters_wanted(shard);
        let mut nodes = voter_nodes(shard);
        if nodes.len() >= wanted || self.was_meant(shard) {
            return None;
        }
        while nodes.len() < wanted {
            // A learner that is there already is a head start.
            let learner = shard
                .replicas
                .iter()
                .find(|replica| replica.role() == ReplicaRole::Learner && !nodes.contains(&replica.node_id));
            let added = learner.map(|replica| replica.node_id).or_else(|| loads.least(&nodes))?;
            loads.add_replica(added);
            nodes.insert(added);
        }
        Some(voters(shard, &nodes, action_id, &caller))
    }

    fn is_damaged(&self, shard: &Shard, replica: u64) -> bool {
        self.observed.damaged.contains(&(shard.shard_id, replica))
    }

    /// A replica whose content is wrong: to another node if there is one, else away, and back as a new one; that only
    /// while all others are there, since the group is smaller meanwhile.
    fn replace(
        &self,
        shard: &Shard,
        wrong: &Replica,
        loads: &mut Loads,
        action_id: u64,
        caller: &Caller<'_>,
    ) -> Option<Action> {
        let holders: BTreeSet<u64> = shard.replicas.iter().map(|replica| replica.node_id).collect();
        if let Some(to) = loads.least(&holders) {
            loads.add_replica(to);
            return Some(movement(shard, wrong.node_id, to, action_id, caller));
        }
        let others = shard
            .replicas
            .iter()
            .filter(|replica| replica.role() == ReplicaRole::Voter && replica.replica_id != wrong.replica_id);
        let others: Vec<u64> = others.map(|replica| replica.replica_id).collect();
        let is_sound = |replica: &u64| {
            self.observed.held.contains(&(shard.shard_id, *replica)) && !self.is_damaged(shard, *replica)
        };
        let force = [FORCE_QUORUM.to_owned(), BY_CHECK.to_owned()];
        let safe = others.len() >= 2 && others.iter().all(is_sound);
        safe.then(|| removal(shard, wrong.node_id, action_id, &Caller { force: &force, ..*caller }))
    }

    /// As many as the keyspace asks for; in a smaller cluster the largest odd number that fits, since an even one
    /// survives no more than the odd one below it.
    fn voters_wanted(&self, shard: &Shard) -> usize {
        let asked = self.records.keyspaces.get(&shard.keyspace_id).map_or(1, |keyspace| keyspace.replicas);
        let asked = usize::try_from(asked).unwrap_or(usize::MAX);
        let nodes = self.usable_nodes();
        if nodes >= asked { asked } else { nodes.saturating_sub(1) / 2 * 2 + 1 }
    }

    /// Nodes that can take replicas now. Asked for each shard, so it looks at no shard.
    fn usable_nodes(&self) -> usize {
        let usable = |node: &&Node| node.state() == NodeState::Active && self.observed.alive.contains(&node.node_id);
        self.records.nodes.values().filter(usable).count()
    }

    /// Whether the drain of a node was forced to do with fewer replicas.
    fn was_forced(&self, node: u64) -> bool {
        let forced = |action: &Action| action.from_node_id == node && action.forced.iter().any(|name| name == BY_DRAIN);
        self.state(node) == NodeState::Draining && self.records.actions.values().any(forced)
    }

    /// Whether a person forced the shard to have fewer voters than its keyspace asks for.
    fn was_meant(&self, shard: &Shard) -> bool {
        let last = self.records.actions.values().rfind(|action| action.shard_id == shard.shard_id);
        let has = |action: &Action, name: &str| action.forced.iter().any(|forced| forced == name);
        last.is_some_and(|action| has(action, FORCE_QUORUM) && !has(action, BY_DRAIN) && !has(action, BY_CHECK))
    }

    fn forget_ended(&self) -> Option<Step> {
        let ended: Vec<&Action> = self.records.actions.values().filter(|action| !runs(action)).collect();
        let surplus = ended.len().saturating_sub(ENDED_KEPT);
        // A forced drain still needs them: see `was_forced`.
        let needed = |action: &Action| self.state(action.from_node_id) == NodeState::Draining;
        let mut change = Change::default();
        for action in ended.into_iter().take(surplus).filter(|action| !needed(action)) {
            change.delete(crate::catalog::RecordKey::Action(action.action_id));
        }
        catalog(change, "forgets old actions")
    }

    /// Leaders to where they are preferred; when all are that can be, one replica from the fullest node to the emptiest.
    fn balance(&self) -> Vec<Step> {
        let movable = self.idle_shards().filter(|shard| !self.observed.stuck.contains(&shard.shard_id));
        let leaders: Vec<Step> = movable.filter_map(|shard| self.prefer(shard)).take(LEADERS_AT_ONCE).collect();
        if leaders.is_empty() { self.even_out().into_iter().collect() } else { leaders }
    }

    fn prefer(&self, shard: &Shard) -> Option<Step> {
        let group = self.observed.groups.get(&shard.shard_id)?;
        let preferred = shard.preferred_leader_replica_id;
        let replica = shard.replicas.iter().find(|replica| replica.replica_id == preferred)?;
        let fit = self.state(replica.node_id) == NodeState::Active && self.observed.may_lead.contains(&replica.node_id);
        let is_due = !self.is_damaged(shard, preferred)
            && group.leader != preferred
            && group.voters.contains(&preferred)
            && group.caught_up(preferred);
        let kind = GroupStepKind::TransferLeader { replica: preferred };
        (fit && is_due).then(|| self.group_step(shard, group.leader_node, kind))
    }

    fn even_out(&self) -> Option<Step> {
        let loads = Loads::of(self.records);
        let (full, most) = loads.iter().max_by_key(|(node, load)| (load.replicas, *node))?;
        let (empty, least) = loads.iter().min_by_key(|(node, load)| (load.replicas, *node))?;
        if most.replicas < least.replicas + 2 || !self.all_alive() {
            return None;
        }
        // The catalog's own shard stays, and a leader moves only if nothing else can.
        let movable = |shard: &&Shard| {
            shard.shard_id != kv_proto::ids::SYSTEM_SHARD.0
                && replica_on(shard, full).is_some()
                && replica_on(shard, empty).is_none()
        };
        let leads = |shard: &Shard| {
            let preferred = shard.preferred_leader_replica_id;
            replica_on(shard, full).is_some_and(|replica| replica.replica_id == preferred)
        };
        let prefers_leader = most.leaders >= least.leaders + 2;
        let shard =
            self.idle_shards().filter(movable).min_by_key(|shard| (leads(shard) != prefers_leader, shard.shard_id))?;
        let mut cluster = self.records.cluster.clone()?;
        let caller = Caller { now_ms: self.observed.now_ms, epoch: shard.epoch, force: &[] };
        let action = movement(shard, full, empty, cluster.next_action_id, &caller);
        cluster.next_action_id += 1;
        let mut change = Change::default();
        watch(&mut change, &action);
        change.put(Record::Action(action)).put(Record::Cluster(cluster));
        catalog(change, &format!("balances: moves a replica of shard {} from node {full} to {empty}", shard.shard_id))
    }

    fn all_alive(&self) -> bool {
        let members = self.records.nodes.values().filter(|node| crate::catalog::view::is_member(node));
        members.into_iter().all(|node| self.observed.alive.contains(&node.node_id))
    }

    /// Shards that exist and that no action works on.
    fn idle_shards(&self) -> impl Iterator<Item = &Shard> {
        let deleting = |shard: &&Shard| {
            let keyspace = self.records.keyspaces.get(&shard.keyspace_id);
            keyspace.is_none_or(|keyspace| keyspace.state() == KeyspaceState::Deleting)
        };
        let idle = |shard: &&Shard| !shard.creating && self.records.running_action(shard.shard_id).is_none();
        self.records.shards.values().filter(idle).filter(move |shard| !deleting(shard))
    }

    fn state(&self, node: u64) -> NodeState {
        self.records.nodes.get(&node).map_or(NodeState::Removed, Node::state)
    }

    fn group_step(&self, shard: &Shard, leader_node: u64, kind: GroupStepKind) -> Step {
        Step::Group(GroupStep { shard: shard.shard_id, epoch: shard.epoch, leader_node, kind })
    }
}

fn catalog(change: Change, why: &str) -> Option<Step> {
    (!change.is_empty()).then(|| Step::Catalog { change, why: why.to_owned(), check: None })
}
