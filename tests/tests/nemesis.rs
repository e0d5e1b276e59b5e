//! Storms: a mixed load while processes, links, disks and leaders fail, and the proof that the promise was kept.
//!
//! A longer one: `just nemesis SEED MINUTES`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kv_tests::cluster::Cluster;
use kv_tests::nemesis::schedule::Schedule;
use kv_tests::nemesis::storm;
use kv_tests::workload::Workload;

const LENGTH: Duration = Duration::from_secs(60);

async fn weathered(schedule: Schedule) -> Result<()> {
    println!("{schedule}");
    let again = format!("again: just nemesis {} 1", schedule.seed);
    let mut cluster = Cluster::start(storm::settings(schedule.nodes)).await.context(again.clone())?;
    let load = Workload::of_storm(schedule.seed, schedule.length);
    let after = storm::run(&mut cluster, &schedule, load).await.context(again.clone())?;
    println!("{}", after.storm);
    after.storm.passed().context(again)?;
    cluster.finish_storm().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_storm_of_a_minute_breaks_no_promise() -> Result<()> {
    let seed = u64::from(rand::random::<u32>());
    weathered(Schedule::random(seed, 4, LENGTH)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worst_of_all_at_once_breaks_no_promise() -> Result<()> {
    weathered(Schedule::parse(include_str!("../schedules/worst.txt"))?).await
}
