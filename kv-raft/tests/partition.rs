//! A leader cut off from the others: what becomes of what it had taken.

#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::ids::{ClientId, NodeId, Sequence};
use kv_raft::command::SessionTag;
use kv_raft::replica::{ProposeError, ReadMode, Replica};
use kv_raft::timing::Timing;
use support::{Cluster, PATIENCE, awake, eventually, put_tagged};

/// Consensus answers "not leader" also for an entry that was in the log of a leader that lost it. A client told that
/// such a write was not applied sends it again under a new sequence, and if the entry survived after all it is applied
/// twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_entry_was_truncated_has_an_unknown_outcome() {
    let cluster = Cluster::start(3, awake()).await;
    cluster.put("before", "1").await;
    let old = cluster.leader().await;
    let (term, last) = (old.status().term, old.status().last);
    let alone = NodeId(old.replica().0);
    cluster.isolate(alone);
    let tag = SessionTag { client: ClientId(9), sequence: Sequence(1), lowest_unfinished: Sequence(1) };
    let lost = {
        let old = Arc::clone(&old);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let write = async move { support::propose_by(&old, put_tagged(Some(tag), "lost", "1"), deadline).await };
        tokio_util::task::TaskTracker::new().spawn(write)
    };
    eventually("the entry is in its log", || (old.status().last > last).then_some(())).await;
    let new = cluster.leader_after(term).await;
    new.propose(support::put("after", "1")).await.unwrap();
    assert!(!lost.is_finished(), "nobody can know yet");
    cluster.heal();
    let answer = tokio::time::timeout(PATIENCE, lost).await.unwrap().unwrap();
    assert_eq!(answer, Err(ProposeError::OutcomeUnknown));
    cluster.put("healed", "1").await;
    assert_eq!(cluster.get("lost").await, None);
    assert_eq!(cluster.get("after").await, Some(Bytes::from_static(b"1")));
    cluster.converged().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_cut_off_serves_a_bound_only_until_it_has_passed() {
    const BOUND: Duration = Duration::from_secs(3);
    let mode = ReadMode::Stale { max_staleness: Some(BOUND) };
    let cluster = Cluster::start(3, awake()).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await;
    let follower = cluster.nodes.values().map(|node| node.replica()).find(|replica| !replica.is_leader()).unwrap();
    follower.read(mode).await.unwrap();
    cluster.isolate(NodeId(follower.replica().0));
    leader.propose(support::put("a", "2")).await.unwrap();
    let acknowledged = tokio::time::Instant::now();
    let mut served = 0;
    loop {
        let begun = tokio::time::Instant::now();
        match tokio::time::timeout(PATIENCE, follower.read(mode)).await.unwrap() {
            Ok(view) if view.get(b"a").unwrap().unwrap().value == Bytes::from_static(b"1") => {
                assert!(begun.duration_since(acknowledged) <= BOUND, "older than the bound");
                served += 1;
            }
            Ok(_) => panic!("it is cut off"),
            Err(_) => break,
        }
    }
    assert!(served > 0, "what the leader told serves until the bound has passed");
    cluster.heal();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while follower.read(mode).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "it serves again");
    }
    let view = follower.read(mode).await.unwrap();
    assert_eq!(view.get(b"a").unwrap().unwrap().value, Bytes::from_static(b"2"));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_serves_no_read_that_misses_what_the_others_wrote() {
    let cluster = Cluster::start(3, awake()).await;
    cluster.put("a", "1").await;
    let old = cluster.leader().await;
    let (term, alone) = (old.status().term, NodeId(old.replica().0));
    cluster.isolate(alone);
    let new = cluster.leader_after(term).await;
    new.propose(support::put("a", "2")).await.unwrap();
    for mode in [ReadMode::Linearizable, ReadMode::Lease, ReadMode::Stale { max_staleness: Some(Duration::MAX) }] {
        let read = tokio::time::timeout(PATIENCE, old.read(mode)).await.unwrap();
        assert!(read.is_err(), "{mode:?} by a leader that was replaced");
    }
    cluster.heal();
    assert_eq!(cluster.get("a").await, Some(Bytes::from_static(b"2")));
    cluster.stop_all().await;
}

/// The one follower that hears it would refuse its vote to the others for ever, and they are a majority only with it. One that
/// is idle must not take itself for a leader that could sleep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_only_a_minority_answers_gives_way_to_one_that_reaches_a_majority() {
    for timing in [awake(), Timing::default()] {
        let cluster = Cluster::start(4, timing).await;
        cluster.put("a", "1").await;
        let old = cluster.leader().await;
        let (term, alone) = (old.status().term, NodeId(old.replica().0));
        let others: Vec<NodeId> = cluster.nodes.keys().copied().filter(|node| *node != alone).collect();
        cluster.cut(alone, &others[1..]);
        let new = cluster.leader_after(term).await;
        new.propose(support::put("a", "2")).await.unwrap();
        cluster.heal();
        assert_eq!(cluster.get("a").await, Some(Bytes::from_static(b"2")));
        cluster.stop_all().await;
    }
}

/// A node that is away must not keep the shards of all others awake, nor be left behind by shards that sleep, nor take their
/// leadership when it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_sleeps_while_a_node_is_away_and_wakes_when_it_comes() {
    let timing = Timing { hibernate_after: Some(Duration::from_millis(500)), ..Timing::default() };
    let cluster = Cluster::start(3, timing).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await;
    let term = leader.status().term;
    let sleeps = |replica: &Arc<Replica>| replica.status().hibernated;
    let away = cluster.nodes.values().map(|node| node.replica()).find(|replica| !replica.is_leader()).unwrap();
    let others = || cluster.nodes.values().map(|node| node.replica()).filter(|other| other.replica() != away.replica());
    // One that stands for no election sends nothing that wakes the others.
    for stands in [false, true, true, true] {
        away.set_may_lead(stands);
        cluster.isolate(NodeId(away.replica().0));
        if !stands {
            leader.propose(support::put("a", "2")).await.unwrap();
        }
        eventually("the others sleep", || others().all(sleeps).then_some(())).await;
        eventually("it misses its leader", || (!sleeps(away)).then_some(())).await;
        cluster.heal();
        eventually("all sleep", || cluster.nodes.values().map(|node| node.replica()).all(sleeps).then_some(())).await;
        assert_eq!((away.status().applied, away.status().term), (leader.status().applied, term));
    }
    cluster.stop_all().await;
}
