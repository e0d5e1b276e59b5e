//! The rule about where leaders are: unevenly spread, for longer than the cluster needs to even them out by itself.
//!
//! Not here: shards without a leader (shards).

use std::collections::BTreeMap;

use kv_proto::pb::admin::v1::{NodeState, ReplicaRole, ShardListing};

use super::{Finding, Picture, Severity, finding, leader_of};
use crate::human;

/// Leaders above or below an even share that are worth a move.
const UNEVEN_MIN: usize = 2;

/// Seconds. The cluster moves one leader after the other once all is calm; a node that runs for less gets its share yet.
const SETTLED_AFTER: u64 = 600;

/// Where leaders sit, if that is worth a word and nothing explains it.
pub(super) fn finding_of(picture: &Picture<'_>) -> Option<Finding> {
    let (facts, nodes) = (picture.facts, may_lead(picture)?);
    let now = uneven(&nodes, &facts.shards)?;
    // One look cannot tell what passes from what stays.
    uneven(&nodes, &facts.earlier)?;
    let movable = facts.shards.iter().find_map(|listing| {
        let shard = listing.shard.as_ref()?;
        let leads = leader_of(listing).is_some_and(|leader| leader.node_id == now.most);
        let takes = |replica: &kv_proto::pb::admin::v1::Replica| {
            replica.node_id == now.least && replica.role() == ReplicaRole::Voter
        };
        (leads && shard.replicas.iter().any(takes)).then_some(shard.shard_id)
    });
    let counts: Vec<String> = now.leaders.iter().map(|(node, number)| format!("node {node} leads {number}")).collect();
    let what = format!("leaders are spread unevenly: {}", human::list(&counts));
    let found = finding(Severity::Warning, "leaders-uneven", "cluster", what);
    Some(match movable {
        Some(shard) => found.help("hand one over", format!("kvctl shard transfer-leader {shard} --to {}", now.least)),
        None => found.help("see who leads what", "kvctl shard list"),
    })
}

/// Nodes that take leaders; None while a dead, new or draining node or a running action explains any spread.
fn may_lead(picture: &Picture<'_>) -> Option<Vec<u64>> {
    let mut nodes = Vec::new();
    for (id, (node, status)) in &picture.nodes {
        let status = (*status)?;
        let calm = node.state() == NodeState::Active && status.uptime_seconds >= SETTLED_AFTER;
        if !calm {
            return None;
        }
        if status.may_lead {
            nodes.push(*id);
        }
    }
    picture.running.is_empty().then_some(nodes)
}

struct Uneven {
    leaders: BTreeMap<u64, usize>,
    most: u64,
    least: u64,
}

fn uneven(nodes: &[u64], shards: &[ShardListing]) -> Option<Uneven> {
    let mut leaders: BTreeMap<u64, usize> = nodes.iter().map(|id| (*id, 0)).collect();
    for leader in shards.iter().filter_map(leader_of) {
        leaders.entry(leader.node_id).and_modify(|number| *number += 1);
    }
    let total = leaders.values().sum::<usize>();
    let (most, least) = (leaders.iter().max_by_key(|(_, n)| **n)?, leaders.iter().min_by_key(|(_, n)| **n)?);
    let too_many = most.1.saturating_sub(total.div_ceil(nodes.len())) >= UNEVEN_MIN;
    let too_few = (total / nodes.len()).saturating_sub(*least.1) >= UNEVEN_MIN;
    let (most, least) = (*most.0, *least.0);
    (too_many || too_few).then_some(Uneven { leaders, most, least })
}
