//! What this node takes on: requests and their bytes within a budget, answers within another of the same size, so that
//! answers that nobody reads keep out only what would add to them; and writes only while the disk has room.
//!
//! Invariants: the sums of what is held by [`Permit`]s exceed a budget only by the answers of writes that were begun, which
//! are told whatever they weigh; a permit that is dropped, however the request ended, gives all of it back.
//!
//! Not here: the queues inside a replica (kv-raft); limits of one connection or stream (server, pipeline); how long an
//! answer holds its permit (unsent).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use kv_proto::errors::ServiceError;
use kv_proto::limits::PAGE_BYTES_MAX;
use kv_proto::pb::v1::condition::Expected;
use kv_proto::pb::v1::pipeline_call::Request;
use kv_proto::pb::v1::pipeline_reply::Response;
use kv_proto::pb::v1::{Condition, KeyValue, WriteOperation};

use crate::errors::overloaded;

/// A disk does not empty faster.
const READ_ONLY_RETRY: Duration = Duration::from_secs(2);

/// What a request costs beside its own bytes: the task's state and the answer.
const REQUEST_OVERHEAD: u64 = 512;

/// What one entry of a scan is taken to weigh before it is read.
const SCAN_ENTRY_ESTIMATE: u64 = 4 << 10;

/// The budget of a node.
#[derive(Debug)]
pub struct Admission {
    requests_max: u64,
    bytes_max: u64,
    requests: AtomicU64,
    bytes: AtomicU64,
    answer_bytes: AtomicU64,
    read_only: ArcSwapOption<String>,
}

/// A part of the budget of requests while one is worked on, then of that of answers until it is sent.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    held: Held,
}

#[derive(Clone, Copy, Debug)]
enum Held {
    Request { bytes: u64 },
    Answer { bytes: u64 },
}

impl Admission {
    /// A budget of this many requests and bytes at once, and of as many bytes of answers.
    #[must_use]
    pub fn new(requests_max: u32, bytes_max: u64) -> Self {
        Self {
            requests_max: requests_max.into(),
            bytes_max,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            answer_bytes: AtomicU64::new(0),
            read_only: ArcSwapOption::empty(),
        }
    }

    /// Takes a request on, or refuses it at once.
    pub fn admit(self: &Arc<Self>, cost: u64) -> Result<Permit, ServiceError> {
        if self.requests.fetch_add(1, Ordering::Relaxed) >= self.requests_max {
            self.requests.fetch_sub(1, Ordering::Relaxed);
            return Err(overloaded("the node's budget of requests"));
        }
        let bytes = cost.saturating_add(REQUEST_OVERHEAD);
        // Made first, so that it gives back both.
        let permit = Permit { admission: Arc::clone(self), held: Held::Request { bytes } };
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.bytes_max {
            return Err(overloaded("the node's budget of request bytes"));
        }
        Ok(permit)
    }

    /// Whether writes are taken now.
    pub fn admit_write(&self) -> Result<(), ServiceError> {
        match self.read_only.load().as_deref() {
            None => Ok(()),
            Some(why) => Err(ServiceError::ReadOnly { why: why.clone(), retry_after: READ_ONLY_RETRY }),
        }
    }

    /// Whether calls are taken whose answers weigh something.
    pub fn admit_answer(&self) -> Result<(), ServiceError> {
        if self.held_answers() < self.bytes_max { Ok(()) } else { Err(answers_unread()) }
    }

    /// Whether more than half of the budget of answers is held.
    #[must_use]
    pub fn answers_need_room(&self) -> bool {
        self.held_answers() > self.bytes_max / 2
    }

    /// Stops taking writes for this reason, or takes them again.
    pub fn set_read_only(&self, why: Option<String>) {
        self.read_only.store(why.map(Arc::new));
    }

    /// Why no writes are taken; None if they are.
    #[must_use]
    pub fn read_only(&self) -> Option<String> {
        self.read_only.load().as_deref().cloned()
    }

    /// Requests held now and their bytes.
    #[must_use]
    pub fn held(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Bytes of answers held now.
    #[must_use]
    pub fn held_answers(&self) -> u64 {
        self.answer_bytes.load(Ordering::Relaxed)
    }

    fn give_back(&self, held: Held) {
        match held {
            Held::Request { bytes } => {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.requests.fetch_sub(1, Ordering::Relaxed);
            }
            Held::Answer { bytes } => _ = self.answer_bytes.fetch_sub(bytes, Ordering::Relaxed),
        }
    }
}

impl Permit {
    /// Holds an answer of this many bytes in place of the request. An error says that there is no room for it: the answer
    /// is to be dropped, or, if it tells of a write, sent all the same.
    pub fn answered(&mut self, bytes: usize) -> Result<(), ServiceError> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(REQUEST_OVERHEAD);
        let admission = &self.admission;
        let before = admission.answer_bytes.fetch_add(bytes, Ordering::Relaxed);
        admission.give_back(std::mem::replace(&mut self.held, Held::Answer { bytes }));
        if before.saturating_add(bytes) > admission.bytes_max { Err(answers_unread()) } else { Ok(()) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.give_back(self.held);
    }
}

fn answers_unread() -> ServiceError {
    overloaded("the node's budget of answers that are not read yet")
}

/// Whether a call may be answered with values, so that its answer weighs something.
#[must_use]
pub fn answers_values(request: &Request) -> bool {
    match request {
        Request::Get(_) | Request::BatchGet(_) | Request::Scan(_) | Request::CompareAndSet(_) => true,
        Request::BatchWrite(batch) => !batch.conditions.is_empty(),
        Request::Put(_) | Request::Delete(_) => false,
    }
}

/// Bytes of what a call is answered, without the few that every answer has.
#[must_use]
pub fn answer_bytes(response: &Response) -> usize {
    let entry = |entry: &KeyValue| entry.key.len() + entry.value.len();
    let entries = |entries: &[KeyValue]| entries.iter().map(entry).sum();
    match response {
        Response::Get(get) => get.entry.as_ref().map_or(0, entry),
        Response::CompareAndSet(cas) => cas.current.as_ref().map_or(0, entry),
        Response::BatchWrite(batch) => batch.current.as_ref().map_or(0, entry),
        Response::BatchGet(batch) => entries(&batch.entries),
        Response::Scan(scan) => entries(&scan.entries),
        Response::Put(_) | Response::Delete(_) | Response::Failure(_) => 0,
    }
}

/// Bytes a call holds while it is worked on.
#[must_use]
pub fn cost(request: &Request) -> u64 {
    let bytes = match request {
        Request::Get(get) => get.key.len(),
        Request::Put(put) => put.key.len() + put.value.len(),
        Request::Delete(delete) => delete.key.len(),
        Request::CompareAndSet(cas) => {
            cas.condition.as_ref().map_or(0, condition_bytes) + cas.new_value.as_ref().map_or(0, |value| value.len())
        }
        Request::BatchGet(batch) => batch.keys.iter().map(|key| key.len()).sum(),
        Request::BatchWrite(batch) => {
            let conditions: usize = batch.conditions.iter().map(condition_bytes).sum();
            conditions + batch.operations.iter().map(WriteOperation::bytes).sum::<usize>()
        }
        Request::Scan(scan) => return scan_cost(scan.page_size),
    };
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn scan_cost(page_size: i32) -> u64 {
    let entries = u64::try_from(page_size).unwrap_or(0);
    entries.saturating_mul(SCAN_ENTRY_ESTIMATE).min(u64::try_from(PAGE_BYTES_MAX).unwrap_or(u64::MAX))
}

/// Bytes of a condition's key and value.
#[must_use]
pub fn condition_bytes(condition: &Condition) -> usize {
    let value = match &condition.expected {
        Some(Expected::Value(value)) => value.len(),
        Some(Expected::CommitTimestamp(_) | Expected::Exists(_)) | None => 0,
    };
    condition.key.len() + value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_refuses_until_something_is_given_back() {
        let admission = Arc::new(Admission::new(2, 10 << 20));
        let first = admission.admit(0).unwrap();
        let second = admission.admit(0).unwrap();
        let refused = admission.admit(0).unwrap_err();
        assert_eq!(refused.reason(), "OVERLOADED");
        assert!(refused.retry_after().is_some());
        drop(first);
        drop(admission.admit(0).unwrap());
        drop(second);
        assert_eq!(admission.held(), (0, 0));
    }

    #[test]
    fn a_request_that_does_not_fit_by_its_bytes_holds_nothing() {
        let admission = Arc::new(Admission::new(100, 1 << 20));
        let held = admission.admit(1 << 19).unwrap();
        assert!(admission.admit(1 << 19).unwrap_err().to_string().contains("request bytes"));
        assert!(admission.admit(u64::MAX).is_err());
        drop(held);
        assert_eq!(admission.held(), (0, 0));
    }

    #[test]
    fn an_answer_is_held_in_place_of_its_request_and_refused_beyond_its_budget() {
        let admission = Arc::new(Admission::new(1, 1 << 20));
        let mut first = admission.admit(1000).unwrap();
        first.answered(1 << 19).unwrap();
        assert_eq!((admission.held(), admission.held_answers()), ((0, 0), (1 << 19) + REQUEST_OVERHEAD));
        let mut other = admission.admit(0).unwrap();
        let refused = other.answered(1 << 19).unwrap_err();
        assert_eq!((refused.reason(), refused.retry_after().is_some()), ("OVERLOADED", true));
        let mut none_more = admission.admit(1 << 19).expect("answers keep no request out");
        assert!(none_more.answered(0).is_err(), "what is sent all the same counts");
        assert!(admission.answers_need_room() && admission.admit_answer().is_err());
        drop((first, other, none_more));
        assert_eq!((admission.held(), admission.held_answers()), ((0, 0), 0));
        assert!(!admission.answers_need_room() && admission.admit_answer().is_ok());
    }

    #[test]
    fn a_read_only_node_refuses_writes_with_the_reason_and_takes_them_again() {
        let admission = Admission::new(1, 1);
        assert!(admission.admit_write().is_ok());
        admission.set_read_only(Some("disk".to_owned()));
        let refused = admission.admit_write().unwrap_err();
        assert_eq!((refused.reason(), refused.to_string().as_str()), ("READ_ONLY", "the node is read-only: disk"));
        admission.set_read_only(None);
        assert!(admission.admit_write().is_ok());
    }
}
