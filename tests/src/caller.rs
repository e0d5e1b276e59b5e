//! Carries out calls of a history: through kv-client, or as plain unary gRPC as another language's SDK would.
//!
//! Invariants: an outcome is NotApplied only if every attempt was; a unary write keeps its session and sequence over
//! its attempts.
//!
//! Not here: what is asked and when (load, workload), the times (recorder).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt as _;
use kv_checkers::history::{Call, Entry, Mode, Outcome, Versioned};
use kv_client::{CasResult, Consistency, Keyspace, Timestamp};
use kv_proto::errors::{self, ServiceError};
use kv_proto::pb::v1 as pb;
use kv_proto::pb::v1::condition::Expected;
use kv_proto::pb::v1::kv_service_client::KvServiceClient;
use kv_proto::pb::v1::write_operation::Operation as Write;
use tokio::time::sleep;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// One attempt of a unary call.
const ATTEMPT: Duration = Duration::from_secs(2);
/// All attempts of a unary call.
const CALL: Duration = Duration::from_secs(8);
/// Between two attempts of a unary call that was not sent on by a hint.
const PAUSE: Duration = Duration::from_millis(50);
/// Calls to one node before the next one has its turn, so that each node is asked by someone.
const STAY: u64 = 100;
/// Entries of a page of a unary scan.
const PAGE: i32 = 200;

/// A way to the cluster.
#[derive(Debug)]
pub enum Caller {
    /// kv-client's.
    Client(Keyspace),
    /// The generated client, one call at a time.
    Unary(Unary),
}

/// Unary calls to one node, until it fails or has had its share, and then to the next.
#[derive(Debug)]
pub struct Unary {
    nodes: Arc<Nodes>,
    keyspace: String,
    wrong_node: pb::WrongNode,
    client_id: Bytes,
    sequence: AtomicU64,
    calls: AtomicU64,
    /// Which of the nodes is asked.
    place: AtomicUsize,
}

/// The nodes, and a connection to each that callers share.
#[derive(Debug)]
pub struct Nodes {
    endpoints: Vec<String>,
    channels: Mutex<HashMap<String, KvServiceClient<Channel>>>,
}

impl Caller {
    /// Through kv-client.
    #[must_use]
    pub fn client(keyspace: Keyspace) -> Self {
        Self::Client(keyspace)
    }

    /// By unary calls that nodes forward to each other, or that they answer with a hint where to go.
    #[must_use]
    pub fn unary(nodes: Arc<Nodes>, keyspace: &str, wrong_node: pb::WrongNode) -> Self {
        Self::Unary(Unary {
            nodes,
            keyspace: keyspace.to_owned(),
            wrong_node,
            client_id: Bytes::copy_from_slice(&rand::random::<u128>().to_be_bytes()),
            sequence: AtomicU64::new(1),
            calls: AtomicU64::new(0),
            place: AtomicUsize::new(rand::random_range(0..64)),
        })
    }

    /// Asks, and says what was answered.
    pub async fn call(&self, call: &Call) -> Outcome {
        match self {
            Self::Client(keyspace) => by_client(keyspace, call).await.unwrap_or_else(|error| failed(&error)),
            Self::Unary(unary) => unary.call(call).await,
        }
    }
}

fn failed(error: &kv_client::Error) -> Outcome {
    outcome(error.outcome(), error.to_string())
}

fn outcome(outcome: errors::Outcome, reason: String) -> Outcome {
    match outcome {
        errors::Outcome::NotApplied => Outcome::NotApplied { reason },
        errors::Outcome::Unknown => Outcome::Unknown { reason },
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn versioned(entry: kv_client::Entry) -> Versioned {
    Versioned { value: text(&entry.value), version: entry.version.0 }
}

fn consistency(mode: Mode) -> Consistency {
    match mode {
        Mode::Linearizable => Consistency::Linearizable,
        Mode::Lease => Consistency::Lease,
        Mode::Stale { max_ms } => Consistency::Stale { max: Duration::from_millis(max_ms) },
        Mode::Snapshot { at } => Consistency::Snapshot { at: Timestamp(at) },
    }
}

/// What a counter is expected to hold, and what it is set to.
fn increment(from: u64) -> (Option<String>, String) {
    ((from > 0).then(|| from.to_string()), (from + 1).to_string())
}

async fn by_client(keyspace: &Keyspace, call: &Call) -> kv_client::Result<Outcome> {
    let written = |version: Timestamp| Outcome::Written { version: version.0 };
    Ok(match call {
        Call::Read { key, mode } => {
            let entry = keyspace.get(key).consistency(consistency(*mode)).await?;
            Outcome::Found { entry: entry.map(versioned) }
        }
        Call::ReadMany { keys, mode } => {
            let found = keyspace.batch_get(keys).consistency(consistency(*mode)).await?;
            Outcome::Listed { entries: found.into_iter().flatten().map(listed).collect() }
        }
        Call::Scan { prefix, mode } => {
            let scan = keyspace.scan().prefix(prefix).page_size(200).consistency(consistency(*mode));
            let entries = scan.stream().map_ok(listed).try_collect().await?;
            Outcome::Listed { entries }
        }
        Call::Write { key, value } => written(keyspace.put(key, value).await?),
        Call::Delete { key } => written(keyspace.delete(key).await?.version),
        Call::CompareAndSet { key, expect, set } => compare_and_set(keyspace, key, expect.clone(), set).await?,
        Call::Increment { key, from } => {
            let (expect, set) = increment(*from);
            compare_and_set(keyspace, key, expect, &set).await?
        }
        Call::WriteMany { entries } => {
            let batch = entries.iter().fold(keyspace.batch(), |batch, (key, value)| batch.put(key, value));
            match batch.await? {
                kv_client::BatchResult::Applied { version, .. } => written(version),
                kv_client::BatchResult::Refused { .. } => Outcome::Refused { current: None },
            }
        }
    })
}

fn listed(entry: kv_client::Entry) -> Entry {
    Entry { key: text(&entry.key), value: text(&entry.value), version: entry.version.0 }
}

async fn compare_and_set(
    keyspace: &Keyspace,
    key: &str,
    expect: Option<String>,
    set: &str,
) -> kv_client::Result<Outcome> {
    let change = keyspace.compare_and_set(key);
    let change = expect.map_or_else(|| change.clone().expect_absent(), |value| change.clone().expect_value(value));
    Ok(match change.set(set).await? {
        CasResult::Applied { version } => Outcome::Written { version: version.0 },
        CasResult::Refused { current } => Outcome::Refused { current: current.map(versioned) },
    })
}

impl Unary {
    async fn call(&self, call: &Call) -> Outcome {
        if matches!(call, Call::Scan { .. }) {
            return self.scan(call).await;
        }
        let header = self.header(call.is_write());
        self.retried(call, &header, Bytes::new()).await.outcome
    }

    fn header(&self, write: bool) -> pb::RequestHeader {
        // One call at a time: every earlier one is finished.
        let session = write.then(|| {
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
            pb::Session { client_id: self.client_id.clone(), sequence, lowest_unfinished: sequence }
        });
        pb::RequestHeader {
            keyspace: self.keyspace.clone(),
            timeout_ms: u32::try_from(ATTEMPT.as_millis()).unwrap_or(u32::MAX),
            wrong_node: self.wrong_node.into(),
            session,
            ..pb::RequestHeader::default()
        }
    }

    /// Sends it until it is answered or its time is up, each time to the node a hint names or else to the next.
    async fn retried(&self, call: &Call, header: &pb::RequestHeader, cursor: Bytes) -> Answer {
        let deadline = Instant::now() + CALL;
        let (mut hinted, mut unknown, mut reason) = (None, false, String::new());
        if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(STAY) {
            self.place.fetch_add(1, Ordering::Relaxed);
        }
        while Instant::now() < deadline {
            let address = hinted.take().unwrap_or_else(|| self.nodes.at(self.place.load(Ordering::Relaxed)));
            let error = match self.nodes.service(&address) {
                Err(why) => {
                    reason = why;
                    self.place.fetch_add(1, Ordering::Relaxed);
                    sleep(PAUSE).await;
                    continue;
                }
                Ok(mut service) => match attempt(&mut service, call, header.clone(), cursor.clone()).await {
                    Ok(answer) => return answer,
                    Err(status) => ServiceError::from_status(&status),
                },
            };
            unknown |= error.outcome() == errors::Outcome::Unknown;
            reason = error.to_string();
            hinted = leader(&error).filter(|hint| *hint != address);
            if hinted.is_none() {
                self.place.fetch_add(1, Ordering::Relaxed);
            }
            match error.retry_after() {
                _ if hinted.is_some() => {}
                None if !can_help(&error) => break,
                least => sleep(least.unwrap_or(PAUSE)).await,
            }
        }
        let became = if unknown { errors::Outcome::Unknown } else { errors::Outcome::NotApplied };
        outcome(became, reason).into()
    }

    /// All pages; the nodes find the shards.
    async fn scan(&self, call: &Call) -> Outcome {
        let (mut cursor, mut entries) = (Bytes::new(), vec![]);
        loop {
            let page = self.retried(call, &self.header(false), cursor).await;
            let Outcome::Listed { entries: found } = page.outcome else { return page.outcome };
            entries.extend(found);
            cursor = page.cursor;
            if cursor.is_empty() {
                return Outcome::Listed { entries };
            }
        }
    }
}

impl Nodes {
    /// At these addresses; connections are made when they are needed.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, channels: Mutex::default() }
    }

    fn at(&self, place: usize) -> String {
        self.endpoints.get(place % self.endpoints.len().max(1)).cloned().unwrap_or_default()
    }

    fn service(&self, address: &str) -> Result<KvServiceClient<Channel>, String> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(service) = channels.get(address) {
            return Ok(service.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(ATTEMPT + Duration::from_millis(500));
        let service = KvServiceClient::new(endpoint.connect_lazy());
        channels.insert(address.to_owned(), service.clone());
        Ok(service)
    }
}

/// What one request was answered, and where the next page begins.
struct Answer {
    outcome: Outcome,
    cursor: Bytes,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, cursor: Bytes::new() }
    }
}

async fn attempt(
    service: &mut KvServiceClient<Channel>,
    call: &Call,
    header: pb::RequestHeader,
    cursor: Bytes,
) -> Result<Answer, Status> {
    let header = Some(header);
    let key = |key: &str| Bytes::copy_from_slice(key.as_bytes());
    let outcome = match call {
        Call::Read { key: name, mode } => {
            let request = pb::GetRequest { header, key: key(name), read: read_options(*mode) };
            Outcome::Found { entry: service.get(request).await?.into_inner().entry.map(held) }
        }
        Call::ReadMany { keys, mode } => {
            let keys = keys.iter().map(|name| key(name)).collect();
            let request = pb::BatchGetRequest { header, keys, read: read_options(*mode) };
            let entries = service.batch_get(request).await?.into_inner().entries;
            Outcome::Listed { entries: entries.into_iter().map(entry).collect() }
        }
        Call::Scan { prefix, mode } => {
            let (prefix, read) = (key(prefix), read_options(*mode));
            let request =
                pb::ScanRequest { header, prefix, page_size: PAGE, cursor, read, ..pb::ScanRequest::default() };
            let answer = service.scan(request).await?.into_inner();
            let entries = answer.entries.into_iter().map(entry).collect();
            return Ok(Answer { outcome: Outcome::Listed { entries }, cursor: answer.cursor });
        }
        Call::Write { key: name, value } => {
            let request = pb::PutRequest { header, key: key(name), value: key(value) };
            Outcome::Written { version: service.put(request).await?.into_inner().commit_timestamp }
        }
        Call::Delete { key: name } => {
            let request = pb::DeleteRequest { header, key: key(name) };
            Outcome::Written { version: service.delete(request).await?.into_inner().commit_timestamp }
        }
        Call::CompareAndSet { key: name, expect, set } => {
            swapped(service, header, name, expect.as_deref(), set).await?
        }
        Call::Increment { key: name, from } => {
            let (expect, set) = increment(*from);
            swapped(service, header, name, expect.as_deref(), &set).await?
        }
        Call::WriteMany { entries } => {
            let put = |(name, value): &(String, String)| pb::WriteOperation {
                operation: Some(Write::Put(pb::PutOperation { key: key(name), value: key(value) })),
            };
            let operations = entries.iter().map(put).collect();
            let request = pb::BatchWriteRequest { header, conditions: vec![], operations };
            Outcome::Written { version: service.batch_write(request).await?.into_inner().commit_timestamp }
        }
    };
    Ok(outcome.into())
}

async fn swapped(
    service: &mut KvServiceClient<Channel>,
    header: Option<pb::RequestHeader>,
    key: &str,
    expect: Option<&str>,
    set: &str,
) -> Result<Outcome, Status> {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let expected = expect.map_or(Expected::Exists(false), |value| Expected::Value(bytes(value)));
    let condition = Some(pb::Condition { key: bytes(key), expected: Some(expected) });
    let request = pb::CompareAndSetRequest { header, condition, new_value: Some(bytes(set)) };
    let answer = service.compare_and_set(request).await?.into_inner();
    Ok(if answer.succeeded {
        Outcome::Written { version: answer.commit_timestamp }
    } else {
        Outcome::Refused { current: answer.current.map(held) }
    })
}

fn read_options(mode: Mode) -> Option<pb::ReadOptions> {
    let (consistency, max_staleness_ms, snapshot_timestamp) = match mode {
        Mode::Linearizable => (pb::Consistency::Linearizable, 0, 0),
        Mode::Lease => (pb::Consistency::Lease, 0, 0),
        Mode::Stale { max_ms } => (pb::Consistency::Stale, max_ms, 0),
        Mode::Snapshot { at } => (pb::Consistency::Snapshot, 0, at),
    };
    Some(pb::ReadOptions { consistency: consistency.into(), max_staleness_ms, snapshot_timestamp })
}

fn held(entry: pb::KeyValue) -> Versioned {
    Versioned { value: text(&entry.value), version: entry.commit_timestamp }
}

fn entry(entry: pb::KeyValue) -> Entry {
    Entry { key: text(&entry.key), value: text(&entry.value), version: entry.commit_timestamp }
}

/// The address of the leader that an error names.
fn leader(error: &ServiceError) -> Option<String> {
    let shard = error.route_hint()?.shard.as_ref()?;
    let leader = shard.replicas.iter().find(|replica| replica.node_id == shard.leader_node_id)?;
    Some(leader.address.clone())
}

/// Whether sending it again, with the same session, may be answered otherwise.
fn can_help(error: &ServiceError) -> bool {
    matches!(
        error,
        ServiceError::NotLeader { .. }
            | ServiceError::StaleRoute { .. }
            | ServiceError::ShardNotFound { .. }
            | ServiceError::DeadlineExceeded { .. }
            | ServiceError::Foreign { .. }
    )
}
