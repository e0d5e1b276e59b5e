//! Reads and changes the records through a replica of shard 1.
//!
//! Invariants: a change applies as a whole, or not at all because a record is no longer as it was read; the version of
//! records read is never newer than the records.
//!
//! Not here: which replica to ask (services, controller).

use std::time::Duration;

use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::ids::{SYSTEM_KEYSPACE, SYSTEM_SHARD};
use kv_proto::keys;
use kv_raft::command::{Command, Condition, EncodedCommand, Expected, Operation, Reply};
use kv_raft::data_engine::{ReadView, ScanSpec};
use kv_raft::failpoint;
use kv_raft::replica::{ProposeError, ReadError, ReadMode, Replica};
use kv_raft::types::LeaderInfo;

use super::change::Change;
use super::records::{Record, RecordKey, Records};

/// An election takes this long.
const RETRY: Duration = Duration::from_millis(200);

/// Why the catalog cannot be read or changed through this replica.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Ask there, or wait.
    #[error("this replica does not lead shard 1")]
    NotLeader(Option<LeaderInfo>),
    /// A record changed meanwhile: read again and decide again.
    #[error("the catalog changed meanwhile")]
    Changed,
    /// It may be changed, now or later.
    #[error("whether the catalog was changed is not known")]
    OutcomeUnknown,
    /// Nothing changed.
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// As a caller is told.
    #[must_use]
    pub fn into_service(self) -> ServiceError {
        let shard = SYSTEM_SHARD;
        match self {
            Self::NotLeader(_) => ServiceError::NoLeader { shard, retry_after: RETRY },
            Self::OutcomeUnknown => ServiceError::OutcomeUnknown { shard, retry_after: RETRY },
            Self::Changed => ServiceError::Overloaded { queue: "the catalog".into(), retry_after: RETRY },
            Self::Refused(why) => ServiceError::Internal { why, outcome: Outcome::NotApplied },
        }
    }
}

/// All records as of now; only on the leader.
pub async fn read(replica: &Replica) -> Result<Records, StoreError> {
    let view = replica.read(ReadMode::Linearizable).await.map_err(read_error)?;
    kv_raft::blocking::spawn_blocking(move || load(&view))
        .await
        .map_err(|error| StoreError::Refused(error.to_string()))?
}

/// All records of a view. Blocking.
pub fn load(view: &ReadView) -> Result<Records, StoreError> {
    let mut records = Records { version: view.last_commit().0, ..Records::default() };
    let spec = ScanSpec {
        range: keys::keyspace_range(SYSTEM_KEYSPACE),
        limit_entries: usize::MAX,
        limit_bytes: usize::MAX,
        keys_only: false,
        at: None,
        reverse: false,
    };
    let page = view.scan(&spec).map_err(|error| StoreError::Refused(error.to_string()))?;
    for entry in page.entries {
        let record = Record::decode(&entry.key, &entry.versioned.value);
        let record = record.map_err(|error| StoreError::Refused(error.to_string()))?;
        records.insert(record, entry.versioned.commit);
    }
    Ok(records)
}

/// Applies a change that was decided from `base`; only on the leader. Returns the version of a catalog that shows it.
pub async fn apply(replica: &Replica, base: &Records, change: &Change) -> Result<u64, StoreError> {
    if change.is_empty() {
        return Ok(base.version);
    }
    failpoint!("catalog.change");
    match replica.propose(encode(base, change)).await.map_err(propose_error)? {
        Reply::Written { commit, .. } => Ok(commit.0),
        Reply::Refused { .. } => Err(StoreError::Changed),
        Reply::SessionStale | Reply::SessionsFull => {
            Err(StoreError::Refused("the catalog's commands carry no session".into()))
        }
    }
}

fn encode(base: &Records, change: &Change) -> EncodedCommand {
    let conditions: Vec<_> = change.conditions(base).into_iter().map(|(key, at)| (key.encode(), at)).collect();
    let encode = |(key, record): (RecordKey, Option<&Record>)| (key.encode(), record.map(Record::encode));
    let writes: Vec<_> = change.writes().map(encode).collect();
    let conditions = conditions
        .iter()
        .map(|(key, at)| Condition { key, expected: at.map_or(Expected::Exists(false), Expected::WrittenAt) });
    let operations = writes.iter().map(|(key, value)| match value {
        Some(value) => Operation::Put { key, value },
        None => Operation::Delete { key },
    });
    EncodedCommand::new(&Command { session: None, conditions: conditions.collect(), operations: operations.collect() })
}

fn read_error(error: ReadError) -> StoreError {
    match error {
        ReadError::NotLeader { leader } => StoreError::NotLeader(leader),
        ReadError::NoQuorum | ReadError::Stopped => StoreError::NotLeader(None),
        ReadError::TooFarAhead(_) | ReadError::Overloaded { .. } | ReadError::Fatal(_) => {
            StoreError::Refused(error.to_string())
        }
    }
}

fn propose_error(error: ProposeError) -> StoreError {
    match error {
        ProposeError::NotLeader { leader } => StoreError::NotLeader(leader),
        ProposeError::NoQuorum | ProposeError::Stopped => StoreError::NotLeader(None),
        ProposeError::OutcomeUnknown | ProposeError::TimedOut { .. } => StoreError::OutcomeUnknown,
        ProposeError::Overloaded { .. } => StoreError::Refused(error.to_string()),
        ProposeError::Fatal(_) => StoreError::OutcomeUnknown,
    }
}
