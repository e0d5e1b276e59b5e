//! What only shows from the inside: votes of a process that just began, and logs that do not fit the data.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::pb::raft::v1::FrameKind;
use kv_proto::timestamp::Timestamp;
use openraft::raft::VoteRequest;
use openraft::storage::RaftLogStorage as _;
use prometheus_client::registry::Registry as MetricsRegistry;

use super::{ContextParts, ProposeError, RaftContext, ReadError, ReadMode, Replica, ReplicaSpec, StartError};
use crate::clock::{Clock, SystemClock, TimeSource};
use crate::command::{Command, EncodedCommand, Operation};
use crate::data_engine::{DataEngine, DataOptions};
use crate::log_store::{LogEngine, LogMetrics, LogOptions};
use crate::metrics::RaftMetrics;
use crate::timing::Timing;
use crate::transport::{
    Directory, Inbound as _, Origin, Registry, Transport, TransportConfig, decode_agreement, decode_vote_response,
    encode_vote_alone, encode_vote_request,
};
use crate::types::{LeaderId, LogId, Vote};

const CLOCK_OFFSET_MAX: Duration = Duration::from_millis(500);

struct Nowhere;

impl Directory for Nowhere {
    fn address(&self, _: NodeId) -> Option<String> {
        None
    }
}

fn engines(folder: &Path) -> (LogEngine, DataEngine) {
    let options = LogOptions { memory_bytes: 16 << 20, metrics: LogMetrics::unregistered() };
    let log = LogEngine::open(&folder.join("log"), options).unwrap();
    (log, DataEngine::open(&folder.join("data"), DataOptions::default()).unwrap())
}

fn context(engines: &(LogEngine, DataEngine), timing: &Timing) -> RaftContext {
    context_at(engines, timing, Clock::new(CLOCK_OFFSET_MAX))
}

fn context_at((log, data): &(LogEngine, DataEngine), timing: &Timing, clock: Clock) -> RaftContext {
    let metrics = Arc::new(RaftMetrics::new(&mut MetricsRegistry::default()));
    let config =
        TransportConfig { cluster_id: "test".to_owned(), node: NodeId(1), incarnation: 1, timing: timing.clone() };
    let transport = Transport::new(config, Arc::new(Nowhere), Registry::new(), clock.clone(), Arc::clone(&metrics));
    let (log, data, timing) = (log.clone(), data.clone(), timing.clone());
    RaftContext::new(ContextParts { log, data, transport, clock, metrics, timing }).unwrap()
}

fn spec(replica: u64, voters: u64) -> ReplicaSpec {
    let voters: BTreeMap<_, _> = (1..=voters).map(|id| (ReplicaId(id), NodeId(id))).collect();
    let (shard, replica, range) = (ShardId(7), ReplicaId(replica), KeyRange::all());
    let initialize = (!voters.is_empty()).then_some(voters);
    ReplicaSpec { shard, replica, range, retention: Duration::ZERO, initialize }
}

/// One of three voters, the others of which are nowhere.
async fn start(context: &RaftContext) -> Arc<Replica> {
    Replica::start(context, spec(1, 3)).await.unwrap()
}

async fn end(context: RaftContext, replica: Arc<Replica>) {
    replica.stop().await;
    context.shutdown().await;
    context.transport().shutdown().await;
}

/// Whether it grants its vote to replica 2, which has every entry, in this term.
async fn grants(replica: &Arc<Replica>, kind: FrameKind, term: u64) -> bool {
    let last = LogId::new(LeaderId { term: 5, node_id: 2 }, 100);
    let body: Bytes = encode_vote_request(&VoteRequest::new(Vote::new(term, 2), Some(last)));
    let from = Origin { node: NodeId(2), replica: ReplicaId(2) };
    let answer = Arc::clone(replica).handle(from, kind, body).await.unwrap();
    decode_vote_response(&answer).unwrap().vote_granted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_just_began_grants_no_votes_until_an_earlier_lease_must_have_ended() {
    let folder = tempfile::tempdir().unwrap();
    let engines = engines(folder.path());
    let timing = Timing { election_max: Duration::from_secs(2), hibernate_after: None, ..Timing::default() };

    let first = context(&engines, &timing);
    let replica = start(&first).await;
    assert!(grants(&replica, FrameKind::Vote, 1000).await, "a replica created now gave no lease away");
    end(first, replica).await;

    let began = Instant::now();
    let second = context(&engines, &timing);
    let replica = start(&second).await;
    assert!(!grants(&replica, FrameKind::PreVote, 2000).await);
    assert!(!grants(&replica, FrameKind::Vote, 2000).await);
    let deadline = began + Duration::from_secs(30);
    while !grants(&replica, FrameKind::Vote, 3000).await {
        assert!(Instant::now() < deadline, "it must grant votes in the end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() >= timing.election_max);
    end(second, replica).await;
}

/// Whether it says that its vote is for this replica in this term.
async fn confirms(replica: &Arc<Replica>, term: u64, leader: u64) -> bool {
    let from = Origin { node: NodeId(leader), replica: ReplicaId(leader) };
    let question = encode_vote_alone(&Vote::new_committed(term, leader));
    let answer = Arc::clone(replica).handle(from, FrameKind::Confirm, question).await.unwrap();
    decode_agreement(&answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_confirms_the_leader_it_voted_for_until_it_votes_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let engines = engines(folder.path());
    let context = context(&engines, &Timing::default());
    let replica = start(&context).await;
    assert!(!confirms(&replica, 1000, 2).await, "it has not voted for it yet");
    assert!(grants(&replica, FrameKind::Vote, 1000).await);
    assert!(confirms(&replica, 1000, 2).await);
    assert!(!confirms(&replica, 1000, 3).await, "another of the same term");
    assert!(!confirms(&replica, 999, 2).await, "an earlier term");
    assert!(!confirms(&replica, 1001, 2).await, "a later term");
    assert!(grants(&replica, FrameKind::Vote, 2000).await);
    assert!(!confirms(&replica, 1000, 2).await, "it has voted in a later term");
    end(context, replica).await;
}

/// It finds its vote for itself, and what it had acknowledged need not be applied yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_just_began_confirms_no_index_by_the_vote_it_finds() {
    let folder = tempfile::tempdir().unwrap();
    let engines = engines(folder.path());
    let timing = Timing { election_max: Duration::from_secs(5), hibernate_after: None, ..Timing::default() };
    let first = context(&engines, &timing);
    let replica = lead(&first).await;
    assert!(replica.confirmed_index().await.is_some());
    end(first, replica).await;

    let second = context(&engines, &timing);
    let replica = Replica::start(&second, spec(1, 0)).await.unwrap();
    assert_eq!(replica.log.vote().map(|vote| vote.leader_id.node_id), Some(1));
    assert_eq!(replica.confirmed_index().await, None, "it was not elected yet");
    end(second, replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_confirmed_only_in_the_term_of_what_was_applied_last() {
    let folder = tempfile::tempdir().unwrap();
    let engines = engines(folder.path());
    let context = context(&engines, &Timing::default());
    let replica = lead(&context).await;
    let applied = replica.view().unwrap().applied().unwrap().index;
    assert_eq!(replica.confirmed_index().await, Some(applied));
    replica.outbound.tell_committed(applied + 5);
    assert_eq!(replica.confirmed_index().await, Some(applied + 5), "the others may have applied it");
    replica.log.clone().save_vote(&Vote::new(1000, 1)).await.unwrap();
    assert_eq!(replica.confirmed_index().await, None, "of this term nothing is applied");
    end(context, replica).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_asks_for_a_read_index_gets_what_is_held_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let engines = engines(folder.path());
    let context = context(&engines, &Timing::default());
    let replica = lead(&context).await;
    let [asks, silent] = [2, 3].map(|follower| replica.outbound.hurry_of(ReplicaId(follower)));
    let from = Origin { node: NodeId(2), replica: ReplicaId(2) };
    Arc::clone(&replica).handle(from, FrameKind::ReadIndex, Bytes::new()).await.unwrap();
    assert!(asks.notified().now_or_never().is_some());
    assert!(silent.notified().now_or_never().is_none());
    end(context, replica).await;
}

fn put() -> EncodedCommand {
    let operations = vec![Operation::Put { key: b"k", value: b"v" }];
    EncodedCommand::new(&Command { session: None, conditions: Vec::new(), operations })
}

/// The only voter, which leads and has written.
async fn lead(context: &RaftContext) -> Arc<Replica> {
    let replica = Replica::start(context, spec(1, 1)).await.unwrap();
    until("it leads", || replica.is_leader()).await;
    replica.propose(put()).await.unwrap();
    replica
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// openraft#2116: a core that panics kills only its own group, which would be dead for good, unnoticed by its node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consensus_that_panics_is_noticed_at_once_and_nothing_is_acknowledged_after() {
    let folder = tempfile::tempdir().unwrap();
    let engines = engines(folder.path());
    let context = context(&engines, &Timing::default());
    let replica = lead(&context).await;
    engines.0.fault().panic_next_append();
    let answer = replica.propose(put()).await;
    assert!(matches!(answer, Err(ProposeError::OutcomeUnknown | ProposeError::Fatal(_))), "{answer:?}");
    let reason = tokio::time::timeout(Duration::from_secs(5), context.failed()).await.unwrap();
    assert!(reason.contains("shard 7"), "{reason}");
    assert!(matches!(replica.propose(put()).await, Err(ProposeError::Fatal(_))));
    assert!(!replica.is_leader());
    end(context, replica).await;
}

/// A shard of one voter wrote, its data is durable, and then its log goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_whose_log_is_gone_or_anothers_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let timing = Timing::default();
    let engines = engines(folder.path());
    let first = context(&engines, &timing);
    let replica = lead(&first).await;
    first.flush().await.unwrap();
    end(first, replica).await;

    let (log, data) = &engines;
    for found in [None, Some(ReplicaId(2))] {
        log.destroy(ShardId(7)).await.unwrap();
        if let Some(other) = found {
            log.store(ShardId(7), other).unwrap();
        }
        let context = context(&engines, &timing);
        let refused = Replica::start(&context, spec(1, 0)).await;
        let Err(StartError::LogLost { folder: named, found: named_found, .. }) = &refused else {
            panic!("started: {:?}", refused.err());
        };
        assert_eq!((named.as_path(), *named_found), (folder.path().join("log").as_path(), found));
        assert_eq!(log.shards().get(&ShardId(7)).copied(), found, "the log was left as it was");
        assert!(data.replicas().iter().any(|record| record.applied.is_some()));
        context.shutdown().await;
        context.transport().shutdown().await;
    }
}

/// A data folder that opens at an earlier state than it had, because its manifest was cut, knows neither the replica nor
/// its end: its log may hold the only copy of what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_data_vanished_is_kept_and_one_whose_replica_was_destroyed_goes() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (log, data) = engines(folder.path());
    let timing = Timing::default();
    log.store(ShardId(7), ReplicaId(3)).unwrap();
    let begun = context(&(log.clone(), data.clone()), &timing);
    let refused = begun.delete_left_over_logs().await;
    assert!(matches!(refused, Err(StartError::DataLost { replica: ReplicaId(3), .. })), "{refused:?}");
    assert!(log.shards().contains_key(&ShardId(7)), "it was left as it was");

    let (_, destroyed) = engines(other.path());
    let ReplicaSpec { shard, replica, range, retention, .. } = spec(3, 0);
    destroyed.create(crate::data_engine::NewReplica { shard, replica, range, retention }).unwrap();
    destroyed.destroy(shard).unwrap();
    let ended = context(&(log.clone(), destroyed), &timing);
    ended.delete_left_over_logs().await.unwrap();
    assert!(log.shards().is_empty());
    for context in [begun, ended] {
        context.shutdown().await;
        context.transport().shutdown().await;
    }
}

/// A clock ten minutes ahead of the others.
struct Ahead(SystemClock);

impl TimeSource for Ahead {
    fn wall_millis(&self) -> u64 {
        self.0.wall_millis() + 600_000
    }

    fn elapsed_millis(&self) -> u64 {
        self.0.elapsed_millis()
    }
}

/// A node whose clock was ten minutes ahead led for a moment after its start, before it could compare clocks. For ten
/// minutes nobody could read at the timestamps of what it had committed, nor at any later one of that shard: they were
/// refused as too far ahead, although the shard itself had given them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timestamp_that_the_shard_gave_is_readable_whatever_the_clock_says() {
    let folder = tempfile::tempdir().unwrap();
    let engines = engines(folder.path());
    let timing = Timing::default();
    let ahead = Clock::with_source(Arc::new(Ahead(SystemClock::default())), CLOCK_OFFSET_MAX);
    let first = context_at(&engines, &timing, ahead);
    let replica = lead(&first).await;
    let given = replica.read(ReadMode::Linearizable).await.unwrap().last_commit();
    end(first, replica).await;

    let second = context(&engines, &timing);
    let replica = Replica::start(&second, spec(1, 0)).await.unwrap();
    until("it leads", || replica.is_leader()).await;
    assert!(given.millis() > second.clock().wall_millis() + 500_000, "the timestamp is far ahead");
    // The vote it finds says that it leads; it does so only once it was elected again.
    let read = async {
        loop {
            match replica.read(ReadMode::Snapshot { at: given }).await {
                Err(ReadError::NotLeader { .. } | ReadError::NoQuorum) => tokio::task::yield_now().await,
                read => break read,
            }
        }
    };
    let view = tokio::time::timeout(Duration::from_secs(30), read).await.expect("it is elected").unwrap();
    assert!(view.last_commit() >= given);
    let later = replica.read(ReadMode::Snapshot { at: Timestamp(given.0 + (1 << 30)) }).await;
    assert!(matches!(later, Err(ReadError::TooFarAhead(_))), "one that nobody gave is refused as before");
    end(second, replica).await;
}

/// The new one is created, or was created by a process that ended before it wrote anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_replica_destroyed_before_gives_way_to_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let engines = engines(folder.path());
    let (log, _) = &engines;
    log.store(ShardId(7), ReplicaId(1)).unwrap();
    for _ in 0..2 {
        let context = context(&engines, &Timing::default());
        let replica = Replica::start(&context, spec(2, 0)).await.unwrap();
        assert_eq!(log.shards()[&ShardId(7)], ReplicaId(2));
        end(context, replica).await;
        log.destroy(ShardId(7)).await.unwrap();
        log.store(ShardId(7), ReplicaId(1)).unwrap();
    }
}
