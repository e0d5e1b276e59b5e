//! Shards with nothing to do: what they cost, and that they wake.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kv_proto::pb::admin::v1::CreateKeyspaceRequest;
use kv_tests::cluster::Cluster;
use kv_tests::settings::Settings;
use kv_tests::wait;

const SHARDS: u32 = 100;
/// How much longer the first request of a hibernated shard may take than one of a served shard, in the median.
const WAKE_MAX: Duration = Duration::from_millis(50);
const WITHIN: Duration = Duration::from_secs(90);
/// Over which the cost of doing nothing is measured.
const WINDOW: Duration = Duration::from_secs(5);

fn median(mut latencies: Vec<Duration>) -> Duration {
    latencies.sort();
    latencies.get(latencies.len() / 2).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_idle_shards_hibernate_and_each_wakes_on_its_first_request() -> Result<()> {
    let cluster = Cluster::start(Settings::default().shards(1)).await?;
    let before = resident(&cluster)?;
    let mut admin = cluster.admin().await?;
    let wide = CreateKeyspaceRequest { name: "wide".to_owned(), shards: SHARDS, ..CreateKeyspaceRequest::default() };
    admin.create_keyspace(wide).await?;
    let replicas = f64::from(SHARDS) * 3.0;
    println!("memory: {:.0} KiB per replica", (resident(&cluster)? - before) / replicas / 1024.0);

    wait::until("all of its replicas to hibernate", WITHIN, || {
        let mut admin = admin.clone();
        async move {
            let shards = admin.shards("wide").await?;
            let awake = shards.iter().flat_map(|shard| &shard.replicas).filter(|replica| !replica.hibernated).count();
            ensure!(awake == 0, "{awake} are awake");
            Ok(())
        }
    })
    .await?;
    let began = processor(&cluster).await?;
    tokio::time::sleep(WINDOW).await;
    let busy = (processor(&cluster).await? - began) / WINDOW.as_secs_f64();
    println!(
        "processor: {:.3} % of a core for three nodes, {:.4} % per replica",
        busy * 100.0,
        busy * 100.0 / replicas
    );

    let keyspace = cluster.client().await?.keyspace("wide");
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for key in 0..30 {
        for latencies in [&mut first, &mut second] {
            let began = Instant::now();
            keyspace.put(format!("key{key}"), "value").await?;
            latencies.push(began.elapsed());
        }
    }
    let (woken, served) = (median(first), median(second));
    println!("first request of a hibernated shard: {woken:?} in the median, the next: {served:?}");
    assert!(woken < served + WAKE_MAX, "waking takes {woken:?}, served in {served:?}");
    cluster.finish().await
}

/// Bytes of memory that all nodes hold.
fn resident(cluster: &Cluster) -> Result<f64> {
    let mut sum = 0.0;
    for node in cluster.nodes() {
        sum += node.resident_bytes()? as f64;
    }
    Ok(sum)
}

/// Seconds of processor time that all nodes used, as they report it.
async fn processor(cluster: &Cluster) -> Result<f64> {
    let listings = cluster.admin().await?.nodes().await?;
    Ok(listings.iter().filter_map(|listing| Some(listing.status.as_ref()?.processor_seconds)).sum())
}
