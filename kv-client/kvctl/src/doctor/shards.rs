//! Rules about shards: quorum, leader, number of voters, replicas that lag, leaders unevenly spread.
//!
//! Not here: rules about nodes (nodes).

use std::collections::BTreeMap;

use kv_proto::pb::admin::v1::{KeyspaceState, NodeState, Replica, ReplicaRole, ReplicaStatus, Shard, ShardListing};

use super::{Finding, Picture, Severity, finding, leader_of};
use crate::human;

/// Entries. A follower under full load is a few hundred behind; this many take a noticeable time to catch up.
const LAG_MAX: u64 = 1000;

/// Entries. Less than this may be in flight when a follower seems to stand still.
const LAG_STALLED: u64 = 16;

/// Leaders above or below an even share that are worth a move.
const UNEVEN_LEADERS: usize = 2;

pub(super) fn findings(picture: &Picture<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut lagging: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for listing in &picture.facts.shards {
        let Some(shard) = &listing.shard else { continue };
        match leadership(picture, listing, shard) {
            Some(found) => findings.push(found),
            None => {
                findings.extend(voters(picture, listing, shard));
                for (node, text) in lags(picture, listing, shard) {
                    lagging.entry(node).or_default().push(text);
                }
            }
        }
        findings.extend(silent_replicas(picture, listing, shard));
    }
    findings.extend(lagging.into_iter().map(|(node, replicas)| lag_finding(picture, node, &replicas)));
    findings.extend(balance(picture));
    findings.extend(keyspaces(picture));
    findings
}

fn voters_of(shard: &Shard) -> impl Iterator<Item = &Replica> {
    shard.replicas.iter().filter(|replica| replica.role() == ReplicaRole::Voter)
}

fn status_of(listing: &ShardListing, replica_id: u64) -> Option<&ReplicaStatus> {
    listing.replicas.iter().find(|status| status.replica_id == replica_id && status.role != "down")
}

fn title(listing: &ShardListing, shard: &Shard) -> String {
    format!("shard {} of keyspace {}", shard.shard_id, crate::values::show(listing.keyspace.as_bytes()))
}

/// No quorum, or no leader.
fn leadership(picture: &Picture<'_>, listing: &ShardListing, shard: &Shard) -> Option<Finding> {
    let id = shard.shard_id;
    let voters: Vec<&Replica> = voters_of(shard).collect();
    let (alive, gone): (Vec<&Replica>, Vec<&Replica>) =
        voters.iter().partition(|voter| status_of(listing, voter.replica_id).is_some());
    if alive.len() * 2 <= voters.len() && !voters.is_empty() {
        let mut nodes: Vec<u64> = gone.iter().map(|voter| voter.node_id).collect();
        nodes.sort_unstable();
        let names: Vec<String> = nodes.iter().map(|node| picture.name(*node)).collect();
        let what = format!(
            "{} has lost its quorum: {} of {} voters answer; missing: {}. It serves neither writes nor linearizable reads",
            title(listing, shard),
            alive.len(),
            voters.len(),
            human::list(&names),
        );
        let first = nodes.first().copied().unwrap_or_default();
        let found = finding(Severity::Critical, "no-quorum", format!("shard {id}"), what)
            .help("bring the missing nodes back; on a local cluster", format!("scripts/cluster start {first}"))
            .help(
                "only if they are gone for good, and at the price of the last writes (docs/operations.md)",
                format!("kv-node unsafe-recover-shard --shard {id} --accept-data-loss --data-dir FOLDER"),
            );
        return Some(found);
    }
    if leader_of(listing).is_some() || shard.creating {
        return None;
    }
    let what =
        format!("{} has no leader, though {} of {} voters answer", title(listing, shard), alive.len(), voters.len());
    let found = finding(Severity::Critical, "no-leader", format!("shard {id}"), what)
        .help("an election takes about a second; look again", format!("kvctl shard describe {id}"))
        .help("name a leader by hand", format!("kvctl shard transfer-leader {id}"));
    Some(found)
}

/// Fewer voters than the keyspace asks for.
fn voters(picture: &Picture<'_>, listing: &ShardListing, shard: &Shard) -> Option<Finding> {
    let id = shard.shard_id;
    let keyspace = picture.facts.keyspaces.iter().find(|keyspace| keyspace.keyspace_id == shard.keyspace_id)?;
    let (have, want) = (voters_of(shard).count(), keyspace.replicas as usize);
    if have >= want || shard.creating {
        return None;
    }
    let severity = if picture.has_running_action(id) { Severity::Note } else { Severity::Warning };
    let what =
        format!("{} has {} of the {want} its keyspace asks for", title(listing, shard), human::count(have, "voter"));
    let found = finding(severity, "under-replicated", format!("shard {id}"), what);
    let learner = shard.replicas.iter().find(|replica| replica.role() == ReplicaRole::Learner);
    let found = match (learner, picture.candidates(listing).first()) {
        _ if severity == Severity::Note => found.help("an action works on it", "kvctl action list --running"),
        (Some(learner), _) => {
            found.help("make its learner a voter", format!("kvctl shard promote {id} --node {}", learner.node_id))
        }
        (None, Some(node)) => found
            .help("add a replica", format!("kvctl shard add-learner {id} --node {node}"))
            .help("and then", format!("kvctl shard promote {id} --node {node}")),
        (None, None) => {
            found.help("no node has room for another replica: add one; on a local cluster", "scripts/cluster add-node")
        }
    };
    Some(found)
}

/// Replicas that do not answer though their node does.
fn silent_replicas(picture: &Picture<'_>, listing: &ShardListing, shard: &Shard) -> Vec<Finding> {
    let silent = shard.replicas.iter().filter(|replica| {
        picture.is_alive(replica.node_id) && status_of(listing, replica.replica_id).is_none() && !shard.creating
    });
    silent
        .map(|replica| {
            let what = format!(
                "replica {} of {} does not run on {}, though that node answers",
                replica.replica_id,
                title(listing, shard),
                picture.name(replica.node_id)
            );
            finding(Severity::Warning, "replica-down", format!("shard {}", shard.shard_id), what)
                .help("a replica that was just created starts within seconds; the node's log says more", {
                    format!("kvctl node status {}", replica.node_id)
                })
        })
        .collect()
}

/// Replicas on living nodes that are far behind, or behind and standing still.
fn lags(picture: &Picture<'_>, listing: &ShardListing, shard: &Shard) -> Vec<(u64, String)> {
    let Some(leader) = leader_of(listing) else { return Vec::new() };
    let earlier = picture
        .facts
        .earlier
        .iter()
        .find(|earlier| earlier.shard.as_ref().is_some_and(|other| other.shard_id == shard.shard_id))
        .and_then(leader_of);
    let mut lags = Vec::new();
    for replica in &shard.replicas {
        if replica.replica_id == leader.replica_id || !picture.is_alive(replica.node_id) {
            continue;
        }
        let follower = leader.followers.iter().find(|follower| follower.replica_id == replica.replica_id);
        let before = earlier.and_then(|leader| leader.followers.iter().find(|f| f.replica_id == replica.replica_id));
        let status = status_of(listing, replica.replica_id);
        let unapplied = status.map_or(0, |status| status.committed_index.saturating_sub(status.applied_index));
        let id = shard.shard_id;
        if let Some(follower) = follower {
            let stands_still = before.is_some_and(|before| before.matched_index == follower.matched_index);
            if follower.lag >= LAG_STALLED && stands_still {
                lags.push((
                    replica.node_id,
                    format!("shard {id} by {} entries, standing still", human::grouped(follower.lag)),
                ));
                continue;
            }
            if follower.lag >= LAG_MAX {
                lags.push((replica.node_id, format!("shard {id} by {} entries", human::grouped(follower.lag))));
                continue;
            }
        }
        if unapplied >= LAG_MAX {
            lags.push((
                replica.node_id,
                format!("shard {id} by {} entries not yet applied", human::grouped(unapplied)),
            ));
        }
    }
    lags
}

fn lag_finding(picture: &Picture<'_>, node: u64, replicas: &[String]) -> Finding {
    let noun = if replicas.len() == 1 { "a replica" } else { "replicas" };
    let cause = match picture.status(node) {
        Some(status) if status.read_only => "; its disk is full",
        Some(_) | None => "",
    };
    let what = format!("{noun} on {} lag behind the leader{cause}: {}", picture.name(node), human::list(replicas));
    let what = if replicas.len() == 1 { what.replacen(" lag ", " lags ", 1) } else { what };
    let first = replicas.first().and_then(|text| text.split(' ').nth(1)).unwrap_or_default();
    finding(Severity::Warning, "replica-lagging", format!("node {node}"), what)
        .help("watch it catch up", format!("kvctl shard describe {first}"))
        .help("if it does not: is the node short of processor, disk or memory?", format!("kvctl node status {node}"))
}

/// Leaders far from an even share.
fn balance(picture: &Picture<'_>) -> Option<Finding> {
    let mut leaders: BTreeMap<u64, usize> = picture
        .nodes
        .iter()
        .filter(|(_, (node, status))| node.state() == NodeState::Active && status.is_some_and(|status| status.may_lead))
        .map(|(id, _)| (*id, 0))
        .collect();
    for leader in picture.facts.shards.iter().filter_map(leader_of) {
        leaders.entry(leader.node_id).and_modify(|number| *number += 1);
    }
    let (nodes, total) = (leaders.len(), leaders.values().sum::<usize>());
    let (most, least) = (leaders.iter().max_by_key(|(_, n)| **n)?, leaders.iter().min_by_key(|(_, n)| **n)?);
    let too_many = most.1.saturating_sub(total.div_ceil(nodes)) >= UNEVEN_LEADERS;
    let too_few = (total / nodes).saturating_sub(*least.1) >= UNEVEN_LEADERS;
    if !too_many && !too_few {
        return None;
    }
    let movable = picture.facts.shards.iter().find_map(|listing| {
        let shard = listing.shard.as_ref()?;
        let leads = leader_of(listing).is_some_and(|leader| leader.node_id == *most.0);
        (leads && voters_of(shard).any(|voter| voter.node_id == *least.0)).then_some(shard.shard_id)
    });
    let counts: Vec<String> = leaders.iter().map(|(node, number)| format!("node {node} leads {number}")).collect();
    let what = format!("leaders are spread unevenly: {}", human::list(&counts));
    let found = finding(Severity::Warning, "leaders-uneven", "cluster", what);
    Some(match movable {
        Some(shard) => found.help("hand one over", format!("kvctl shard transfer-leader {shard} --to {}", least.0)),
        None => found.help("see who leads what", "kvctl shard list"),
    })
}

fn keyspaces(picture: &Picture<'_>) -> Vec<Finding> {
    let unfinished = picture.facts.keyspaces.iter().filter_map(|keyspace| {
        let doing = match keyspace.state() {
            KeyspaceState::Creating => "created",
            KeyspaceState::Deleting => "deleted",
            KeyspaceState::Ready | KeyspaceState::Unspecified => return None,
        };
        let name = crate::values::show(keyspace.name.as_bytes());
        let what = format!("keyspace {name} is still being {doing}");
        let found = finding(Severity::Note, "keyspace-unfinished", format!("keyspace {name}"), what);
        Some(found.help("see how far it is", "kvctl keyspace list"))
    });
    unfinished.collect()
}
