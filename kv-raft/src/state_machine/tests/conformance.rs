//! openraft's own suite against our log store and state machine together.

use std::time::Duration;

use kv_proto::ids::ReplicaId;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::{SHARD, StateMachine, machine, new_replica, open};
use crate::log_store::{LogEngine, LogMetrics, LogOptions, LogStore};
use crate::types::ShardRaft;

struct Builder;

impl StoreBuilder<ShardRaft, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<ShardRaft>> {
        let dir = tempfile::tempdir().unwrap();
        let data = open(&dir.path().join("data"));
        data.create(new_replica(SHARD, 1, Duration::ZERO)).unwrap();
        let options = LogOptions { memory_bytes: 16 << 20, metrics: LogMetrics::unregistered() };
        let log = LogEngine::open(&dir.path().join("log"), options).unwrap();
        let store = log.store(SHARD, ReplicaId(1)).unwrap();
        Ok((dir, store, machine(&data, SHARD)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_store_and_state_machine_do_what_openraft_expects() {
    Suite::<ShardRaft, LogStore, StateMachine, Builder, TempDir>::test_all(Builder).await.unwrap();
}
