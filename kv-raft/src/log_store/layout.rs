//! Keys and records of the log database.
//!
//! Invariants: keys sort by shard, then by index; every value starts with a CRC32C of the rest.
//!
//! Not here: the bytes of entries, log ids and votes (codec).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_proto::ids::{ReplicaId, ShardId};

use crate::codec::{self, CodecError};
use crate::types::{LogId, Vote};

/// Format of the folder; another number does not open. Changing it takes an ADR and a migration.
pub(super) const FORMAT: u32 = 1;
/// Key of the format record, in the default column family.
pub(super) const FORMAT_KEY: &[u8] = b"format";
/// Column family of entries.
pub(super) const LOG: &str = "log";
/// Column family of votes and pointers.
pub(super) const STATE: &str = "state";

/// What the `state` column family holds of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Item {
    /// The replica the log belongs to.
    Owner = 1,
    /// The vote.
    Vote = 2,
    /// The last log id known committed.
    Committed = 3,
    /// The last log id purged.
    Purged = 4,
    /// The last entry's log id, or the purged one: written with every change of the log's end, so that a log that
    /// lost its end is noticed.
    Tail = 5,
}

impl Item {
    fn of(byte: u8) -> Option<Self> {
        [Self::Owner, Self::Vote, Self::Committed, Self::Purged, Self::Tail]
            .into_iter()
            .find(|item| *item as u8 == byte)
    }
}

/// Key of an entry.
pub(super) fn log_key(shard: ShardId, index: u64) -> [u8; 16] {
    (u128::from(shard.0) << 64 | u128::from(index)).to_be_bytes()
}

/// The shard and index of an entry's key.
pub(super) fn parse_log_key(key: &[u8]) -> Option<(ShardId, u64)> {
    let key = u128::from_be_bytes(key.try_into().ok()?);
    Some((ShardId(u64::try_from(key >> 64).ok()?), u64::try_from(key & u128::from(u64::MAX)).ok()?))
}

/// Past the last key a shard's entries can have.
pub(super) fn log_end(shard: ShardId) -> Vec<u8> {
    let mut end = log_key(shard, u64::MAX).to_vec();
    end.push(0);
    end
}

/// Key of a state record.
pub(super) fn state_key(shard: ShardId, item: Item) -> [u8; 9] {
    let mut key = [0; 9];
    let (id, kind) = key.split_at_mut(8);
    id.copy_from_slice(&shard.0.to_be_bytes());
    kind.fill(item as u8);
    key
}

/// The shard and item of a state record's key.
pub(super) fn parse_state_key(key: &[u8]) -> Option<(ShardId, Item)> {
    let (shard, item) = key.split_first_chunk::<8>()?;
    let [item] = item else { return None };
    Some((ShardId(u64::from_be_bytes(*shard)), Item::of(*item)?))
}

/// A state record's value, with its checksum.
fn sealed(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(32);
    out.put_u32(0);
    write(&mut out);
    codec::seal(&mut out, 0);
    out.freeze()
}

pub(super) fn encode_format() -> Bytes {
    sealed(|out| out.put_u32(FORMAT))
}

pub(super) fn decode_format(bytes: Bytes) -> Result<u32, CodecError> {
    let mut body = codec::unseal(bytes)?;
    body.try_get_u32().map_err(|_| CodecError::Short("format"))
}

pub(super) fn encode_owner(replica: ReplicaId) -> Bytes {
    sealed(|out| out.put_u64(replica.0))
}

pub(super) fn decode_owner(bytes: Bytes) -> Result<ReplicaId, CodecError> {
    let mut body = codec::unseal(bytes)?;
    let replica = body.try_get_u64().map_err(|_| CodecError::Short("replica"))?;
    codec::finished(&body).map(|()| ReplicaId(replica))
}

pub(super) fn encode_vote(vote: &Vote) -> Bytes {
    sealed(|out| codec::encode_vote(vote, out))
}

pub(super) fn decode_vote(bytes: Bytes) -> Result<Vote, CodecError> {
    let mut body = codec::unseal(bytes)?;
    let vote = codec::decode_vote(&mut body)?;
    codec::finished(&body).map(|()| vote)
}

pub(super) fn encode_pointer(log_id: Option<&LogId>) -> Bytes {
    sealed(|out| codec::encode_optional_log_id(log_id, out))
}

pub(super) fn decode_pointer(bytes: Bytes) -> Result<Option<LogId>, CodecError> {
    let mut body = codec::unseal(bytes)?;
    let log_id = codec::decode_optional_log_id(&mut body)?;
    codec::finished(&body).map(|()| log_id)
}
