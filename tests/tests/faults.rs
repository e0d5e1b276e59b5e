//! Nodes die under load: nothing acknowledged is lost, nothing is applied twice, nobody waits long.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_tests::cluster::Cluster;
use kv_tests::load::Load;

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
