//! `health`: whether requests can be served; and what one endpoint says, which doctor asks as well.
//!
//! Not here: why they cannot (checkup).

use std::time::Duration;

use futures::future::join_all;
use kv_proto::errors::ServiceError;
use kv_proto::ids::SYSTEM_KEYSPACE;
use kv_proto::pb::admin::v1::admin_service_client::AdminServiceClient;
use kv_proto::pb::admin::v1::{GetNodeStatusRequest, ShardListing};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::context::Context;
use crate::cost::{leaderless, without_quorum};
use crate::exit::{Exit, Failure, message_of};
use crate::human;
use crate::output::{Grid, Look, Text, Tone, toned};

/// An endpoint that takes longer counts as silent.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What one endpoint said.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    /// As given.
    pub(crate) address: String,
    /// Cluster id and node id, or why there is no answer.
    pub(crate) answer: Result<(String, u64), String>,
    took: Duration,
}

/// Shards that answer neither writes nor linearizable reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Unserved {
    /// Nobody leads them.
    leaderless: Vec<u64>,
    /// No majority answers their leader.
    no_quorum: Vec<u64>,
}

impl Unserved {
    fn of(shards: &[ShardListing]) -> Self {
        Self { leaderless: leaderless(shards), no_quorum: without_quorum(shards) }
    }

    fn why(&self) -> Vec<String> {
        let of = |shards: &[u64], what: &str| match shards {
            [] => None,
            [only] => Some(format!("shard {only} has {what}")),
            several => Some(format!("shards {} have {what}", human::list(several))),
        };
        let quorum = of(&self.no_quorum, "no quorum");
        of(&self.leaderless, "no leader").into_iter().chain(quorum).collect()
    }
}

impl Context {
    /// Asks every endpoint on a connection of its own.
    pub(crate) async fn probes(&self) -> Vec<Probe> {
        join_all(self.global.endpoints.iter().map(|address| probe(address.trim(), self.global.timeout))).await
    }

    /// `health`.
    pub(crate) async fn health(&self) -> Result<Exit, Failure> {
        let (probes, shards) = tokio::join!(self.probes(), self.shards("", 0));
        let (count, unserved, unknown) = match &shards {
            Ok(shards) => (shards.len(), Unserved::of(shards), None),
            Err(failure) => (0, Unserved::default(), Some(failure.to_string())),
        };
        let serves_data = shards
            .iter()
            .flatten()
            .any(|listing| listing.shard.as_ref().is_some_and(|shard| shard.keyspace_id != SYSTEM_KEYSPACE.0));
        let answers = probes.iter().any(|probe| probe.answer.is_ok());
        let healthy = answers && unknown.is_none() && unserved == Unserved::default() && serves_data;
        let json = json!({
            "healthy": healthy,
            "endpoints": probes.iter().map(probe_json).collect::<Vec<_>>(),
            "shards": count,
            "leaderless_shards": unserved.leaderless,
            "no_quorum_shards": unserved.no_quorum,
            "error": unknown,
        });
        self.output.show(json, |look| {
            let verdict = verdict(healthy, count, &unserved, unknown.as_deref(), look);
            format!("{}\n\n{verdict}", table(&probes).render(look))
        })?;
        Ok(if healthy { Exit::Ok } else { Exit::Problems })
    }
}

async fn probe(address: &str, timeout: Duration) -> Probe {
    let began = Instant::now();
    let answer = tokio::time::timeout(timeout.min(PROBE_TIMEOUT), ask(address)).await;
    let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
    Probe { address: address.to_owned(), answer, took: began.elapsed() }
}

async fn ask(address: &str) -> Result<(String, u64), String> {
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = tonic::transport::Endpoint::from_shared(uri).map_err(|_| "not an address".to_owned())?;
    let channel = endpoint.connect().await.map_err(|error| root(&error))?;
    let mut request = tonic::Request::new(GetNodeStatusRequest { brief: true, ..Default::default() });
    request.set_timeout(PROBE_TIMEOUT);
    let response = AdminServiceClient::new(channel).get_node_status(request).await;
    let response = response.map_err(|status| message_of(&ServiceError::from_status(&status)))?.into_inner();
    Ok((response.cluster_id, response.status.unwrap_or_default().node_id))
}

/// The innermost cause, which is what a person can act upon.
fn root(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    // "Connection refused (os error 111)"
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn probe_json(probe: &Probe) -> Value {
    json!({
        "endpoint": probe.address,
        "answers": probe.answer.is_ok(),
        "node": probe.answer.as_ref().ok().map(|(_, node)| node),
        "cluster_id": probe.answer.as_ref().ok().map(|(cluster, _)| cluster),
        "error": probe.answer.as_ref().err(),
        "took_ms": (probe.took.as_secs_f64() * 1e6).round() / 1e3,
    })
}

fn table(probes: &[Probe]) -> Grid {
    let mut grid = Grid::new(&["ENDPOINT", ">NODE", "ANSWER", ">TOOK"]);
    for probe in probes {
        let (node, answer) = match &probe.answer {
            Ok((_, node)) => (node.to_string(), toned("ok", Tone::Good)),
            Err(why) => (human::NOTHING.to_owned(), toned(why, Tone::Bad)),
        };
        grid.row(vec![Text::from(&probe.address), node.into(), answer, human::duration(probe.took).into()]);
    }
    grid
}

fn verdict(healthy: bool, shards: usize, unserved: &Unserved, unknown: Option<&str>, look: Look) -> String {
    if healthy {
        let text = format!("healthy: all {} have a leader", human::count(shards, "shard"));
        return look.paint(&text, Tone::Good);
    }
    let why = match (unknown, unserved.why().as_slice()) {
        (Some(why), _) => why.to_owned(),
        (None, []) => "there is no keyspace for data yet; a new cluster waits for its first nodes".to_owned(),
        (None, reasons) => reasons.join(", "),
    };
    format!("{}\nkvctl doctor says what to do", look.paint(&format!("not healthy: {why}"), Tone::Bad))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_names_the_shards_without_a_leader_and_those_without_a_quorum() {
        let mut unserved = Unserved { leaderless: vec![4, 6], no_quorum: Vec::new() };
        let text = verdict(false, 7, &unserved, None, Look::default());
        assert_eq!(text, "not healthy: shards 4 and 6 have no leader\nkvctl doctor says what to do");
        unserved.no_quorum = vec![5];
        let text = verdict(false, 7, &unserved, None, Look::default());
        assert!(text.starts_with("not healthy: shards 4 and 6 have no leader, shard 5 has no quorum\n"), "{text}");
        let text = verdict(true, 7, &Unserved::default(), None, Look::default());
        assert_eq!(text, "healthy: all 7 shards have a leader");
    }

    #[test]
    fn the_table_shows_who_answers_and_why_not() {
        let probe = |address: &str, answer| Probe { address: address.into(), answer, took: Duration::from_millis(3) };
        let probes = [probe("a:1", Ok(("c".into(), 1))), probe("b:2", Err("connection refused".into()))];
        let expected = "\
ENDPOINT  NODE  ANSWER               TOOK
a:1          1  ok                  3.0ms
b:2          -  connection refused  3.0ms";
        assert_eq!(table(&probes).render(Look::default()), expected);
    }
}
