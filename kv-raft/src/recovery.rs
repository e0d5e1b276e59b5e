//! Forced recovery of a shard that lost its majority for good: this node's replica becomes the group's only voter.
//!
//! Offline only, and the last resort: Raft cannot know what the lost majority acknowledged. What it does: one entry is
//! appended, in a term of its own above every one this replica saw, that makes this replica the only member, and the
//! vote is raised to that term. openraft takes the newest membership in the log as the effective one when it starts,
//! so the replica elects itself, commits its whole log and serves; replicas are then added as to any other shard.
//!
//! What may be lost or appear:
//! - Writes that were acknowledged by the lost majority and never reached this replica are lost, silently: after the last entry
//!   of the report nothing exists. Recover the replica with the highest last log id of all that are left.
//! - Entries of this replica beyond what it knew committed become committed: writes whose outcome was Unknown, or which
//!   the lost majority had replaced, may appear.
//! - Another replica of the group that returns with its old log can still form a quorum of the old membership with others
//!   that return: two histories. Destroy every other replica of the shard before this node starts.
//!
//! Invariants: nothing of the log is removed; repeating it is harmless; it refuses a replica whose data and log do not
//! belong together.
//!
//! Not here: the catalog, which must name the new replica set afterwards (kv-node); ordinary membership changes (replica).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use futures::TryStreamExt;
use kv_proto::ids::{NodeId, ReplicaId, ShardId};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, RaftLogReader};

use crate::data_engine::DataEngine;
use crate::log_store::{LogEngine, LogError, LogStore};
use crate::types::{Entry, LeaderId, LogId, Member, Membership, ShardRaft, Vote};

/// What was found and done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The shard.
    pub shard: ShardId,
    /// Its only voter from now on.
    pub replica: ReplicaId,
    /// The newest membership this replica's log still held; None if it lies in what was applied and purged.
    pub former: Option<Membership>,
    /// The last entry applied before.
    pub applied: Option<LogId>,
    /// The last entry known committed before; what follows through `last` becomes committed.
    pub committed: Option<LogId>,
    /// The last entry before. Acknowledged writes after it are lost.
    pub last: Option<LogId>,
    /// The entry that makes this replica the only voter.
    pub forced: LogId,
}

/// Why the replica is not the only voter. With [`RecoveryError::Log`] and [`RecoveryError::Io`] its log may hold a new vote
/// already, which the next run goes on from; otherwise nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// This node holds no data of the shard.
    #[error("this node holds no replica of shard {shard}, {}", holds(.held))]
    NotHeld {
        /// The shard.
        shard: ShardId,
        /// The shards it holds replicas of, ascending.
        held: Vec<ShardId>,
    },
    /// The log is another replica's than the data, or there is none.
    #[error("the data of shard {shard} belongs to replica {data}, its log to {log:?}")]
    Mixed {
        /// The shard.
        shard: ShardId,
        /// Whose data.
        data: ReplicaId,
        /// Whose log.
        log: Option<ReplicaId>,
    },
    /// The replica never held anything: an entry of its own would not be the group's history.
    #[error("the replica of shard {0} on this node is empty; recover another one")]
    Empty(ShardId),
    /// Entries were purged that the data does not hold.
    #[error("the log of shard {shard} was purged through {purged}, but only {applied:?} is applied")]
    Gap {
        /// The shard.
        shard: ShardId,
        /// Last purged index.
        purged: u64,
        /// Last applied index.
        applied: Option<u64>,
    },
    /// The log cannot be read or written.
    #[error("the log of the replica cannot be rewritten")]
    Log(#[from] LogError),
    /// The same, as openraft's traits tell it.
    #[error("the log of the replica cannot be rewritten")]
    Io(#[from] io::Error),
}

/// Makes this node's replica the only voter of its shard. Both engines are opened by the caller while no node process runs on
/// these folders, and closed afterwards. Durable when it returns.
pub async fn force_sole_voter(
    log: &LogEngine,
    data: &DataEngine,
    node: NodeId,
    shard: ShardId,
) -> Result<RecoveryReport, RecoveryError> {
    let records = data.replicas();
    let Some(record) = records.iter().find(|record| record.shard == shard) else {
        let mut held: Vec<ShardId> = records.iter().map(|record| record.shard).collect();
        held.sort_unstable();
        return Err(RecoveryError::NotHeld { shard, held });
    };
    let owner = log.shards().get(&shard).copied();
    if owner != Some(record.replica) {
        return Err(RecoveryError::Mixed { shard, data: record.replica, log: owner });
    }
    force(log.store(shard, record.replica)?, record.replica, node, record.applied).await
}

/// As in "but of shards 1, 2 and 3".
fn holds(shards: &[ShardId]) -> String {
    let words: Vec<String> = shards.iter().map(ToString::to_string).collect();
    match words.split_last() {
        None => "and none of any other".to_owned(),
        Some((only, [])) => format!("but of shard {only}"),
        Some((last, rest)) => format!("but of shards {} and {last}", rest.join(", ")),
    }
}

async fn force(
    mut store: LogStore,
    replica: ReplicaId,
    node: NodeId,
    applied: Option<LogId>,
) -> Result<RecoveryReport, RecoveryError> {
    let shard = store.shard();
    let bounds = store.bounds();
    if let Some(purged) = bounds.last_purged_log_id.filter(|purged| Some(purged.index) > applied.map(|id| id.index)) {
        return Err(RecoveryError::Gap { shard, purged: purged.index, applied: applied.map(|id| id.index) });
    }
    let last = bounds.last_log_id.max(applied).ok_or(RecoveryError::Empty(shard))?;
    let mut reader = store.get_log_reader().await;
    let vote = reader.read_vote().await?;
    let committed = store.read_committed().await?;
    let former = newest_membership(&mut reader).await?;

    let term = last.leader_id.term.max(vote.map_or(0, |vote| vote.leader_id.term)) + 1;
    let leader_id = LeaderId { term, node_id: replica.0 };
    let forced = LogId { leader_id, index: last.index + 1 };
    // The vote first: alone it is only a term without a leader.
    store.save_vote(&Vote { leader_id, committed: true }).await?;
    if bounds.last_log_id < applied {
        // A snapshot was installed and its log not yet purged; openraft would do the same when it starts.
        store.purge(last).await?;
    }
    let (durable, answer) = ShardRaft::oneshot();
    store.append([sole_member(forced, replica, node)], IOFlushed::signal(durable)).await?;
    answer.await.map_err(|_| LogError::Closed)??;
    Ok(RecoveryReport { shard, replica, former, applied, committed, last: Some(last), forced })
}

fn sole_member(log_id: LogId, replica: ReplicaId, node: NodeId) -> Entry {
    let members = BTreeMap::from([(replica.0, Member { node: node.0 })]);
    let membership = Membership::new(vec![BTreeSet::from([replica.0])], members);
    Entry { log_id, payload: EntryPayload::Membership(membership.expect("its only voter is a member")) }
}

async fn newest_membership(reader: &mut impl RaftLogReader<ShardRaft>) -> Result<Option<Membership>, io::Error> {
    let entries = reader.entries_stream(..).await;
    let newest = |newest, entry: Entry| {
        futures::future::ready(Ok(match entry.payload {
            EntryPayload::Membership(membership) => Some(membership),
            EntryPayload::Blank | EntryPayload::Normal(_) => newest,
        }))
    };
    entries.try_fold(None, newest).await
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::Arc;
    use std::time::Duration;

    use kv_proto::key_range::KeyRange;
    use openraft::async_runtime::WatchReceiver;
    use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
    use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
    use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
    use openraft::{Config, OptionalSend, Raft, SnapshotPolicy};

    use super::*;
    use crate::command::CommandBatch;
    use crate::data_engine::{DataOptions, NewReplica};
    use crate::log_store::tests::conformance::Memory;
    use crate::log_store::tests::{append, entries, log_id, open, options, vote};

    const SHARD: ShardId = ShardId(5);
    const REPLICA: ReplicaId = ReplicaId(1);
    const NODE: NodeId = NodeId(11);

    /// Every other replica is gone.
    struct Nobody;

    fn gone<E: From<Unreachable<ShardRaft>>>() -> E {
        Unreachable::from_string("gone").into()
    }

    impl RaftNetworkFactory<ShardRaft> for Nobody {
        type Network = Self;

        async fn new_client(&mut self, _target: u64, _node: &Member) -> Self {
            Self
        }
    }

    impl RaftNetworkV2<ShardRaft> for Nobody {
        type SnapshotData = ();

        async fn append_entries(
            &mut self,
            _rpc: AppendEntriesRequest<ShardRaft>,
            _option: RPCOption,
        ) -> Result<AppendEntriesResponse<ShardRaft>, RPCError<ShardRaft>> {
            Err(gone())
        }

        async fn vote(
            &mut self,
            _rpc: VoteRequest<ShardRaft>,
            _option: RPCOption,
        ) -> Result<VoteResponse<ShardRaft>, RPCError<ShardRaft>> {
            Err(gone())
        }

        async fn pre_vote(
            &mut self,
            _rpc: VoteRequest<ShardRaft>,
            _option: RPCOption,
        ) -> Result<VoteResponse<ShardRaft>, RPCError<ShardRaft>> {
            Err(gone())
        }

        async fn full_snapshot(
            &mut self,
            _vote: Vote,
            _snapshot: openraft::alias::SnapshotOf<ShardRaft, ()>,
            _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
            _option: RPCOption,
        ) -> Result<SnapshotResponse<ShardRaft>, StreamingError<ShardRaft>> {
            Err(gone())
        }
    }

    async fn start(store: LogStore) -> Raft<ShardRaft, Memory> {
        let config = Config {
            heartbeat_interval: 20,
            election_timeout_min: 60,
            election_timeout_max: 90,
            enable_pre_vote: Some(true),
            enable_leader_restore: Some(false),
            snapshot_policy: SnapshotPolicy::Never,
            ..Config::default()
        };
        Raft::new(REPLICA.0, Arc::new(config.validate().unwrap()), Nobody, store, Memory::default()).await.unwrap()
    }

    fn three_voters(log_id: LogId) -> Entry {
        let members: BTreeMap<u64, Member> = (1..4).map(|id| (id, Member { node: id + 10 })).collect();
        Entry { log_id, payload: EntryPayload::Membership(Membership::from(members)) }
    }

    /// A follower of three, whose leader (replica 1 in an earlier life or another) got as far as entry 4.
    async fn survivor(store: &mut LogStore) {
        append(store, vec![three_voters(log_id(0, 0))]).await;
        append(store, entries(3, 1..5)).await;
        store.save_vote(&vote(7)).await.unwrap();
        store.save_committed(Some(log_id(3, 2))).await.unwrap();
    }

    #[tokio::test]
    async fn a_survivor_leads_alone_with_everything_its_log_held() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let mut store = engine.store(SHARD, REPLICA).unwrap();
        survivor(&mut store).await;
        let report = force(store, REPLICA, NODE, None).await.unwrap();
        assert_eq!(report.last, Some(log_id(3, 4)));
        assert_eq!(report.committed, Some(log_id(3, 2)));
        assert_eq!(report.former.unwrap().voter_ids().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((report.forced.leader_id.term, report.forced.index), (8, 5));
        engine.close().await;

        let engine = open(dir.path());
        let raft = start(engine.store(SHARD, REPLICA).unwrap()).await;
        raft.wait(Some(Duration::from_secs(20))).current_leader(REPLICA.0, "leads alone").await.unwrap();
        let batch = CommandBatch::new(kv_proto::timestamp::Timestamp(1), &[]);
        let written = raft.client_write(batch).await.unwrap();
        assert!(written.log_id.index > report.forced.index && written.log_id.leader_id.term > 8);
        let metrics = raft.metrics().borrow_watched().clone();
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        assert_eq!(voters, [REPLICA.0]);
        raft.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn recovering_twice_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let mut store = engine.store(SHARD, REPLICA).unwrap();
        survivor(&mut store).await;
        let first = force(store.clone(), REPLICA, NODE, None).await.unwrap();
        let second = force(store, REPLICA, NODE, None).await.unwrap();
        assert_eq!(second.last, Some(first.forced));
        let raft = start(engine.store(SHARD, REPLICA).unwrap()).await;
        raft.wait(Some(Duration::from_secs(20))).current_leader(REPLICA.0, "leads alone").await.unwrap();
        raft.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_replica_that_cannot_be_recovered_is_refused_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let engine = LogEngine::open(&dir.path().join("log"), options()).unwrap();
        let data = DataEngine::open(&dir.path().join("data"), DataOptions::default()).unwrap();
        let refused = force_sole_voter(&engine, &data, NODE, SHARD).await;
        assert_eq!(refused.unwrap_err().to_string(), "this node holds no replica of shard 5, and none of any other");
        let new = NewReplica { shard: SHARD, replica: REPLICA, range: KeyRange::all(), retention: Duration::ZERO };
        data.create(new).unwrap();
        let refused = force_sole_voter(&engine, &data, NODE, ShardId(6)).await;
        assert_eq!(refused.unwrap_err().to_string(), "this node holds no replica of shard 6, but of shard 5");
        let refused = force_sole_voter(&engine, &data, NODE, SHARD).await;
        assert!(matches!(refused, Err(RecoveryError::Mixed { log: None, .. })));
        let mut store = engine.store(SHARD, REPLICA).unwrap();
        let refused = force_sole_voter(&engine, &data, NODE, SHARD).await;
        assert!(matches!(refused, Err(RecoveryError::Empty(_))));
        survivor(&mut store).await;
        store.purge(log_id(3, 3)).await.unwrap();
        let refused = force_sole_voter(&engine, &data, NODE, SHARD).await;
        assert!(matches!(refused, Err(RecoveryError::Gap { purged: 3, applied: None, .. })));
        assert_eq!(store.bounds().last_log_id, Some(log_id(3, 4)));
        engine.close().await;
        data.close().await;
    }
}
