//! Writes that are applied together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::pb::v1 as pb;
use kv_proto::pb::v1::condition::Expected;
use kv_proto::pb::v1::write_operation::Operation as Write;
use kv_proto::timestamp::Timestamp;

use super::FAN_OUT_MAX;
use super::by_shard::by_shard;
use crate::connection::pipeline_call::Request;
use crate::data::{Data, Entry};
use crate::error::{Error, Result};
use crate::execute::{Deadline, Kind, Operation, Target};
use crate::scope::Scope;

/// Writes and conditions on keys of one shard: if all conditions hold, all writes are applied at one moment; otherwise
/// none is. In a hash keyspace keys with the same hash tag, as in `{user1}:name` and `{user1}:mail`, share a shard. Keys
/// of several shards are refused with `CROSS_SHARD`; see [`Batch::spread`].
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), kv_client::Error> {
/// use kv_client::BatchResult;
///
/// let result = client
///     .batch()
///     .require_absent("{order7}:state")
///     .put("{order7}:state", "open")
///     .put("{order7}:items", "3")
///     .delete("{order7}:draft")
///     .await?;
/// if let BatchResult::Refused { condition, current } = result {
///     println!("condition {condition} did not hold: {current:?}");
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is awaited"]
pub struct Batch {
    scope: Arc<Scope>,
    conditions: Vec<pb::Condition>,
    operations: Vec<pb::WriteOperation>,
    timeout: Option<Duration>,
}

/// What a batch did. A refusal is an answer, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchResult {
    /// All conditions held; all writes are applied.
    Applied {
        /// The version of every key it wrote.
        version: Timestamp,
        /// How many deletes found a key.
        deleted: u32,
    },
    /// A condition did not hold; nothing changed.
    Refused {
        /// Position of the first such condition, in the order they were required.
        condition: usize,
        /// Its key as it is; None if it does not exist.
        current: Option<Entry>,
    },
}

impl BatchResult {
    /// Whether it changed anything.
    #[must_use]
    pub fn applied(&self) -> bool {
        match self {
            Self::Applied { .. } => true,
            Self::Refused { .. } => false,
        }
    }
}

impl Batch {
    pub(crate) fn new(scope: &Arc<Scope>) -> Self {
        Self { scope: scope.clone(), conditions: vec![], operations: vec![], timeout: None }
    }

    fn require(mut self, key: Data, expected: Expected) -> Self {
        self.conditions.push(pb::Condition { key: key.0, expected: Some(expected) });
        self
    }

    /// Only if the key does not exist.
    pub fn require_absent(self, key: impl Into<Data>) -> Self {
        self.require(key.into(), Expected::Exists(false))
    }

    /// Only if the key exists.
    pub fn require_exists(self, key: impl Into<Data>) -> Self {
        self.require(key.into(), Expected::Exists(true))
    }

    /// Only if the key holds exactly this value.
    pub fn require_value(self, key: impl Into<Data>, value: impl Into<Data>) -> Self {
        self.require(key.into(), Expected::Value(value.into().0))
    }

    /// Only if the key was last written at this version.
    pub fn require_version(self, key: impl Into<Data>, version: Timestamp) -> Self {
        self.require(key.into(), Expected::CommitTimestamp(version.0))
    }

    /// Writes a key.
    pub fn put(mut self, key: impl Into<Data>, value: impl Into<Data>) -> Self {
        self.operations.push(put(key.into().0, value.into().0));
        self
    }

    /// Deletes a key.
    pub fn delete(mut self, key: impl Into<Data>) -> Self {
        self.operations
            .push(pb::WriteOperation { operation: Some(Write::Delete(pb::DeleteOperation { key: key.into().0 })) });
        self
    }

    /// How many writes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it holds no writes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Splits it by shard, and by the limits of one request: each part is atomic, all together are NOT. Some parts may
    /// be applied and others not. For loading many keys.
    pub fn spread(self) -> SpreadBatch {
        SpreadBatch { batch: self }
    }

    async fn run(self) -> Result<BatchResult> {
        let deadline = self.scope.deadline(self.timeout);
        write(&self.scope, &self.conditions, &self.operations, deadline).await
    }
}

super::request!(Batch -> BatchResult);

fn put(key: Bytes, value: Bytes) -> pb::WriteOperation {
    pb::WriteOperation { operation: Some(Write::Put(pb::PutOperation { key, value })) }
}

async fn write(
    scope: &Scope,
    conditions: &[pb::Condition],
    operations: &[pb::WriteOperation],
    deadline: Deadline,
) -> Result<BatchResult> {
    let keys: Vec<&Bytes> = conditions
        .iter()
        .map(|condition| &condition.key)
        .chain(operations.iter().map(pb::WriteOperation::key))
        .collect();
    if keys.is_empty() {
        return Err(Error::foreseen(ServiceError::invalid("operations", "a batch holds at least one operation")));
    }
    let message = |header| {
        let (conditions, operations) = (conditions.to_vec(), operations.to_vec());
        Request::BatchWrite(pb::BatchWriteRequest { header: Some(header), conditions, operations })
    };
    let operation = Operation { target: Target::Keys(&keys), kind: Kind::Write, deadline, message: &message };
    let answer = scope.execute(operation).await?;
    let response = super::response!(answer.response, BatchWrite)?;
    Ok(if response.succeeded {
        BatchResult::Applied { version: Timestamp(response.commit_timestamp), deleted: response.deleted }
    } else {
        let condition = usize::try_from(response.failed_condition).unwrap_or(usize::MAX);
        BatchResult::Refused { condition, current: response.current.map(Entry::from) }
    })
}

/// A batch over many shards, atomic only within each part; the parts of one shard are written in the order of the batch,
/// though one of unknown outcome may still be applied after those behind it. Awaiting it gives what became of each part.
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is awaited"]
pub struct SpreadBatch {
    batch: Batch,
}

/// What became of one part of a spread batch.
#[derive(Clone, Debug)]
pub struct SpreadPart {
    /// Positions in the batch of the writes in this part.
    pub operations: Vec<usize>,
    /// What became of them.
    pub result: Result<BatchResult>,
}

impl SpreadBatch {
    /// Time all of it gets, retries included, instead of the client's.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.batch.timeout = Some(timeout);
        self
    }

    async fn run(self) -> Result<Vec<SpreadPart>> {
        let Batch { scope, conditions, operations, timeout } = self.batch;
        if !conditions.is_empty() {
            return Err(Error::usage(
                "a spread batch takes no conditions: they could hold in one shard and not in another",
            ));
        }
        let scope = &scope;
        let deadline = scope.deadline(timeout);
        let mut waiting: Vec<(usize, pb::WriteOperation)> = operations.into_iter().enumerate().collect();
        let mut done = vec![];
        while !waiting.is_empty() {
            let routes = scope.known_routes(deadline).await?;
            let shards = by_shard(&routes, std::mem::take(&mut waiting), |(_, write)| (write.key(), write.bytes()));
            let writes = shards.into_iter().map(|parts| write_in_order(scope, parts, deadline));
            let mut writes = stream::iter(writes).buffer_unordered(FAN_OUT_MAX);
            while let Some((written, left)) = writes.next().await {
                done.extend(written);
                waiting.extend(left);
            }
        }
        done.sort_by(|left, right| left.operations.cmp(&right.operations));
        Ok(done)
    }
}

impl std::future::IntoFuture for SpreadBatch {
    type Output = Result<Vec<SpreadPart>>;
    type IntoFuture = futures::future::BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

type Part = Vec<(usize, pb::WriteOperation)>;

/// The parts of one shard, one after the other: a later one may write a key again. Leaves over what is to be split anew.
async fn write_in_order(scope: &Scope, parts: Vec<Part>, deadline: Deadline) -> (Vec<SpreadPart>, Part) {
    let mut done = vec![];
    let mut parts = parts.into_iter();
    while let Some(part) = parts.next() {
        let (positions, operations): (Vec<_>, Vec<_>) = part.into_iter().unzip();
        match write(scope, &[], &operations, deadline).await {
            // The shard was split before the part was applied: split it as well, and what comes after it.
            Err(Error::Service { error: ServiceError::CrossShard { .. }, outcome: Outcome::NotApplied, .. }) => {
                return (done, positions.into_iter().zip(operations).chain(parts.flatten()).collect());
            }
            result => done.push(SpreadPart { operations: positions, result }),
        }
    }
    (done, vec![])
}
