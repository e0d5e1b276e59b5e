//! Which nodes take the replicas of a shard, and which replica should lead it. Pure.
//!
//! Invariants: at most one replica of a shard per node; the same catalog gives the same answer; ties go to the smaller
//! count of leaders, then the smaller node id.
//!
//! Not here: when replicas move (controller, plan).

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::pb::admin::v1::{NodeState, ReplicaRole, Shard};

use super::records::Records;

/// What a node carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Replicas the catalog wants there.
    pub replicas: u64,
    /// Shards that prefer a leader there.
    pub leaders: u64,
}

/// Loads by node id: every node that takes replicas, even if it has none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loads(BTreeMap<u64, Load>);

/// Replicas of a new shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Node ids, ascending; the replica on the first has id 1, and so on.
    pub nodes: Vec<u64>,
    /// One of them.
    pub leader: u64,
}

impl Loads {
    /// What the catalog puts on each active node.
    #[must_use]
    pub fn of(records: &Records) -> Self {
        let active = records.nodes.values().filter(|node| node.state() == NodeState::Active);
        let mut loads: BTreeMap<u64, Load> = active.map(|node| (node.node_id, Load::default())).collect();
        for shard in records.shards.values() {
            for replica in &shard.replicas {
                if let Some(load) = loads.get_mut(&replica.node_id) {
                    load.replicas += 1;
                    load.leaders += u64::from(replica.replica_id == shard.preferred_leader_replica_id);
                }
            }
        }
        Self(loads)
    }

    /// By node id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Load)> + '_ {
        self.0.iter().map(|(node, load)| (*node, *load))
    }

    /// Only nodes that pass.
    #[must_use]
    pub fn only(mut self, passes: impl Fn(u64) -> bool) -> Self {
        self.0.retain(|node, _| passes(*node));
        self
    }

    /// The least loaded node that is not excluded.
    #[must_use]
    pub fn least(&self, excluded: &BTreeSet<u64>) -> Option<u64> {
        let free = self.0.iter().filter(|(node, _)| !excluded.contains(node));
        free.min_by_key(|(node, load)| (**load, **node)).map(|(node, _)| *node)
    }

    /// Notes one more replica on a node.
    pub fn add_replica(&mut self, node: u64) {
        if let Some(load) = self.0.get_mut(&node) {
            load.replicas += 1;
        }
    }

    /// Places one new shard and counts it; None if there are fewer nodes than replicas.
    pub fn place(&mut self, replicas: usize) -> Option<Spread> {
        let mut chosen = BTreeSet::new();
        for _ in 0..replicas {
            chosen.insert(self.least(&chosen)?);
        }
        let leaders = |node: &u64| self.0.get(node).map_or(0, |load| load.leaders);
        let leader = *chosen.iter().min_by_key(|node| (leaders(node), **node))?;
        for node in &chosen {
            self.add_replica(*node);
        }
        if let Some(load) = self.0.get_mut(&leader) {
            load.leaders += 1;
        }
        Some(Spread { nodes: chosen.into_iter().collect(), leader })
    }
}

/// The voter that should lead a shard whose preferred one left: on the active node that is preferred least.
#[must_use]
pub fn preferred_among(records: &Records, shard: &Shard) -> u64 {
    let loads = Loads::of(records);
    let voters = shard.replicas.iter().filter(|replica| replica.role() == ReplicaRole::Voter);
    let leaders = |node: u64| loads.0.get(&node).map_or(u64::MAX, |load| load.leaders);
    voters.min_by_key(|replica| (leaders(replica.node_id), replica.replica_id)).map_or(0, |replica| replica.replica_id)
}

#[cfg(test)]
mod tests {
    use kv_proto::pb::admin::v1::Node;
    use kv_proto::timestamp::Timestamp;

    use super::super::records::Record;
    use super::*;

    fn loads(nodes: u64) -> Loads {
        let mut records = Records::default();
        for node_id in 1..=nodes {
            let node = Node { node_id, state: NodeState::Active.into(), ..Default::default() };
            records.insert(Record::Node(node), Timestamp(1));
        }
        Loads::of(&records)
    }

    #[test]
    fn shards_and_leaders_spread_evenly() {
        for (nodes, shards, replicas) in [(3, 6, 3), (5, 10, 3), (4, 8, 1), (7, 21, 5)] {
            let mut loads = loads(nodes);
            for _ in 0..shards {
                let spread = loads.place(replicas).unwrap();
                assert_eq!(spread.nodes.len(), replicas);
                assert!(spread.nodes.contains(&spread.leader));
            }
            let counts: Vec<Load> = loads.iter().map(|(_, load)| load).collect();
            let range = |count: fn(&Load) -> u64| {
                counts.iter().map(count).max().unwrap() - counts.iter().map(count).min().unwrap()
            };
            assert!(range(|load| load.replicas) <= 1, "{nodes} nodes: {counts:?}");
            // Replicas come first: where they fall on part of the nodes, leaders follow as well as they can.
            assert!(range(|load| load.leaders) <= 2, "{nodes} nodes: {counts:?}");
        }
    }

    #[test]
    fn more_replicas_than_nodes_are_not_placed() {
        assert_eq!(loads(2).place(3), None);
    }
}
