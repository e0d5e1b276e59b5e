//! A leader that has lost its majority: its role alone must not pass for a shard that serves.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_tests::cluster::Cluster;
use kv_tests::http;
use kv_tests::kvctl::expect;
use kv_tests::open_metrics::Exposition;
use kv_tests::settings::Settings;
use kv_tests::wait;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);

async fn json(endpoints: &[String], arguments: &[&str], code: i32) -> Result<Value> {
    Ok(serde_json::from_str(&expect(endpoints, &[&["-o", "json"], arguments].concat(), code).await?.stdout)?)
}

fn array<'a>(json: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    json.get(name).and_then(Value::as_array).with_context(|| format!("no list {name} in {json}"))
}

async fn shards_as_listed(endpoints: &[String]) -> Result<Vec<Value>> {
    Ok(array(&json(endpoints, &["shard", "list"], 0).await?, "shards")?.clone())
}

/// A shard that still says "serving", or sleeps as if nothing had happened.
fn passes_for_served(shard: &Value) -> bool {
    let is_led = shard.get("leader_node").is_some_and(|node| !node.is_null());
    is_led && shard.get("no_quorum") != Some(&Value::Bool(true))
}

/// The node that leads most shards: its leaders are what is left.
async fn busiest(cluster: &Cluster) -> Result<usize> {
    let mut led = [0, 0, 0, 0];
    for listing in cluster.admin().await?.shards("").await? {
        let leader = listing.replicas.iter().find(|replica| replica.role == "leader").context("no leader")?;
        *led.get_mut(usize::try_from(leader.node_id)?).context("a node of three")? += 1;
    }
    (1..=3).max_by_key(|node| led.get(*node).copied()).context("there are three")
}

/// How many of the shards stand like this.
fn count(shards: &[Value], state: &str) -> usize {
    shards.iter().filter(|shard| shard.get("state") == Some(&state.into())).count()
}

async fn everything_says_so(cluster: &Cluster, survivor: usize) -> Result<()> {
    let (node, number) = ([cluster.node(survivor).address()], survivor.to_string());
    let shards = wait::until("no shard to pass for served", WITHIN, || async {
        let shards = shards_as_listed(&node).await?;
        let served: Vec<&Value> = shards.iter().filter(|shard| passes_for_served(shard)).collect();
        ensure!(served.is_empty(), "{served:?}");
        Ok(shards)
    })
    .await?;
    // A leader stays the leader of its term, and is listed as such: beside it stands what that is worth.
    let (cut_off, leaderless) = (count(&shards, "no quorum"), count(&shards, "no leader"));
    ensure!(cut_off > 0 && cut_off + leaderless == shards.len(), "{shards:?}");
    let is_led = |shard: &&Value| shard.get("leader_node") == Some(&survivor.into());
    ensure!(shards.iter().filter(is_led).count() == cut_off, "{shards:?}");

    let table = expect(&node, &["shard", "list"], 0).await?.stdout;
    ensure!(
        table.matches("no quorum").count() == cut_off && table.matches(&format!("{number}?")).count() > 0,
        "{table}"
    );
    ensure!(!table.contains("serving") && !table.contains("asleep") && !table.contains('*'), "{table}");
    let led = shards.iter().find(is_led).and_then(|shard| shard.get("shard")).context("one is led")?.to_string();
    let described = expect(&node, &["shard", "describe", &led], 0).await?.stdout;
    ensure!(described.contains("leader, no quorum") && described.contains("no majority answers"), "{described}");
    let status = expect(&node, &["node", "status", &number], 0).await?.stdout;
    ensure!(status.contains("leader, no quorum") && status.contains("0 of them leading"), "{status}");

    let status = json(&node, &["status"], 0).await?;
    ensure!(array(&status, "no_quorum_shards")?.len() == cut_off, "{status}");
    ensure!(array(&status, "leaderless_shards")?.len() == leaderless, "{status}");
    let summary = expect(&node, &["status"], 0).await?.stdout;
    ensure!(summary.contains("without a quorum") && !summary.contains("all with a leader"), "{summary}");

    let health = json(&node, &["health"], 5).await?;
    ensure!(health.get("healthy") == Some(&Value::Bool(false)), "{health}");
    ensure!(array(&health, "no_quorum_shards")?.len() == cut_off, "{health}");
    let doctor = json(&node, &["doctor", "--quick"], 5).await?;
    let named = |finding: &Value| finding.get("problem") == Some(&"no-quorum".into());
    ensure!(array(&doctor, "findings")?.iter().any(named), "{doctor}");

    let (_, text) = http::get(&cluster.node(survivor).http_address(), "/metrics").await?;
    let metrics = Exposition::parse(&text)?;
    let without = metrics.samples("kv_shard_no_quorum").filter(|sample| sample.value > 0.5).count();
    ensure!(without == cut_off, "{without} in:\n{text}");
    Ok(())
}

async fn all_is_well(cluster: &Cluster) -> Result<()> {
    let endpoints = cluster.endpoints();
    let shards = shards_as_listed(&endpoints).await?;
    let unserved: Vec<&Value> = shards.iter().filter(|shard| !passes_for_served(shard)).collect();
    ensure!(unserved.is_empty(), "{unserved:?}");
    let status = expect(&endpoints, &["status"], 0).await?.stdout;
    ensure!(status.contains("all with a leader"), "{status}");
    expect(&endpoints, &["health"], 0).await?;
    Ok(())
}

async fn lose_two_and_get_one_back(mut cluster: Cluster) -> Result<()> {
    cluster.voters(3).await?;
    let survivor = busiest(&cluster).await?;
    let lost: Vec<usize> = (1..=3).filter(|node| *node != survivor).collect();
    for node in &lost {
        cluster.node_mut(*node).kill().await?;
    }
    everything_says_so(&cluster, survivor).await?;
    let (first, second) = (*lost.first().context("two")?, *lost.last().context("two")?);
    cluster.node_mut(first).start().await?;
    wait::until("one node more to make a majority", WITHIN, || all_is_well(&cluster)).await?;
    expect(&cluster.endpoints(), &["put", "after", "x"], 0).await?;
    cluster.restart(second).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_lost_its_majority_is_shown_without_quorum_until_it_has_one_again() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    expect(&cluster.endpoints(), &["put", "before", "x"], 0).await?;
    cluster.voters(3).await?;
    wait::until("all to be well", WITHIN, || all_is_well(&cluster)).await?;
    lose_two_and_get_one_back(cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_leader_that_lost_its_majority_is_shown_too() -> Result<()> {
    let settings = Settings::default().line("hibernate_after = \"1s\"");
    let cluster = Cluster::start(settings).await?;
    wait::until("the shards of data to sleep", WITHIN, || async {
        let shards = cluster.admin().await?.shards("default").await?;
        ensure!(shards.iter().flat_map(|shard| &shard.replicas).all(|replica| replica.hibernated), "{shards:?}");
        Ok(())
    })
    .await?;
    // Asleep is not in doubt while the others live.
    wait::until("all to be well", WITHIN, || all_is_well(&cluster)).await?;
    lose_two_and_get_one_back(cluster).await
}
