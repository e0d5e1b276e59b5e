//! Bytes of what consensus stores and sends: log entries, log ids, votes and memberships.
//!
//! All integers are big endian. An entry is a CRC32C over the rest, its log id, one kind byte and the payload; the
//! payload of a command batch is the batch's own bytes, so decoding an entry copies nothing. The same bytes go to the
//! log and to followers, so one checksum covers an entry from the leader's memory to every disk that holds it.
//!
//! Invariants: what is encoded decodes to an equal value; bytes of any other origin are refused, never a panic; a
//! single flipped bit of an encoded entry is always refused.
//!
//! Not here: what a command batch holds (command); the keys of the log (log_store, record).

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use openraft::EntryPayload;

use crate::command::CommandBatch;
use crate::types::{Entry, LeaderId, LogId, Member, Membership, StoredMembership, Vote};

/// Payload kinds: the byte after the log id. Numbers are never reused.
const KIND_BLANK: u8 = 0;
const KIND_NORMAL: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// Bytes of the checksum before an entry.
const CHECKSUM_BYTES: usize = 4;
/// Bytes of an encoded log id: term, replica, index.
const LOG_ID_BYTES: usize = 24;
/// Bytes of an entry before its payload.
const ENTRY_HEADER_BYTES: usize = CHECKSUM_BYTES + LOG_ID_BYTES + 1;

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They end too early.
    #[error("the bytes end inside the {0}")]
    Short(&'static str),
    /// Their checksum is another.
    #[error("checksum is {actual:08x}, recorded was {recorded:08x}")]
    Checksum {
        /// Of the bytes as they are.
        actual: u32,
        /// As it was written.
        recorded: u32,
    },
    /// A kind or flag byte that no version writes.
    #[error("{value} is no {what}")]
    Unknown {
        /// What the byte stands for.
        what: &'static str,
        /// The byte.
        value: u8,
    },
    /// Bytes follow the value.
    #[error("{0} bytes are left over")]
    LeftOver(usize),
    /// A set of voters is empty, or a voter has no node.
    #[error("the membership contradicts itself")]
    Membership,
}

/// How many bytes [`encode_entry`] appends, exactly for command batches.
#[must_use]
pub fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_HEADER_BYTES
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(batch) => batch.as_bytes().len(),
            EntryPayload::Membership(membership) => membership_bytes(membership),
        }
}

/// Appends an entry with its checksum.
pub fn encode_entry(entry: &Entry, out: &mut BytesMut) {
    out.reserve(entry_bytes(entry));
    let start = out.len();
    out.put_u32(0);
    encode_log_id(&entry.log_id, out);
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(KIND_BLANK),
        EntryPayload::Normal(batch) => {
            out.put_u8(KIND_NORMAL);
            out.put_slice(batch.as_bytes());
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(KIND_MEMBERSHIP);
            encode_membership(membership, out);
        }
    }
    seal(out, start);
}

/// Decodes exactly one entry; the commands of a batch stay encoded and share the given bytes.
pub fn decode_entry(bytes: Bytes) -> Result<Entry, CodecError> {
    let mut body = unseal(bytes)?;
    let log_id = decode_log_id(&mut body)?;
    let payload = match body.try_get_u8().map_err(|_| CodecError::Short("payload kind"))? {
        KIND_BLANK => EntryPayload::Blank,
        KIND_NORMAL => EntryPayload::Normal(CommandBatch::from_trusted_bytes(body.split_to(body.len()))),
        KIND_MEMBERSHIP => EntryPayload::Membership(decode_membership(&mut body)?),
        value => return Err(CodecError::Unknown { what: "payload kind", value }),
    };
    finished(&body)?;
    Ok(Entry { log_id, payload })
}

/// Writes the checksum of what follows `start + 4` into the four bytes at `start`.
pub(crate) fn seal(out: &mut BytesMut, start: usize) {
    if let Some((checksum, body)) =
        out.get_mut(start..).and_then(|sealed| sealed.split_first_chunk_mut::<CHECKSUM_BYTES>())
    {
        *checksum = crc32c::crc32c(body).to_be_bytes();
    }
}

/// Verifies and removes the checksum in front.
pub(crate) fn unseal(mut bytes: Bytes) -> Result<Bytes, CodecError> {
    let recorded = bytes.try_get_u32().map_err(|_| CodecError::Short("checksum"))?;
    let actual = crc32c::crc32c(&bytes);
    if actual == recorded { Ok(bytes) } else { Err(CodecError::Checksum { actual, recorded }) }
}

/// Refuses bytes after the value.
pub(crate) fn finished(rest: &Bytes) -> Result<(), CodecError> {
    if rest.is_empty() { Ok(()) } else { Err(CodecError::LeftOver(rest.len())) }
}

/// Appends a log id: term, replica, index.
pub fn encode_log_id(log_id: &LogId, out: &mut BytesMut) {
    out.put_u64(log_id.leader_id.term);
    out.put_u64(log_id.leader_id.node_id);
    out.put_u64(log_id.index);
}

/// Takes a log id off the front.
pub fn decode_log_id(bytes: &mut Bytes) -> Result<LogId, CodecError> {
    let leader_id = decode_leader_id(bytes)?;
    let index = bytes.try_get_u64().map_err(short("log id"))?;
    Ok(LogId { leader_id, index })
}

/// Appends a log id or its absence.
pub fn encode_optional_log_id(log_id: Option<&LogId>, out: &mut BytesMut) {
    out.put_u8(u8::from(log_id.is_some()));
    if let Some(log_id) = log_id {
        encode_log_id(log_id, out);
    }
}

/// Takes a log id or its absence off the front.
pub fn decode_optional_log_id(bytes: &mut Bytes) -> Result<Option<LogId>, CodecError> {
    decode_flag(bytes, "log id flag")?.then(|| decode_log_id(bytes)).transpose()
}

/// Appends a vote: term, replica, whether a quorum granted it.
pub fn encode_vote(vote: &Vote, out: &mut BytesMut) {
    out.put_u64(vote.leader_id.term);
    out.put_u64(vote.leader_id.node_id);
    out.put_u8(u8::from(vote.committed));
}

/// Takes a vote off the front.
pub fn decode_vote(bytes: &mut Bytes) -> Result<Vote, CodecError> {
    let leader_id = decode_leader_id(bytes)?;
    let committed = decode_flag(bytes, "vote flag")?;
    Ok(Vote { leader_id, committed })
}

/// Appends a membership: its sets of voters, then every member with its node.
pub fn encode_membership(membership: &Membership, out: &mut BytesMut) {
    let configs = membership.get_joint_config();
    out.put_u32(count(configs.len()));
    for config in configs {
        out.put_u32(count(config.len()));
        for replica in config {
            out.put_u64(*replica);
        }
    }
    out.put_u32(count(membership.nodes().count()));
    for (replica, member) in membership.nodes() {
        out.put_u64(*replica);
        out.put_u64(member.node);
    }
}

/// Takes a membership off the front; refuses one whose voters have no node.
pub fn decode_membership(bytes: &mut Bytes) -> Result<Membership, CodecError> {
    let mut configs = Vec::new();
    for _ in 0..decode_count(bytes)? {
        let mut config = BTreeSet::new();
        for _ in 0..decode_count(bytes)? {
            config.insert(bytes.try_get_u64().map_err(short("voters"))?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..decode_count(bytes)? {
        let replica = bytes.try_get_u64().map_err(short("members"))?;
        let node = bytes.try_get_u64().map_err(short("members"))?;
        nodes.insert(replica, Member { node });
    }
    Membership::new(configs, nodes).map_err(|_| CodecError::Membership)
}

/// Appends a membership with the log id of the entry that made it.
pub fn encode_stored_membership(stored: &StoredMembership, out: &mut BytesMut) {
    encode_optional_log_id(stored.log_id().as_ref(), out);
    encode_membership(stored.membership(), out);
}

/// Takes a membership with its log id off the front.
pub fn decode_stored_membership(bytes: &mut Bytes) -> Result<StoredMembership, CodecError> {
    let log_id = decode_optional_log_id(bytes)?;
    Ok(StoredMembership::new(log_id, decode_membership(bytes)?))
}

fn membership_bytes(membership: &Membership) -> usize {
    let voters: usize = membership.get_joint_config().iter().map(|config| 4 + 8 * config.len()).sum();
    8 + voters + 16 * membership.nodes().count()
}

fn decode_leader_id(bytes: &mut Bytes) -> Result<LeaderId, CodecError> {
    let term = bytes.try_get_u64().map_err(short("leader id"))?;
    let node_id = bytes.try_get_u64().map_err(short("leader id"))?;
    Ok(LeaderId { term, node_id })
}

fn decode_flag(bytes: &mut Bytes, what: &'static str) -> Result<bool, CodecError> {
    match bytes.try_get_u8().map_err(short(what))? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(CodecError::Unknown { what, value }),
    }
}

fn decode_count(bytes: &mut Bytes) -> Result<u32, CodecError> {
    bytes.try_get_u32().map_err(short("count"))
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("a membership has far fewer members than u32 counts")
}

fn short(what: &'static str) -> impl Fn(TryGetError) -> CodecError {
    move |_| CodecError::Short(what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::command::{Command, EncodedCommand, Operation};
    use kv_proto::timestamp::Timestamp;

    fn log_ids() -> impl Strategy<Value = LogId> {
        (any::<u64>(), any::<u64>(), any::<u64>())
            .prop_map(|(term, node_id, index)| LogId { leader_id: LeaderId { term, node_id }, index })
    }

    fn memberships() -> impl Strategy<Value = Membership> {
        let ids = || proptest::collection::btree_set(any::<u64>(), 1..6);
        (proptest::collection::vec(ids(), 0..3), proptest::collection::btree_map(any::<u64>(), any::<u64>(), 0..6))
            .prop_map(|(configs, learners)| {
                let mut nodes: BTreeMap<u64, Member> =
                    learners.into_iter().map(|(id, node)| (id, Member { node })).collect();
                for id in configs.iter().flatten() {
                    nodes.entry(*id).or_insert(Member { node: id.rotate_left(7) });
                }
                Membership::new(configs, nodes).unwrap()
            })
    }

    fn payloads() -> impl Strategy<Value = EntryPayload<CommandBatch, u64, Member>> {
        let batches = (any::<u64>(), proptest::collection::vec((any::<[u8; 3]>(), any::<Vec<u8>>()), 0..4)).prop_map(
            |(stamp, writes)| {
                let commands: Vec<_> = writes
                    .iter()
                    .map(|(key, value)| {
                        EncodedCommand::new(&Command {
                            session: None,
                            conditions: Vec::new(),
                            operations: vec![Operation::Put { key, value }],
                        })
                    })
                    .collect();
                CommandBatch::new(Timestamp(stamp), &commands)
            },
        );
        prop_oneof![
            Just(EntryPayload::Blank),
            batches.prop_map(EntryPayload::Normal),
            memberships().prop_map(EntryPayload::Membership),
        ]
    }

    fn entries() -> impl Strategy<Value = Entry> {
        (log_ids(), payloads()).prop_map(|(log_id, payload)| Entry { log_id, payload })
    }

    fn encoded(entry: &Entry) -> Bytes {
        let mut out = BytesMut::new();
        encode_entry(entry, &mut out);
        out.freeze()
    }

    proptest! {
        #[test]
        fn an_entry_decodes_to_what_was_encoded_and_its_size_was_foretold(entry in entries()) {
            let bytes = encoded(&entry);
            prop_assert_eq!(bytes.len(), entry_bytes(&entry));
            prop_assert_eq!(decode_entry(bytes).unwrap(), entry);
        }

        #[test]
        fn a_flipped_bit_of_an_entry_is_refused(entry in entries(), at in any::<proptest::sample::Index>(), bit in 0_u8..8) {
            let mut bytes = encoded(&entry).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_entry(Bytes::from(bytes)).is_err());
        }

        #[test]
        fn a_cut_entry_is_refused(entry in entries(), at in any::<proptest::sample::Index>()) {
            let bytes = encoded(&entry);
            let cut = bytes.slice(..at.index(bytes.len()));
            prop_assert!(decode_entry(cut).is_err());
        }

        #[test]
        fn votes_log_ids_and_memberships_decode_to_what_was_encoded(
            log_id in proptest::option::of(log_ids()), committed in any::<bool>(), membership in memberships()
        ) {
            let mut out = BytesMut::new();
            let stored = StoredMembership::new(log_id, membership);
            encode_stored_membership(&stored, &mut out);
            let vote = log_id.map(|log_id| Vote { leader_id: log_id.leader_id, committed });
            if let Some(vote) = &vote {
                encode_vote(vote, &mut out);
            }
            let mut bytes = out.freeze();
            prop_assert_eq!(decode_stored_membership(&mut bytes).unwrap(), stored);
            if let Some(vote) = vote {
                prop_assert_eq!(decode_vote(&mut bytes).unwrap(), vote);
            }
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn bytes_of_any_origin_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), sealed in any::<bool>()) {
            let mut out = BytesMut::new();
            if sealed {
                out.put_u32(0);
            }
            out.put_slice(&bytes);
            if sealed {
                seal(&mut out, 0);
            }
            let _ = decode_entry(out.freeze());
            let _ = decode_vote(&mut Bytes::from(bytes.clone()));
            let _ = decode_optional_log_id(&mut Bytes::from(bytes.clone()));
            let _ = decode_stored_membership(&mut Bytes::from(bytes.clone()));
            let _ = decode_membership(&mut Bytes::from(bytes));
        }
    }
}
