//! Runs the plans of `scripts/` against a small world in which steps do what they say: nodes create what the catalog
//! wants, learners catch up, groups change. One round is one plan and its execution.
//!
//! Commands: `nodes N`, `keyspace NAME replicas=N shards=N`, `plan` (shows only), `round [N]`, `settle` (rounds until
//! nothing is to do), `show`, `drain N [force=NAME]`, `undrain N`, `kill N`, `start N`, `lost N`, `remove N [force=NAME]`,
//! `move SHARD from=N to=N`, `learner SHARD node=N`, `promote SHARD node=N`, `voters SHARD nodes=N,N`,
//! `drop SHARD node=N [force=NAME]`, `cancel ACTION`, `leader SHARD node=N`, `damage SHARD node=N`, `stuck SHARD`,
//! `slow N`, `fast N`, `calm`,
//! `hold` (keeps a plan), `late` (executes the kept plan), `actions`.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;

use goldenscript::{ArgumentConsumer, Command, Context};
use kv_proto::errors::ServiceError;
use kv_proto::pb::admin::v1::{
    Action, AddLearnerRequest, ChangeVotersRequest, CreateKeyspaceRequest, MoveReplicaRequest, Node, NodeState,
    PromoteLearnerRequest, RemoveReplicaRequest, ReplicaRole, Shard,
};
use kv_proto::timestamp::Timestamp;

use super::observed::{Group, Observed};
use super::plan::plan;
use super::step::{GroupStep, GroupStepKind, Step};
use crate::catalog::Change;
use crate::catalog::edits::{actions, bootstrap, keyspaces, nodes};
use crate::catalog::records::{Record, Records, runs};

const LAST_INDEX: u64 = 1000;
const ROUNDS_MAX: usize = 60;

#[derive(Default)]
struct World {
    records: Records,
    commit: u64,
    groups: BTreeMap<u64, Group>,
    dead: BTreeSet<u64>,
    slow: BTreeSet<u64>,
    held: BTreeSet<(u64, u64)>,
    damaged: BTreeSet<(u64, u64)>,
    stuck: BTreeSet<u64>,
    calm: bool,
    kept: Option<(Records, Vec<Step>)>,
}

type Done = Result<String, Box<dyn Error>>;

impl World {
    fn apply(&mut self, base: &Records, change: &Change) -> Result<(), String> {
        for (key, at) in change.conditions(base) {
            if self.records.commits.get(&key).copied() != at {
                return Err(format!("{key:?} changed"));
            }
        }
        self.commit += 1;
        self.records = change.applied_to(&self.records, Timestamp(self.commit));
        Ok(())
    }

    fn edit<T>(&mut self, edited: Result<(Change, T), ServiceError>) -> Result<T, Box<dyn Error>> {
        let (change, answer) = edited.map_err(|error| error.to_string())?;
        let base = self.records.clone();
        self.apply(&base, &change)?;
        Ok(answer)
    }

    fn is_up(&self, node: u64) -> bool {
        !self.dead.contains(&node)
    }

    fn node_of(&self, shard: u64, replica: u64) -> u64 {
        let replicas = self.records.shards.get(&shard).map(|shard| shard.replicas.clone()).unwrap_or_default();
        replicas.iter().find(|known| known.replica_id == replica).map_or(0, |known| known.node_id)
    }

    /// What happens between two rounds without the controller: nodes follow the catalog, groups elect, learners catch up.
    fn live(&mut self) {
        let mut held = BTreeSet::new();
        for shard in self.records.shards.values() {
            for replica in &shard.replicas {
                if self.is_up(replica.node_id) || self.held.contains(&(shard.shard_id, replica.replica_id)) {
                    held.insert((shard.shard_id, replica.replica_id));
                }
            }
            if shard.creating || (shard.shard_id == 1 && !self.groups.contains_key(&1)) {
                let voters = shard.replicas.iter().map(|replica| replica.replica_id).collect();
                let (leader, last) = (shard.preferred_leader_replica_id, LAST_INDEX);
                let group = Group { leader, term: 1, voters, last, ..Group::default() };
                self.groups.entry(shard.shard_id).or_insert(group);
            }
        }
        self.held = held;
        let shards = &self.records.shards;
        self.groups.retain(|shard, _| shards.contains_key(shard));
        let nodes: BTreeMap<(u64, u64), u64> = shards
            .values()
            .flat_map(|shard| {
                shard.replicas.iter().map(|replica| ((shard.shard_id, replica.replica_id), replica.node_id))
            })
            .collect();
        for (shard, group) in &mut self.groups {
            let node = |replica: &u64| nodes.get(&(*shard, *replica)).copied().unwrap_or(0);
            let up = |replica: &u64| !self.dead.contains(&node(replica));
            if !up(&group.leader) {
                let heir = group.voters.iter().find(|replica| up(replica)).copied();
                if group.voters.iter().filter(|replica| up(replica)).count() * 2 > group.voters.len() {
                    group.leader = heir.unwrap_or(group.leader);
                    group.term += 1;
                }
            }
            group.leader_node = node(&group.leader);
            let others: Vec<u64> = group.voters.iter().chain(&group.learners).copied().collect();
            for replica in others {
                if up(&replica) {
                    let index = if self.slow.contains(&node(&replica)) { LAST_INDEX / 2 } else { LAST_INDEX };
                    group.matched.insert(replica, index);
                }
            }
        }
    }

    fn observe(&self) -> Observed {
        let active = self.records.nodes.values().filter(|node| crate::catalog::view::is_member(node));
        let alive: BTreeSet<u64> = active.map(|node| node.node_id).filter(|node| self.is_up(*node)).collect();
        let held = self.held.iter().filter(|(shard, replica)| self.is_up(self.node_of(*shard, *replica)));
        let led = self.groups.iter().filter(|(_, group)| self.is_up(group.leader_node));
        Observed {
            now_ms: 5,
            may_lead: alive.clone(),
            alive,
            held: held.copied().collect(),
            damaged: self.damaged.intersection(&self.held).copied().collect(),
            groups: led.map(|(shard, group)| (*shard, group.clone())).collect(),
            stuck: self.stuck.clone(),
            calm: self.calm,
        }
    }

    fn execute(&mut self, base: &Records, steps: Vec<Step>) -> String {
        let mut lines = String::new();
        for step in steps {
            let result = match &step {
                Step::Catalog { change, check, .. } => {
                    let names = |check: &super::step::GroupCheck| {
                        let group = self.groups.get(&check.shard);
                        group.is_some_and(|group| check.gone.iter().any(|replica| group.names(*replica)))
                    };
                    if check.as_ref().is_some_and(names) {
                        Err("the group still names what leaves".to_owned())
                    } else {
                        self.apply(base, change)
                    }
                }
                Step::Group(step) => self.group(step),
            };
            let _ = match result {
                Ok(()) => writeln!(lines, "{step}"),
                Err(why) => writeln!(lines, "{step} => {why}"),
            };
        }
        self.live();
        lines
    }

    fn group(&mut self, step: &GroupStep) -> Result<(), String> {
        let epoch = self.records.shards.get(&step.shard).map_or(0, |shard| shard.epoch);
        if epoch != step.epoch {
            return Err(format!("conflict: shard {} is at epoch {epoch}", step.shard));
        }
        let group = self.groups.get_mut(&step.shard).ok_or("no group")?;
        match &step.kind {
            GroupStepKind::AddLearner { replica, .. } => _ = group.learners.insert(*replica),
            GroupStepKind::RemoveLearner { replica } => _ = group.learners.remove(replica),
            GroupStepKind::TransferLeader { replica } => {
                group.leader = *replica;
                group.term += 1;
            }
            GroupStepKind::ChangeVoters { voters } => {
                group.learners.retain(|learner| !voters.contains(learner));
                group.voters.clone_from(voters);
            }
        }
        Ok(())
    }

    fn round(&mut self) -> String {
        self.live();
        let base = self.records.clone();
        let steps = plan(&base, &self.observe());
        self.execute(&base, steps)
    }

    fn settle(&mut self) -> Done {
        let mut lines = String::new();
        for _ in 0..ROUNDS_MAX {
            let done = self.round();
            if done.is_empty() {
                return Ok(lines);
            }
            lines.push_str(&done);
        }
        Err(format!("does not settle:\n{lines}").into())
    }

    fn show(&self) -> String {
        let mut lines = String::new();
        for node in self.records.nodes.values() {
            let _ = writeln!(lines, "node {} {}", node.node_id, nodes::state_name(node));
        }
        for shard in self.records.shards.values() {
            let _ = writeln!(lines, "{}", self.shard(shard));
        }
        lines
    }

    fn shard(&self, shard: &Shard) -> String {
        let role = |role: ReplicaRole| if role == ReplicaRole::Voter { "" } else { "learner " };
        let replicas = shard
            .replicas
            .iter()
            .map(|replica| format!("{}{}@{}", role(replica.role()), replica.replica_id, replica.node_id));
        let replicas: Vec<String> = replicas.collect();
        let leader = self.groups.get(&shard.shard_id).map_or(0, |group| group.leader);
        let (id, epoch, preferred) = (shard.shard_id, shard.epoch, shard.preferred_leader_replica_id);
        format!("shard {id} epoch {epoch}: {} leader {leader} preferred {preferred}", replicas.join(" "))
    }

    fn actions(&self) -> String {
        let line = |action: &Action| {
            let state = action.state().as_str_name().trim_start_matches("ACTION_STATE_").to_lowercase();
            format!(
                "action {} shard {} {state} {}%: {}\n",
                action.action_id, action.shard_id, action.percent, action.progress
            )
        };
        self.records.actions.values().map(line).collect()
    }

    fn nodes(&mut self, count: u64) -> Done {
        if self.records.cluster.is_none() {
            let node = Node { node_id: 1, address: "n1".into(), state: NodeState::Active.into(), ..Default::default() };
            let change = bootstrap::first_records("c", node, 0, 6);
            self.apply(&Records::default(), &change)?;
        }
        for _ in 0..count {
            let Some(mut cluster) = self.records.cluster.clone() else { return Err("no cluster".into()) };
            let node_id = cluster.next_node_id;
            if node_id > count {
                break;
            }
            cluster.next_node_id += 1;
            let address = format!("n{node_id}");
            let node = Node { node_id, address, state: NodeState::Active.into(), ..Default::default() };
            let mut change = Change::default();
            change.put(Record::Node(node)).put(Record::Cluster(cluster));
            let base = self.records.clone();
            self.apply(&base, &change)?;
        }
        Ok(String::new())
    }

    fn set_node(&mut self, id: u64, state: NodeState) -> Done {
        let mut node = self.records.nodes.get(&id).ok_or("no such node")?.clone();
        node.set_state(state);
        let mut change = Change::default();
        change.put(Record::Node(node));
        let base = self.records.clone();
        self.apply(&base, &change)?;
        Ok(String::new())
    }

    fn act(&mut self, name: &str, shard_id: u64, arguments: &mut ArgumentConsumer<'_>) -> Done {
        let epoch = number(arguments, "epoch")?;
        let force: Vec<String> = arguments.take_key("force").map(str::to_owned).into_iter().collect();
        let records = self.records.clone();
        let action = match name {
            "move" => {
                let (from_node_id, to_node_id) = (number(arguments, "from")?, number(arguments, "to")?);
                let request = MoveReplicaRequest { shard_id, from_node_id, to_node_id, epoch };
                actions::move_replica(&records, &request, 5)
            }
            "learner" => {
                let node_id = number(arguments, "node")?;
                actions::add_learner(&records, &AddLearnerRequest { shard_id, node_id, epoch }, 5)
            }
            "promote" => {
                let node_id = number(arguments, "node")?;
                actions::promote(&records, &PromoteLearnerRequest { shard_id, node_id, epoch }, 5)
            }
            "drop" => {
                let node_id = number(arguments, "node")?;
                actions::remove_replica(&records, &RemoveReplicaRequest { shard_id, node_id, epoch, force }, 5)
            }
            _ => {
                let nodes = arguments.take_key("nodes").unwrap_or_default().split(',');
                let node_ids = nodes.map(str::parse).collect::<Result<_, _>>()?;
                actions::change_voters(&records, &ChangeVotersRequest { shard_id, node_ids, epoch, force }, 5)
            }
        };
        let action = self.edit(action)?;
        Ok(format!("action {}\n", action.action_id))
    }

    fn node_command(&mut self, name: &str, id: u64, arguments: &mut ArgumentConsumer<'_>) -> Done {
        let force: Vec<String> = arguments.take_key("force").map(str::to_owned).into_iter().collect();
        let records = self.records.clone();
        match name {
            "drain" => self.edit(nodes::drain(&records, id, &force, 5).map(|(change, ..)| (change, ())))?,
            "undrain" => _ = self.edit(nodes::undrain(&records, id, 5))?,
            "remove" => _ = self.edit(nodes::remove(&records, id, &force, |node| self.is_up(node)))?,
            "kill" => _ = self.dead.insert(id),
            "start" => _ = self.dead.remove(&id),
            "slow" => _ = self.slow.insert(id),
            "fast" => _ = self.slow.remove(&id),
            _ => return self.set_node(id, NodeState::Lost),
        }
        Ok(String::new())
    }
}

fn number(arguments: &mut ArgumentConsumer<'_>, key: &str) -> Result<u64, Box<dyn Error>> {
    Ok(arguments.take_key(key).map(str::parse).transpose()?.unwrap_or(0))
}

impl goldenscript::Runner for World {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Done {
        let mut arguments = command.consume_args();
        let name = command.name.as_str();
        let mut id = || -> Result<u64, Box<dyn Error>> { Ok(arguments.next_pos().unwrap_or("1").parse()?) };
        match name {
            "nodes" => {
                let count = id()?;
                self.nodes(count)
            }
            "keyspace" => {
                let name = arguments.next_pos().unwrap_or_default().to_owned();
                let replicas = u32::try_from(number(&mut arguments, "replicas")?)?;
                let shards = u32::try_from(number(&mut arguments, "shards")?)?;
                let request = CreateKeyspaceRequest { name, replicas, shards, ..Default::default() };
                let records = self.records.clone();
                let dead = self.dead.clone();
                self.edit(keyspaces::create(&records, &request, |node| !dead.contains(&node)))?;
                Ok(String::new())
            }
            "erase" => {
                let name = arguments.next_pos().unwrap_or_default().to_owned();
                let records = self.records.clone();
                self.edit(keyspaces::delete(&records, &name))?;
                Ok(String::new())
            }
            "plan" | "hold" => {
                self.live();
                let steps = plan(&self.records, &self.observe());
                let lines = steps.iter().map(|step| format!("{step}\n")).collect();
                self.kept = Some((self.records.clone(), steps));
                Ok(lines)
            }
            "late" => {
                let (base, steps) = self.kept.take().ok_or("nothing is kept")?;
                Ok(self.execute(&base, steps))
            }
            "round" => {
                let rounds = id()?;
                Ok((0..rounds).map(|_| self.round()).collect())
            }
            "settle" => self.settle(),
            "show" => Ok(self.show()),
            "actions" => Ok(self.actions()),
            "running" => Ok(format!("{}\n", self.records.actions.values().filter(|action| runs(action)).count())),
            "calm" => {
                self.calm = true;
                Ok(String::new())
            }
            "stuck" => {
                self.stuck.insert(id()?);
                Ok(String::new())
            }
            "leader" => {
                let shard = id()?;
                let node = number(&mut arguments, "node")?;
                let descriptor = self.records.shards.get(&shard).ok_or("no such shard")?;
                let replica = descriptor.replicas.iter().find(|replica| replica.node_id == node).ok_or("no replica")?;
                self.groups.get_mut(&shard).ok_or("no group")?.leader = replica.replica_id;
                Ok(String::new())
            }
            "cancel" => {
                let (records, action) = (self.records.clone(), id()?);
                self.edit(actions::cancel(&records, action, 5))?;
                Ok(String::new())
            }
            "drain" | "undrain" | "remove" | "kill" | "start" | "slow" | "fast" | "lost" => {
                let node = id()?;
                self.node_command(name, node, &mut arguments)
            }
            "damage" => {
                let (shard, node) = (id()?, number(&mut arguments, "node")?);
                let replicas = self.records.shards.get(&shard).map(|shard| shard.replicas.clone()).unwrap_or_default();
                let on = replicas.iter().filter(|replica| replica.node_id == node);
                self.damaged.extend(on.map(|replica| (shard, replica.replica_id)));
                Ok(String::new())
            }
            "move" | "learner" | "promote" | "drop" | "voters" => {
                let shard = id()?;
                self.act(name, shard, &mut arguments)
            }
            _ => Err(format!("no such command: {name}").into()),
        }
    }
}

fn run(script: &str) {
    let path = format!("{}/src/controller/scripts/{script}", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(&mut World::default(), path).unwrap();
}

#[test]
fn shards_and_leaders_spread_and_shard_1_grows() {
    run("creation_spreads");
}

#[test]
fn a_move_goes_on_from_every_intermediate_state() {
    run("a_move_goes_on_from_every_state");
}

#[test]
fn a_drain_with_too_few_nodes_is_refused_unless_forced() {
    run("a_drain_with_too_few_nodes");
}

#[test]
fn a_drained_node_is_emptied_leaders_first() {
    run("a_drained_node_is_emptied");
}

#[test]
fn a_replica_whose_content_is_wrong_is_replaced() {
    run("a_wrong_replica_is_replaced");
}

#[test]
fn a_lost_node_is_replaced() {
    run("a_lost_node_is_replaced");
}

#[test]
fn no_step_is_taken_at_a_stale_epoch() {
    run("no_step_at_a_stale_epoch");
}

#[test]
fn a_cancelled_action_leaves_the_catalog_and_the_group_agreeing() {
    run("a_cancelled_action");
}

#[test]
fn leaders_come_home_and_replicas_even_out_only_when_calm() {
    run("balance_only_when_calm");
}

#[test]
fn leaders_come_home_together_and_do_not_wait_for_one_that_cannot() {
    run("leaders_come_home_together");
}

#[test]
fn what_would_lose_quorum_is_refused() {
    run("what_would_lose_quorum");
}
