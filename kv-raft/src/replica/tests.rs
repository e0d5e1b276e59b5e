//! What only shows from the inside: votes of a process that just began.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::pb::raft::v1::FrameKind;
use openraft::raft::VoteRequest;
use prometheus_client::registry::Registry as MetricsRegistry;

use super::{ContextParts, RaftContext, Replica, ReplicaSpec};
use crate::clock::Clock;
use crate::data_engine::{DataEngine, DataOptions};
use crate::log_store::{LogEngine, LogMetrics, LogOptions};
use crate::metrics::RaftMetrics;
use crate::timing::Timing;
use crate::transport::{
    Directory, Inbound as _, Origin, Registry, Transport, TransportConfig, decode_vote_response, encode_vote_request,
};
use crate::types::{LeaderId, LogId, Vote};

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

fn context((log, data): &(LogEngine, DataEngine), timing: &Timing) -> RaftContext {
    let metrics = Arc::new(RaftMetrics::new(&mut MetricsRegistry::default()));
    let clock = Clock::new(Duration::from_millis(500));
    let config =
        TransportConfig { cluster_id: "test".to_owned(), node: NodeId(1), incarnation: 1, timing: timing.clone() };
    let transport = Transport::new(config, Arc::new(Nowhere), Registry::new(), clock.clone(), Arc::clone(&metrics));
    let (log, data, timing) = (log.clone(), data.clone(), timing.clone());
    RaftContext::new(ContextParts { log, data, transport, clock, metrics, timing }).unwrap()
}

/// One of three voters, the others of which are nowhere.
async fn start(context: &RaftContext) -> Arc<Replica> {
    let voters: BTreeMap<_, _> = (1..=3).map(|id| (ReplicaId(id), NodeId(id))).collect();
    let (shard, replica, range) = (ShardId(7), ReplicaId(1), KeyRange::all());
    let spec = ReplicaSpec { shard, replica, range, retention: Duration::ZERO, initialize: Some(voters) };
    Replica::start(context, spec).await.unwrap()
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
    let timing = Timing { election_max: Duration::from_secs(2), ..Timing::default() };

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
