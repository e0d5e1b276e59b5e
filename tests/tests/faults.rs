//! Nodes die under load: nothing acknowledged is lost, nothing is applied twice, nobody waits long.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_tests::cluster::Cluster;
use kv_tests::http;
use kv_tests::load::Load;
use kv_tests::open_metrics::Exposition;
use kv_tests::settings::Settings;

/// The node that leads most shards of the default keyspace.
async fn busiest_leader(cluster: &Cluster) -> Result<usize> {
    let mut led: BTreeMap<u64, usize> = BTreeMap::new();
    for listing in cluster.admin().await?.shards("default").await? {
        for replica in listing.replicas.iter().filter(|replica| replica.role == "leader") {
            *led.entry(replica.node_id).or_default() += 1;
        }
    }
    let (node, _) = led.into_iter().max_by_key(|(_, shards)| *shards).context("nobody leads")?;
    Ok(usize::try_from(node)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_costs_no_write_and_nobody_more_than_two_seconds() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(500).await?;
    let leader = busiest_leader(&cluster).await?;
    cluster.node_mut(leader).kill().await?;
    load.progress(500).await?;
    cluster.restart(leader).await?;
    load.progress(200).await?;
    load.verify_unnoticed().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_in_turn_may_be_killed_under_load() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let load = Load::default().start(&cluster.client().await?);
    for number in 1..=3 {
        load.progress(200).await?;
        cluster.node_mut(number).kill().await?;
        load.progress(200).await?;
        cluster.restart(number).await?;
    }
    load.progress(200).await?;
    load.verify().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_come_back_with_everything_acknowledged() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let load = Load::default().start(&cluster.client().await?);
    for _ in 0..2 {
        load.progress(400).await?;
        cluster.kill_all().await?;
        cluster.start_all().await?;
    }
    load.progress(200).await?;
    load.verify().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leader_is_replaced_and_finds_its_place_again() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(300).await?;
    let leader = busiest_leader(&cluster).await?;
    cluster.node_mut(leader).pause()?;
    load.progress(300).await?;
    cluster.node_mut(leader).resume()?;
    cluster.ready().await?;
    load.progress(300).await?;
    load.verify().await?;
    cluster.finish().await
}

/// Rounds of reads that votes alone did not confirm, on one node.
async fn rounds_by_consensus(cluster: &Cluster, number: usize) -> Result<f64> {
    let (_, text) = http::get(&cluster.node(number).http_address(), "/metrics").await?;
    Exposition::parse(&text)?.value("kv_read_rounds_by_consensus_total", &[])
}

/// One of the two is whom the leader asks first. It is silent, not gone: its connections stay, and nobody is elected.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_stands_still_leaves_reads_to_the_votes_of_the_others() -> Result<()> {
    let cluster = Cluster::start(Settings::default().shards(1).rare_elections()).await?;
    let client = cluster.client().await?;
    client.put("a", "1").await?;
    let leader = busiest_leader(&cluster).await?;
    for follower in (1..=3).filter(|number| *number != leader) {
        let before = rounds_by_consensus(&cluster, leader).await?;
        cluster.node(follower).pause()?;
        for _ in 0..300 {
            ensure!(client.get("a").await?.is_some());
        }
        cluster.node(follower).resume()?;
        let left = rounds_by_consensus(&cluster, leader).await? - before;
        ensure!(left <= 2.0, "{left} rounds were left to consensus while node {follower} stood still");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_of_three_nodes_gone_writes_wait_and_succeed_once_one_is_back() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let client = cluster.client().await?;
    client.put("before", "x").await?;
    cluster.node_mut(2).kill().await?;
    cluster.node_mut(3).kill().await?;
    let refused = client.put("without", "quorum").timeout(Duration::from_secs(1)).await;
    ensure!(refused.is_err(), "acknowledged by a minority");
    cluster.restart(2).await?;
    client.put("after", "x").await?;
    ensure!(client.get("before").await?.is_some());
    cluster.restart(3).await?;
    cluster.finish().await
}
