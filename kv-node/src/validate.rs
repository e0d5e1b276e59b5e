//! What is wrong with a request by itself, before anything is looked up. Pure.
//!
//! Invariants:
//! - all faults of a request are found, not only the first (the list is cut at [`VIOLATIONS_MAX`]);
//! - a request that passes is within every limit of kv-proto, limits;
//! - a request without fault costs no allocation here.
//!
//! Not here: what depends on the catalog, as an unknown keyspace or a stale epoch (router); a cursor of another scan
//! (scan). A name that is not UTF-8, like any malformed protobuf, is refused by the decoder before a request exists.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use kv_proto::errors::{ServiceError, Violation};
use kv_proto::ids::{ClientId, Sequence};
use kv_proto::limits::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, HOPS_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX, PAGE_ENTRIES_MAX, TIMEOUT_MS_MAX,
    VALUE_BYTES_MAX,
};
use kv_proto::pb::v1::condition::Expected;
use kv_proto::pb::v1::pipeline_call::Request;
use kv_proto::pb::v1::write_operation::Operation;
use kv_proto::pb::v1::{
    BatchGetRequest, BatchWriteRequest, Condition, Consistency, ListRoutesRequest, ReadOptions, RequestHeader,
    ScanRequest, ScanStreamRequest, Session, WriteOperation, WrongNode,
};
use kv_raft::command::SessionTag;

use crate::admission::condition_bytes;

/// Most faults listed in one answer; a batch of 4096 bad keys is told in fewer words.
pub const VIOLATIONS_MAX: usize = 32;

/// An answer is due this long before its caller gives up: a tenth of the time, within these bounds. The lower one is what
/// timers need to fire in order.
const ANSWER_ON_ITS_WAY: RangeInclusive<Duration> = Duration::from_millis(2)..=Duration::from_millis(50);

/// The header of a request that came without one.
static NO_HEADER: RequestHeader = RequestHeader {
    cluster_id: String::new(),
    keyspace: String::new(),
    shard_id: 0,
    epoch: 0,
    timeout_ms: 0,
    wrong_node: 0,
    session: None,
    hops: 0,
};

/// What `grpc-timeout` said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcTimeout {
    /// There was none.
    Absent,
    /// It was not as the gRPC specification has it.
    Malformed,
    /// How long the caller waits.
    Given(Duration),
}

/// The header of a request; an empty one if it has none.
#[must_use]
pub fn header_of(header: &Option<RequestHeader>) -> &RequestHeader {
    header.as_ref().unwrap_or(&NO_HEADER)
}

/// The header of a call; an empty one if it has none.
#[must_use]
pub fn header(request: &Request) -> &RequestHeader {
    header_of(match request {
        Request::Get(request) => &request.header,
        Request::Put(request) => &request.header,
        Request::Delete(request) => &request.header,
        Request::CompareAndSet(request) => &request.header,
        Request::BatchGet(request) => &request.header,
        Request::BatchWrite(request) => &request.header,
        Request::Scan(request) => &request.header,
    })
}

/// Checks a call; gives how long its caller waits.
pub fn request(request: &Request, cluster_id: &str, grpc: GrpcTimeout) -> Result<Duration, ServiceError> {
    let header = header(request);
    let mut faults = Faults::default();
    match request {
        Request::Get(get) => {
            faults.key("key", &get.key);
            faults.read(get.read.as_ref());
        }
        Request::Put(put) => {
            faults.key("key", &put.key);
            faults.value("value", &put.value);
        }
        Request::Delete(delete) => faults.key("key", &delete.key),
        Request::CompareAndSet(cas) => {
            match &cas.condition {
                Some(condition) => faults.condition(&"condition", condition),
                None => faults.add("condition", "is needed: it names the key"),
            }
            if let Some(value) = &cas.new_value {
                faults.value("new_value", value);
            }
        }
        Request::BatchGet(batch) => faults.batch_get(batch),
        Request::BatchWrite(batch) => faults.batch_write(batch),
        Request::Scan(scan) => faults.scan("", scan),
    }
    finish(faults, header, cluster_id, grpc)
}

/// Checks a streamed scan; gives how long its caller waits for each page.
pub fn scan_stream(request: &ScanStreamRequest, cluster_id: &str, grpc: GrpcTimeout) -> Result<Duration, ServiceError> {
    let mut faults = Faults::default();
    let Some(scan) = &request.scan else {
        faults.add("scan", "is needed");
        return finish(faults, &NO_HEADER, cluster_id, grpc);
    };
    faults.scan("scan.", scan);
    finish(faults, header_of(&scan.header), cluster_id, grpc)
}

/// Checks a question for routes; gives how long its caller waits.
pub fn list_routes(request: &ListRoutesRequest, cluster_id: &str, grpc: GrpcTimeout) -> Result<Duration, ServiceError> {
    finish(Faults::default(), header_of(&request.header), cluster_id, grpc)
}

/// The session of a checked write.
#[must_use]
pub fn session_tag(header: &RequestHeader) -> Option<SessionTag> {
    let Session { client_id, sequence, lowest_unfinished } = header.session.as_ref()?;
    Some(SessionTag {
        client: ClientId::from_bytes(client_id)?,
        sequence: Sequence(*sequence),
        lowest_unfinished: Sequence(*lowest_unfinished),
    })
}

fn finish(
    mut faults: Faults,
    header: &RequestHeader,
    cluster_id: &str,
    grpc: GrpcTimeout,
) -> Result<Duration, ServiceError> {
    // A caller of another cluster has nothing to learn from its other faults.
    if !header.cluster_id.is_empty() && header.cluster_id != cluster_id {
        return Err(ServiceError::ClusterMismatch { ours: cluster_id.to_owned(), theirs: header.cluster_id.clone() });
    }
    faults.header(header);
    let timeout = timeout(header, grpc, &mut faults);
    match timeout {
        None if faults.violations.is_empty() => Err(ServiceError::DeadlineMissing),
        None => {
            faults.add("header.timeout_ms", "is needed, or grpc-timeout");
            Err(faults.into_error())
        }
        Some(_) if !faults.violations.is_empty() => Err(faults.into_error()),
        Some(timeout) => Ok(timeout),
    }
}

/// The shorter of both; None if neither is there.
fn timeout(header: &RequestHeader, grpc: GrpcTimeout, faults: &mut Faults) -> Option<Duration> {
    let most = Duration::from_millis(TIMEOUT_MS_MAX.into());
    let asked = (header.timeout_ms != 0).then(|| Duration::from_millis(header.timeout_ms.into()));
    if asked.is_some_and(|asked| asked > most) {
        faults.add("header.timeout_ms", format!("is {}; at most {TIMEOUT_MS_MAX}", header.timeout_ms));
    }
    match (asked, grpc) {
        (asked, GrpcTimeout::Absent) => asked,
        (_, GrpcTimeout::Malformed) => {
            faults.add("grpc-timeout", "is not digits and a unit of H, M, S, m, u or n");
            Some(most)
        }
        (Some(asked), GrpcTimeout::Given(given)) => Some(asked.min(due(given))),
        (None, GrpcTimeout::Given(given)) => {
            if given > most {
                faults.add("grpc-timeout", format!("is {given:?}; at most {most:?}"));
            }
            Some(due(given))
        }
    }
}

/// When a call is to be answered whose caller gives up after `given`: a little earlier, so that it learns the reason and
/// the outcome. At that time the transport would tell it CANCELLED and no more.
#[must_use]
pub fn due(given: Duration) -> Duration {
    given.saturating_sub((given / 10).clamp(*ANSWER_ON_ITS_WAY.start(), *ANSWER_ON_ITS_WAY.end()))
}

#[derive(Default)]
struct Faults {
    violations: Vec<Violation>,
    more: usize,
}

impl Faults {
    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { field: field.into(), description: description.into() });
        } else {
            self.more += 1;
        }
    }

    fn into_error(mut self) -> ServiceError {
        if self.more > 0
            && let Some(last) = self.violations.last_mut()
        {
            last.description.push_str(&format!(" (and {} more faults)", self.more));
        }
        ServiceError::Invalid { violations: self.violations }
    }

    fn header(&mut self, header: &RequestHeader) {
        if header.keyspace.len() > NAME_BYTES_MAX {
            self.add("header.keyspace", format!("is {} bytes; at most {NAME_BYTES_MAX}", header.keyspace.len()));
        }
        if WrongNode::try_from(header.wrong_node).is_err() {
            self.add("header.wrong_node", format!("{} is not known", header.wrong_node));
        }
        if header.hops > HOPS_MAX {
            self.add("header.hops", format!("is {}; at most {HOPS_MAX}, and 0 from clients", header.hops));
        }
        let Some(session) = &header.session else { return };
        if session.client_id.len() != 16 {
            self.add("header.session.client_id", format!("is {} bytes; 16 are needed", session.client_id.len()));
        }
        if session.sequence == 0 {
            self.add("header.session.sequence", "is 0; the first is 1");
        }
        if session.lowest_unfinished > session.sequence {
            let why = format!("is {}, above the sequence {}", session.lowest_unfinished, session.sequence);
            self.add("header.session.lowest_unfinished", why);
        }
    }

    fn key(&mut self, field: &str, key: &[u8]) {
        if key.is_empty() {
            self.add(field, "is empty");
        }
        self.at_most(field, key.len(), KEY_BYTES_MAX);
    }

    fn value(&mut self, field: &str, value: &[u8]) {
        self.at_most(field, value.len(), VALUE_BYTES_MAX);
    }

    fn at_most(&mut self, field: &str, bytes: usize, most: usize) {
        if bytes > most {
            self.add(field, format!("is {bytes} bytes; at most {most}"));
        }
    }

    fn read(&mut self, read: Option<&ReadOptions>) {
        let Some(read) = read else { return };
        let Ok(consistency) = Consistency::try_from(read.consistency) else {
            self.add("read.consistency", format!("{} is not known", read.consistency));
            return;
        };
        if read.max_staleness_ms != 0 && consistency != Consistency::Stale {
            self.add("read.max_staleness_ms", "is only for CONSISTENCY_STALE");
        }
        match (consistency, read.snapshot_timestamp) {
            (Consistency::Snapshot, 0) => self.add("read.snapshot_timestamp", "is needed for CONSISTENCY_SNAPSHOT"),
            (Consistency::Snapshot, _) | (_, 0) => {}
            (_, _) => self.add("read.snapshot_timestamp", "is only for CONSISTENCY_SNAPSHOT"),
        }
    }

    fn condition(&mut self, field: &impl Display, condition: &Condition) {
        // The path is only written down if there is a fault.
        if condition.key.is_empty() || condition.key.len() > KEY_BYTES_MAX {
            self.key(&format!("{field}.key"), &condition.key);
        }
        match &condition.expected {
            Some(Expected::Value(value)) if value.len() > VALUE_BYTES_MAX => {
                self.value(&format!("{field}.value"), value);
            }
            Some(Expected::Value(_) | Expected::CommitTimestamp(_) | Expected::Exists(_)) => {}
            None => self.add(format!("{field}.expected"), "is needed: value, commit_timestamp or exists"),
        }
    }

    fn operation(&mut self, position: usize, operation: &WriteOperation) {
        let (kind, key, value): (_, &[u8], &[u8]) = match &operation.operation {
            Some(Operation::Put(put)) => ("put", &put.key, &put.value),
            Some(Operation::Delete(delete)) => ("delete", &delete.key, &[]),
            None => {
                self.add(format!("operations[{position}]"), "is neither put nor delete");
                return;
            }
        };
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            self.key(&format!("operations[{position}].{kind}.key"), key);
        }
        if value.len() > VALUE_BYTES_MAX {
            self.value(&format!("operations[{position}].{kind}.value"), value);
        }
    }

    fn count(&mut self, field: &str, count: usize) {
        if count > BATCH_OPERATIONS_MAX {
            self.add(field, format!("holds {count}; at most {BATCH_OPERATIONS_MAX}"));
        }
    }

    fn batch_get(&mut self, batch: &BatchGetRequest) {
        if batch.keys.is_empty() {
            self.add("keys", "is empty");
        }
        self.count("keys", batch.keys.len());
        for (position, key) in batch.keys.iter().enumerate() {
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                self.key(&format!("keys[{position}]"), key);
            }
        }
        self.at_most("keys", batch.keys.iter().map(|key| key.len()).sum(), BATCH_BYTES_MAX);
        self.read(batch.read.as_ref());
    }

    fn batch_write(&mut self, batch: &BatchWriteRequest) {
        if batch.operations.is_empty() {
            self.add("operations", "is empty");
        }
        self.count("operations", batch.operations.len());
        self.count("conditions", batch.conditions.len());
        for (position, condition) in batch.conditions.iter().enumerate() {
            self.condition(&format_args!("conditions[{position}]"), condition);
        }
        for (position, operation) in batch.operations.iter().enumerate() {
            self.operation(position, operation);
        }
        let conditions = batch.conditions.iter().map(condition_bytes).sum::<usize>();
        let operations = batch.operations.iter().map(WriteOperation::bytes).sum::<usize>();
        self.at_most("operations", conditions.saturating_add(operations), BATCH_BYTES_MAX);
    }

    fn scan(&mut self, path: &str, scan: &ScanRequest) {
        for (field, bound) in [("start", &scan.start), ("end", &scan.end), ("prefix", &scan.prefix)] {
            if bound.len() > KEY_BYTES_MAX {
                self.at_most(&format!("{path}{field}"), bound.len(), KEY_BYTES_MAX);
            }
        }
        let bounded = !scan.start.is_empty() || !scan.end.is_empty();
        if bounded && !scan.prefix.is_empty() {
            self.add(format!("{path}prefix"), "cannot be together with start or end");
        }
        if !scan.end.is_empty() && scan.end <= scan.start {
            self.add(format!("{path}end"), "must come after start");
        }
        let most = i32::try_from(PAGE_ENTRIES_MAX).unwrap_or(i32::MAX);
        if !(1..=most).contains(&scan.page_size) {
            self.add(format!("{path}page_size"), format!("is {}; between 1 and {most}", scan.page_size));
        }
        self.read(scan.read.as_ref());
    }
}

/// Reads a `grpc-timeout` value: at most eight digits and a unit.
#[must_use]
pub fn grpc_timeout(value: Option<&[u8]>) -> GrpcTimeout {
    let Some(value) = value else { return GrpcTimeout::Absent };
    let parsed = || {
        let (unit, digits) = value.split_last()?;
        if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
        match unit {
            b'H' => Some(Duration::from_secs(number * 3600)),
            b'M' => Some(Duration::from_secs(number * 60)),
            b'S' => Some(Duration::from_secs(number)),
            b'm' => Some(Duration::from_millis(number)),
            b'u' => Some(Duration::from_micros(number)),
            b'n' => Some(Duration::from_nanos(number)),
            _ => None,
        }
    };
    parsed().map_or(GrpcTimeout::Malformed, GrpcTimeout::Given)
}

#[cfg(test)]
mod tests;
