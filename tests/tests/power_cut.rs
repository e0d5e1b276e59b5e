//! The power of a whole cluster is cut: every disk loses what was not synced, and nothing that was acknowledged is gone.
//!
//! The disks are ext4 file systems of their own, shut down under load without their journal being written. By hand:
//! `POWER_CUTS=20 cargo test --release -p kv-tests --test power_cut`.
//!
//! Not here: a killed process, whose writes the kernel keeps (restart, nemesis).

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_tests::bad_disk::{BadDisk, Fault, Rule};
use kv_tests::campaign::{Campaign, setting};
use kv_tests::cluster::Cluster;
use kv_tests::load::Load;
use kv_tests::settings::Settings;

/// In a run of all tests.
const CUTS: u64 = 4;
/// By `just proof`.
const PROOF_CUTS: u64 = 20;

/// Flushes and purges all the time, so that a cut meets those too, and segments of the log that begin, go and are used again.
fn settings() -> Settings {
    let lines = ["flush_interval = \"200ms\"", "log_entries_kept = 100", "log_cache = \"1MiB\""];
    lines.into_iter().fold(Settings::default().mains(), Settings::line)
}

/// Counters and keys written once, as fast as they are answered.
fn load() -> Load {
    Load { writers: 24, pace: Duration::from_millis(1), ..Load::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_of_all_disks_at_once_loses_nothing_acknowledged() -> Result<()> {
    let mut cluster = Cluster::start(settings()).await?;
    if !cluster.has_mains() {
        return cluster.discard().await;
    }
    let mut campaign = Campaign::new("power-cut");
    for cut in 1..=setting("POWER_CUTS", CUTS, PROOF_CUTS) {
        let client = cluster.client().await?;
        let load = load().start(&client);
        load.progress(100 + rand::random_range(0..2_000)).await?;
        cluster.cut_power().await?;
        campaign.fault("power of all disks");
        // Fails if a node refuses its disk.
        cluster.start_all().await.with_context(|| format!("after cut {cut}"))?;
        load.progress(100).await.with_context(|| format!("after cut {cut}"))?;
        campaign.judged(&load.verify().await.with_context(|| format!("after cut {cut}"))?);
    }
    campaign.finish()?;
    cluster.finish_storm().await
}

/// The cut itself is proved: were fsync to do nothing, the same cut would show it.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_of_disks_that_lie_about_fsync_is_seen_to_lose_writes() -> Result<()> {
    let mut cluster = Cluster::start(settings()).await?;
    if !cluster.has_mains() {
        return cluster.discard().await;
    }
    let folder = tempfile::tempdir()?;
    let disks = [1, 2, 3].map(|number| BadDisk::new(&folder.path().join(number.to_string())));
    for (number, disk) in (1..).zip(&disks) {
        let disk = disk.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        cluster.node_mut(number).stop().await?;
        cluster.node_mut(number).preload(Some(disk.library()));
        cluster.restart(number).await?;
        disk.arm(Rule { fault: Fault::SyncLies, part: "/data/", suffix: "", skip: 0, times: u32::MAX })?;
    }
    let load = load().start(&cluster.client().await?);
    load.progress(2_000).await?;
    cluster.cut_power().await?;
    for number in 1..=3 {
        cluster.node_mut(number).preload(None);
    }
    let seen = match cluster.start_all().await {
        Err(refused) => format!("{refused:#}"),
        Ok(()) => format!("{:#}", load.verify().await.err().context("2000 writes that were not synced are all there")?),
    };
    let logs: Result<Vec<String>> = cluster.nodes().map(|node| Ok(fs::read_to_string(node.log())?)).collect();
    let logs = logs?;
    let refusals = logs.iter().filter_map(|log| log.lines().last());
    let seen = [seen].into_iter().chain(refusals.map(str::to_owned)).collect::<Vec<_>>().join("\n");
    println!("seen: {}", seen.lines().take(3).collect::<Vec<_>>().join("; "));
    let named = ["lost", "acknowledged", "damaged", "missing", "broken promises"];
    ensure!(named.iter().any(|word| seen.contains(word)), "it failed of something else: {seen}");
    ensure!(!logs.iter().any(|log| log.contains("panicked")), "a node panicked");
    cluster.discard().await
}
