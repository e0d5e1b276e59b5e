//! `doctor`: gathers facts, has them judged, prints the findings.
//!
//! Invariants: facts that cannot be had are left out, so that doctor says something about any cluster.
//!
//! Not here: the judgement (doctor).

use std::fmt::Write as _;
use std::time::Duration;

use kv_proto::pb::admin::v1::{NodeListing, NodeState};
use serde_json::{Value, json};

use crate::context::Context;
use crate::doctor::{Endpoint, Facts, Finding, Severity, diagnose, has_problems};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::output::{Look, Tone};
use crate::progress::Progress;

/// Between the two looks at the shards; a replica that catches up moves within it.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// `doctor`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Look once; a replica that stands still is then not told from one that catches up
    #[arg(long)]
    quick: bool,
}

impl Context {
    /// `doctor`.
    pub(crate) async fn doctor(&self, args: &DoctorArgs) -> Result<Exit, Failure> {
        let facts = self.facts(args.quick).await;
        let findings = diagnose(&facts);
        let problems = has_problems(&findings);
        let json = json!({ "healthy": !problems, "findings": findings.iter().map(to_json).collect::<Vec<_>>() });
        self.output.show(json, |look| render(&facts, &findings, look))?;
        Ok(if problems { Exit::Problems } else { Exit::Ok })
    }

    async fn facts(&self, quick: bool) -> Facts {
        let progress = Progress::endless(&self.output);
        progress.set(0, "asking the endpoints");
        let probes = self.probes().await;
        let endpoints = probes
            .into_iter()
            .map(|probe| Endpoint { address: probe.address, answer: probe.answer.map(|(cluster, _)| cluster) })
            .collect::<Vec<_>>();
        let mut facts = Facts { endpoints, now_ms: human::now_ms(), ..Facts::default() };
        if facts.endpoints.iter().all(|endpoint| endpoint.answer.is_err()) {
            return facts;
        }
        if !quick {
            progress.set(0, "looking at the shards");
            facts.earlier = self.shards("", 0).await.unwrap_or_default();
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        progress.set(0, "looking at nodes, shards and actions");
        let (nodes, keyspaces, shards, actions) =
            tokio::join!(self.nodes(), self.keyspaces(), self.shards("", 0), self.actions(false));
        let failures = [nodes.as_ref().err(), keyspaces.as_ref().err(), shards.as_ref().err(), actions.as_ref().err()];
        facts.unanswered = failures.into_iter().flatten().map(ToString::to_string).collect();
        facts.nodes = nodes.unwrap_or_default();
        facts.keyspaces = keyspaces.unwrap_or_default().into_iter().filter_map(|listing| listing.keyspace).collect();
        facts.shards = shards.unwrap_or_default();
        facts.actions = actions.unwrap_or_default();
        facts
    }
}

/// As documented in docs/kvctl.md.
fn to_json(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.name(),
        "problem": finding.problem,
        "subject": finding.subject,
        "what": finding.what,
        "help": finding.help.iter().map(|help| json!({ "when": help.when, "command": help.command })).collect::<Vec<_>>(),
    })
}

fn render(facts: &Facts, findings: &[Finding], look: Look) -> String {
    let mut text = String::new();
    for finding in findings {
        let tone = match finding.severity {
            Severity::Critical => Tone::Bad,
            Severity::Warning => Tone::Warn,
            Severity::Note => Tone::Dim,
        };
        let label = format!("{:<8}", finding.severity.name());
        let what = wrap(&finding.what, look.width, 10).join("\n          ");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}  {what}", look.paint(&label, tone));
        for help in &finding.help {
            let when = wrap(&format!("{}:", help.when), look.width, 12).join("\n            ");
            let command = look.paint(&help.command, Tone::Strong);
            let _ = writeln!(text, "          - {when}\n            {command}");
        }
        text.push('\n');
    }
    let problems = findings.iter().filter(|finding| finding.severity < Severity::Note).count();
    let is_member = |listing: &&NodeListing| listing.node.as_ref().is_some_and(|n| n.state() != NodeState::Removed);
    let members = facts.nodes.iter().filter(is_member).count();
    let seen = format!("{}, {}", human::count(members, "node"), human::count(facts.shards.len(), "shard"));
    let verdict = match problems {
        0 => look.paint(&format!("nothing is wrong ({seen})"), Tone::Good),
        number => look.paint(&format!("{} found ({seen})", human::count(number, "problem")), Tone::Bad),
    };
    text + &verdict
}

/// Cuts at blanks so that lines after an indent fit; at pipes nothing is cut.
fn wrap(text: &str, width: Option<u16>, indent: usize) -> Vec<String> {
    let Some(width) = width.map(usize::from) else { return vec![text.to_owned()] };
    let width = width.saturating_sub(indent).max(20);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(last) = lines.last_mut() {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Help;

    #[test]
    fn a_finding_is_shown_with_what_helps_and_fits_the_terminal() {
        let finding = Finding {
            severity: Severity::Critical,
            problem: "node-down",
            subject: "node 3".into(),
            what: "node 3 (127.0.0.1:7003) does not answer (connection refused): 6 shards have one replica fewer than wanted".into(),
            help: vec![Help { when: "start kv-node there again".into(), command: "scripts/cluster start 3".into() }],
        };
        let expected = "\
critical  node 3 (127.0.0.1:7003) does not answer (connection refused): 6 shards
          have one replica fewer than wanted
          - start kv-node there again:
            scripts/cluster start 3

1 problem found (0 nodes, 0 shards)";
        assert_eq!(render(&Facts::default(), &[finding], Look { width: Some(80), colour: false }), expected);
    }

    #[test]
    fn a_healthy_cluster_gets_one_line() {
        assert_eq!(render(&Facts::default(), &[], Look::default()), "nothing is wrong (0 nodes, 0 shards)");
    }
}
