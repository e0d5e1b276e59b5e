//! The next step of a long action, from what stands in the catalog and in the group. Pure.
//!
//! An action is a goal: which nodes shall have voters, which learners. The goal follows from the action and the shard
//! descriptor alone and is the same in every intermediate state, so whoever leads next goes on from wherever the last
//! controller stopped.
//!
//! Invariants: the order is always add to the catalog, add as learner, catch up, hand leadership off what leaves, joint
//! consensus, drop from the catalog.
//!
//! Not here: which actions there should be (plan).

use std::collections::BTreeSet;

use kv_proto::pb::admin::v1::{Action, ActionKind, ActionState, Replica, ReplicaRole, Shard};

use super::observed::{Group, Observed};
use super::step::{GroupCheck, GroupStep, GroupStepKind, Step};
use crate::catalog::change::Change;
use crate::catalog::edits::nodes::ended;
use crate::catalog::edits::{learner_nodes, replica_on, voter_nodes};
use crate::catalog::placement::preferred_among;
use crate::catalog::records::{Record, RecordKey, Records};

/// What a shard shall look like, by node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// Nodes with voters.
    pub voters: BTreeSet<u64>,
    /// Nodes with learners.
    pub learners: BTreeSet<u64>,
}

impl Goal {
    /// Of an action on a shard; the same before, amid and after its steps.
    #[must_use]
    pub fn of(action: &Action, shard: &Shard) -> Self {
        let (mut voters, mut learners) = (voter_nodes(shard), learner_nodes(shard));
        let (from, to) = (action.from_node_id, action.to_node_id);
        match action.kind() {
            ActionKind::AddLearner => {
                if !voters.contains(&to) {
                    learners.insert(to);
                }
            }
            ActionKind::Promote => {
                learners.remove(&to);
                voters.insert(to);
            }
            ActionKind::RemoveReplica => {
                voters.remove(&from);
                learners.remove(&from);
            }
            ActionKind::MoveReplica => {
                let moves_learner = learners.remove(&from);
                voters.remove(&from);
                learners.remove(&to);
                if moves_learner {
                    learners.insert(to)
                } else {
                    voters.insert(to)
                };
            }
            ActionKind::ChangeVoters => {
                voters = action.voter_node_ids.iter().copied().collect();
                learners.retain(|node| !voters.contains(node));
            }
            ActionKind::Unspecified => {}
        }
        Self { voters, learners }
    }
}

/// What comes next; progress words go into the catalog when they change.
#[must_use]
pub fn next(records: &Records, observed: &Observed, action: &Action) -> Option<Step> {
    let Some(shard) = records.shards.get(&action.shard_id) else {
        let ended = ended(action, ActionState::Failed, "the shard no longer exists", observed.now_ms);
        return Some(catalog(Change::default().put(Record::Action(ended)), action, "ends: its shard is gone"));
    };
    let driver = Driver { records, observed, action, shard, goal: Goal::of(action, shard) };
    match driver.doomed().or_else(|| driver.grow()).or_else(|| driver.lead()) {
        Some(Next::Take(step)) => Some(step),
        Some(Next::Wait) | None => None,
    }
}

/// What a stage of an action says; none at all if it has nothing left to do.
enum Next {
    Take(Step),
    Wait,
}

struct Driver<'a> {
    records: &'a Records,
    observed: &'a Observed,
    action: &'a Action,
    shard: &'a Shard,
    goal: Goal,
}

impl Driver<'_> {
    /// An action onto a node that left cannot end otherwise.
    fn doomed(&self) -> Option<Next> {
        let gone = |node: &&u64| !self.records.nodes.get(node).is_some_and(crate::catalog::view::is_member);
        let all: BTreeSet<u64> = self.goal.voters.union(&self.goal.learners).copied().collect();
        let added = match self.action.kind() {
            ActionKind::ChangeVoters => all,
            ActionKind::AddLearner | ActionKind::Promote | ActionKind::MoveReplica => {
                BTreeSet::from([self.action.to_node_id])
            }
            ActionKind::RemoveReplica | ActionKind::Unspecified => BTreeSet::new(),
        };
        let node = added.iter().find(gone)?;
        let progress = format!("node {node} is no longer a member");
        let ended = ended(self.action, ActionState::Failed, &progress, self.observed.now_ms);
        let why = format!("fails: {progress}");
        Some(Next::Take(catalog(Change::default().put(Record::Action(ended)), self.action, &why)))
    }

    /// Puts missing replicas into the catalog, as learners; their nodes create them then.
    fn grow(&self) -> Option<Next> {
        let missing: Vec<u64> = self.goal.voters.union(&self.goal.learners).copied().collect();
        let missing: Vec<u64> = missing.into_iter().filter(|node| replica_on(self.shard, *node).is_none()).collect();
        if missing.is_empty() {
            return None;
        }
        let mut shard = self.shard.clone();
        for node_id in &missing {
            let role = ReplicaRole::Learner.into();
            shard.replicas.push(Replica { replica_id: shard.next_replica_id, node_id: *node_id, role });
            shard.next_replica_id += 1;
        }
        shard.epoch += 1;
        let mut change = Change::default();
        change.put(Record::Shard(shard)).put(Record::Action(self.progress("creating replicas", 5)));
        Some(Next::Take(catalog(&mut change, self.action, &format!("puts learners on nodes {missing:?}"))))
    }

    /// Everything that takes the group's leader.
    fn lead(&self) -> Option<Next> {
        let Some(group) = self.observed.groups.get(&self.shard.shard_id) else {
            return self.report("waiting: the shard has no leader that answers", self.action.percent);
        };
        self.join_group(group)
            .or_else(|| self.catch_up(group))
            .or_else(|| self.change_voters(group))
            .or_else(|| self.drop_learners(group))
            .or_else(|| self.finish(group))
    }

    /// Adds what the catalog wants and the group does not know.
    fn join_group(&self, group: &Group) -> Option<Next> {
        let wanted = |replica: &&Replica| {
            let node = &replica.node_id;
            self.goal.voters.contains(node) || self.goal.learners.contains(node)
        };
        let mut unknown = self.shard.replicas.iter().filter(wanted).filter(|replica| !group.names(replica.replica_id));
        let replica = unknown.next()?;
        if !self.observed.held.contains(&(self.shard.shard_id, replica.replica_id)) {
            return self.report(&format!("waiting for node {} to create its replica", replica.node_id), 5);
        }
        let kind = GroupStepKind::AddLearner { replica: replica.replica_id, node: replica.node_id };
        Some(self.take(group, kind))
    }

    fn catch_up(&self, group: &Group) -> Option<Next> {
        let added = self.replicas(&self.goal.voters).union(&self.replicas(&self.goal.learners)).copied().collect();
        let added: BTreeSet<u64> = added;
        let behind = added.iter().find(|replica| group.learners.contains(replica) && !group.caught_up(**replica))?;
        let percent = group.percent(*behind);
        // Ten for creating, eighty for catching up, ten for changing voters; in steps of five, to write little.
        let shown = 10 + percent * 8 / 10 / 5 * 5;
        self.report(&format!("replica {behind} catches up"), shown)
    }

    fn change_voters(&self, group: &Group) -> Option<Next> {
        let voters = self.replicas(&self.goal.voters);
        if voters == group.voters {
            return None;
        }
        let alive = voters.iter().filter(|replica| self.is_alive(**replica)).count();
        if alive * 2 <= voters.len() {
            return self.report("waiting: no majority of the new voters answers", self.action.percent);
        }
        if voters.contains(&group.leader) {
            return Some(self.take(group, GroupStepKind::ChangeVoters { voters }));
        }
        // The leader leaves: somebody who stays takes over first.
        let stays = |replica: &&u64| voters.contains(replica) && self.is_alive(**replica) && group.caught_up(**replica);
        let heir = group.voters.iter().filter(stays).max_by_key(|replica| group.matched.get(replica));
        if let Some(replica) = heir {
            return Some(self.take(group, GroupStepKind::TransferLeader { replica: *replica }));
        }
        let both: BTreeSet<u64> = voters.union(&group.voters).copied().collect();
        if both == group.voters {
            return self.report("waiting: no voter that stays can take over leadership", self.action.percent);
        }
        Some(self.take(group, GroupStepKind::ChangeVoters { voters: both }))
    }

    fn drop_learners(&self, group: &Group) -> Option<Next> {
        let wanted = self.replicas(&self.goal.learners);
        let replica = group.learners.difference(&wanted).next()?;
        Some(self.take(group, GroupStepKind::RemoveLearner { replica: *replica }))
    }

    /// The group is as wanted: the catalog follows, and the action is done.
    fn finish(&self, group: &Group) -> Option<Next> {
        let done = ended(self.action, ActionState::Done, "done", self.observed.now_ms);
        let mut change = Change::default();
        change.put(Record::Action(done)).watch(RecordKey::Shard(self.shard.shard_id));
        let check = match settled(self.records, self.shard, group) {
            Some((shard, check)) => {
                change.put(Record::Shard(shard));
                check
            }
            None => None,
        };
        let why = format!("action {}: done", self.action.action_id);
        Some(Next::Take(Step::Catalog { change, why, check }))
    }

    fn replicas(&self, nodes: &BTreeSet<u64>) -> BTreeSet<u64> {
        let on = self.shard.replicas.iter().filter(|replica| nodes.contains(&replica.node_id));
        on.map(|replica| replica.replica_id).collect()
    }

    fn is_alive(&self, replica: u64) -> bool {
        self.observed.held.contains(&(self.shard.shard_id, replica))
    }

    fn take(&self, group: &Group, kind: GroupStepKind) -> Next {
        let Shard { shard_id: shard, epoch, .. } = *self.shard;
        Next::Take(Step::Group(GroupStep { shard, epoch, leader_node: group.leader_node, kind }))
    }

    fn progress(&self, words: &str, percent: u32) -> Action {
        let percent = percent.max(self.action.percent).min(95);
        Action { progress: words.to_owned(), percent, ..self.action.clone() }
    }

    /// Waits, and writes the new progress if there is any.
    fn report(&self, words: &str, percent: u32) -> Option<Next> {
        let action = self.progress(words, percent);
        if action == *self.action {
            return Some(Next::Wait);
        }
        let why = action.progress.clone();
        Some(Next::Take(catalog(Change::default().put(Record::Action(action)), self.action, &why)))
    }
}

/// The descriptor made to agree with the group: roles as they are, replicas the group does not name left out; with the
/// check that the group really dropped what leaves. None if they agree.
#[must_use]
pub fn settled(records: &Records, shard: &Shard, group: &Group) -> Option<(Shard, Option<GroupCheck>)> {
    let mut after = shard.clone();
    after.replicas.retain(|replica| group.names(replica.replica_id));
    for replica in &mut after.replicas {
        let is_voter = group.voters.contains(&replica.replica_id);
        replica.set_role(if is_voter { ReplicaRole::Voter } else { ReplicaRole::Learner });
    }
    let preferred = after.preferred_leader_replica_id;
    let is_preferable = |replica: &Replica| replica.replica_id == preferred && replica.role() == ReplicaRole::Voter;
    if !after.replicas.iter().any(is_preferable) {
        after.preferred_leader_replica_id = preferred_among(records, &after);
    }
    if after == *shard {
        return None;
    }
    after.epoch += 1;
    let left = shard.replicas.iter().map(|replica| replica.replica_id).filter(|replica| !group.names(*replica));
    let gone: BTreeSet<u64> = left.collect();
    let check = GroupCheck { shard: shard.shard_id, epoch: shard.epoch, leader_node: group.leader_node, gone };
    Some((after, (!check.gone.is_empty()).then_some(check)))
}

fn catalog(change: &mut Change, action: &Action, what: &str) -> Step {
    let why = format!("action {} on shard {}: {what}", action.action_id, action.shard_id);
    let change = std::mem::take(change).with_watch(RecordKey::Shard(action.shard_id));
    Step::Catalog { change, why, check: None }
}
