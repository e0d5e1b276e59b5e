//! What the values of the tables hold.
//!
//! - latest: commit timestamp (8), flags (1), value; history: the same with the version's start
//! - changes: for each key its length (4), then the key
//! - meta: bincode of the rows below
//!
//! Invariants: a row decodes to what was encoded, or the folder is damaged.
//!
//! Not here: keys (keys); what a session remembers (state machine, session).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bincode::{Decode, Encode};
use bytes::Bytes;
use kv_proto::ids::{ExtentId, ReplicaId};
use kv_proto::key_range::KeyRange;
use kv_proto::timestamp::Timestamp;

use super::error::DataError;
use super::session_clock::SessionClock;
use crate::clock::millis;
use crate::command::Versioned;
use crate::types::{LeaderId, LogId, Member, Membership, StoredMembership};

/// No flag is in use yet; a value with one is of a later format.
const FLAGS: u8 = 0;
const VERSION_BYTES: usize = 9;

/// A version's header and value.
pub(crate) fn version(commit: Timestamp, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(version_bytes(value));
    write_version(&mut out, commit, value);
    out
}

pub(crate) fn version_bytes(value: &[u8]) -> usize {
    VERSION_BYTES + value.len()
}

pub(crate) fn write_version(out: &mut Vec<u8>, commit: Timestamp, value: &[u8]) {
    out.extend_from_slice(&commit.0.to_be_bytes());
    out.push(FLAGS);
    out.extend_from_slice(value);
}

/// The commit timestamp and the value.
pub(crate) fn read_version(bytes: &[u8]) -> Result<(Timestamp, &[u8]), DataError> {
    let (header, value) = bytes.split_at_checked(VERSION_BYTES).ok_or_else(|| damaged("version"))?;
    let (commit, flags) = header.split_first_chunk::<8>().ok_or_else(|| damaged("version"))?;
    if flags != [FLAGS] {
        return Err(damaged("flags of a version"));
    }
    Ok((Timestamp(u64::from_be_bytes(*commit)), value))
}

pub(crate) fn to_versioned(bytes: &[u8]) -> Result<Versioned, DataError> {
    let (commit, value) = read_version(bytes)?;
    Ok(Versioned { commit, value: Bytes::copy_from_slice(value) })
}

/// As [`to_versioned`], without a copy of the value.
pub(crate) fn to_shared(row: Bytes) -> Result<Versioned, DataError> {
    let (commit, _) = read_version(&row)?;
    Ok(Versioned { commit, value: row.slice(VERSION_BYTES..) })
}

/// Appends a key to the keys of one commit.
pub(crate) fn write_changed_key(out: &mut Vec<u8>, key: &[u8]) {
    let length = u32::try_from(key.len()).expect("a key is bounded far below u32");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(key);
}

pub(crate) fn damaged(what: &str) -> DataError {
    DataError::Failed(format!("a {what} does not decode: the data folder is damaged"))
}

pub(crate) fn encode<T: Encode>(row: &T) -> Vec<u8> {
    bincode::encode_to_vec(row, bincode::config::standard()).expect("a vector takes any row")
}

pub(crate) fn decode<T: Decode<()>>(bytes: &[u8], what: &str) -> Result<T, DataError> {
    match bincode::decode_from_slice(bytes, bincode::config::standard()) {
        Ok((row, read)) if read == bytes.len() => Ok(row),
        Ok(_) | Err(_) => Err(damaged(what)),
    }
}

/// What never changes while a replica's data stays where it is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RecordRow {
    pub(crate) replica: u64,
    pub(crate) extent: u64,
    pub(crate) start: Vec<u8>,
    pub(crate) end: Vec<u8>,
    pub(crate) retention_ms: u64,
}

impl RecordRow {
    pub(crate) fn new(replica: ReplicaId, extent: ExtentId, range: &KeyRange, retention: Duration) -> Self {
        Self {
            replica: replica.0,
            extent: extent.0,
            start: range.start().to_vec(),
            end: range.end().to_vec(),
            retention_ms: millis(retention),
        }
    }

    pub(crate) fn range(&self) -> Result<KeyRange, DataError> {
        KeyRange::new(self.start.clone(), self.end.clone()).ok_or_else(|| damaged("key range"))
    }
}

/// Term, replica and index of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LogIdRow(u64, u64, u64);

impl From<LogId> for LogIdRow {
    fn from(id: LogId) -> Self {
        Self(id.leader_id.term, id.leader_id.node_id, id.index)
    }
}

impl From<LogIdRow> for LogId {
    fn from(LogIdRow(term, node_id, index): LogIdRow) -> Self {
        Self { leader_id: LeaderId { term, node_id }, index }
    }
}

/// What every chunk of applied entries writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct AppliedRow {
    pub(crate) applied: Option<LogIdRow>,
    pub(crate) last_commit: Timestamp,
    pub(crate) safepoint: Timestamp,
    pub(crate) session_clock: SessionClock,
}

/// The membership last applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MembershipRow {
    log_id: Option<LogIdRow>,
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, u64>,
}

impl From<&StoredMembership> for MembershipRow {
    fn from(stored: &StoredMembership) -> Self {
        Self {
            log_id: stored.log_id().map(LogIdRow::from),
            configs: stored.membership().get_joint_config().clone(),
            nodes: stored.nodes().map(|(replica, member)| (*replica, member.node)).collect(),
        }
    }
}

impl MembershipRow {
    pub(crate) fn restore(self) -> Result<StoredMembership, DataError> {
        if self.configs.is_empty() {
            return Ok(StoredMembership::default());
        }
        let nodes: BTreeMap<u64, Member> = self.nodes.into_iter().map(|(id, node)| (id, Member { node })).collect();
        let membership = Membership::new(self.configs, nodes).map_err(|_| damaged("membership"))?;
        Ok(StoredMembership::new(self.log_id.map(LogId::from), membership))
    }
}

/// What a snapshot says of itself, beside its data.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SummaryRow {
    pub(crate) state: AppliedRow,
    pub(crate) membership: MembershipRow,
    pub(crate) start: Vec<u8>,
    pub(crate) end: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_membership_with_learners_is_restored_as_it_was() {
        let nodes: BTreeMap<u64, Member> = (1..=4).map(|id| (id, Member { node: id + 10 })).collect();
        let membership = Membership::new(vec![[1, 2].into(), [2, 3].into()], nodes).unwrap();
        let log_id = LogId { leader_id: LeaderId { term: 3, node_id: 2 }, index: 9 };
        let stored = StoredMembership::new(Some(log_id), membership);
        let bytes = encode(&MembershipRow::from(&stored));
        assert_eq!(decode::<MembershipRow>(&bytes, "membership").unwrap().restore().unwrap(), stored);
        let none = encode(&MembershipRow::from(&StoredMembership::default()));
        assert_eq!(
            decode::<MembershipRow>(&none, "membership").unwrap().restore().unwrap(),
            StoredMembership::default()
        );
    }

    #[test]
    fn a_row_cut_short_or_with_bytes_left_over_is_refused() {
        let mut session_clock = SessionClock::default();
        session_clock.advance(Timestamp(70_000));
        let row = AppliedRow { applied: None, last_commit: Timestamp(70_000), safepoint: Timestamp(1), session_clock };
        let mut bytes = encode(&row);
        assert_eq!(decode::<AppliedRow>(&bytes, "row").unwrap(), row);
        bytes.push(0);
        assert!(decode::<AppliedRow>(&bytes, "row").is_err());
        bytes.truncate(2);
        assert!(decode::<AppliedRow>(&bytes, "row").is_err());
        assert!(read_version(&[0; 8]).is_err());
        assert!(read_version(&[1; 9]).is_err());
    }
}
