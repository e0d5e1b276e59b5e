//! Planned stops: leadership is handed over first, and everything is there again afterwards.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_tests::cluster::Cluster;
use kv_tests::load::Load;
use kv_tests::settings::Settings;
use kv_tests::{http, wait};

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_cluster_starts_again_from_disk_with_everything() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(1_000).await?;
    let load = load.stop().await?;
    for number in [1, 2, 3] {
        let status = cluster.node_mut(number).stop().await?;
        ensure!(status.success(), "node {number} stopped with {status}");
    }
    cluster.start_all().await?;
    load.verify(&cluster.client().await?).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_hands_its_leadership_over_first() -> Result<()> {
    // An election would take at least this long: a shorter wait proves that there was none.
    let without_election = Duration::from_secs(5);
    let mut cluster = Cluster::start(Settings::default().rare_elections()).await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(300).await?;
    for number in [1, 2, 3] {
        let status = cluster.node_mut(number).stop().await?;
        ensure!(status.success(), "node {number} stopped with {status}");
        load.progress(200).await?;
        cluster.restart(number).await?;
        load.progress(100).await?;
    }
    let report = load.verify().await?;
    ensure!(report.not_applied + report.unknown == 0, "requests failed: {report}");
    ensure!(report.slowest < without_election, "a request waited for an election: {:?}", report.slowest);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_takes_no_connection_while_it_still_looks_for_heirs() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    // Its heirs answer nothing, so that handing over takes as long as it may.
    cluster.node(2).pause()?;
    cluster.node(3).pause()?;
    let (address, http_address) = (cluster.node(1).address(), cluster.node(1).http_address());
    let closed = wait::until("the port to be closed", Duration::from_secs(30), || async {
        let (status, said) = http::get(&http_address, "/readyz").await.context("the process ended first")?;
        ensure!(status == 503 && said.contains("stopping"), "{status}: {said}");
        ensure!(tokio::net::TcpStream::connect(&address).await.is_err(), "it takes connections");
        Ok(())
    });
    cluster.node(1).tell_to_stop()?;
    closed.await?;
    cluster.node(2).resume()?;
    cluster.node(3).resume()?;
    let status = cluster.node_mut(1).stopped().await?;
    ensure!(status.success(), "node 1 stopped with {status}");
    cluster.restart(1).await?;
    cluster.finish().await
}
