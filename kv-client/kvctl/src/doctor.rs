//! What is wrong with a cluster and which command helps: a pure function from facts to findings.
//!
//! Invariants:
//! - no I/O, no clock: the same facts always give the same findings in the same order;
//! - every finding names a command that helps;
//! - a cause is named once: replicas on a dead node are part of the node's finding, shards that suffer from the same are
//!   one finding;
//! - no command is named that would make it worse: nodes that a quorum needs are never to be removed.
//!
//! Not here: how facts are gathered and findings printed (checkup).

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::ids::SYSTEM_KEYSPACE;
use kv_proto::pb::admin::v1::{
    Action, ActionState, Keyspace, Node, NodeListing, NodeState, NodeStatus, ReplicaRole, ReplicaStatus, ShardListing,
};

use crate::human;

mod leaders;
mod nodes;
mod shards;
#[cfg(test)]
mod tests;

/// An action that runs longer than this is worth a look; moving a large shard takes minutes.
const ACTION_SLOW_MS: u64 = 10 * 60 * 1000;

/// What was seen of a cluster at one time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// The endpoints asked.
    pub(crate) endpoints: Vec<Endpoint>,
    /// As the catalog and the nodes themselves say.
    pub(crate) nodes: Vec<NodeListing>,
    /// As the catalog says.
    pub(crate) keyspaces: Vec<Keyspace>,
    /// As the catalog and the nodes that hold them say.
    pub(crate) shards: Vec<ShardListing>,
    /// The same a moment earlier, to tell a replica that catches up from one that stands still; may be empty.
    pub(crate) earlier: Vec<ShardListing>,
    /// What the cluster did not answer, and why.
    pub(crate) unanswered: Vec<String>,
    /// Running and ended.
    pub(crate) actions: Vec<Action>,
    /// When, in milliseconds since the epoch.
    pub(crate) now_ms: u64,
}

/// One address of `--endpoints`.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// As given.
    pub(crate) address: String,
    /// The cluster it belongs to, or why it did not answer.
    pub(crate) answer: Result<String, String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// Requests fail, or one more failure makes them fail.
    Critical,
    /// It works, but not as it should.
    Warning,
    /// Good to know; not a problem.
    Note,
}

impl Severity {
    /// In one word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Something a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// How bad.
    pub(crate) severity: Severity,
    /// Stable name of the kind of problem, for programs.
    pub(crate) problem: &'static str,
    /// "node 3", "shard 7", "shards 2, 3 and 4", "action 2", "cluster".
    pub(crate) subject: String,
    /// What is wrong, in one or two sentences.
    pub(crate) what: String,
    /// What helps, most likely first.
    pub(crate) help: Vec<Help>,
}

/// A command, and when to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Help {
    /// When or why.
    pub(crate) when: String,
    /// To be pasted into a shell.
    pub(crate) command: String,
}

fn help(when: impl Into<String>, command: impl Into<String>) -> Help {
    Help { when: when.into(), command: command.into() }
}

fn finding(severity: Severity, problem: &'static str, subject: impl Into<String>, what: impl Into<String>) -> Finding {
    Finding { severity, problem, subject: subject.into(), what: what.into(), help: Vec::new() }
}

impl Finding {
    fn help(mut self, when: impl Into<String>, command: impl Into<String>) -> Self {
        self.help.push(help(when, command));
        self
    }

    fn help_if(self, condition: bool, when: impl Into<String>, command: impl Into<String>) -> Self {
        if condition { self.help(when, command) } else { self }
    }
}

/// What is wrong, worst first.
pub(crate) fn diagnose(facts: &Facts) -> Vec<Finding> {
    let picture = Picture::new(facts);
    let mut findings = endpoints(&picture);
    findings.extend(catalog(&picture));
    if !facts.nodes.is_empty() {
        findings.extend(nodes::findings(&picture));
        findings.extend(shards::findings(&picture));
        findings.extend(leaders::finding_of(&picture));
        findings.extend(actions(&picture));
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Whether any finding is more than a note.
pub(crate) fn has_problems(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity < Severity::Note)
}

/// Facts with the look-ups that rules need.
struct Picture<'a> {
    facts: &'a Facts,
    nodes: BTreeMap<u64, (&'a Node, Option<&'a NodeStatus>)>,
    running: Vec<&'a Action>,
}

impl<'a> Picture<'a> {
    fn new(facts: &'a Facts) -> Self {
        let members = facts.nodes.iter().filter_map(|listing| Some((listing.node.as_ref()?, listing.status.as_ref())));
        let nodes = members
            .filter(|(node, _)| node.state() != NodeState::Removed)
            .map(|(node, status)| (node.node_id, (node, status)))
            .collect();
        let running = facts.actions.iter().filter(|action| action.state() == ActionState::Running).collect();
        Self { facts, nodes, running }
    }

    fn status(&self, node: u64) -> Option<&'a NodeStatus> {
        self.nodes.get(&node).and_then(|(_, status)| *status)
    }

    fn is_alive(&self, node: u64) -> bool {
        self.status(node).is_some()
    }

    fn name(&self, node: u64) -> String {
        match self.nodes.get(&node) {
            Some((record, _)) => format!("node {node} ({})", record.address),
            None => format!("node {node}"),
        }
    }

    /// Nodes that can take a replica of a shard, emptiest first.
    fn candidates(&self, listing: &ShardListing) -> Vec<u64> {
        let holders: BTreeSet<u64> = replicas_of(listing).map(|replica| replica.node_id).collect();
        let fit = |(id, (node, status)): (&u64, &(&Node, Option<&NodeStatus>))| {
            let status = (*status)?;
            let fits = node.state() == NodeState::Active && !status.read_only && !holders.contains(id);
            fits.then_some((status.replicas.len(), *id))
        };
        let mut candidates: Vec<(usize, u64)> = self.nodes.iter().filter_map(fit).collect();
        candidates.sort_unstable();
        candidates.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether the living voters of every shard are a majority without this node, and the living nodes one of all.
    fn is_dispensable(&self, node: u64) -> bool {
        let dead = self.nodes.values().filter(|(_, status)| status.is_none()).count();
        let keeps_quorum = |listing: &ShardListing| {
            let voters: Vec<u64> = replicas_of(listing)
                .filter(|replica| replica.role() == ReplicaRole::Voter)
                .map(|replica| replica.node_id)
                .collect();
            let others = voters.iter().filter(|voter| **voter != node && self.is_alive(**voter)).count();
            !voters.contains(&node) || others * 2 > voters.len()
        };
        dead * 2 < self.nodes.len() && self.facts.shards.iter().all(keeps_quorum)
    }

    /// Whether each of these shards finds a living node that does not hold it yet.
    fn has_spare_node(&self, shards: &[u64]) -> bool {
        let is_one =
            |listing: &&ShardListing| listing.shard.as_ref().is_some_and(|shard| shards.contains(&shard.shard_id));
        self.facts.shards.iter().filter(is_one).all(|listing| !self.candidates(listing).is_empty())
    }

    fn has_running_action(&self, shard: u64) -> bool {
        self.running.iter().any(|action| action.shard_id == shard)
    }
}

fn replicas_of(listing: &ShardListing) -> impl Iterator<Item = &kv_proto::pb::admin::v1::Replica> {
    listing.shard.iter().flat_map(|shard| &shard.replicas)
}

/// The replica that leads, by what the replicas that answered say; of several, the one with the highest term.
pub(crate) fn leader_of(listing: &ShardListing) -> Option<&ReplicaStatus> {
    listing.replicas.iter().filter(|replica| replica.role == "leader").max_by_key(|replica| replica.term)
}

/// Whether a shard has a leader that no majority answers.
pub(crate) fn lacks_quorum(listing: &ShardListing) -> bool {
    leader_of(listing).is_some_and(|leader| leader.no_quorum)
}

fn endpoints(picture: &Picture<'_>) -> Vec<Finding> {
    let endpoints = &picture.facts.endpoints;
    let silent: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| endpoint.answer.is_err()).collect();
    if !endpoints.is_empty() && silent.len() == endpoints.len() {
        let reasons: Vec<String> = silent
            .iter()
            .filter_map(|endpoint| Some(format!("{} ({})", endpoint.address, endpoint.answer.as_ref().err()?)))
            .collect();
        let what = format!("no endpoint answers: {}", human::list(&reasons));
        let finding = finding(Severity::Critical, "cluster-unreachable", "cluster", what)
            .help("a local cluster that is not running", "scripts/cluster up")
            .help("a cluster elsewhere", "kvctl --endpoints HOST:PORT,... doctor");
        return vec![finding];
    }
    let clusters: BTreeSet<&String> = endpoints.iter().filter_map(|endpoint| endpoint.answer.as_ref().ok()).collect();
    let mut findings = Vec::new();
    if clusters.len() > 1 {
        let what = format!("the endpoints belong to {} different clusters", clusters.len());
        let advice = "kvctl --endpoints HOST:PORT,... status";
        findings
            .push(finding(Severity::Critical, "endpoints-mixed", "cluster", what).help("name those of one", advice));
    }
    let members: BTreeSet<&str> = picture.nodes.values().map(|(node, _)| node.address.as_str()).collect();
    for endpoint in silent.iter().filter(|endpoint| !members.contains(endpoint.address.as_str())) {
        let what = format!("endpoint {} does not answer and is no node of this cluster", endpoint.address);
        let found = finding(Severity::Note, "endpoint-unknown", format!("endpoint {}", endpoint.address), what);
        let addresses = members.iter().copied().collect::<Vec<_>>().join(",");
        findings.push(found.help("the nodes of this cluster", format!("export KV_ENDPOINTS={addresses}")));
    }
    findings
}

/// A cluster that answers, but not with what doctor needs; or that has nothing to serve yet.
fn catalog(picture: &Picture<'_>) -> Option<Finding> {
    let facts = picture.facts;
    if let Some(why) = facts.unanswered.first() {
        let what = format!("the cluster does not say how it is, so the rest of this is incomplete: {why}");
        let found = finding(Severity::Critical, "catalog-unreadable", "cluster", what)
            .help("see which nodes answer", "kvctl health")
            .help("a cluster that has just started needs a moment; look again", "kvctl doctor");
        return Some(found);
    }
    let has_data = facts.keyspaces.iter().any(|keyspace| keyspace.keyspace_id != SYSTEM_KEYSPACE.0);
    if has_data || facts.nodes.is_empty() {
        return None;
    }
    let nodes = human::count(picture.nodes.len(), "node");
    let what = format!(
        "there is no keyspace for data; a new cluster creates one when all its first nodes have joined, and {nodes} have"
    );
    let what = if picture.nodes.len() == 1 { what.replacen(" node have", " node has", 1) } else { what };
    let found = finding(Severity::Warning, "no-keyspace", "cluster", what)
        .help("see who has joined", "kvctl node list")
        .help("or create one", "kvctl keyspace create NAME");
    Some(found)
}

fn actions(picture: &Picture<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for action in &picture.running {
        let age_ms = picture.facts.now_ms.saturating_sub(action.started_ms);
        let waits_for = (action.to_node_id != 0 && !picture.is_alive(action.to_node_id)).then_some(action.to_node_id);
        let why = match waits_for {
            Some(node) => format!("waits for {}, which does not answer", picture.name(node)),
            None if age_ms >= ACTION_SLOW_MS => {
                format!("has been running for {}", human::age(picture.facts.now_ms, action.started_ms))
            }
            None => continue,
        };
        let id = action.action_id;
        let what = format!(
            "action {id} ({} of shard {}) {why}; it stands at {} % ({})",
            crate::action::kind_name(action.kind()),
            action.shard_id,
            action.percent,
            if action.progress.is_empty() { "no progress reported" } else { &action.progress },
        );
        let found = finding(Severity::Warning, "action-stuck", format!("action {id}"), what)
            .help("watch it", format!("kvctl action wait {id}"))
            .help("give it up", format!("kvctl action cancel {id}"));
        findings.push(found);
    }
    findings
}
