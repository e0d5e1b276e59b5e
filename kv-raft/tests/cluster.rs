//! Three replicas of a shard in one process, over real gRPC and real folders.

#![allow(clippy::indexing_slicing)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::ids::{NodeId, ReplicaId};
use kv_raft::command::Reply;
use kv_raft::replica::{MembershipError, ProposeError, ReadError, ReadMode};
use kv_raft::timing::Timing;
use support::{Cluster, PATIENCE, SHARD, awake, eventually, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_the_leader_and_comes_back_to_it() {
    let mut cluster = Cluster::start(3, awake()).await;
    for i in 0..20 {
        cluster.put(&format!("before-{i}"), "1").await;
    }
    let lost = NodeId(cluster.leader().await.replica().0);
    let killed = Instant::now();
    cluster.kill(lost).await;
    cluster.put("after", "2").await;
    println!("first write after the leader was lost: {:?}", killed.elapsed());
    for i in 0..20 {
        assert_eq!(cluster.get(&format!("before-{i}")).await, Some(Bytes::from_static(b"1")));
    }
    cluster.restart(lost, ReplicaId(lost.0)).await;
    cluster.put("back", "3").await;
    cluster.converged().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_past_the_end_of_the_log_gets_a_snapshot() {
    let timing = Timing { log_entries_kept: 5, ..awake() };
    let mut cluster = Cluster::start(3, timing).await;
    cluster.put("first", "1").await;
    let leader = cluster.leader().await.replica();
    let away = NodeId(if leader == ReplicaId(1) { 2 } else { 1 });
    cluster.kill(away).await;
    let last = {
        let leader = cluster.leader().await;
        for i in 0..600 {
            leader.propose(put(&format!("key-{i}"), &"v".repeat(100))).await.unwrap();
        }
        leader.status().last
    };
    for node in cluster.nodes.values() {
        node.context.flush().await.unwrap();
    }
    eventually("the log is purged", || {
        let purged = cluster.nodes.values().map(|node| node.replica().status().purged).min()?;
        (purged > last - 300).then_some(())
    })
    .await;
    cluster.restart(away, ReplicaId(away.0)).await;
    cluster.put("last", "2").await;
    cluster.converged().await;
    let installed = &cluster.nodes[&away].metrics.snapshots_installed;
    eventually("it came by snapshot", || (installed.get() >= 1).then_some(())).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_at_once_come_back_with_everything() {
    let mut cluster = Cluster::start(3, awake()).await;
    for i in 0..50 {
        cluster.put(&format!("key-{i}"), "1").await;
    }
    for node in 1..=3 {
        cluster.kill(NodeId(node)).await;
    }
    for node in 1..=3 {
        cluster.restart(NodeId(node), ReplicaId(node)).await;
    }
    for i in 0..50 {
        assert_eq!(cluster.get(&format!("key-{i}")).await, Some(Bytes::from_static(b"1")));
    }
    cluster.converged().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_moves_to_a_fourth_node_and_leadership_with_it() {
    let mut cluster = Cluster::start(3, awake()).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await;
    cluster.start_node(NodeId(4)).await;
    cluster.start_replica(NodeId(4), ReplicaId(4), None).await;
    eventually("the new node is heard", || leader_hears(&cluster, NodeId(4)).then_some(())).await;
    leader.add_learner(ReplicaId(4), NodeId(4)).await.unwrap();
    leader.add_learner(ReplicaId(4), NodeId(4)).await.unwrap();
    let refused = leader.add_learner(ReplicaId(5), NodeId(4)).await;
    assert!(matches!(refused, Err(MembershipError::Refused(_))), "{refused:?}");
    let caught_up = || leader.status().followers.iter().any(|f| f.replica == ReplicaId(4) && f.lag == 0);
    eventually("the learner has caught up", || caught_up().then_some(())).await;
    let gone = [1, 2, 3].map(ReplicaId).into_iter().find(|replica| *replica != leader.replica()).unwrap();
    let voters: BTreeSet<_> = [1, 2, 3, 4].map(ReplicaId).into_iter().filter(|replica| *replica != gone).collect();
    leader.change_voters(voters.clone()).await.unwrap();
    leader.change_voters(voters.clone()).await.unwrap();
    assert_eq!(leader.status().voters.iter().map(|(voter, _)| *voter).collect::<BTreeSet<_>>(), voters);
    let refused = leader.transfer_leader(gone).await;
    assert!(matches!(refused, Err(MembershipError::Refused(_))), "{refused:?}");
    leader.transfer_leader(ReplicaId(4)).await.unwrap();
    let destroyed = cluster.nodes.get_mut(&NodeId(gone.0)).unwrap().replicas.remove(&SHARD).unwrap();
    destroyed.destroy().await.unwrap();
    assert!(cluster.nodes[&NodeId(gone.0)].context.data().replicas().is_empty());
    cluster.kill(NodeId(gone.0)).await;
    assert_eq!(cluster.leader().await.replica(), ReplicaId(4));
    cluster.put("b", "2").await;
    cluster.converged().await;
    cluster.stop_all().await;
}

fn leader_hears(cluster: &Cluster, node: NodeId) -> bool {
    cluster.nodes.values().all(|other| other.transport.alive(node))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_not_handed_to_a_dead_replica_and_leaves_one_that_may_not_lead() {
    let mut cluster = Cluster::start(3, awake()).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await;
    leader.set_may_lead(false);
    let next = eventually("another replica leads", || leader.leader().filter(|now| now.replica != leader.replica()));
    let next = next.await;
    leader.set_may_lead(true);
    let next = Arc::clone(cluster.nodes[&next.node].replica());
    cluster.leader().await;
    let dead = leader.replica();
    cluster.kill(NodeId(dead.0)).await;
    eventually("the dead node is missed", || (!next_hears(&cluster, next.replica(), dead)).then_some(())).await;
    let refused = next.transfer_leader(dead).await;
    assert_eq!(refused, Err(MembershipError::NotAlive { replica: dead, node: NodeId(dead.0) }));
    cluster.put("b", "2").await;
    cluster.stop_all().await;
}

fn next_hears(cluster: &Cluster, next: ReplicaId, other: ReplicaId) -> bool {
    cluster.nodes[&NodeId(next.0)].transport.alive(NodeId(other.0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_shard_sleeps_wakes_on_a_request_and_elects_when_its_leader_is_lost() {
    let timing = Timing { hibernate_after: Some(Duration::from_secs(1)), ..Timing::default() };
    let mut cluster = Cluster::start(3, timing).await;
    cluster.put("a", "1").await;
    asleep(&cluster).await;
    let leader = cluster.leader().await;
    let term = leader.status().term;
    let begun = Instant::now();
    leader.propose(put("b", "2")).await.unwrap();
    println!("first write to a sleeping shard: {:?}", begun.elapsed());
    assert_eq!(leader.status().term, term, "waking needs no election");
    asleep(&cluster).await;
    let begun = Instant::now();
    let view = leader.read(ReadMode::Linearizable).await.unwrap();
    println!("first read of a sleeping shard: {:?}", begun.elapsed());
    assert_eq!(view.get(b"b").unwrap().unwrap().value, Bytes::from_static(b"2"));
    asleep(&cluster).await;
    // Longer than any election timeout: nobody calls an election while the leader's node lives.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(leader.status().term, term);
    asleep(&cluster).await;
    let lost = NodeId(leader.replica().0);
    // Its engines close with the last handle.
    drop((leader, view));
    let killed = Instant::now();
    cluster.kill(lost).await;
    cluster.put("c", "3").await;
    println!("first write after the leader of a sleeping shard was lost: {:?}", killed.elapsed());
    cluster.restart(lost, ReplicaId(lost.0)).await;
    cluster.put("d", "4").await;
    asleep(&cluster).await;
    cluster.converged().await;
    cluster.stop_all().await;
}

/// Consensus counted the time a shard slept as time in which no majority answered its leader, which was silent in turns of
/// 0.9 s then: of two requests that woke a shard one waited for the end of such a turn, or was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_serves_at_once_however_long_it_slept() {
    let timing = Timing { hibernate_after: Some(Duration::from_millis(500)), ..Timing::default() };
    let turn = timing.election_max * 2;
    let cluster = Cluster::start(3, timing).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await;
    for quarter in 1..=8 {
        asleep(&cluster).await;
        tokio::time::sleep(turn / 4 * quarter).await;
        let written = leader.propose(put("b", "2")).await;
        assert!(matches!(written, Ok(Reply::Written { .. })), "after {quarter} quarters: {written:?}");
    }
    cluster.stop_all().await;
}

async fn asleep(cluster: &Cluster) {
    eventually("all replicas sleep", || {
        cluster.nodes.values().all(|node| node.replica().status().hibernated).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_wait_together_share_entries_and_readers_share_rounds() {
    let cluster = Cluster::start(3, awake()).await;
    let leader = cluster.leader().await;
    let metrics = &cluster.nodes[&NodeId(leader.replica().0)].metrics;
    let (entries, rounds) = (metrics.proposals.get(), metrics.read_rounds.get());
    let begun = Instant::now();
    let writes = (0..2000).map(|i| {
        let leader = Arc::clone(&leader);
        async move { leader.propose(put(&format!("key-{i}"), "value")).await }
    });
    for written in futures::future::join_all(writes).await {
        assert!(matches!(written, Ok(Reply::Written { .. })), "{written:?}");
    }
    println!("2000 writes at once: {:?} in {} entries", begun.elapsed(), metrics.proposals.get() - entries);
    assert!(metrics.proposals.get() - entries < 200);
    let begun = Instant::now();
    let reads = (0..2000).map(|_| leader.read(ReadMode::Linearizable));
    assert!(futures::future::join_all(reads).await.iter().all(Result::is_ok));
    println!("2000 reads at once: {:?} in {} rounds", begun.elapsed(), metrics.read_rounds.get() - rounds);
    assert!(metrics.read_rounds.get() - rounds < 200);
    let by_consensus = metrics.consensus_read_rounds.get();
    assert!(by_consensus < metrics.read_rounds.get() - rounds, "votes alone confirm a leader at work");
    cluster.converged().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_of_reading_gives_what_it_promises() {
    let mut cluster = Cluster::start(3, awake()).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await;
    let follower = cluster.nodes.values().map(|node| node.replica()).find(|replica| !replica.is_leader()).unwrap();
    let follower = Arc::clone(follower);

    let refused = follower.read(ReadMode::Linearizable).await;
    assert!(matches!(refused, Err(ReadError::NotLeader { leader: Some(info) }) if info.replica == leader.replica()));
    let refused = follower.propose(put("a", "2")).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(info) }) if info.replica == leader.replica()));
    leader.read(ReadMode::Lease).await.unwrap();

    let clock = cluster.nodes[&NodeId(leader.replica().0)].context.clock().clone();
    let at = clock.now();
    let before = leader.read(ReadMode::Snapshot { at }).await.unwrap();
    assert_eq!(before.get_at(b"a", at).unwrap().unwrap().value, Bytes::from_static(b"1"));
    cluster.put("a", "2").await;
    let again = leader.read(ReadMode::Snapshot { at }).await.unwrap();
    assert_eq!(again.get_at(b"a", at).unwrap().unwrap().value, Bytes::from_static(b"1"), "a snapshot does not change");
    assert_eq!(again.get(b"a").unwrap().unwrap().value, Bytes::from_static(b"2"));

    let within = |bound: Duration| ReadMode::Stale { max_staleness: Some(bound) };
    for replica in [&leader, &follower] {
        let view = replica.read(within(Duration::ZERO)).await.unwrap();
        assert_eq!(view.get(b"a").unwrap().unwrap().value, Bytes::from_static(b"2"), "nothing acknowledged is missed");
    }
    let others: Vec<_> = cluster.nodes.keys().copied().filter(|node| node.0 != follower.replica().0).collect();
    for node in others {
        cluster.kill(node).await;
    }
    follower.read(ReadMode::Stale { max_staleness: None }).await.unwrap();
    follower.read(within(Duration::from_secs(3600))).await.unwrap();
    let refused = follower.read(within(Duration::ZERO)).await;
    assert!(matches!(refused, Err(ReadError::NotLeader { .. })), "nobody says that this is all");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_majority_acknowledges_nothing_and_says_so() {
    let mut cluster = Cluster::start(3, awake()).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await;
    for node in [1, 2, 3].map(NodeId) {
        if node.0 != leader.replica().0 {
            cluster.kill(node).await;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = tokio::time::timeout(Duration::from_secs(2), leader.propose(put("b", "2"))).await;
        match answer {
            Ok(Ok(reply)) => panic!("acknowledged without a majority: {reply:?}"),
            Ok(Err(ProposeError::NoQuorum)) => break,
            // One that was handed over before the lease ended waits; its caller gives up.
            Ok(Err(_)) | Err(_) => assert!(Instant::now() < deadline, "it must come to say so"),
        }
    }
    assert!(matches!(leader.read(ReadMode::Linearizable).await, Err(ReadError::NoQuorum)));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_says_that_no_majority_answers_it_awake_or_asleep() {
    for hibernate_after in [None, Some(Duration::from_secs(1))] {
        let mut cluster = Cluster::start(3, Timing { hibernate_after, ..Timing::default() }).await;
        cluster.put("a", "1").await;
        if hibernate_after.is_some() {
            asleep(&cluster).await;
        }
        let leader = cluster.leader().await;
        assert!(!leader.status().no_quorum);
        let first = NodeId(leader.replica().0 % 3 + 1);
        drop(leader);
        cluster.kill(first).await;
        // Two of three are a majority, and go on.
        cluster.put("a", "2").await;
        let leader = cluster.leader().await;
        assert!(!leader.status().no_quorum);
        let second = [1, 2, 3].map(NodeId).into_iter().find(|node| *node != first && node.0 != leader.replica().0);
        cluster.kill(second.unwrap()).await;
        eventually("the leader to say so", || leader.status().no_quorum.then_some(())).await;
        assert!(leader.is_leader(), "of its term, until it hears of another");
        drop(leader);
        cluster.restart(first, ReplicaId(first.0)).await;
        cluster.put("b", "2").await;
        let leader = cluster.leader().await;
        eventually("a majority to answer again", || (!leader.status().no_quorum).then_some(())).await;
        drop(leader);
        cluster.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_slept_long_is_not_said_to_lack_its_quorum_when_it_wakes() {
    let timing = Timing { hibernate_after: Some(Duration::from_secs(1)), ..Timing::default() };
    let cluster = Cluster::start(3, timing).await;
    cluster.put("a", "1").await;
    asleep(&cluster).await;
    let leader = cluster.leader().await;
    // Longer than a silence may last: nobody has answered since it fell asleep, and nobody was asked.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!leader.status().no_quorum, "the others' nodes live");
    let watched = async {
        while leader.status().hibernated {
            assert!(!leader.status().no_quorum);
            tokio::task::yield_now().await;
        }
        for _ in 0..1000 {
            assert!(!leader.status().no_quorum, "it has just begun to ask");
        }
    };
    let (written, ()) = tokio::join!(leader.propose(put("b", "2")), watched);
    assert!(written.is_ok(), "{written:?}");
    drop(leader);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_time_is_up_learns_whether_its_command_may_still_apply() {
    let (mut cluster, leader, others) = support::leader_alone().await;
    let begun = tokio::time::Instant::now();
    let within = |millis| begun + Duration::from_millis(millis);
    let taken = support::propose_by(&leader, put("taken", "1"), within(300));
    let queued = async {
        // Before the lease ends, so that the first is in the log.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let later = support::propose_by(&leader, put("queued", "1"), within(250));
        let sooner = async { (support::propose_by(&leader, put("queued", "1"), within(100)).await, begun.elapsed()) };
        tokio::join!(later, sooner)
    };
    let (taken, (later, sooner)) = tokio::join!(taken, queued);
    assert_eq!(sooner.0, Err(ProposeError::TimedOut { proposed: false }));
    assert!(sooner.1 < Duration::from_millis(250), "it came last and its time was up first: {:?}", sooner.1);
    assert_eq!(later, Err(ProposeError::TimedOut { proposed: false }));
    assert_eq!(taken, Err(ProposeError::TimedOut { proposed: true }));
    drop(leader);
    cluster.restart(others[0], ReplicaId(others[0].0)).await;
    cluster.put("d", "1").await;
    assert_eq!(cluster.get("queued").await, None, "it was said not to be applied");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_behind_entries_that_no_majority_answers_is_refused_and_comes_through_later() {
    let (mut cluster, leader, others) = support::leader_alone().await;
    // Writes follow before the lease ends: they are in the log, and wait.
    let late = tokio::time::Instant::now() + PATIENCE;
    let mut taken = Vec::new();
    for i in 0..2 {
        let leader = Arc::clone(&leader);
        let write = async move { support::propose_by(&leader, put(&format!("taken-{i}"), "1"), late).await };
        taken.push(tokio_util::task::TaskTracker::new().spawn(write));
        // Each is to be an entry of its own, so that no more are taken.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let soon = tokio::time::Instant::now() + Duration::from_millis(100);
    let queued = tokio::join!(
        support::propose_by(&leader, put("soon", "1"), soon),
        support::propose_by(&leader, put("late", "1"), late)
    );
    println!("{queued:?}");
    assert!(matches!(queued.0, Err(ProposeError::TimedOut { proposed: false } | ProposeError::NoQuorum)), "{queued:?}");
    assert_eq!(queued.1, Err(ProposeError::NoQuorum));
    assert_eq!(leader.propose(put("c", "1")).await, Err(ProposeError::NoQuorum), "at once, without waiting");
    drop(leader);
    // One is enough for a majority.
    cluster.restart(others[0], ReplicaId(others[0].0)).await;
    for taken in taken {
        println!("{:?}", taken.await.unwrap());
    }
    cluster.put("d", "1").await;
    for key in ["soon", "late", "c"] {
        assert_eq!(cluster.get(key).await, None, "{key} was said not to be applied");
    }
    cluster.converged().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused() {
    let mut cluster = Cluster::empty(awake());
    cluster.start_node(NodeId(1)).await;
    cluster.start_node(NodeId(2)).await;
    eventually("the two are linked", || {
        let linked = |node: &support::TestNode| node.transport.peers().iter().any(|peer| peer.connected);
        cluster.nodes.values().all(linked).then_some(())
    })
    .await;
    cluster.start_node_of("other", NodeId(3)).await;
    let stranger = &cluster.nodes[&NodeId(3)].transport;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(stranger.peers().iter().all(|peer| !peer.connected && peer.last_heard.is_none()), "{:?}", stranger.peers());
    assert!(!cluster.nodes[&NodeId(1)].transport.alive(NodeId(3)));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_storage_fails_is_noticed_at_once_and_acknowledges_nothing() {
    let cluster = Cluster::start(3, awake()).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await;
    let context = &cluster.nodes[&NodeId(leader.replica().0)].context;
    context.log().close().await;
    let answer = leader.propose(put("b", "2")).await;
    assert!(matches!(answer, Err(ProposeError::OutcomeUnknown | ProposeError::Fatal(_))), "{answer:?}");
    let reason = tokio::time::timeout(PATIENCE, context.failed()).await.unwrap();
    println!("told: {reason}");
    assert!(matches!(leader.propose(put("b", "2")).await, Err(ProposeError::Fatal(_))));
    assert!(matches!(leader.read(ReadMode::Linearizable).await, Err(ReadError::Fatal(_))));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_connections_and_never_answers_slows_nobody() {
    let mut cluster = Cluster::start(3, awake()).await;
    cluster.put("a", "1").await;
    let leader = cluster.leader().await.replica();
    let hung = NodeId(if leader == ReplicaId(3) { 2 } else { 3 });
    cluster.kill(hung).await;
    let hole = cluster.replace_by_a_hole(hung).await;
    let leader = cluster.leader().await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        let written = tokio::time::timeout(Duration::from_secs(1), leader.propose(put("b", "2"))).await;
        assert!(matches!(written, Ok(Ok(_))), "{written:?}");
    }
    drop((hole, leader));
    cluster.restart(hung, ReplicaId(hung.0)).await;
    cluster.put("c", "3").await;
    cluster.converged().await;
    cluster.stop_all().await;
}
