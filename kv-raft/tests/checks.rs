//! Replicas compare their content through the log, and one that differs is shut out.

#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kv_proto::ids::{NodeId, ReplicaId};
use kv_raft::replica::{ProposeError, ReadError, ReadMode};
use kv_raft::timing::Timing;
use support::{Cluster, PATIENCE, awake, eventually, put};

fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<ReplicaId> {
    ids.into_iter().map(ReplicaId).collect()
}

/// Only on demand, so that tests decide when.
fn on_demand() -> Timing {
    Timing { check_interval: None, ..awake() }
}

/// Changes one value in a node's data the way a bad memory or disk controller would: no checksum of a file tells.
fn flip_a_bit(cluster: &Cluster, node: NodeId) {
    let tables = ["default", "meta", "latest", "history", "changes"];
    let folder = cluster.path(node).join("data");
    let found = rocksdb::DB::list_cf(&rocksdb::Options::default(), &folder).unwrap();
    assert!(found.iter().all(|name| tables.contains(&name.as_str())), "{found:?}");
    let database = rocksdb::DB::open_cf(&rocksdb::Options::default(), &folder, found).unwrap();
    let latest = database.cf_handle("latest").unwrap();
    let (key, mut value) = {
        let mut rows = database.iterator_cf(latest, rocksdb::IteratorMode::Start);
        rows.next().unwrap().map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()
    };
    *value.last_mut().unwrap() ^= 1;
    database.put_cf(latest, key, value).unwrap();
    database.flush_cf(latest).unwrap();
}

async fn with_a_wrong_replica(wrong: impl Fn(ReplicaId) -> u64) -> (Cluster, ReplicaId) {
    let mut cluster = Cluster::start(3, on_demand()).await;
    for i in 0..50 {
        cluster.put(&format!("key-{i}"), "value").await;
    }
    cluster.converged().await;
    let wrong = wrong(cluster.leader().await.replica());
    cluster.nodes[&NodeId(wrong)].context.flush().await.unwrap();
    cluster.kill(NodeId(wrong)).await;
    flip_a_bit(&cluster, NodeId(wrong));
    cluster.restart(NodeId(wrong), ReplicaId(wrong)).await;
    cluster.put("after", "1").await;
    (cluster, ReplicaId(wrong))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_applied_the_same_agree_also_after_a_restart() {
    let mut cluster = Cluster::start(3, on_demand()).await;
    for i in 0..20 {
        cluster.put(&format!("key-{i}"), "value").await;
    }
    let outcome = cluster.leader().await.check(PATIENCE).await.unwrap();
    assert_eq!((outcome.equal, outcome.missing), (ids(1..=3), ids([])));
    cluster.kill(NodeId(2)).await;
    cluster.put("while it is away", "1").await;
    let outcome = cluster.leader().await.check(Duration::from_millis(500)).await.unwrap();
    assert_eq!((outcome.equal, outcome.missing), (ids([1, 3]), ids([2])));
    cluster.restart(NodeId(2), ReplicaId(2)).await;
    cluster.put("back", "1").await;
    let outcome = cluster.leader().await.check(PATIENCE).await.unwrap();
    assert_eq!((outcome.equal, outcome.wrong), (ids(1..=3), ids([])));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_puts_the_replica_in_quarantine_for_good() {
    let (mut cluster, wrong) = with_a_wrong_replica(|leader| leader.0 % 3 + 1).await;
    let node = NodeId(wrong.0);
    let outcome = cluster.leader().await.check(PATIENCE).await.unwrap();
    assert_eq!((outcome.wrong, outcome.missing), (ids([wrong.0]), ids([])));
    let is_quarantined = |cluster: &Cluster| cluster.nodes[&node].replica().status().quarantined;
    eventually("it is quarantined", || is_quarantined(&cluster).then_some(())).await;
    let read = cluster.nodes[&node].replica().read(ReadMode::Stale { max_staleness: None }).await;
    assert!(matches!(read, Err(ReadError::NotLeader { leader: Some(_) })), "{:?}", read.map(drop));

    // Before anything is flushed: the verdict is in the log.
    cluster.kill(node).await;
    cluster.restart(node, wrong).await;
    eventually("it still is", || is_quarantined(&cluster).then_some(())).await;
    // And after, when it is not.
    cluster.nodes[&node].context.flush().await.unwrap();
    cluster.kill(node).await;
    cluster.restart(node, wrong).await;
    assert!(is_quarantined(&cluster));

    // It never leads, but it acknowledges: with it the other one is a majority.
    let other = NodeId((1..=3).find(|id| *id != wrong.0 && *id != cluster_leader(&cluster)).unwrap());
    cluster.kill(other).await;
    cluster.put("with two of three", "1").await;
    let leader = cluster.leader().await;
    assert_ne!(leader.replica(), wrong);
    drop(leader);
    cluster.stop_all().await;
}

fn cluster_leader(cluster: &Cluster) -> u64 {
    cluster.nodes.values().find(|node| node.replica().is_leader()).map_or(0, |node| node.id.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_wrong_finds_itself_in_the_minority_and_gives_way() {
    let (cluster, wrong) = with_a_wrong_replica(|leader| leader.0 % 3 + 1).await;
    let node = NodeId(wrong.0);
    let leader = cluster.nodes[&node].replica();
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Who is wrong may lose its leadership before the check is applied, and find itself wrong all the same.
        match leader.check(PATIENCE).await {
            Ok(outcome) => break assert_eq!(outcome.wrong, ids([wrong.0])),
            Err(_) if leader.status().quarantined => break,
            Err(_) => {
                assert!(Instant::now() < deadline, "it never led long enough");
                let leads = cluster.leader().await;
                if leads.replica() != wrong {
                    // A leader of a moment ago refuses, and the next one is asked.
                    let _ = leads.transfer_leader(wrong).await;
                }
            }
        }
    }
    eventually("another one leads", || leader.leader().is_some_and(|now| now.replica != wrong).then_some(())).await;
    let refused = leader.propose(put("a", "1")).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    cluster.put("served by the others", "1").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_compare_themselves_in_time_but_not_when_nothing_was_written() {
    let cluster = Cluster::start(3, Timing { check_interval: Some(Duration::from_millis(400)), ..awake() }).await;
    cluster.put("a", "1").await;
    let metrics = || cluster.nodes.values().map(|node| node.metrics.checks_equal.get()).sum::<u64>();
    eventually("a check found them equal", || (metrics() >= 1).then_some(())).await;
    let leader = cluster.leader().await;
    eventually("the last check is the last entry", || {
        let status = leader.status();
        (status.checked == status.applied && status.applied == status.last).then_some(())
    })
    .await;
    let (checks, last) = (metrics(), leader.status().last);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((metrics(), leader.status().last), (checks, last), "nothing was written since");
    cluster.put("b", "1").await;
    eventually("it is compared again", || (metrics() > checks).then_some(())).await;
    cluster.stop_all().await;
}
