//! Full load while logs are purged as fast as they grow and a replica needs snapshots all the time: nobody panics,
//! nothing is lost, replicas stay equal.
//!
//! openraft#2116: a purge that met an apply killed the group's core at 16,000 writes a second on two cores. By hand:
//! `SATURATION_SECONDS=600 cargo test --release -p kv-tests --test saturation`.
//!
//! Not here: that a panic ends the process at once (failpoints).

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kv_client::Client;
use kv_client::admin::pb::CheckShardRequest;
use kv_tests::campaign::{Campaign, setting};
use kv_tests::cluster::Cluster;
use kv_tests::settings::Settings;
use kv_tests::{http, logs, wait};
use tokio::time::{Instant, sleep};

/// In a run of all tests.
const SECONDS: u64 = 60;
/// By `just proof`.
const PROOF_SECONDS: u64 = 600;
/// Writers at once: far more than the shards commit in one round.
const WRITERS: u64 = 256;
/// Each key is overwritten, so that the data stays small.
const KEYS_OF_A_WRITER: u64 = 16;
const VALUE_BYTES: usize = 512;
/// What a write may take while a leader is paused, retries included.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);
/// Longer than the log is kept, so that a paused replica needs a snapshot; and how long it runs between two pauses.
const PAUSED: Duration = Duration::from_millis(1_500);
const RUNS: Duration = Duration::from_secs(8);
const EQUAL_WITHIN: Duration = Duration::from_secs(120);

/// Writes round after round until the time has come; how many.
async fn write(client: &Client, writer: u64, until: Instant) -> Result<(u64, u64)> {
    let users = client.keyspace("default");
    let mut round = 0_u64;
    while Instant::now() < until {
        let key = format!("{writer}-{}", round % KEYS_OF_A_WRITER);
        // The same value again: whatever became of an attempt, this one decides.
        let put = || async { Ok(users.put(key.clone(), format!("{round:>VALUE_BYTES$}")).await?) };
        wait::until("a write", WRITTEN_WITHIN, put).await.with_context(|| format!("writer {writer}, round {round}"))?;
        round += 1;
    }
    Ok((writer, round))
}

/// Pauses nodes in turn until the time has come.
async fn pause(cluster: &Cluster, until: Instant, pauses: &Cell<u64>) -> Result<()> {
    while Instant::now() + RUNS + PAUSED < until {
        sleep(RUNS).await;
        let number = usize::try_from(pauses.get() % 3)? + 1;
        cluster.node(number).pause()?;
        sleep(PAUSED).await;
        cluster.node(number).resume()?;
        pauses.set(pauses.get() + 1);
    }
    Ok(())
}

async fn equal(cluster: &Cluster, client: &Client) -> Result<()> {
    wait::until("all replicas to be equal", EQUAL_WITHIN, || async {
        for listing in cluster.admin().await?.shards("default").await? {
            let shard_id = listing.shard.as_ref().map_or(0, |shard| shard.shard_id);
            let found = client.admin().check_shard(CheckShardRequest { shard_id }).await?;
            ensure!(found.equal_replica_ids.len() == 3, "shard {shard_id}: {found:?}");
        }
        Ok(())
    })
    .await
}

/// The last value of each key of a writer that wrote so many rounds.
async fn verify(client: &Client, writer: u64, rounds: u64) -> Result<()> {
    for round in rounds.saturating_sub(KEYS_OF_A_WRITER)..rounds {
        let key = format!("{writer}-{}", round % KEYS_OF_A_WRITER);
        let found = client.keyspace("default").get(key.clone()).await?.map(|entry| entry.value);
        let is_right = found.as_deref() == Some(format!("{round:>VALUE_BYTES$}").as_bytes());
        ensure!(is_right, "{key} is {found:?}, not {round}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_load_with_constant_purging_kills_no_replica_and_loses_nothing() -> Result<()> {
    let lines =
        ["flush_interval = \"100ms\"", "log_entries_kept = 20", "log_bytes_kept = \"1KiB\"", "check_interval = \"5s\""];
    let cluster = Cluster::start(lines.into_iter().fold(Settings::default().shards(2), Settings::line)).await?;
    let client = cluster.client().await?;
    let mut campaign = Campaign::new("saturation");
    let pids: Vec<_> = cluster.nodes().map(|node| node.pid()).collect();
    let (until, pauses) =
        (Instant::now() + Duration::from_secs(setting("SATURATION_SECONDS", SECONDS, PROOF_SECONDS)), Cell::new(0));
    let writers = stream::iter(0..WRITERS).map(|writer| write(&client, writer, until));
    let written = writers.buffer_unordered(WRITERS as usize).try_collect::<Vec<(u64, u64)>>();
    let (written, ()) = tokio::try_join!(written, pause(&cluster, until, &pauses))?;

    for node in cluster.nodes() {
        let (status, _) = http::get(&node.http_address(), "/livez").await?;
        ensure!(status == 200, "node {} ended", node.number());
        ensure!(!logs::contains(&node.log(), "panicked")?, "node {} panicked", node.number());
    }
    ensure!(cluster.nodes().map(|node| node.pid()).collect::<Vec<_>>() == pids, "a process is another");
    for (writer, rounds) in &written {
        verify(&client, *writer, *rounds).await?;
    }
    equal(&cluster, &client).await?;
    let shards = cluster.admin().await?.shards("default").await?;
    let replicas = shards.iter().flat_map(|listing| &listing.replicas);
    let purged = replicas.map(|replica| replica.purged_index).max().unwrap_or(0);
    ensure!(purged > 0, "nothing was purged");

    (0..pauses.get()).for_each(|_| campaign.fault("pause"));
    campaign.found_again(written.iter().map(|(_, rounds)| rounds).sum());
    campaign.finish()?;
    cluster.finish_storm().await
}
