//! What the replicas of a node share.
//!
//! Invariants: one context per process; the first failure stays and is told to whoever waits for it.
//!
//! Not here: the work done on a schedule (keeper).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use kv_proto::ids::{ReplicaId, ShardId};
use openraft::{Config, SnapshotPolicy};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::errors::StartError;
use super::{Replica, keeper};
use crate::clock::{Clock, millis};
use crate::data_engine::DataEngine;
use crate::failure::Failure;
use crate::log_store::LogEngine;
use crate::metrics::RaftMetrics;
use crate::timing::Timing;
use crate::transport::{Inbound, Transport};

/// Log entries purged at least at once, so that purging does not cost more than it frees.
const PURGE_ENTRIES_MIN: u64 = 256;

/// What a context is made of.
pub struct ContextParts {
    /// The logs of all replicas.
    pub log: LogEngine,
    /// The data of all replicas.
    pub data: DataEngine,
    /// The way to other nodes.
    pub transport: Transport,
    /// Stamps commands.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<RaftMetrics>,
    /// Times and sizes.
    pub timing: Timing,
}

/// What the replicas of a node share; clones share it.
#[derive(Clone)]
pub struct RaftContext {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) log: LogEngine,
    pub(super) data: DataEngine,
    pub(super) transport: Transport,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<RaftMetrics>,
    pub(super) timing: Timing,
    pub(super) started: Instant,
    pub(super) cancel: CancellationToken,
    /// One checksum is computed at a time.
    pub(super) checking: tokio::sync::Semaphore,
    replicas: RwLock<BTreeMap<ShardId, Registered>>,
    /// Bytes that went into the log since the process began.
    log_bytes: AtomicU64,
    failure: Failure,
    /// Set while the disk is so full that followers here take no entries.
    refuses_entries: AtomicBool,
    tasks: TaskTracker,
}

/// How much the disk of a node still takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Nothing to fear.
    Plenty,
    /// The node should lead nothing: its peers are told.
    Low,
    /// Followers here also refuse entries and snapshots, so that the engines never meet a full disk; heartbeats and votes
    /// are answered. Leaders send them again and again until there is room.
    None,
}

impl RaftContext {
    /// Checks the timing and begins the work that is done for all replicas on a schedule.
    pub fn new(parts: ContextParts) -> Result<Self, String> {
        parts.timing.check()?;
        let ContextParts { log, data, transport, clock, metrics, timing } = parts;
        log.share_metrics(&metrics);
        let shared = Arc::new(Shared {
            log,
            data,
            transport,
            clock,
            metrics,
            timing,
            started: Instant::now(),
            cancel: CancellationToken::new(),
            checking: tokio::sync::Semaphore::new(1),
            replicas: RwLock::default(),
            log_bytes: AtomicU64::new(0),
            failure: Failure::default(),
            refuses_entries: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        });
        #[cfg(kv_sim)]
        {
            let registry = shared.transport.registry().clone();
            crate::simulated::began(move || registry.clear());
        }
        shared.tasks.spawn(keeper::watch_storage(Arc::clone(&shared)));
        shared.tasks.spawn(keeper::watch_elections(Arc::clone(&shared)));
        shared.tasks.spawn(keeper::flush(Arc::clone(&shared)));
        shared.tasks.spawn(keeper::follow_nodes(Arc::clone(&shared)));
        if shared.timing.hibernate_after.is_some() {
            shared.tasks.spawn(keeper::put_to_sleep(Arc::clone(&shared)));
        }
        if let Some(interval) = shared.timing.check_interval {
            shared.tasks.spawn(keeper::compare(Arc::clone(&shared), interval));
        }
        Ok(Self { shared })
    }

    /// Completes once a replica or the storage of this node has failed, with the reason: the process must end.
    pub async fn failed(&self) -> String {
        self.shared.failure.wait().await
    }

    /// The data of all replicas.
    #[must_use]
    pub fn data(&self) -> &DataEngine {
        &self.shared.data
    }

    /// The logs of all replicas.
    #[must_use]
    pub fn log(&self) -> &LogEngine {
        &self.shared.log
    }

    /// Deletes the logs that destructions cut short left behind; one whose replica was not destroyed is refused.
    pub async fn delete_left_over_logs(&self) -> Result<(), StartError> {
        let (log, data) = (&self.shared.log, &self.shared.data);
        let held = data.replicas();
        for (shard, replica) in log.shards() {
            if held.iter().any(|record| record.shard == shard) {
                continue;
            }
            // The data of a replica is there before its log, and its destruction is noted before the log goes.
            if data.tombstone(shard)?.is_none_or(|destroyed| destroyed < replica) {
                let (folder, data) = (log.dir().to_owned(), data.dir().to_owned());
                return Err(StartError::DataLost { shard, replica, folder, data });
            }
            tracing::info!(%shard, %replica, "deleting the log a destroyed replica left behind");
            log.destroy(shard).await?;
        }
        Ok(())
    }

    /// The way to other nodes.
    #[must_use]
    pub fn transport(&self) -> &Transport {
        &self.shared.transport
    }

    /// The node's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// The running replicas, by shard.
    #[must_use]
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.shared.replicas()
    }

    /// Makes what is applied durable now, so that the log can be purged up to it.
    pub async fn flush(&self) -> Result<(), String> {
        keeper::flush_once(&self.shared).await
    }

    /// Tells how much the disk still takes; replicas and peers go by it at once.
    pub fn set_room(&self, room: Room) {
        self.shared.transport.set_full(room != Room::Plenty);
        self.shared.refuses_entries.store(room == Room::None, Ordering::Release);
    }

    /// Whether followers here refuse entries because the disk is full.
    #[must_use]
    pub fn refuses_entries(&self) -> bool {
        self.shared.refuses_entries.load(Ordering::Acquire)
    }

    /// Ends the scheduled work; replicas are stopped before, transport and engines after.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// A running replica, and whether it sleeps.
struct Registered {
    replica: Weak<Replica>,
    hibernated: Arc<AtomicBool>,
}

impl Registered {
    fn get(&self) -> Option<Arc<Replica>> {
        self.replica.upgrade()
    }
}

impl Shared {
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn replica(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.replicas.read().get(&shard).and_then(Registered::get)
    }

    pub(super) fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().values().filter_map(Registered::get).collect()
    }

    /// Those that do not sleep; a sleeping one costs a look at its flag.
    pub(super) fn awake(&self) -> Vec<Arc<Replica>> {
        let replicas = self.replicas.read();
        let awake = replicas.values().filter(|registered| !registered.hibernated.load(Ordering::Relaxed));
        awake.filter_map(Registered::get).collect()
    }

    /// False if the shard has a running replica.
    pub(super) fn register(&self, replica: &Arc<Replica>) -> bool {
        let free = self.transport.registry().insert(replica.shard(), Arc::clone(replica) as Arc<dyn Inbound>);
        if free {
            let registered =
                Registered { replica: Arc::downgrade(replica), hibernated: Arc::clone(&replica.hibernated) };
            self.replicas.write().insert(replica.shard(), registered);
        }
        free
    }

    pub(super) fn unregister(&self, shard: ShardId, replica: ReplicaId) {
        self.transport.registry().remove(shard, replica);
        let mut replicas = self.replicas.write();
        if replicas.get(&shard).and_then(Registered::get).is_none_or(|held| held.replica() == replica) {
            replicas.remove(&shard);
        }
    }

    /// Sticky; the first reason stays.
    pub(super) fn fail(&self, reason: &str) {
        if self.failure.set(reason) {
            tracing::error!(reason, "this node's storage or consensus failed: the process must end");
        }
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.reason()
    }

    /// Refuses what a follower would have to write, while there is no room.
    pub(super) fn check_room(&self) -> Result<(), String> {
        let refuses = self.refuses_entries.load(Ordering::Acquire);
        if refuses { Err("the disk is full: it takes no entries until there is room".to_owned()) } else { Ok(()) }
    }

    pub(super) fn count_log_bytes(&self, bytes: usize) {
        self.log_bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// openraft's settings. See the reasons beside each; what is not named keeps its default.
    pub(super) fn raft_config(&self, shard: ShardId, stand: bool) -> Result<Config, String> {
        let timing = &self.timing;
        let heartbeat = millis(timing.heartbeat);
        let config = Config {
            cluster_name: format!("shard {shard}"),
            heartbeat_interval: heartbeat,
            // Entries prove as much as heartbeats do.
            heartbeat_min_interval: Some(heartbeat),
            election_timeout_min: millis(timing.election_min),
            election_timeout_max: millis(timing.election_max),
            enable_pre_vote: Some(true),
            enable_elect: stand,
            // Partial partitions would deadlock elections; but see replica/quorum, which knows when a shard slept.
            quorum_loss_probe_interval: None,
            // With applied data that may lag the log, a leader restored without an election serves stale reads.
            enable_leader_restore: Some(false),
            // Only the flush job says up to where the log may be purged.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: timing.log_entries_kept,
            purge_batch_size: PURGE_ENTRIES_MIN,
            replication_lag_threshold: timing.log_entries_kept,
            // Stages of the last entries are recorded only by a feature that is not built in; their places are made anyway.
            log_stage_capacity: Some(1),
            backoff: "50ms 100ms 200ms ..400ms".to_owned(),
            ..Config::default()
        };
        config.validate().map_err(|e| e.to_string())
    }
}
