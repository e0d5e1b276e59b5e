//! One list of addresses, given to every node, brings up one cluster, and never a second one beside it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use kv_client::Client;
use kv_proto::pb::admin::v1::{GetNodeStatusRequest, ReplicaRole};
use kv_tests::admin::Admin;
use kv_tests::node::NodeProcess;
use kv_tests::{http, raw, wait};

const WITHIN: Duration = Duration::from_secs(60);

/// Three nodes of one list, with the same settings, not started.
fn listed(below: &Path) -> Result<Vec<NodeProcess>> {
    let nodes = (1..=3).map(|number| NodeProcess::new(number, below, &[])).collect::<Result<Vec<_>>>()?;
    let seeds: Vec<String> = nodes.iter().map(|node| format!("{:?}", node.address())).collect();
    let lines =
        ["bootstrap = true".to_owned(), format!("join = [{}]", seeds.join(", ")), "default_shards = 3".to_owned()];
    nodes.iter().try_for_each(|node| node.configure(&lines))?;
    Ok(nodes)
}

/// Waits until the node says that it is not ready for this reason.
async fn waits(node: &NodeProcess, why: &str) -> Result<()> {
    wait::until(&format!("node {} to say {why:?}", node.number()), WITHIN, || async {
        let (status, said) = http::get(&node.http_address(), "/readyz?verbose").await?;
        ensure!(status == 503 && said.contains(why), "{status}: {said}");
        Ok(())
    })
    .await
}

/// The cluster and the id of a node once it is ready.
async fn member(node: &NodeProcess) -> Result<(String, u64)> {
    wait::until(&format!("node {} to be ready", node.number()), WITHIN, || async {
        let (status, said) = http::get(&node.http_address(), "/readyz?verbose").await?;
        ensure!(status == 200, "{status}: {said}");
        Ok(())
    })
    .await?;
    let answer = raw::admin(&node.address())
        .await?
        .get_node_status(GetNodeStatusRequest { brief: true, ..Default::default() })
        .await?;
    let answer = answer.into_inner();
    Ok((answer.cluster_id, answer.status.context("a status")?.node_id))
}

async fn client(nodes: &[NodeProcess]) -> Result<Client> {
    let client = Client::builder().endpoints(nodes.iter().map(NodeProcess::address)).timeout(Duration::from_secs(10));
    Ok(client.connect().await?)
}

/// Writes until the default keyspace is there.
async fn written(client: &Client, key: &str) -> Result<()> {
    wait::until("a write to be acknowledged", WITHIN, || async {
        client.put(key, "value").await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_list_make_one_cluster_in_whatever_order_they_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut nodes = listed(folder.path())?;
    let [first, second, third] = nodes.as_mut_slice() else { anyhow::bail!("three nodes") };
    third.start().await?;
    second.start().await?;
    waits(third, "the first of the list").await?;
    second.stop().await?;
    first.start().await?;
    waits(first, "may hold the data of a cluster").await?;
    second.start().await?;

    let members = try_join_all(nodes.iter().map(member)).await?;
    let clusters: Vec<&String> = members.iter().map(|(cluster, _)| cluster).collect();
    ensure!(clusters.iter().all(|cluster| *cluster == clusters[0]), "more than one cluster: {members:?}");
    ensure!(members[0].1 == 1, "the first of the list begins: {members:?}");
    written(&client(&nodes).await?, "key").await?;
    for node in &mut nodes {
        ensure!(node.stop().await?.success(), "node {} did not stop well", node.number());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_first_node_comes_back_to_the_cluster_and_never_begins_a_second_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut nodes = listed(folder.path())?;
    for node in &mut nodes {
        node.start().await?;
    }
    let (cluster, _) = member(&nodes[0]).await?;
    try_join_all(nodes.iter().map(member)).await?;
    written(&client(&nodes).await?, "kept").await?;
    wait::until("the catalog to be on all three nodes", WITHIN, || async {
        let shard = Admin::to(&nodes[0].address()).await?.shard(1).await?.shard.context("shard 1")?;
        let voters = shard.replicas.iter().filter(|replica| replica.role() == ReplicaRole::Voter).count();
        ensure!(voters == 3, "{voters} of its replicas vote");
        Ok(())
    })
    .await?;

    // Alone and empty it cannot know whether there is data of a cluster: it waits.
    for node in &mut nodes {
        node.kill().await?;
    }
    nodes[0].wipe()?;
    nodes[0].start().await?;
    waits(&nodes[0], "may hold the data of a cluster").await?;
    // One other node that says so is enough to know that there is one, although it has no majority to let anybody in.
    nodes[2].start().await?;
    waits(&nodes[0], "waiting to be let into the cluster").await?;
    nodes[1].start().await?;
    let (joined, id) = member(&nodes[0]).await?;
    ensure!(joined == cluster, "it is in cluster {joined}, the first was {cluster}");
    ensure!(id > 3, "it came back under the id {id}, whose votes it forgot");
    let found = client(&nodes).await?.get("kept").await?;
    ensure!(found.is_some(), "the key is lost");
    for node in &mut nodes {
        ensure!(node.stop().await?.success(), "node {} did not stop well", node.number());
    }
    Ok(())
}
