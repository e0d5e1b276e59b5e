//! The network that storms break is really broken: what is cut does not pass, what is not cut does.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_proto::pb::v1::{PutRequest, RequestHeader, WrongNode};
use kv_tests::cluster::Cluster;
use kv_tests::network::rules::{Party, Rule};
use kv_tests::raw;
use kv_tests::settings::Settings;
use kv_tests::wait;

const WITHIN: Duration = Duration::from_secs(30);

async fn put(address: String, wrong_node: WrongNode) -> Result<()> {
    let header = RequestHeader { timeout_ms: 1_500, wrong_node: wrong_node.into(), ..RequestHeader::default() };
    let request = PutRequest { header: Some(header), key: "key".into(), value: "value".into() };
    raw::kv(&address).await?.put(request).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_from_other_nodes_acknowledges_nothing_to_clients_on_its_side() -> Result<()> {
    let cluster = Cluster::start(Settings::default().shards(1).breakable()).await?;
    let mut admin = cluster.admin().await?;
    let shards = admin.shards("default").await?;
    let shard = shards.first().and_then(|listing| listing.shard.as_ref()).context("one shard")?.shard_id;
    let leader = usize::try_from(admin.leader(shard).await?)?;
    let other = leader % 3 + 1;
    put(cluster.node(leader).advertised(), WrongNode::Redirect).await.context("nothing is cut yet")?;

    let rules = cluster.network().context("breakable")?.rules();
    let (it, others) = (Party::Node(leader), (1..=3).filter(|number| *number != leader).map(Party::Node));
    let links = others.flat_map(|other| [(it, other, Rule::blocked()), (other, it, Rule::blocked())]).collect();
    let fault = rules.begin(links);
    for _ in 0..2 {
        let put = put(cluster.node(leader).advertised(), WrongNode::Redirect).await;
        ensure!(put.is_err(), "a minority acknowledged a write: its links are not cut");
    }
    wait::until("the others to serve", WITHIN, || put(cluster.node(other).advertised(), WrongNode::Forward)).await?;

    rules.end(fault);
    wait::until("the node that was cut off to serve or forward", WITHIN, || {
        put(cluster.node(leader).advertised(), WrongNode::Forward)
    })
    .await?;
    cluster.finish_storm().await
}
