//! Nodes and replicas come and go under load, one safe step at a time.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_proto::errors::ServiceError;
use kv_proto::pb::admin::v1 as pb;
use kv_proto::pb::admin::v1::{NodeState, ReplicaRole};
use kv_tests::admin::Admin;
use kv_tests::cluster::Cluster;
use kv_tests::load::Load;
use kv_tests::settings::Settings;
use kv_tests::{http, wait};

const WITHIN: Duration = Duration::from_secs(60);

/// Nodes that hold a voter of the shard, ascending.
async fn voters(admin: &mut Admin, shard: u64) -> Result<Vec<u64>> {
    let catalog = admin.catalog().await?;
    let shard = catalog.shards.into_iter().find(|entry| entry.shard_id == shard).context("the shard is there")?;
    let voters = shard.replicas.iter().filter(|replica| replica.role() == ReplicaRole::Voter);
    let mut nodes: Vec<u64> = voters.map(|replica| replica.node_id).collect();
    nodes.sort_unstable();
    Ok(nodes)
}

async fn first_shard(admin: &mut Admin) -> Result<u64> {
    let listing = admin.shards("default").await?.into_iter().next().context("the default keyspace has shards")?;
    Ok(listing.shard.context("a listing has its shard")?.shard_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_node_takes_over_from_the_first_which_is_drained_and_removed() -> Result<()> {
    let settings = Settings::default().expect("this node is no longer a member");
    let mut cluster = Cluster::start(settings).await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(300).await?;
    let fourth = cluster.join_node().await? as u64;

    let mut admin = Admin::to(&cluster.node(2).address()).await?;
    admin.service().drain_node(pb::DrainNodeRequest { node_id: 1, force: vec![] }).await?;
    wait::until("node 1 to be drained", WITHIN, || {
        let mut admin = admin.clone();
        async move {
            let state = admin.node(1).await?.state();
            ensure!(state == NodeState::Drained, "it is {state:?}");
            Ok(())
        }
    })
    .await?;
    for shard in admin.catalog().await?.shards {
        let on = voters(&mut admin, shard.shard_id).await?;
        ensure!(on == [2, 3, fourth], "shard {} has voters on {on:?}", shard.shard_id);
    }
    admin.service().remove_node(pb::RemoveNodeRequest { node_id: 1, force: vec![] }).await?;
    ensure!(admin.node(1).await?.state() == NodeState::Removed);
    wait::until("the removed node to say that it is to be stopped", WITHIN, || async {
        let (status, said) = http::get(&cluster.node(1).http_address(), "/readyz").await?;
        ensure!(status == 503 && said.contains("removed from the cluster: stop it"), "{status}: {said}");
        Ok(())
    })
    .await?;
    cluster.node_mut(1).kill().await?;

    load.progress(300).await?;
    load.verify_unnoticed().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_and_leaders_move_under_load() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    cluster.join_node().await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(200).await?;
    let mut admin = cluster.admin().await?;
    let shard = first_shard(&mut admin).await?;
    let before = voters(&mut admin, shard).await?;
    let free = (1..=4).find(|node| !before.contains(node)).context("one of four nodes has no replica")?;

    // A learner, then a voter.
    let request = pb::AddLearnerRequest { shard_id: shard, node_id: free, epoch: 0 };
    let action = admin.service().add_learner(request).await?.into_inner().action;
    admin.done(action).await?;
    ensure!(voters(&mut admin, shard).await? == before, "a learner does not vote");
    let request = pb::PromoteLearnerRequest { shard_id: shard, node_id: free, epoch: 0 };
    let action = admin.service().promote_learner(request).await?.into_inner().action;
    admin.done(action).await?;
    ensure!(voters(&mut admin, shard).await?.contains(&free), "it votes now");

    // It leads, and the one that led leaves.
    let leader = admin.leader(shard).await?;
    wait::until("the new voter to lead", WITHIN, || {
        let mut admin = admin.clone();
        async move {
            let request = pb::TransferLeaderRequest { shard_id: shard, to_node_id: free, epoch: 0 };
            admin.service().transfer_leader(request).await?;
            ensure!(admin.leader(shard).await? == free, "not yet");
            Ok(())
        }
    })
    .await?;
    let request = pb::RemoveReplicaRequest { shard_id: shard, node_id: leader, epoch: 0, force: vec![] };
    let action = admin.service().remove_replica(request).await?.into_inner().action;
    admin.done(action).await?;
    ensure!(!voters(&mut admin, shard).await?.contains(&leader), "it is gone");

    // And back, in one action, while it leads.
    let request = pb::MoveReplicaRequest { shard_id: shard, from_node_id: free, to_node_id: leader, epoch: 0 };
    let action = admin.service().move_replica(request).await?.into_inner().action;
    admin.done(action).await?;
    ensure!(voters(&mut admin, shard).await? == before, "as it was");

    load.progress(200).await?;
    let report = load.verify().await?;
    ensure!(report.not_applied + report.unknown == 0, "requests failed: {report}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_lose_quorum_is_refused_with_the_reason_and_the_name_that_forces_it() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let mut admin = cluster.admin().await?;
    let shard = first_shard(&mut admin).await?;
    let request = pb::RemoveReplicaRequest { shard_id: shard, node_id: 2, epoch: 0, force: vec![] };
    let status = admin.service().remove_replica(request).await.err().context("it was accepted")?;
    let error = ServiceError::from_status(&status);
    let ServiceError::Refused { why, force } = &error else { anyhow::bail!("{error:?}") };
    ensure!(!why.is_empty() && !force.is_empty(), "{error:?}");

    let drain = pb::DrainNodeRequest { node_id: 2, force: vec![] };
    let status = admin.service().drain_node(drain).await.err().context("three replicas do not fit on two nodes")?;
    ensure!(ServiceError::from_status(&status).reason() == "REFUSED", "{status:?}");
    let remove = pb::RemoveNodeRequest { node_id: 2, force: vec![] };
    let status = admin.service().remove_node(remove).await.err().context("it is not drained")?;
    ensure!(ServiceError::from_status(&status).reason() == "REFUSED", "{status:?}");

    ensure!(voters(&mut admin, shard).await? == [1, 2, 3], "nothing changed");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_planned_from_an_old_epoch_is_refused() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    cluster.join_node().await?;
    let mut admin = cluster.admin().await?;
    let shard = first_shard(&mut admin).await?;
    let on = voters(&mut admin, shard).await?;
    let free = (1..=4).find(|node| !on.contains(node)).context("one of four nodes has no replica")?;
    let request = pb::AddLearnerRequest { shard_id: shard, node_id: free, epoch: 4711 };
    let status = admin.service().add_learner(request).await.err().context("it was accepted")?;
    ensure!(ServiceError::from_status(&status).reason() == "CONFLICT", "{status:?}");
    let request = pb::TransferLeaderRequest { shard_id: shard, to_node_id: 0, epoch: 4711 };
    let status = admin.service().transfer_leader(request).await.err().context("it was accepted")?;
    ensure!(ServiceError::from_status(&status).reason() == "CONFLICT", "{status:?}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_goes_on_after_the_leader_of_the_catalog_dies() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    cluster.join_node().await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(200).await?;
    let mut admin = cluster.admin().await?;
    let driver = usize::try_from(admin.leader(1).await?)?;
    let other = (1..=4).find(|number| *number != driver).context("four nodes")?;
    let mut admin = Admin::to(&cluster.node(other).address()).await?;
    let shard = first_shard(&mut admin).await?;
    let on = voters(&mut admin, shard).await?;
    let free = (1..=4).find(|node| !on.contains(node)).context("one of four nodes has no replica")?;
    let from = on.into_iter().find(|node| *node != driver as u64).context("three voters")?;
    let request = pb::MoveReplicaRequest { shard_id: shard, from_node_id: from, to_node_id: free, epoch: 0 };
    let action = admin.service().move_replica(request).await?.into_inner().action;
    cluster.node_mut(driver).kill().await?;
    if free == driver as u64 {
        // The gaining node is the dead one: the action waits for it.
        cluster.restart(driver).await?;
        admin.done(action).await?;
    } else {
        admin.done(action).await?;
        cluster.restart(driver).await?;
    }
    let after = voters(&mut admin, shard).await?;
    ensure!(after.contains(&free) && !after.contains(&from), "{after:?}");
    load.progress(200).await?;
    load.verify().await?;
    cluster.finish().await
}
