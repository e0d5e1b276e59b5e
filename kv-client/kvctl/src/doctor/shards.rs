//! Rules about shards: quorum, leader, number of voters, replicas that lag or do not run.
//!
//! Invariants: shards with the same trouble for the same cause are one finding.
//!
//! Not here: rules about nodes (nodes), about where leaders are (leaders).

use std::collections::BTreeMap;

use kv_proto::pb::admin::v1::{KeyspaceState, Replica, ReplicaRole, ReplicaStatus, Shard, ShardListing};

use super::{Finding, Picture, Severity, finding, leader_of};
use crate::human;

/// Entries. A follower under full load is a few hundred behind; this many take a noticeable time to catch up.
const LAG_MAX: u64 = 1000;

/// Entries. Less than this may be in flight when a follower seems to stand still.
const LAG_STALLED: u64 = 16;

pub(super) fn findings(picture: &Picture<'_>) -> Vec<Finding> {
    let mut troubles: BTreeMap<Trouble, Vec<&ShardListing>> = BTreeMap::new();
    let mut lagging: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for listing in &picture.facts.shards {
        let Some(shard) = &listing.shard else { continue };
        if shard.creating {
            continue;
        }
        let stopped = leadership(listing, shard);
        let serves = stopped.is_none();
        let idle = silent_replicas(picture, listing, shard);
        for trouble in stopped.into_iter().chain(idle) {
            troubles.entry(trouble).or_default().push(listing);
        }
        if serves {
            if let Some(trouble) = voters(picture, listing, shard) {
                troubles.entry(trouble).or_default().push(listing);
            }
            for (node, text) in lags(picture, listing, shard) {
                lagging.entry(node).or_default().push(text);
            }
        }
        wrong.extend(wrong_replicas(picture, listing, shard));
    }
    let mut findings: Vec<Finding> =
        troubles.iter().map(|(trouble, shards)| explain(picture, trouble, &Shards::new(shards))).collect();
    findings.extend(wrong);
    findings.extend(lagging.into_iter().map(|(node, replicas)| lag_finding(picture, node, &replicas)));
    findings.extend(keyspaces(picture));
    findings
}

/// What is wrong with a shard, and with every other one for the same cause.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// These nodes are missing; so many of them are needed.
    NoQuorum { missing: Vec<u64>, needed: usize },
    /// Though so many of so many voters answer.
    NoLeader { alive: usize, voters: usize },
    /// The leader on this node hears from no majority, though so many of so many voters answer.
    CutOff { leader: u64, alive: usize, voters: usize },
    /// Fewer voters than the keyspace asks for.
    UnderReplicated { have: usize, want: usize, remedy: Remedy },
    /// A replica does not answer though its node does.
    ReplicaDown { node: u64 },
}

/// What gives a shard one more voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Remedy {
    Running,
    Promote { node: u64 },
    Add { node: u64 },
    NewNode,
}

/// Shards as a sentence names them.
struct Shards {
    ids: Vec<u64>,
    title: String,
    verbs: (&'static str, &'static str),
}

impl Shards {
    fn new(listings: &[&ShardListing]) -> Self {
        let ids: Vec<u64> = listings.iter().filter_map(|listing| Some(listing.shard.as_ref()?.shard_id)).collect();
        let keyspaces: std::collections::BTreeSet<String> =
            listings.iter().map(|listing| crate::values::show(listing.keyspace.as_bytes()).to_string()).collect();
        let keyspaces: Vec<String> = keyspaces.into_iter().collect();
        let noun = if keyspaces.len() == 1 { "keyspace" } else { "keyspaces" };
        let title = format!("{} of {noun} {}", human::shards(&ids), human::list(&keyspaces));
        Self { verbs: if ids.len() == 1 { ("has", "does not run") } else { ("have", "do not run") }, ids, title }
    }

    fn first(&self) -> u64 {
        self.ids.first().copied().unwrap_or_default()
    }

    /// "shard 7", "shards 2 to 5".
    fn subject(&self) -> String {
        human::shards(&self.ids)
    }

    /// What to say before a command that works on one shard.
    fn each(&self, when: &str) -> String {
        if self.ids.len() == 1 { when.to_owned() } else { format!("{when}; for each of these shards") }
    }
}

fn voters_of(shard: &Shard) -> impl Iterator<Item = &Replica> {
    shard.replicas.iter().filter(|replica| replica.role() == ReplicaRole::Voter)
}

fn status_of(listing: &ShardListing, replica_id: u64) -> Option<&ReplicaStatus> {
    listing.replicas.iter().find(|status| status.replica_id == replica_id && status.role != "down")
}

/// No quorum, or no leader.
fn leadership(listing: &ShardListing, shard: &Shard) -> Option<Trouble> {
    let (alive, gone): (Vec<&Replica>, Vec<&Replica>) =
        voters_of(shard).partition(|voter| status_of(listing, voter.replica_id).is_some());
    let voters = alive.len() + gone.len();
    if alive.len() * 2 <= voters && voters > 0 {
        let mut missing: Vec<u64> = gone.iter().map(|voter| voter.node_id).collect();
        missing.sort_unstable();
        return Some(Trouble::NoQuorum { missing, needed: voters / 2 + 1 - alive.len() });
    }
    let alive = alive.len();
    match leader_of(listing) {
        None => Some(Trouble::NoLeader { alive, voters }),
        Some(leader) if leader.no_quorum => Some(Trouble::CutOff { leader: leader.node_id, alive, voters }),
        Some(_) => None,
    }
}

/// Fewer voters than the keyspace asks for.
fn voters(picture: &Picture<'_>, listing: &ShardListing, shard: &Shard) -> Option<Trouble> {
    let keyspace = picture.facts.keyspaces.iter().find(|keyspace| keyspace.keyspace_id == shard.keyspace_id)?;
    let (have, want) = (voters_of(shard).count(), keyspace.replicas as usize);
    if have >= want {
        return None;
    }
    let learner = shard.replicas.iter().find(|replica| replica.role() == ReplicaRole::Learner);
    let remedy = match (learner, picture.candidates(listing).first()) {
        _ if picture.has_running_action(shard.shard_id) => Remedy::Running,
        (Some(learner), _) => Remedy::Promote { node: learner.node_id },
        (None, Some(node)) => Remedy::Add { node: *node },
        (None, None) => Remedy::NewNode,
    };
    Some(Trouble::UnderReplicated { have, want, remedy })
}

/// Replicas that do not answer though their node does.
fn silent_replicas(picture: &Picture<'_>, listing: &ShardListing, shard: &Shard) -> Vec<Trouble> {
    let silent = shard
        .replicas
        .iter()
        .filter(|replica| picture.is_alive(replica.node_id) && status_of(listing, replica.replica_id).is_none());
    silent.map(|replica| Trouble::ReplicaDown { node: replica.node_id }).collect()
}

fn explain(picture: &Picture<'_>, trouble: &Trouble, shards: &Shards) -> Finding {
    match trouble {
        Trouble::NoQuorum { missing, needed } => no_quorum(picture, shards, missing, *needed),
        Trouble::NoLeader { alive, voters } => no_leader(shards, *alive, *voters),
        Trouble::CutOff { leader, alive, voters } => cut_off(picture, shards, *leader, (*alive, *voters)),
        Trouble::UnderReplicated { have, want, remedy } => under_replicated(shards, *have, *want, *remedy),
        Trouble::ReplicaDown { node } => {
            let (verb, of) = (shards.verbs.1, &shards.title);
            let noun = if shards.ids.len() == 1 { "the replica" } else { "replicas" };
            let what = format!("{noun} of {of} {verb} on {}, though that node answers", picture.name(*node));
            finding(Severity::Warning, "replica-down", shards.subject(), what).help(
                "a replica that was just created starts within seconds; the node's log says more",
                format!("kvctl node status {node}"),
            )
        }
    }
}

fn no_quorum(picture: &Picture<'_>, shards: &Shards, missing: &[u64], needed: usize) -> Finding {
    let names: Vec<String> = missing.iter().map(|node| picture.name(*node)).collect();
    let (pronoun, serve) = if shards.ids.len() == 1 { ("its", "It serves") } else { ("their", "They serve") };
    let what = format!(
        "{} {} lost {pronoun} quorum, because {} {} not answer. {serve} neither writes nor linearizable reads",
        shards.title,
        shards.verbs.0,
        human::list(&names),
        if missing.len() == 1 { "does" } else { "do" },
    );
    let first = missing.first().copied().unwrap_or_default();
    let back = if missing.len() == needed {
        format!("bring {} back; on a local cluster", if needed == 1 { "it" } else { "them all" })
    } else {
        format!("bring {needed} of them back; on a local cluster")
    };
    finding(Severity::Critical, "no-quorum", shards.subject(), what)
        .help(back, format!("scripts/cluster start {first}"))
        .help(
            shards.each("only if they are gone for good, and at the price of the last writes (docs/operations.md)"),
            format!("kv-node unsafe-recover-shard --shard {} --accept-data-loss --data-dir FOLDER", shards.first()),
        )
}

fn no_leader(shards: &Shards, alive: usize, voters: usize) -> Finding {
    let what = format!("{} {} no leader, though {alive} of {voters} voters answer", shards.title, shards.verbs.0);
    let id = shards.first();
    finding(Severity::Critical, "no-leader", shards.subject(), what)
        .help("an election takes about a second; look again", format!("kvctl shard describe {id}"))
        .help(shards.each("name a leader by hand"), format!("kvctl shard transfer-leader {id}"))
}

fn cut_off(picture: &Picture<'_>, shards: &Shards, leader: u64, (alive, voters): (usize, usize)) -> Finding {
    let node = picture.name(leader);
    let what = format!(
        "{} {} no quorum: no majority answers the leader on {node}, though {alive} of {voters} voters answer here",
        shards.title, shards.verbs.0
    );
    finding(Severity::Critical, "no-quorum", shards.subject(), what)
        .help("nodes that have just come back are heard within seconds; look again", "kvctl doctor")
        .help(format!("check the network and firewall of node {leader}"), format!("kvctl node status {leader}"))
}

fn under_replicated(shards: &Shards, have: usize, want: usize, remedy: Remedy) -> Finding {
    let severity = if remedy == Remedy::Running { Severity::Note } else { Severity::Warning };
    let (verb, asks) = (shards.verbs.0, if shards.ids.len() == 1 { "its keyspace asks" } else { "is asked" });
    let what = format!("{} {verb} {} of the {want} {asks} for", shards.title, human::count(have, "voter"));
    let found = finding(severity, "under-replicated", shards.subject(), what);
    let id = shards.first();
    match remedy {
        Remedy::Running => found.help("an action works on it", "kvctl action list --running"),
        Remedy::Promote { node } => {
            found.help(shards.each("make its learner a voter"), format!("kvctl shard promote {id} --node {node}"))
        }
        Remedy::Add { node } => found
            .help(shards.each("add a replica"), format!("kvctl shard add-learner {id} --node {node}"))
            .help("and then", format!("kvctl shard promote {id} --node {node}")),
        Remedy::NewNode => {
            found.help("no node has room for another replica: add one; on a local cluster", "scripts/cluster add-node")
        }
    }
}

/// Replicas whose content differs from that of the majority.
fn wrong_replicas(picture: &Picture<'_>, listing: &ShardListing, shard: &Shard) -> Vec<Finding> {
    let wrong = listing.replicas.iter().filter(|status| status.quarantined);
    let told = wrong.map(|status| {
        let id = shard.shard_id;
        let what = format!(
            "the replica of shard {id} of keyspace {} on {} differs from the majority: it serves nothing and is being replaced",
            crate::values::show(listing.keyspace.as_bytes()),
            picture.name(status.node_id)
        );
        finding(Severity::Warning, "replica-wrong", format!("shard {id}"), what)
            .help("watch it being replaced", "kvctl action list --running")
            .help("if it happens again on that node, its disk or memory is bad", {
                format!("kvctl node drain {}", status.node_id)
            })
    });
    told.collect()
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
        .help(
            "if it does not, see whether the node is short of processor, disk or memory",
            format!("kvctl node status {node}"),
        )
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
