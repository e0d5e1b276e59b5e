//! openraft's own suite, against the log store and the smallest state machine that lets it run.

use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use kv_proto::ids::{ReplicaId, ShardId};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::{LogEngine, LogStore, open};
use crate::command::Replies;
use crate::types::{LogId, ShardRaft, StoredMembership};

type Meta = crate::types::SnapshotMeta;

#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Machine>>);

#[derive(Default)]
struct Machine {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<Meta>,
}

impl RaftStateMachine<ShardRaft> for Memory {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let machine = self.0.lock();
        Ok((machine.applied, machine.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<ShardRaft>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut machine = self.0.lock();
            machine.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                machine.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            drop(machine);
            if let Some(responder) = responder {
                responder.send(Replies::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &Meta, (): ()) -> Result<(), io::Error> {
        let mut machine = self.0.lock();
        (machine.applied, machine.membership) = (meta.last_log_id, meta.last_membership.clone());
        machine.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<openraft::alias::SnapshotOf<ShardRaft, ()>>, io::Error> {
        Ok(self.0.lock().snapshot.clone().map(|meta| Snapshot { meta, snapshot: () }))
    }
}

impl RaftSnapshotBuilder<ShardRaft> for Memory {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<openraft::alias::SnapshotOf<ShardRaft, ()>, io::Error> {
        let mut machine = self.0.lock();
        let meta = SnapshotMeta { last_log_id: machine.applied, last_membership: machine.membership.clone() };
        machine.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

struct Builder;

impl StoreBuilder<ShardRaft, LogStore, Memory, (LogEngine, TempDir)> for Builder {
    async fn build(&self) -> Result<((LogEngine, TempDir), LogStore, Memory), openraft::StorageError<ShardRaft>> {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let store = engine.store(ShardId(7), ReplicaId(0)).unwrap();
        Ok(((engine, dir), store, Memory::default()))
    }
}

#[tokio::test]
async fn the_log_store_keeps_every_promise_openraft_checks() {
    Suite::test_all(Builder).await.unwrap();
}
