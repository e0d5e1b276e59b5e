//! Writes and reads from any node: served, forwarded or redirected, as the request asks.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::TryStreamExt as _;
use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::pb::admin::v1::{CreateKeyspaceRequest, KeyspaceKind};
use kv_proto::pb::v1::{
    Consistency, GetRequest, ListRoutesRequest, PutRequest, ReadOptions, RequestHeader, ShardRoute, WrongNode,
};
use kv_proto::slot::Slot;
use kv_tests::cluster::Cluster;
use kv_tests::load::Load;
use kv_tests::raw::{self, header, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_back_in_every_way() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let client = cluster.client().await?;

    client.put("a", "1").await?;
    ensure!(client.get("a").await?.context("just written")?.value == "1");
    ensure!(client.get("absent").await?.is_none());

    let refused = client.compare_and_set("a").expect_value("2").set("3").await?;
    ensure!(!refused.applied(), "the value was 1");
    let done = client.compare_and_set("a").expect_value("1").set("2").await?;
    ensure!(done.applied(), "the value was 1");
    ensure!(client.get("a").await?.context("just written")?.value == "2");

    let keys: BTreeMap<String, String> = (0..200).map(|n| (format!("scan/{n:03}"), n.to_string())).collect();
    for (key, value) in &keys {
        client.put(key, value).await?;
    }
    let entries: Vec<kv_client::Entry> = client.scan().prefix("scan/").stream().try_collect().await?;
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let found: BTreeMap<String, String> = entries.iter().map(|e| (text(&e.key), text(&e.value))).collect();
    ensure!(found == keys && entries.len() == keys.len(), "the scan found {} entries", entries.len());

    client.delete("a").await?;
    ensure!(client.get("a").await?.is_none());
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_keyspace_scans_in_key_order_across_its_shards() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let request = CreateKeyspaceRequest {
        name: "ordered".to_owned(),
        kind: KeyspaceKind::Range.into(),
        shards: 3,
        split_keys: vec!["g".into(), "q".into()],
        ..CreateKeyspaceRequest::default()
    };
    cluster.admin().await?.create_keyspace(request).await?;
    let keyspace = cluster.client().await?.keyspace("ordered");
    for letter in ('a'..='z').rev() {
        keyspace.put(letter.to_string(), "x").await?;
    }
    let entries: Vec<kv_client::Entry> = keyspace.scan().stream().try_collect().await?;
    let found: String = entries.iter().map(|entry| String::from_utf8_lossy(&entry.key)).collect();
    ensure!(found == "abcdefghijklmnopqrstuvwxyz", "{found}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn load_on_a_quiet_cluster_fails_nowhere() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let load = Load::default().start(&cluster.client().await?);
    load.progress(2_000).await?;
    let report = load.verify().await?;
    ensure!(report.not_applied + report.unknown == 0, "{report}");
    cluster.finish().await
}

/// The shard of a key, as the routes say.
async fn route_of(cluster: &Cluster, key: &[u8]) -> Result<ShardRoute> {
    let mut kv = raw::kv(&cluster.node(1).address()).await?;
    let routes = kv.list_routes(ListRoutesRequest { header: header() }).await?.into_inner();
    ensure!(routes.hashed, "the default keyspace is hashed");
    let at = kv_proto::keys::encode(routes.keyspace_id.into(), kv_proto::keys::Layout::Hash, key);
    let holds = |shard: &ShardRoute| shard.start <= at && (shard.end.is_empty() || at < shard.end);
    let found = routes.shards.into_iter().find(holds);
    found.with_context(|| format!("no shard holds slot {}", Slot::of(key)))
}

fn asking(wrong_node: WrongNode) -> Option<RequestHeader> {
    header().map(|header| RequestHeader { wrong_node: wrong_node.into(), ..header })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_forwards_to_the_one_that_serves() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    for (n, node) in cluster.nodes().enumerate() {
        let mut kv = raw::kv(&node.address()).await?;
        for key in 0..20 {
            let key = Bytes::from(format!("{n}/{key}"));
            let header = asking(WrongNode::Forward);
            kv.put(PutRequest { header: header.clone(), key: key.clone(), value: key.clone() }).await?;
            let served = kv.get(GetRequest { header, key: key.clone(), read: None }).await?.into_inner();
            ensure!(served.entry.context("just written")?.value == key);
        }
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_lead_redirects_to_the_leader_when_asked_to() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let key = Bytes::from_static(b"redirected");
    let route = route_of(&cluster, &key).await?;
    // Leaders go home right after the start: for a moment a node may know none.
    kv_tests::wait::until("every node to serve or to name the leader", std::time::Duration::from_secs(30), || async {
        let leader = cluster.admin().await?.leader(route.shard_id).await?;
        for node in cluster.nodes() {
            let mut kv = raw::kv(&node.address()).await?;
            let put = PutRequest { header: asking(WrongNode::Redirect), key: key.clone(), value: key.clone() };
            let answer = kv.put(put).await;
            if node.number() as u64 == leader {
                answer.context("the leader serves")?;
                continue;
            }
            let error = refusal(answer)?;
            ensure!(error.reason() == "NOT_LEADER" && error.outcome() == Outcome::NotApplied, "{error:?}");
            let hint = error.route_hint().and_then(|hint| hint.shard.clone()).context("a hint with the shard")?;
            ensure!(hint.shard_id == route.shard_id && hint.leader_node_id == leader, "{hint:?}");
            let address =
                hint.replicas.iter().find(|replica| replica.node_id == leader).map(|replica| &replica.address);
            ensure!(address == Some(&cluster.node(usize::try_from(leader)?).address()), "{hint:?}");
        }
        Ok(())
    })
    .await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_serves_stale_reads_itself() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let key = Bytes::from_static(b"stale");
    let route = route_of(&cluster, &key).await?;
    let leader = cluster.admin().await?.leader(route.shard_id).await?;
    let mut kv = raw::kv(&cluster.node(1).address()).await?;
    kv.put(PutRequest { header: header(), key: key.clone(), value: key.clone() }).await?;
    for node in cluster.nodes().filter(|node| node.number() as u64 != leader) {
        kv_tests::wait::until("the follower to have applied it", std::time::Duration::from_secs(10), || async {
            let mut kv = raw::kv(&node.address()).await?;
            for max_staleness_ms in [0, 2000] {
                let stale = ReadOptions { consistency: Consistency::Stale.into(), ..ReadOptions::default() };
                let read = Some(ReadOptions { max_staleness_ms, ..stale });
                let get = GetRequest { header: asking(WrongNode::Redirect), key: key.clone(), read };
                let answer = kv.get(get).await.map_err(|status| ServiceError::from_status(&status))?.into_inner();
                ensure!(answer.header.context("a header")?.node_id == node.number() as u64, "another node answered");
                ensure!(answer.entry.is_some(), "not yet applied");
            }
            Ok(())
        })
        .await?;
    }
    cluster.finish().await
}
