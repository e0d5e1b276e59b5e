//! What a request does when nodes refuse, break, stay silent or die.

mod fake;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Act, Fake, Silent};
use futures::future::join_all;
use kv_client::connection::{
    CallError, ConnectionError, ConnectionOptions, NodeConnection, NodePool, pipeline_call, pipeline_reply,
};
use kv_client::{CasResult, Client, Consistency, Error, Outcome, ServiceError};
use kv_proto::ids::ShardId;
use kv_proto::pb::v1 as pb;
use std::future::IntoFuture as _;
use tokio::time::Instant;

/// Time given to a call that is never answered: enough for it to be sent, also on a busy machine.
const UNANSWERED: Duration = Duration::from_secs(1);

/// What nothing here takes unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn call(node: &NodeConnection, key: &str, deadline: Instant) -> Result<pipeline_reply::Response, CallError> {
    node.call(fake::CLUSTER, |cluster| get(cluster, key), deadline).await
}

fn get(cluster_id: String, key: &str) -> pipeline_call::Request {
    let header = pb::RequestHeader {
        cluster_id,
        shard_id: 10,
        epoch: 1,
        timeout_ms: 1000,
        wrong_node: pb::WrongNode::Redirect.into(),
        ..pb::RequestHeader::default()
    };
    let key = bytes::Bytes::copy_from_slice(key.as_bytes());
    pipeline_call::Request::Get(pb::GetRequest { header: Some(header), key, read: None })
}

fn options(connect: Duration) -> ConnectionOptions {
    let mut options = ConnectionOptions::default();
    options.connect_timeout = connect;
    options
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_applied_once() {
    let cluster = Fake::hashed(3, 1);
    let client = cluster.client().await;
    client.put("n", "0").await.unwrap();
    cluster.script(1, [Act::DropAfter]);
    let result = client.compare_and_set("n").expect_value("0").set("1").timeout(Duration::from_secs(20)).await.unwrap();
    assert!(matches!(result, CasResult::Applied { .. }), "the second attempt got the first one's reply");
    assert_eq!(cluster.with(|inner| inner.store.applied), 2);
    let sessions: Vec<_> = cluster.sent().into_iter().skip(1).map(|sent| sent.session).collect();
    assert!(sessions.len() >= 2 && sessions.iter().all(|session| *session == sessions[0]), "{sessions:?}");
}

#[tokio::test]
async fn a_write_that_was_sent_and_not_answered_in_time_has_an_unknown_outcome() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    client.put("a", "0").await.unwrap();
    cluster.script(1, [Act::Hold]);
    let error = client.put("a", "1").timeout(UNANSWERED).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { attempts: 1, .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
}

#[tokio::test]
async fn a_read_that_failed_changed_nothing() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    cluster.script(1, [Act::Hold]);
    let error = client.get("a").timeout(UNANSWERED).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied);
}

#[tokio::test]
async fn an_outcome_once_unknown_stays_so_whatever_the_last_attempt_says() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    cluster.script(1, [Act::DropBefore, Act::Fail(ServiceError::invalid("value", "too long"))]);
    let error = client.put("a", "1").timeout(Duration::from_secs(20)).await.unwrap_err();
    assert!(matches!(error.service(), Some(ServiceError::Invalid { .. })), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
}

#[tokio::test]
async fn a_write_that_no_node_could_be_sent_was_not_applied() {
    let mut cluster = Fake::hashed(2, 1);
    cluster.lead(2, 2);
    // The client has a connection to the first node only.
    let client = Client::connect([cluster.address(1)]).await.unwrap();
    cluster.kill(2);
    let error = client.put("a", "1").timeout(Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
}

#[tokio::test]
async fn a_stale_read_goes_to_any_replica_with_or_without_a_bound() {
    let cluster = Fake::hashed(3, 1);
    cluster.lead(2, 2);
    let client = cluster.client().await;
    let asked = async |max| {
        cluster.state.change(|inner| inner.sent.clear());
        for _ in 0..30 {
            client.get("a").consistency(Consistency::Stale { max }).await.unwrap();
        }
        cluster.state.change(|inner| inner.sent.iter().filter(|sent| sent.node != 2).count())
    };
    for max in [Duration::ZERO, Duration::from_secs(1)] {
        assert!(asked(max).await > 0, "nobody but the leader was asked");
    }
}

#[tokio::test]
async fn a_write_survives_the_death_of_the_leader() {
    let mut cluster = Fake::hashed(3, 1);
    let client = cluster.client().await;
    client.put("a", "1").await.unwrap();
    cluster.kill(1);
    cluster.lead(2, 1);
    client.put("a", "2").timeout(Duration::from_secs(20)).await.unwrap();
    assert_eq!(client.get("a").await.unwrap().unwrap().value, "2");
}

#[tokio::test]
async fn a_write_waits_for_an_election_without_hammering() {
    let cluster = Fake::hashed(3, 1);
    let client = cluster.client().await;
    cluster.lead(0, 0);
    let write = client.put("a", "1").timeout(Duration::from_secs(20)).into_future();
    let elect = async {
        cluster.until(|inner| inner.sent.len() >= 6).await;
        cluster.lead(3, 0);
    };
    let (written, ()) = tokio::join!(write, elect);
    written.unwrap();
    let sent = cluster.sent();
    assert!(sent.len() < 30, "{} attempts", sent.len());
    assert!((1..=3).all(|node| sent.iter().any(|sent| sent.node == node)), "every replica was asked");
}

#[tokio::test]
async fn a_node_that_comes_back_is_used_again() {
    let mut cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    client.put("a", "1").await.unwrap();
    cluster.kill(1);
    let write = client.put("a", "2").timeout(Duration::from_secs(20)).into_future();
    let write = std::pin::pin!(write);
    let restart = async {
        cluster.restart(1);
    };
    let (written, ()) = tokio::join!(write, restart);
    written.unwrap();
    assert_eq!(client.get("a").await.unwrap().unwrap().value, "2");
}

#[tokio::test]
async fn a_silent_node_costs_one_timeout_and_then_is_refused_at_once() {
    let silent = Silent::start();
    let pool = NodePool::new(options(Duration::from_millis(100)));
    let node = pool.get(&silent.address);
    // All who wait at the same time share the one attempt.
    for result in join_all((0..20).map(|_| call(&node, "a", soon()))).await {
        assert!(matches!(result, Err(CallError::Connection(ConnectionError::Unreachable { .. }))), "{result:?}");
    }
    assert_eq!(silent.connections.load(Ordering::SeqCst), 1);
    assert!(!node.is_available());
    for _ in 0..100 {
        let error = call(&node, "a", soon()).await.unwrap_err();
        assert!(matches!(error, CallError::Connection(ConnectionError::CircuitOpen { .. })), "{error}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
    }
    pool.close().await;
    assert!(matches!(call(&node, "a", soon()).await, Err(CallError::Connection(ConnectionError::Closed))));
}

#[tokio::test]
async fn requests_go_around_a_silent_node() {
    let cluster = Fake::hashed(3, 1);
    let silent = Silent::start();
    cluster.lead(2, 1);
    cluster.with(|inner| inner.addresses.insert(1, silent.address.clone()));
    let client = Client::builder().endpoints(cluster.addresses()).connect_timeout(Duration::from_millis(100));
    let client = client.timeout(Duration::from_secs(20)).build().await.unwrap();
    for number in 0..50 {
        client.put("a", number.to_string()).await.unwrap();
    }
    assert!(silent.connections.load(Ordering::SeqCst) < 25, "its circuit was open for most requests");
}

#[tokio::test]
async fn answers_find_their_calls_in_any_order_and_calls_that_wait_together_share_a_message() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    cluster.with(|inner| inner.reverse = true);
    let puts = (0..500).map(|number| client.put(format!("k{number}"), format!("v{number}")).into_future());
    join_all(puts).await.into_iter().for_each(|result| assert!(result.is_ok()));
    let gets = (0..500).map(|number| client.get(format!("k{number}")).into_future());
    for (number, entry) in join_all(gets).await.into_iter().enumerate() {
        assert_eq!(entry.unwrap().unwrap().value, format!("v{number}"));
    }
    let messages = cluster.with(|inner| inner.messages.clone());
    assert_eq!(messages.iter().sum::<usize>(), 1000);
    assert!(messages.len() < 500, "{} messages", messages.len());
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_no_pending_call() {
    let cluster = Fake::hashed(1, 1);
    let pool = NodePool::new(ConnectionOptions::default());
    let node = pool.get(&cluster.address(1));
    cluster.script(1, [Act::Hold, Act::Hold]);
    for seen in 1..=2 {
        let mut asked = Box::pin(call(&node, "a", soon()));
        tokio::select! {
            result = &mut asked => panic!("the node holds the call, but answered {result:?}"),
            () = cluster.until(|inner| inner.sent.len() == seen) => assert_eq!(node.pending(), 1),
        }
        drop(asked);
        assert_eq!(node.pending(), 0);
    }
    assert!(call(&node, "a", soon()).await.is_ok(), "the stream goes on");
}

#[tokio::test]
async fn each_call_has_its_own_deadline() {
    let cluster = Fake::hashed(1, 1);
    let pool = NodePool::new(ConnectionOptions::default());
    let node = pool.get(&cluster.address(1));
    call(&node, "a", soon()).await.unwrap();
    cluster.script(1, [Act::Hold]);
    let ended = tokio::time::timeout(PATIENCE, call(&node, "a", Instant::now() + UNANSWERED)).await;
    let error = ended.expect("the deadline is kept").unwrap_err();
    assert!(matches!(error, CallError::Connection(ConnectionError::TimedOut { sent: true, .. })), "{error}");
    assert_eq!(node.pending(), 0);
    assert!(call(&node, "b", soon()).await.is_ok());
}

#[tokio::test]
async fn a_deadline_is_kept_beside_calls_that_wait_longer() {
    let cluster = Fake::hashed(1, 1);
    let pool = NodePool::new(ConnectionOptions::default());
    let node = pool.get(&cluster.address(1));
    call(&node, "a", soon()).await.unwrap();
    cluster.script(1, [Act::Hold, Act::Hold, Act::Hold]);
    let ends = |begins: usize, after: Duration| {
        let (node, cluster) = (&node, &cluster);
        async move {
            // Each begins when the reader already waits for the deadlines of those before.
            cluster.until(|inner| inner.sent.len() == 1 + begins).await;
            let deadline = Instant::now() + after;
            let ended = tokio::time::timeout(PATIENCE, call(node, "a", deadline)).await;
            let error = ended.expect("the deadline is kept").unwrap_err();
            assert!(matches!(error, CallError::Connection(ConnectionError::TimedOut { sent: true, .. })), "{error}");
            assert!(Instant::now() >= deadline, "it was given up early");
            deadline
        }
    };
    let ended = tokio::join!(ends(0, 3 * UNANSWERED), ends(1, UNANSWERED), ends(2, 2 * UNANSWERED));
    assert!(ended.1 < ended.2 && ended.2 < ended.0, "{ended:?}");
    assert_eq!(node.pending(), 0);
}

#[tokio::test]
async fn calls_name_the_cluster_until_one_is_served_on_each_stream_anew() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    let refused = ServiceError::NoLeader { shard: ShardId(0), retry_after: Duration::from_millis(1) };
    cluster.script(1, [Act::Fail(refused)]);
    client.get("a").timeout(Duration::from_secs(20)).await.unwrap();
    client.get("a").await.unwrap();
    cluster.script(1, [Act::DropBefore]);
    client.get("a").timeout(Duration::from_secs(20)).await.unwrap();
    client.get("a").await.unwrap();
    let named: Vec<bool> = cluster.sent().iter().map(|sent| sent.named).collect();
    assert_eq!(named, [true, true, false, false, true, false]);
}

#[tokio::test]
async fn a_broken_stream_fails_its_calls_as_sent_and_the_next_one_is_new() {
    let cluster = Fake::hashed(1, 1);
    let pool = NodePool::new(ConnectionOptions::default());
    let node = pool.get(&cluster.address(1));
    cluster.script(1, [Act::Hold, Act::DropBefore]);
    let held = call(&node, "a", soon());
    let breaks = async {
        cluster.until(|inner| inner.sent.len() == 1).await;
        call(&node, "b", soon()).await
    };
    let (held, breaks) = tokio::join!(held, breaks);
    for error in [held.unwrap_err(), breaks.unwrap_err()] {
        assert!(matches!(error, CallError::Connection(ConnectionError::Lost { sent: true, .. })), "{error}");
        assert_eq!(error.outcome(), Outcome::Unknown);
    }
    let again = async {
        while call(&node, "c", soon()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("a new stream is opened");
}

#[tokio::test]
async fn a_call_too_large_for_a_message_fails_alone() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    cluster.script(1, [Act::Hold]);
    let held = client.get("a").timeout(Duration::from_secs(20)).into_future();
    let large = async {
        cluster.until(|inner| inner.sent.len() == 1).await;
        let error = client.put("b", vec![0; 9 << 20]).await.unwrap_err();
        assert!(matches!(error.service(), Some(ServiceError::Invalid { .. })), "{error}");
        client.put("b", "small").await.unwrap();
    };
    tokio::select! {
        result = held => panic!("the stream must live on, but the held call ended: {result:?}"),
        () = large => {}
    }
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused() {
    let cluster = Fake::hashed(1, 1);
    let error = Client::builder().endpoints(cluster.addresses()).cluster_id("mine").build().await.unwrap_err();
    assert!(matches!(error.service(), Some(ServiceError::ClusterMismatch { .. })), "{error}");
}

#[tokio::test]
async fn connecting_fails_soon_if_no_endpoint_listens() {
    let mut cluster = Fake::hashed(1, 1);
    let addresses = cluster.addresses();
    cluster.kill(1);
    let error = Client::connect(addresses).await.unwrap_err();
    assert!(matches!(error, Error::Connection { error: ConnectionError::Unreachable { .. }, .. }), "{error}");
}

#[tokio::test]
async fn one_of_several_endpoints_is_enough() {
    let mut cluster = Fake::hashed(3, 3);
    cluster.kill(1);
    let client = Client::connect(cluster.addresses()).await.unwrap();
    assert_eq!(client.cluster_id(), Some(fake::CLUSTER));
    cluster.lead(3, 3);
    client.put("a", "1").await.unwrap();
}

#[tokio::test]
async fn many_who_need_routes_at_once_share_one_fetch() {
    let cluster = Fake::hashed(1, 6);
    let client = Client::builder().endpoints(cluster.addresses()).build_lazy().unwrap();
    let gets = (0..100).map(|number| client.get(format!("k{number}")).into_future());
    join_all(gets).await.into_iter().for_each(|result| drop(result.unwrap()));
    assert_eq!(cluster.with(|inner| inner.routes_asked), 1);
}

#[tokio::test]
async fn the_lowest_unfinished_sequence_follows_the_slowest_write_of_the_shard() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    cluster.script(1, [Act::Hold]);
    let slow = client.put("a", "1").timeout(Duration::from_secs(20)).into_future();
    let others = async {
        cluster.until(|inner| inner.sent.len() == 1).await;
        client.put("b", "2").await.unwrap();
        client.put("c", "3").await.unwrap();
    };
    tokio::select! {
        result = slow => panic!("the node holds the write, but answered {result:?}"),
        () = others => {}
    }
    // The slow write was given up when its future was dropped.
    client.put("d", "4").await.unwrap();
    let seen: Vec<_> =
        cluster.sent().into_iter().map(|sent| (sent.session.unwrap().1, sent.lowest_unfinished)).collect();
    assert_eq!(seen, [(1, 1), (2, 1), (3, 1), (4, 4)]);
}
