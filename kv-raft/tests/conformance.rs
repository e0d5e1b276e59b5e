//! openraft's own conformance suite, against the log engine and the data engine together.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kv_proto::ids::{ReplicaId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_raft::data_engine::{DataEngine, DataOptions, NewReplica};
use kv_raft::log_store::{LogEngine, LogMetrics, LogOptions, LogStore, LogWait};
use kv_raft::metrics::RaftMetrics;
use kv_raft::state_machine::{self, StateMachine};
use kv_raft::types::ShardRaft;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

struct Builder;

/// Keeps what the stores need for as long as they are used.
struct Opened {
    _folder: TempDir,
    _log: LogEngine,
    _data: DataEngine,
}

struct Durable(LogWait);

impl state_machine::LogWait for Durable {
    /// The suite applies entries that are in no log: nothing to wait for then.
    fn wait_durable(&self, index: u64) -> BoxFuture<'_, std::io::Result<()>> {
        async move {
            let _ = tokio::time::timeout(Duration::ZERO, self.0.wait_durable(index)).await;
            Ok(())
        }
        .boxed()
    }
}

impl StoreBuilder<ShardRaft, LogStore, StateMachine, Opened> for Builder {
    async fn build(&self) -> Result<(Opened, LogStore, StateMachine), StorageError<ShardRaft>> {
        let (shard, replica) = (ShardId(1), ReplicaId(1));
        let folder = tempfile::tempdir().unwrap();
        let options = LogOptions { memory_bytes: 16 << 20, metrics: LogMetrics::unregistered() };
        let log = LogEngine::open(&folder.path().join("log"), options).unwrap();
        let data = DataEngine::open(&folder.path().join("data"), DataOptions::default()).unwrap();
        let range = KeyRange::all();
        data.create(NewReplica { shard, replica, range, retention: Duration::ZERO }).unwrap();
        let store = log.store(shard, replica).unwrap();
        let wait = Arc::new(Durable(log.log_wait(shard).unwrap()));
        let metrics = Arc::new(RaftMetrics::new(&mut prometheus_client::registry::Registry::default()));
        let machine = data.state_machine(shard, wait, metrics).unwrap();
        Ok((Opened { _folder: folder, _log: log, _data: data }, store, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_data_engine_together_keep_the_contract_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}
