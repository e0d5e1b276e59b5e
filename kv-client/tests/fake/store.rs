//! The data of a fake cluster: one ordered map of encoded keys, and the replies of sessions.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_proto::key_range::KeyRange;
use kv_proto::keys::{self, Layout};
use kv_proto::pb::v1 as pb;
use kv_proto::pb::v1::condition::Expected;
use kv_proto::pb::v1::pipeline_call::Request as Call;
use kv_proto::pb::v1::pipeline_reply::Response as Reply;
use kv_proto::pb::v1::write_operation::Operation;

use super::KEYSPACE;

#[derive(Default)]
pub struct Store {
    entries: BTreeMap<Bytes, (Bytes, u64)>,
    sessions: BTreeMap<(Bytes, u64), Reply>,
    clock: u64,
    /// Writes that were applied, not answered from a session.
    pub applied: usize,
}

fn layout(hashed: bool) -> Layout {
    if hashed { Layout::Hash } else { Layout::Range }
}

impl Store {
    pub fn serve(&mut self, hashed: bool, range: &KeyRange, header: &pb::RequestHeader, call: Call) -> Reply {
        let session = header.session.as_ref().map(|session| (session.client_id.clone(), session.sequence));
        if let Some(reply) = session.as_ref().and_then(|session| self.sessions.get(session)) {
            return reply.clone();
        }
        let encode = |key: &Bytes| {
            let encoded = keys::encode(KEYSPACE, layout(hashed), key);
            assert!(range.contains(&encoded), "the client sent a key to a shard that does not hold it");
            encoded
        };
        let reply = match call {
            Call::Get(request) => {
                Reply::Get(pb::GetResponse { header: None, entry: self.get(&encode(&request.key), &request.key) })
            }
            Call::Put(request) => {
                let commit_timestamp = self.tick();
                self.entries.insert(encode(&request.key), (request.value, commit_timestamp));
                Reply::Put(pb::PutResponse { header: None, commit_timestamp })
            }
            Call::Delete(request) => {
                let commit_timestamp = self.tick();
                let deleted = self.entries.remove(&encode(&request.key)).is_some();
                Reply::Delete(pb::DeleteResponse { header: None, commit_timestamp, deleted })
            }
            Call::CompareAndSet(request) => {
                let condition = request.condition.unwrap();
                let (key, encoded) = (condition.key.clone(), encode(&condition.key));
                if !self.holds(&encoded, &condition) {
                    let current = self.get(&encoded, &key);
                    return Reply::CompareAndSet(pb::CompareAndSetResponse { current, ..Default::default() });
                }
                let commit_timestamp = self.tick();
                match request.new_value {
                    Some(value) => drop(self.entries.insert(encoded, (value, commit_timestamp))),
                    None => drop(self.entries.remove(&encoded)),
                }
                Reply::CompareAndSet(pb::CompareAndSetResponse {
                    succeeded: true,
                    commit_timestamp,
                    ..Default::default()
                })
            }
            Call::BatchGet(request) => {
                let entries = request.keys.iter().filter_map(|key| self.get(&encode(key), key)).collect();
                Reply::BatchGet(pb::BatchGetResponse { header: None, entries })
            }
            Call::BatchWrite(request) => self.batch(request, encode),
            Call::Scan(request) => Reply::Scan(self.scan(hashed, range, &request)),
        };
        if let Some(session) = session {
            self.applied += 1;
            self.sessions.insert(session, reply.clone());
        }
        reply
    }

    fn batch(&mut self, request: pb::BatchWriteRequest, encode: impl Fn(&Bytes) -> Bytes) -> Reply {
        for (position, condition) in request.conditions.iter().enumerate() {
            let encoded = encode(&condition.key);
            if !self.holds(&encoded, condition) {
                return Reply::BatchWrite(pb::BatchWriteResponse {
                    failed_condition: position as u32,
                    current: self.get(&encoded, &condition.key),
                    ..Default::default()
                });
            }
        }
        let commit_timestamp = self.tick();
        let mut deleted = 0;
        for operation in request.operations {
            match operation.operation.unwrap() {
                Operation::Put(put) => drop(self.entries.insert(encode(&put.key), (put.value, commit_timestamp))),
                Operation::Delete(delete) => deleted += u32::from(self.entries.remove(&encode(&delete.key)).is_some()),
            }
        }
        Reply::BatchWrite(pb::BatchWriteResponse { succeeded: true, commit_timestamp, deleted, ..Default::default() })
    }

    fn scan(&self, hashed: bool, range: &KeyRange, request: &pb::ScanRequest) -> pb::ScanResponse {
        assert!((1..=10_000).contains(&request.page_size));
        let from = request.cursor.clone().max(range.start().clone());
        let mut response = pb::ScanResponse::default();
        for (encoded, (value, commit_timestamp)) in self.entries.range(from..) {
            if !range.contains(encoded) {
                break;
            }
            let key = keys::decode(layout(hashed), encoded).unwrap();
            let within = key >= request.start && (request.end.is_empty() || key < request.end);
            if !within || !key.starts_with(&request.prefix) {
                continue;
            }
            if response.entries.len() == request.page_size as usize {
                response.cursor = encoded.clone();
                break;
            }
            let value = if request.keys_only { Bytes::new() } else { value.clone() };
            response.entries.push(pb::KeyValue { key, value, commit_timestamp: *commit_timestamp });
        }
        response
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn get(&self, encoded: &Bytes, key: &Bytes) -> Option<pb::KeyValue> {
        let (value, commit_timestamp) = self.entries.get(encoded)?;
        Some(pb::KeyValue { key: key.clone(), value: value.clone(), commit_timestamp: *commit_timestamp })
    }

    fn holds(&self, encoded: &Bytes, condition: &pb::Condition) -> bool {
        let entry = self.entries.get(encoded);
        match condition.expected.as_ref().unwrap() {
            Expected::Value(value) => entry.is_some_and(|(held, _)| held == value),
            Expected::CommitTimestamp(version) => entry.is_some_and(|(_, written)| written == version),
            Expected::Exists(exists) => entry.is_some() == *exists,
        }
    }
}
