//! Nodes that were away: too long for the log, or for good.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_proto::pb::admin::v1::{NodeState, ReplicaRole, TransferLeaderRequest};
use kv_tests::cluster::Cluster;
use kv_tests::load::Load;
use kv_tests::settings::Settings;
use kv_tests::wait;

const WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_away_for_longer_than_the_log_is_kept_catches_up_by_snapshot() -> Result<()> {
    let settings = Settings::default().line("flush_interval = \"200ms\"").line("log_entries_kept = 100");
    let mut cluster = Cluster::start(settings).await?;
    let load = Load { value_bytes: 512, ..Load::default() }.start(&cluster.client().await?);
    load.progress(200).await?;
    let had: Vec<(u64, u64)> = {
        let status = cluster.admin().await?.node_status().await?;
        status.replicas.iter().map(|replica| (replica.shard_id, replica.last_index)).collect()
    };
    cluster.node_mut(3).kill().await?;
    let mut admin = cluster.admin().await?;
    let shards: Vec<u64> =
        admin.shards("default").await?.into_iter().filter_map(|listing| Some(listing.shard?.shard_id)).collect();
    wait::until("the log that node 3 needs to be purged", WITHIN, || {
        let (mut admin, shards, had) = (admin.clone(), shards.clone(), had.clone());
        async move {
            let status = admin.node_status().await?;
            for shard in shards {
                let replica = status.replicas.iter().find(|replica| replica.shard_id == shard).context("held")?;
                let (_, last) = had.iter().find(|(id, _)| *id == shard).context("held before")?;
                ensure!(replica.purged_index > *last, "shard {shard} is purged to {}", replica.purged_index);
            }
            Ok(())
        }
    })
    .await?;
    load.progress(200).await?;
    cluster.restart(3).await?;
    load.progress(200).await?;
    let load = load.stop().await?;

    // What node 3 has is shown by reading it as the leader.
    for shard in shards {
        wait::until(&format!("node 3 to lead shard {shard}"), WITHIN, || {
            let mut admin = admin.clone();
            async move {
                if admin.leader(shard).await? != 3 {
                    let request = TransferLeaderRequest { shard_id: shard, to_node_id: 3, epoch: 0 };
                    admin.service().transfer_leader(request).await?;
                }
                ensure!(admin.leader(shard).await? == 3, "not yet");
                Ok(())
            }
        })
        .await?;
    }
    load.verify(&cluster.client().await?).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_comes_back_as_a_new_one_and_replaces_what_it_lost() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(300).await?;
    cluster.node_mut(3).kill().await?;
    cluster.node(3).wipe()?;
    load.progress(200).await?;
    cluster.node_mut(3).start().await?;

    let mut admin = cluster.admin().await?;
    wait::until("node 4 to hold what node 3 lost", WITHIN, || {
        let mut admin = admin.clone();
        async move {
            let catalog = admin.catalog().await?;
            let lost = catalog.nodes.iter().find(|node| node.node_id == 3).context("node 3 is remembered")?;
            let gone = [NodeState::Lost, NodeState::Removed];
            ensure!(gone.contains(&lost.state()), "node 3 is {:?}", lost.state());
            ensure!(catalog.nodes.iter().any(|node| node.node_id == 4), "node 4 has not joined");
            for shard in &catalog.shards {
                let on = |node| shard.replicas.iter().find(|replica| replica.node_id == node);
                ensure!(on(3).is_none(), "shard {} still counts on node 3", shard.shard_id);
                let voter = on(4).is_some_and(|replica| replica.role() == ReplicaRole::Voter);
                ensure!(voter, "shard {} has no voter on node 4", shard.shard_id);
            }
            Ok(())
        }
    })
    .await?;
    // Now node 4 counts: another one may go.
    cluster.node_mut(2).kill().await?;
    load.progress(200).await?;
    cluster.restart(2).await?;
    load.verify().await?;
    let members = admin.catalog().await?.nodes;
    ensure!(members.len() == 4, "{members:?}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_purged_by_its_bytes_long_before_its_entries_and_a_follower_catches_up_by_snapshot() -> Result<()> {
    let settings = Settings::default().shards(1).line("flush_interval = \"200ms\"").line("log_bytes_kept = \"256KiB\"");
    let mut cluster = Cluster::start(settings).await?;
    let shards = cluster.admin().await?.shards("default").await?;
    let shard = shards.first().and_then(|listing| listing.shard.as_ref()).context("it has one shard")?.shard_id;
    cluster.node_mut(3).kill().await?;
    let load = Load { value_bytes: 16 << 10, ..Load::default() }.start(&cluster.client().await?);
    load.progress(400).await?;
    wait::until("the log to be purged", WITHIN, || async {
        let listing = cluster.admin().await?.shard(shard).await?;
        let leader = listing.replicas.iter().find(|replica| replica.role == "leader").context("no leader")?;
        // By entries alone, 10,000 would be kept.
        ensure!(leader.purged_index > 0, "nothing of {} entries is purged", leader.last_index);
        ensure!(leader.last_index < 10_000, "more entries than are kept anyway");
        Ok(())
    })
    .await?;
    cluster.restart(3).await?;
    wait::until("node 3 to catch up", WITHIN, || async {
        let listing = cluster.admin().await?.shard(shard).await?;
        let leader = listing.replicas.iter().find(|replica| replica.role == "leader").context("no leader")?;
        let third = listing.replicas.iter().find(|replica| replica.node_id == 3).context("no replica on node 3")?;
        ensure!(third.applied_index + 1000 > leader.applied_index && third.purged_index > 0, "{third:?}");
        Ok(())
    })
    .await?;
    load.verify().await?;
    cluster.finish().await
}
