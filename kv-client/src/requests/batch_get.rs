//! Reading many keys, from all their shards at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kv_proto::errors::ServiceError;
use kv_proto::pb::v1 as pb;

use super::FAN_OUT_MAX;
use super::by_shard::by_shard;
use crate::connection::pipeline_call::Request;
use crate::data::{Consistency, Data, Entry};
use crate::error::{Error, Result};
use crate::execute::{Deadline, Kind, Operation, Target};
use crate::scope::Scope;

/// Reads many keys; awaiting it gives an `Option<Entry>` for each, in the order asked. Keys of one shard are read at one
/// point of its history, as far as one answer holds them (4,096 keys, 4 MiB of keys, 5 MiB of values); other keys at
/// different ones, unless the read is a snapshot.
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), kv_client::Error> {
/// let found = client.batch_get(["a", "b", "c"]).await?;
/// assert_eq!(found.len(), 3);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is awaited"]
pub struct BatchGet {
    scope: Arc<Scope>,
    keys: Vec<Data>,
    consistency: Consistency,
    timeout: Option<Duration>,
}

impl BatchGet {
    pub(crate) fn new(scope: &Arc<Scope>, keys: Vec<Data>) -> Self {
        Self { scope: scope.clone(), keys, consistency: Consistency::default(), timeout: None }
    }

    /// What the reads promise; linearizable unless set.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    async fn run(self) -> Result<Vec<Option<Entry>>> {
        let scope = &self.scope;
        let deadline = scope.deadline(self.timeout);
        let mut missing: Vec<Bytes> = self.keys.iter().map(|key| key.0.clone()).collect();
        missing.sort();
        missing.dedup();
        let mut found: BTreeMap<Bytes, Entry> = BTreeMap::new();
        let mut halves = Vec::new();
        while !missing.is_empty() || !halves.is_empty() {
            let routes = scope.known_routes(deadline).await?;
            let shards = by_shard(&routes, std::mem::take(&mut missing), |key| (key, key.len()));
            let groups = shards.into_iter().flatten().chain(std::mem::take(&mut halves));
            let reads = groups.map(|keys| read(scope, keys, self.consistency, deadline));
            let reads: Vec<Read> = stream::iter(reads).buffer_unordered(FAN_OUT_MAX).try_collect().await?;
            for read in reads {
                match read {
                    Read::Done(entries) => found.extend(entries.into_iter().map(|entry| (entry.key.clone(), entry))),
                    Read::Regroup(keys) => missing.extend(keys),
                    Read::Halve(mut keys) => {
                        halves.push(keys.split_off(keys.len() / 2));
                        halves.push(keys);
                    }
                }
            }
        }
        Ok(self.keys.iter().map(|key| found.get(&key.0).cloned()).collect())
    }
}

super::request!(BatchGet -> Vec<Option<Entry>>);

enum Read {
    Done(Vec<Entry>),
    /// The shard was split meanwhile.
    Regroup(Vec<Bytes>),
    /// One answer does not hold their values.
    Halve(Vec<Bytes>),
}

/// What the node says of the keys together, not of one of them.
fn is_too_much(error: &ServiceError) -> bool {
    matches!(error, ServiceError::Invalid { violations } if violations.iter().all(|found| found.field == "keys"))
}

async fn read(scope: &Scope, keys: Vec<Bytes>, consistency: Consistency, deadline: Deadline) -> Result<Read> {
    let read = consistency.to_pb();
    let message =
        |header| Request::BatchGet(pb::BatchGetRequest { header: Some(header), keys: keys.clone(), read: Some(read) });
    let wanted: Vec<&Bytes> = keys.iter().collect();
    let operation =
        Operation { target: Target::Keys(&wanted), kind: Kind::reading(consistency), deadline, message: &message };
    match scope.execute(operation).await {
        Ok(answer) => {
            let response = super::response!(answer.response, BatchGet)?;
            Ok(Read::Done(response.entries.into_iter().map(Entry::from).collect()))
        }
        Err(Error::Service { error: ServiceError::CrossShard { .. }, .. }) => Ok(Read::Regroup(keys)),
        Err(Error::Service { error, .. }) if keys.len() > 1 && is_too_much(&error) => Ok(Read::Halve(keys)),
        Err(error) => Err(error),
    }
}
