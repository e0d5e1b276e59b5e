//! The proof of the proof: pointed at a server that lies, the same load and checkers find it within a minute.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use kv_checkers::verdict;
use kv_tests::cluster::Cluster;
use kv_tests::lying::{Liar, Lie};
use kv_tests::recorder::Recorder;
use kv_tests::workload::{self, Workload};
use kv_tests::{runs, wait};
use serde_json::json;
use tokio::time::Instant;

/// The bound that is promised, the start of the cluster left out.
const WITHIN: Duration = Duration::from_secs(60);
/// One of so many chances.
const EVERY: usize = 1000;

/// Some lies change nothing that anybody could see: a key deleted again, a lost write of what is overwritten at once.
const LIES: usize = 4;

/// The properties that are found broken.
async fn found(lie: Lie) -> Result<Vec<&'static str>> {
    let cluster = Cluster::of_three().await?;
    workload::prepare(cluster.admin().await?).await?;
    let client = cluster.client().await?;
    let liar = Liar::start(&cluster.node(1).address(), lie, EVERY).await?;
    let recorder = Arc::new(Recorder::new(0));
    let load = Workload { crews: 1, pace: Duration::from_millis(1), seed: rand::random(), client: false };
    let began = Instant::now();
    let load = load.start(&client, vec![liar.address().to_owned()], recorder).await?;
    wait::until("the liar to lie often enough", WITHIN, || async {
        ensure!(liar.lies() >= LIES, "it lied {} times", liar.lies());
        Ok(())
    })
    .await?;
    let verdict = verdict::judge(&load.stop(&client).await?);
    println!("{lie:?}: {verdict}");
    let (found, found_ms) = (u64::from(!verdict.violations.is_empty()), began.elapsed().as_millis() as u64);
    runs::record(
        "negative-control",
        json!({"operations": verdict.figures.operations, "found": found, "found_ms": found_ms}),
    )?;
    cluster.finish().await?;
    Ok(verdict.violations.iter().map(|violation| violation.property).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lost_write_in_a_thousand_is_found_within_a_minute() -> Result<()> {
    let found = found(Lie::Lost).await?;
    ensure!(found.contains(&"linearizability") || found.contains(&"nothing_lost"), "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stale_read_in_a_thousand_is_found_within_a_minute() -> Result<()> {
    let found = found(Lie::Stale).await?;
    ensure!(found.contains(&"linearizability") || found.contains(&"exactly_once"), "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_write_in_a_thousand_applied_again_is_found_within_a_minute() -> Result<()> {
    let found = found(Lie::Again).await?;
    // A value written again at once is seen by its two timestamps only.
    let telling = ["linearizability", "exactly_once", "monotonic_commits"];
    ensure!(found.iter().any(|property| telling.contains(property)), "{found:?}");
    Ok(())
}
