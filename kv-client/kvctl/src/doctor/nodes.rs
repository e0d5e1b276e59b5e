//! Rules about nodes: dead, lost, out of disk space, clock off, not leading, cut off from a peer.
//!
//! Not here: rules about shards and their replicas (shards).

use std::collections::BTreeSet;

use kv_proto::pb::admin::v1::{NodeState, NodeStatus, ReplicaRole};

use super::{Finding, Picture, Severity, finding, replicas_of};
use crate::human;

/// Times what a node needs free to take writes: with less than this it is about to refuse them.
const DISK_NEAR: u64 = 2;

/// A disk with less than a tenth free is worth a hint; the node itself goes by what it needs.
const DISK_USED_FRACTION: u64 = 10;

/// Milliseconds. Time services keep clocks within a few; half of this already means that one of them does not work.
const CLOCK_OFF_MS: u64 = 100;

pub(super) fn findings(picture: &Picture<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (&id, &(node, status)) in &picture.nodes {
        match status {
            None => findings.push(silent(picture, id)),
            Some(status) => {
                findings.extend(disk(picture, id, status));
                findings.extend(leading(picture, id, status));
                findings.extend(links(picture, id, status));
            }
        }
        if node.state() == NodeState::Draining && status.is_some() {
            let what = format!("{} is being drained", picture.name(id));
            let found = finding(Severity::Note, "node-draining", format!("node {id}"), what)
                .help("see how far it is", "kvctl action list --running")
                .help("take it back", format!("kvctl node undrain {id}"));
            findings.push(found);
        }
    }
    findings.extend(clocks(picture));
    findings.extend(versions(picture));
    findings
}

fn silent(picture: &Picture<'_>, id: u64) -> Finding {
    let listing = picture.facts.nodes.iter().find(|listing| listing.node.as_ref().is_some_and(|n| n.node_id == id));
    let reason = listing.map_or("", |listing| listing.unreachable_reason.as_str());
    // When it is tried again is of interest to the node that says so.
    let reason = reason.split("; trying it again").next().unwrap_or_default();
    let address = picture.nodes.get(&id).map_or("", |(node, _)| node.address.as_str());
    let reason = reason.strip_prefix(&format!("node {address} ")).unwrap_or(reason);
    let because = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    let shards: Vec<u64> = picture
        .facts
        .shards
        .iter()
        .filter(|listing| {
            replicas_of(listing).any(|replica| replica.node_id == id && replica.role() == ReplicaRole::Voter)
        })
        .filter_map(|listing| Some(listing.shard.as_ref()?.shard_id))
        .collect();
    let consequence = if shards.is_empty() {
        "it holds no replica".to_owned()
    } else {
        format!("{} {} one replica fewer than wanted", human::count(shards.len(), "shard"), has(shards.len()))
    };
    let is_lost = picture.nodes.get(&id).is_some_and(|(node, _)| node.state() == NodeState::Lost);
    let (problem, verb) = if is_lost { ("node-lost", "has lost its data") } else { ("node-down", "does not answer") };
    let what = format!("{} {verb}{because}: {consequence}", picture.name(id));
    let found = finding(Severity::Critical, problem, format!("node {id}"), what).help_if(
        !is_lost,
        "start kv-node there again; on a local cluster",
        format!("scripts/cluster start {id}"),
    );
    let remove = format!("kvctl node remove {id} --force not-drained");
    if !picture.is_dispensable(id) {
        // What is left would have no majority to replace it with.
        return found.help_if(is_lost, "bring the other dead nodes back first; see which", "kvctl node list");
    }
    if shards.is_empty() || picture.has_spare_node(&shards) {
        return found.help("if its data is gone for good, replace it", remove);
    }
    found
        .help(
            "if its data is gone for good, give its place to a new node; on a local cluster",
            "scripts/cluster add-node",
        )
        .help("and then", remove)
}

fn has(number: usize) -> &'static str {
    if number == 1 { "has" } else { "have" }
}

fn disk(picture: &Picture<'_>, id: u64, status: &NodeStatus) -> Option<Finding> {
    let (free, total) = (status.disk_free_bytes, status.disk_total_bytes);
    let folder = if status.data_dir.is_empty() { "its data folder" } else { &status.data_dir };
    let space = format!("{} of {} free in {folder}", human::size(free), human::size(total));
    // 0 of a node that sets no limit, or does not tell: then nothing says that it is about to act.
    let needed = status.disk_free_min_bytes;
    let least =
        if needed == 0 { String::new() } else { format!("; it takes writes while {} are", human::size(needed)) };
    let subject = format!("node {id}");
    let look = format!("df -h {}", if status.data_dir.is_empty() { "." } else { &status.data_dir });
    let found = if status.read_only {
        let what = format!("{} refuses writes, because its disk is full: {space}{least}", picture.name(id));
        finding(Severity::Critical, "disk-full", subject, what)
            .help("free space on its machine; writes go on by themselves", look)
    } else if total > 0 && free < needed.saturating_mul(DISK_NEAR) {
        let what = format!("{} will soon refuse writes for lack of disk space: {space}{least}", picture.name(id));
        finding(Severity::Warning, "disk-low", subject, what).help("free space on its machine", look)
    } else if total > 0 && free < total / DISK_USED_FRACTION {
        let what = format!("the disk of {} is mostly used: {space}{least}", picture.name(id));
        return Some(finding(Severity::Note, "disk-low", subject, what).help("see what uses it", look));
    } else {
        return None;
    };
    Some(found.help("or move its replicas to other nodes", format!("kvctl node drain {id}")))
}

fn leading(picture: &Picture<'_>, id: u64, status: &NodeStatus) -> Option<Finding> {
    if status.may_lead || status.read_only || is_off(status) {
        return None; // named by the rules for disks and clocks
    }
    let reason = if status.may_not_lead_reason.is_empty() { "no reason given" } else { &status.may_not_lead_reason };
    let what = format!("{} refuses to lead shards: {reason}", picture.name(id));
    let found = finding(Severity::Warning, "may-not-lead", format!("node {id}"), what)
        .help("look at it more closely", format!("kvctl node status {id}"));
    Some(found)
}

fn is_off(status: &NodeStatus) -> bool {
    status.clock_offset_ms.unsigned_abs() >= CLOCK_OFF_MS
}

/// A clock that is off is seen by everyone, so blame the node that refuses to lead because of it, if there is one.
fn clocks(picture: &Picture<'_>) -> Vec<Finding> {
    let off: Vec<(u64, &NodeStatus)> = picture
        .nodes
        .iter()
        .filter_map(|(id, (_, status))| Some((*id, (*status)?)))
        .filter(|(_, status)| is_off(status))
        .collect();
    let blamed: Vec<&(u64, &NodeStatus)> =
        off.iter().filter(|(_, status)| !status.may_lead && !status.read_only).collect();
    let advice = "timedatectl timesync-status";
    if blamed.is_empty() {
        let Some(worst) = off.iter().map(|(_, status)| status.clock_offset_ms.unsigned_abs()).max() else {
            return Vec::new();
        };
        let ids: Vec<u64> = off.iter().map(|(id, _)| *id).collect();
        let what = format!("clocks differ by up to {worst} ms, as nodes {} see it", human::list(&ids));
        let found = finding(Severity::Warning, "clock-off", "cluster", what);
        return vec![found.help("on each of their machines, check the time service", advice)];
    }
    let found = |(id, status): &(u64, &NodeStatus)| {
        let what = format!(
            "the clock of {} is off by {} ms, so it refuses to lead shards",
            picture.name(*id),
            status.clock_offset_ms
        );
        finding(Severity::Warning, "clock-off", format!("node {id}"), what)
            .help("on its machine, check the time service", advice)
            .help("see how far it is off", format!("kvctl node status {id}"))
    };
    blamed.into_iter().map(found).collect()
}

/// Links to a peer that answers us but not this node.
fn links(picture: &Picture<'_>, id: u64, status: &NodeStatus) -> Vec<Finding> {
    let cut =
        status.peers.iter().filter(|peer| !peer.connected && peer.node_id != id && picture.is_alive(peer.node_id));
    cut.map(|peer| {
        let what =
            format!("{} does not reach {}, though both answer here", picture.name(id), picture.name(peer.node_id));
        finding(Severity::Warning, "link-down", format!("node {id}"), what)
            .help("check the network and firewall between them; what the node says", format!("kvctl node status {id}"))
    })
    .collect()
}

fn versions(picture: &Picture<'_>) -> Option<Finding> {
    let versions: BTreeSet<&str> = picture
        .nodes
        .values()
        .filter_map(|(_, status)| Some((*status)?.version.as_str()))
        .filter(|version| !version.is_empty())
        .collect();
    if versions.len() < 2 {
        return None;
    }
    let versions: Vec<&str> = versions.into_iter().collect();
    let what = format!("the nodes run versions {}", human::list(&versions));
    Some(finding(Severity::Note, "versions-differ", "cluster", what).help("see which runs which", "kvctl node list"))
}
