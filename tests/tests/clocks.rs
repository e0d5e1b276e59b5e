//! A node whose wall clock is far off: it refuses to lead, says so, and harms nobody.

use std::time::Duration;

use anyhow::{Result, ensure};
use kv_proto::pb::admin::v1::TransferLeaderRequest;
use kv_tests::admin::Admin;
use kv_tests::clock::{self, Wrong};
use kv_tests::cluster::Cluster;
use kv_tests::http;
use kv_tests::kvctl::expect;
use kv_tests::load::Load;
use kv_tests::settings::Settings;
use kv_tests::wait;

const WITHIN: Duration = Duration::from_secs(60);
const HOUR: i64 = 3600;

/// Node 3 says that it may or may not lead, and what it leads agrees.
async fn node_3_may_lead(cluster: &Cluster, may: bool) -> Result<String> {
    wait::until(&format!("node 3 to {} lead", if may { "be willing to" } else { "refuse to" }), WITHIN, || async {
        let status = Admin::to(&cluster.node(3).address()).await?.node_status().await?;
        ensure!(status.may_lead == may, "it says {:?}", status.may_not_lead_reason);
        let leads: Vec<u64> = status.replicas.iter().filter(|r| r.role == "leader").map(|r| r.shard_id).collect();
        ensure!(may || leads.is_empty(), "it leads {leads:?}");
        Ok(status.may_not_lead_reason)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_far_off_refuses_to_lead_and_says_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = Settings::default().expect("clock");
    let mut cluster = Cluster::start(settings).await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(100).await?;
    for seconds in [HOUR, -HOUR] {
        cluster.node_mut(3).stop().await?;
        cluster.node_mut(3).preload(Some(clock::library(Wrong::By(seconds), folder.path())?));
        cluster.node_mut(3).start().await?;
        let reason = node_3_may_lead(&cluster, false).await?;
        ensure!(reason.contains("clock differs from 2 of 2 nodes"), "{reason}");
        let (_, checks) = http::get(&cluster.node(3).http_address(), "/readyz?verbose").await?;
        ensure!(checks.contains("clock"), "/readyz says nothing of it: {checks}");
        load.progress(100).await?;

        let mut admin = Admin::to(&cluster.node(1).address()).await?;
        for listing in admin.shards("default").await? {
            let shard = listing.shard.map(|shard| shard.shard_id).unwrap_or_default();
            // Refused, or given back at once.
            let _ = admin
                .service()
                .transfer_leader(TransferLeaderRequest { shard_id: shard, to_node_id: 3, epoch: 0 })
                .await;
        }
        node_3_may_lead(&cluster, false).await?;
        let endpoints = [cluster.node(1).address()];
        wait::until("doctor to name the clock of node 3", WITHIN, || async {
            let found = expect(&endpoints, &["doctor"], 5).await?.stdout;
            ensure!(found.contains("the clock of node 3") && found.contains("timedatectl"), "{found}");
            Ok(())
        })
        .await?;
    }
    cluster.node_mut(3).stop().await?;
    cluster.node_mut(3).preload(None);
    cluster.restart(3).await?;
    node_3_may_lead(&cluster, true).await?;
    load.verify().await?;
    cluster.finish().await
}
