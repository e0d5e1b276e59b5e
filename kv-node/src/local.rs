//! A call served by this node's own replica: command or read, and the response made of the outcome.
//!
//! Invariants: keys in the command are the encoded keys the request was routed by; values are slices of the message
//! that arrived until the command is encoded, once, in the caller's task.
//!
//! Not here: which replica (router), what a command does (kv-raft).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::limits::{PAGE_BYTES_MAX, VALUE_BYTES_MAX};
use kv_proto::pb::v1::condition::Expected as WireExpected;
use kv_proto::pb::v1::pipeline_call::Request;
use kv_proto::pb::v1::pipeline_reply::Response;
use kv_proto::pb::v1::write_operation::Operation as WireOperation;
use kv_proto::pb::v1::{
    BatchGetRequest, BatchGetResponse, BatchWriteResponse, CompareAndSetResponse, Condition as WireCondition,
    Consistency, DeleteResponse, GetResponse, KeyValue, PutResponse, ReadOptions, ResponseHeader, ScanRequest,
    WriteOperation,
};
use kv_proto::timestamp::Timestamp;
use kv_raft::command::{Command, Condition, EncodedCommand, Expected, Operation, Reply, Versioned};
use kv_raft::data_engine::{DataError, ReadView};
use kv_raft::replica::{Answer, Answers, ReadMode, Replica};
use tokio::time::{Instant, timeout_at};

use crate::catalog::{CatalogView, ShardInfo};
use crate::errors;
use crate::node::NodeShared;
use crate::router::{Situation, Space};
use crate::scan::page;
use crate::scan::ranges::Bounds;
use crate::validate;

/// A batch of reads answers at most this many bytes, as a page of a scan does.
const BATCH_GET_BYTES_MAX: usize = PAGE_BYTES_MAX + VALUE_BYTES_MAX;

/// The encoded keys of a call.
#[derive(Debug)]
pub enum Keys {
    /// Of a request with one key.
    One(Bytes),
    /// Of a batch: conditions first, then operations.
    Many(Vec<Bytes>),
    /// Of a scan.
    Scan {
        /// What it reads.
        bounds: Bounds,
        /// Where it goes on.
        from: Bytes,
    },
}

/// What a call is served with.
pub struct Call<'a> {
    /// The node.
    pub shared: &'a NodeShared,
    /// The catalog the call was routed by.
    pub view: &'a Arc<CatalogView>,
    /// The replica that serves.
    pub replica: &'a Replica,
    /// When the caller gives up.
    pub deadline: Instant,
}

impl Call<'_> {
    /// Serves it.
    pub async fn run(
        &self,
        request: &Request,
        space: &Space,
        shard: &ShardInfo,
        keys: &Keys,
    ) -> Result<Response, ServiceError> {
        // Gets and writes are small and in place; a call carries the space of the largest, so the others are boxed.
        match (request, keys) {
            (Request::Get(get), Keys::One(key)) => {
                let (view, at) = self.read(get.read.as_ref(), space, shard).await?;
                let cached = if at.is_none() { view.get_cached(key) } else { Ok(None) };
                let found = match cached.map_err(|error| errors::data(error, shard, asked(at)))? {
                    Some(found) => found,
                    None => Box::pin(self.get_from_disk(view, key, at, shard)).await?,
                };
                let entry = found.map(|found| key_value(get.key.clone(), found));
                Ok(Response::Get(GetResponse { header: Some(self.header(shard)), entry }))
            }
            (
                Request::Put(_) | Request::Delete(_) | Request::CompareAndSet(_) | Request::BatchWrite(_),
                Keys::One(_) | Keys::Many(_),
            ) => {
                let answers = Answers::default();
                self.propose(request, shard, keys, (&answers, 0))?;
                self.written(request, shard, answers.only().await)
            }
            (Request::BatchGet(batch), Keys::Many(keys)) => {
                Box::pin(self.batch_get(batch, keys, space, shard)).await.map(Response::BatchGet)
            }
            (Request::Scan(scan), Keys::Scan { bounds, from }) => {
                Box::pin(self.scan(scan, bounds, from, space, shard)).await
            }
            (_, Keys::One(_) | Keys::Many(_) | Keys::Scan { .. }) => Err(mixed_up()),
        }
    }

    fn header(&self, shard: &ShardInfo) -> ResponseHeader {
        let node_id = self.shared.node().0;
        ResponseHeader { shard_id: shard.id().0, epoch: shard.epoch().0, node_id }
    }

    fn situation(&self) -> Situation<'_> {
        Situation { view: self.view, leaders: &self.shared.leaders, node: self.shared.node() }
    }

    /// A leader that hands over because of its disk still writes meanwhile: half of the reserve is left for that.
    fn check_room(&self) -> Result<(), ServiceError> {
        let hands_over = || !self.replica.may_lead() && !self.shared.host.context().refuses_entries();
        self.shared.admission.admit_write().or_else(|refused| if hands_over() { Ok(()) } else { Err(refused) })
    }

    /// Proposes a write now; its answer comes later, under a number.
    pub fn propose(
        &self,
        request: &Request,
        shard: &ShardInfo,
        keys: &Keys,
        (answers, number): (&Answers, usize),
    ) -> Result<(), ServiceError> {
        self.check_room()?;
        let session = validate::session_tag(validate::header(request));
        let (conditions, operations) = changes(request, keys)?;
        let command = EncodedCommand::new(&Command { session, conditions, operations });
        let proposed = self.replica.propose_into(command, Some(self.deadline), answers, number);
        proposed.map_err(|error| errors::propose(error, &self.situation(), shard))
    }

    /// The response to a write that was proposed.
    pub fn written(&self, request: &Request, shard: &ShardInfo, answer: Answer) -> Result<Response, ServiceError> {
        let reply = answer.map_err(|error| errors::propose(error, &self.situation(), shard))?;
        let header = Some(self.header(shard));
        Ok(match (request, reply) {
            (_, Reply::SessionStale) => {
                let session = validate::session_tag(validate::header(request));
                let sequence = session.map_or(0, |session| session.sequence.0);
                return Err(ServiceError::SessionStale { sequence });
            }
            (_, Reply::SessionsFull) => return Err(errors::overloaded("the shard's table of sessions")),
            (Request::Put(_), Reply::Written { commit, .. }) => {
                Response::Put(PutResponse { header, commit_timestamp: commit.0 })
            }
            (Request::Delete(_), Reply::Written { commit, deleted }) => {
                Response::Delete(DeleteResponse { header, commit_timestamp: commit.0, deleted: deleted > 0 })
            }
            (Request::CompareAndSet(_), Reply::Written { commit, .. }) => {
                let (succeeded, commit_timestamp) = (true, commit.0);
                Response::CompareAndSet(CompareAndSetResponse { header, succeeded, commit_timestamp, current: None })
            }
            (Request::CompareAndSet(cas), Reply::Refused { current, .. }) => {
                let key = cas.condition.as_ref().map(|condition| condition.key.clone()).unwrap_or_default();
                let current = current.map(|current| key_value(key, current));
                let (succeeded, commit_timestamp) = (false, 0);
                Response::CompareAndSet(CompareAndSetResponse { header, succeeded, commit_timestamp, current })
            }
            (Request::BatchWrite(_), Reply::Written { commit, deleted }) => Response::BatchWrite(BatchWriteResponse {
                header,
                succeeded: true,
                commit_timestamp: commit.0,
                deleted,
                ..Default::default()
            }),
            (Request::BatchWrite(batch), Reply::Refused { condition, current }) => {
                let named = usize::try_from(condition).ok().and_then(|position| batch.conditions.get(position));
                let key = named.map(|condition| condition.key.clone()).unwrap_or_default();
                let current = current.map(|current| key_value(key, current));
                let failed_condition = condition;
                Response::BatchWrite(BatchWriteResponse { header, failed_condition, current, ..Default::default() })
            }
            (_, Reply::Refused { .. }) => {
                return Err(internal("a write without conditions was refused", Outcome::Unknown));
            }
            (Request::Get(_) | Request::BatchGet(_) | Request::Scan(_), Reply::Written { .. }) => {
                return Err(internal("a read was proposed", Outcome::Unknown));
            }
        })
    }

    async fn read(
        &self,
        options: Option<&ReadOptions>,
        space: &Space,
        shard: &ShardInfo,
    ) -> Result<(ReadView, Option<Timestamp>), ServiceError> {
        let (mode, at) = read_mode(options, space)?;
        match timeout_at(self.deadline, self.replica.read(mode)).await {
            Ok(Ok(view)) => Ok((view, at)),
            Ok(Err(error)) => Err(errors::read(error, &self.situation(), shard, asked(at))),
            Err(_) => Err(errors::deadline("read", Outcome::NotApplied)),
        }
    }

    async fn get_from_disk(
        &self,
        view: ReadView,
        key: &Bytes,
        at: Option<Timestamp>,
        shard: &ShardInfo,
    ) -> Result<Option<Versioned>, ServiceError> {
        let key = key.clone();
        let get = move || match at {
            None => view.get(&key),
            Some(at) => view.get_at(&key, at),
        };
        self.blocking(get).await?.map_err(|error| errors::data(error, shard, asked(at)))
    }

    async fn batch_get(
        &self,
        batch: &BatchGetRequest,
        keys: &[Bytes],
        space: &Space,
        shard: &ShardInfo,
    ) -> Result<BatchGetResponse, ServiceError> {
        let (view, at) = self.read(batch.read.as_ref(), space, shard).await?;
        let wanted = keys.to_vec();
        let found = self.blocking(move || get_many(&view, &wanted, at)).await?;
        let found = found.map_err(|error| errors::data(error, shard, asked(at)))?;
        if found.len() < keys.len() {
            let why = format!("hold more than the {BATCH_GET_BYTES_MAX} bytes of values of one answer: ask for fewer");
            return Err(ServiceError::invalid("keys", why));
        }
        let entries = batch.keys.iter().zip(found);
        let entries = entries.filter_map(|(key, found)| Some(key_value(key.clone(), found?))).collect();
        Ok(BatchGetResponse { header: Some(self.header(shard)), entries })
    }

    async fn scan(
        &self,
        scan: &ScanRequest,
        bounds: &Bounds,
        from: &Bytes,
        space: &Space,
        shard: &ShardInfo,
    ) -> Result<Response, ServiceError> {
        let (view, at) = self.read(scan.read.as_ref(), space, shard).await?;
        let job = page::Job {
            bounds: bounds.clone(),
            from: from.clone(),
            within: shard.range.clone(),
            layout: space.layout,
            entries_max: usize::try_from(scan.page_size).unwrap_or(1),
            keys_only: scan.keys_only,
            at,
            // The other half is for its way back: a page that came too late would be read again and again.
            deadline: (Instant::now() + self.deadline.saturating_duration_since(Instant::now()) / 2).into_std(),
        };
        let page = self.blocking(move || job.run(&view)).await?;
        let page = page.map_err(|error| errors::data(error, shard, asked(at)))?;
        // A scan of one named shard ends with it; another goes on in the next shard.
        let one_shard = validate::header_of(&scan.header).shard_id != 0;
        let next = match page.next {
            Some(next) => Some(next),
            None if one_shard || shard.range.end().is_empty() => None,
            None => Some(shard.range.end().clone())
                .filter(|end| !bounds.ends_before(end) && self.situation().holds_more(space, end)),
        };
        Ok(Response::Scan(page::response(page.entries, next, bounds, self.header(shard))))
    }

    /// Work that may wait for the disk, off the async threads; given up at the deadline.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ServiceError> {
        let places = Arc::clone(&self.shared.disk_reads);
        let done = async move {
            // Held until the work is done, also if nobody waits for it any more.
            let place = places.acquire_owned().await;
            kv_raft::blocking::spawn_blocking(move || {
                let _place = place;
                work()
            })
            .await
        };
        match timeout_at(self.deadline, done).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(internal("a read was cancelled", Outcome::NotApplied)),
            Err(_) => Err(errors::deadline("read", Outcome::NotApplied)),
        }
    }
}

fn get_many(view: &ReadView, keys: &[Bytes], at: Option<Timestamp>) -> Result<Vec<Option<Versioned>>, DataError> {
    let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
    view.get_many(&keys, at, BATCH_GET_BYTES_MAX)
}

fn read_mode(options: Option<&ReadOptions>, space: &Space) -> Result<(ReadMode, Option<Timestamp>), ServiceError> {
    let Some(options) = options else { return Ok((ReadMode::Linearizable, None)) };
    match Consistency::try_from(options.consistency).unwrap_or_default() {
        Consistency::Unspecified | Consistency::Linearizable => Ok((ReadMode::Linearizable, None)),
        Consistency::Lease => Ok((ReadMode::Lease, None)),
        Consistency::Stale => {
            let most = (options.max_staleness_ms != 0).then(|| Duration::from_millis(options.max_staleness_ms));
            Ok((ReadMode::Stale { max_staleness: most }, None))
        }
        Consistency::Snapshot if !space.keeps_history => {
            let why = "the keyspace keeps no history (its retention is 0)".to_owned();
            Err(ServiceError::SnapshotUnavailable { asked: options.snapshot_timestamp, why })
        }
        Consistency::Snapshot => {
            let at = Timestamp(options.snapshot_timestamp);
            Ok((ReadMode::Snapshot { at }, Some(at)))
        }
    }
}

fn asked(at: Option<Timestamp>) -> u64 {
    at.map_or(0, |at| at.0)
}

/// What a write asks and what it changes.
fn changes<'k>(request: &'k Request, keys: &'k Keys) -> Result<(Vec<Condition<'k>>, Vec<Operation<'k>>), ServiceError> {
    match (request, keys) {
        (Request::Put(put), Keys::One(key)) => Ok((vec![], vec![Operation::Put { key, value: &put.value }])),
        (Request::Delete(_), Keys::One(key)) => Ok((vec![], vec![Operation::Delete { key }])),
        (Request::CompareAndSet(cas), Keys::One(key)) => {
            let condition = cas.condition.as_ref().and_then(|wire| condition(wire, key));
            let condition = condition.ok_or_else(|| ServiceError::invalid("condition.expected", "is needed"))?;
            let operation = match &cas.new_value {
                Some(value) => Operation::Put { key, value },
                None => Operation::Delete { key },
            };
            Ok((vec![condition], vec![operation]))
        }
        (Request::BatchWrite(batch), Keys::Many(keys)) => {
            let missing = || ServiceError::invalid("operations", "is not complete");
            let mut keys = keys.iter();
            let mut conditions = Vec::with_capacity(batch.conditions.len());
            for (wire, key) in batch.conditions.iter().zip(&mut keys) {
                conditions.push(condition(wire, key).ok_or_else(missing)?);
            }
            let mut operations = Vec::with_capacity(batch.operations.len());
            for (wire, key) in batch.operations.iter().zip(&mut keys) {
                operations.push(operation(wire, key).ok_or_else(missing)?);
            }
            Ok((conditions, operations))
        }
        (_, Keys::One(_) | Keys::Many(_) | Keys::Scan { .. }) => Err(mixed_up()),
    }
}

fn operation<'k>(wire: &'k WriteOperation, key: &'k [u8]) -> Option<Operation<'k>> {
    Some(match wire.operation.as_ref()? {
        WireOperation::Put(put) => Operation::Put { key, value: &put.value },
        WireOperation::Delete(_) => Operation::Delete { key },
    })
}

fn condition<'k>(wire: &'k WireCondition, key: &'k [u8]) -> Option<Condition<'k>> {
    let expected = match wire.expected.as_ref()? {
        WireExpected::Value(value) => Expected::Value(value),
        WireExpected::CommitTimestamp(at) => Expected::WrittenAt(Timestamp(*at)),
        WireExpected::Exists(exists) => Expected::Exists(*exists),
    };
    Some(Condition { key, expected })
}

fn key_value(key: Bytes, versioned: Versioned) -> KeyValue {
    KeyValue { key, value: versioned.value, commit_timestamp: versioned.commit.0 }
}

fn mixed_up() -> ServiceError {
    internal("the keys of a call are not of its kind", Outcome::NotApplied)
}

fn internal(why: &str, outcome: Outcome) -> ServiceError {
    tracing::error!(why, "a request ended in an internal error");
    ServiceError::Internal { why: why.to_owned(), outcome }
}
