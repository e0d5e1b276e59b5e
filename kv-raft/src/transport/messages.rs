//! Bodies of frames: Raft's messages as bytes.
//!
//! Invariants: what is encoded decodes to the same message, or is refused with a typed error; entries are encoded as
//! the log stores them, checksum and all.
//!
//! Not here: how an entry is encoded (codec); how frames travel (link).

use bincode::{Decode, Encode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};

use crate::codec::{decode_entry, encode_entry};
use crate::types::{LeaderId, LogId, ShardRaft, Vote};

/// Bytes that are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {message}: {reason}")]
pub(crate) struct MessageError {
    message: &'static str,
    reason: String,
}

/// Of the parts that are not entries; far above what they take.
const PART_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Copy, Encode, Decode)]
struct WireVote {
    term: u64,
    replica: u64,
    committed: bool,
}

#[derive(Clone, Copy, Encode, Decode)]
struct WireLogId {
    term: u64,
    replica: u64,
    index: u64,
}

impl From<&Vote> for WireVote {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, replica: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<WireVote> for Vote {
    fn from(vote: WireVote) -> Self {
        if vote.committed { Self::new_committed(vote.term, vote.replica) } else { Self::new(vote.term, vote.replica) }
    }
}

impl From<&LogId> for WireLogId {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, replica: id.leader_id.node_id, index: id.index }
    }
}

impl From<WireLogId> for LogId {
    fn from(id: WireLogId) -> Self {
        Self::new(LeaderId { term: id.term, node_id: id.replica }, id.index)
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<PART_BYTES_MAX>()
}

fn encode_part(part: &impl Encode) -> Bytes {
    Bytes::from(bincode::encode_to_vec(part, config()).expect("a vector takes parts of a fixed size"))
}

fn decode_part<T: Decode<()>>(message: &'static str, bytes: &[u8]) -> Result<(T, usize), MessageError> {
    bincode::decode_from_slice(bytes, config()).map_err(|e| MessageError { message, reason: e.to_string() })
}

fn decode_whole<T: Decode<()>>(message: &'static str, bytes: &[u8]) -> Result<T, MessageError> {
    let (part, read) = decode_part(message, bytes)?;
    if read != bytes.len() {
        return Err(MessageError { message, reason: format!("{} bytes left over", bytes.len() - read) });
    }
    Ok(part)
}

/// Vote, previous log id, commit, number of entries; then each entry behind its length.
pub(super) fn encode_append(request: &AppendEntriesRequest<ShardRaft>) -> Bytes {
    let head = (
        WireVote::from(&request.vote),
        request.prev_log_id.as_ref().map(WireLogId::from),
        request.leader_commit.as_ref().map(WireLogId::from),
        u32::try_from(request.entries.len()).expect("a request is bounded far below u32"),
    );
    let head = encode_part(&head);
    if request.entries.is_empty() {
        return head;
    }
    let mut body = BytesMut::from(head);
    for entry in &request.entries {
        let at = body.len();
        body.put_u32_le(0);
        encode_entry(entry, &mut body);
        let bytes = u32::try_from(body.len() - at - 4).expect("an entry is bounded far below u32");
        if let Some(length) = body.get_mut(at..at + 4) {
            length.copy_from_slice(&bytes.to_le_bytes());
        }
    }
    body.freeze()
}

/// A body up to this size is copied out of the message it came in: its entries stay in memory as recent entries of the
/// log, and would keep the whole message, with the frames of all other shards, for as long.
const COPIED_BYTES_MAX: usize = 128 << 10;

/// Undoes [`encode_append`]; entries share the body's memory.
pub(crate) fn decode_append(mut body: Bytes) -> Result<AppendEntriesRequest<ShardRaft>, MessageError> {
    const MESSAGE: &str = "append request";
    let error = |reason: String| MessageError { message: MESSAGE, reason };
    type Head = (WireVote, Option<WireLogId>, Option<WireLogId>, u32);
    let ((vote, prev, commit, count), read) = decode_part::<Head>(MESSAGE, &body)?;
    body.advance(read);
    if count > 0 && body.len() <= COPIED_BYTES_MAX {
        body = Bytes::copy_from_slice(&body);
    }
    let mut entries = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(body.len()));
    for _ in 0..count {
        let bytes = body.try_get_u32_le().map_err(|e| error(e.to_string()))?;
        let bytes = usize::try_from(bytes).map_err(|e| error(e.to_string()))?;
        if bytes > body.len() {
            return Err(error(format!("an entry of {bytes} bytes, but only {} are there", body.len())));
        }
        entries.push(decode_entry(body.split_to(bytes)).map_err(|e| error(e.to_string()))?);
    }
    if !body.is_empty() {
        return Err(error(format!("{} bytes left over", body.len())));
    }
    Ok(AppendEntriesRequest {
        vote: vote.into(),
        prev_log_id: prev.map(LogId::from),
        entries,
        leader_commit: commit.map(LogId::from),
    })
}

#[derive(Encode, Decode)]
enum WireAppended {
    Success,
    PartialSuccess(Option<WireLogId>),
    Conflict,
    HigherVote(WireVote),
}

pub(crate) fn encode_appended(response: &AppendEntriesResponse<ShardRaft>) -> Bytes {
    encode_part(&match response {
        AppendEntriesResponse::Success => WireAppended::Success,
        AppendEntriesResponse::PartialSuccess(id) => WireAppended::PartialSuccess(id.as_ref().map(WireLogId::from)),
        AppendEntriesResponse::Conflict => WireAppended::Conflict,
        AppendEntriesResponse::HigherVote(vote) => WireAppended::HigherVote(vote.into()),
    })
}

pub(super) fn decode_appended(body: &[u8]) -> Result<AppendEntriesResponse<ShardRaft>, MessageError> {
    Ok(match decode_whole("append response", body)? {
        WireAppended::Success => AppendEntriesResponse::Success,
        WireAppended::PartialSuccess(id) => AppendEntriesResponse::PartialSuccess(id.map(LogId::from)),
        WireAppended::Conflict => AppendEntriesResponse::Conflict,
        WireAppended::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
    })
}

pub(crate) fn encode_vote_request(request: &VoteRequest<ShardRaft>) -> Bytes {
    let last = request.last_log_id.as_ref().map(WireLogId::from);
    encode_part(&(WireVote::from(&request.vote), last, request.leadership_transfer))
}

pub(crate) fn decode_vote_request(body: &[u8]) -> Result<VoteRequest<ShardRaft>, MessageError> {
    let (vote, last, transfer): (WireVote, Option<WireLogId>, bool) = decode_whole("vote request", body)?;
    let mut request = VoteRequest::new(vote.into(), last.map(LogId::from));
    request.leadership_transfer = transfer;
    Ok(request)
}

pub(crate) fn encode_vote_response(response: &VoteResponse<ShardRaft>) -> Bytes {
    let last = response.last_log_id.as_ref().map(WireLogId::from);
    encode_part(&(WireVote::from(&response.vote), response.vote_granted, last))
}

pub(crate) fn decode_vote_response(body: &[u8]) -> Result<VoteResponse<ShardRaft>, MessageError> {
    let (vote, granted, last): (WireVote, bool, Option<WireLogId>) = decode_whole("vote response", body)?;
    Ok(VoteResponse { vote: vote.into(), vote_granted: granted, last_log_id: last.map(LogId::from) })
}

pub(super) fn encode_transfer(request: &TransferLeaderRequest<ShardRaft>) -> Bytes {
    let last = request.last_log_id().map(WireLogId::from);
    encode_part(&(WireVote::from(request.from_leader()), *request.to_node_id(), last))
}

pub(crate) fn decode_transfer(body: &[u8]) -> Result<TransferLeaderRequest<ShardRaft>, MessageError> {
    let (from, to, last): (WireVote, u64, Option<WireLogId>) = decode_whole("leader transfer", body)?;
    Ok(TransferLeaderRequest::new(from.into(), to, last.map(LogId::from)))
}

#[derive(Encode, Decode)]
enum WireTransferred {
    Accepted,
    VoteChanged { expected: WireVote, actual: WireVote },
    LogNotFlushed { expected: Option<WireLogId>, actual: Option<WireLogId> },
}

pub(crate) fn encode_transferred(response: &TransferLeaderResponse<ShardRaft>) -> Bytes {
    encode_part(&match response {
        Ok(()) => WireTransferred::Accepted,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            WireTransferred::VoteChanged { expected: expected.into(), actual: actual.into() }
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => WireTransferred::LogNotFlushed {
            expected: expected.as_ref().map(WireLogId::from),
            actual: actual.as_ref().map(WireLogId::from),
        },
    })
}

pub(super) fn decode_transferred(body: &[u8]) -> Result<TransferLeaderResponse<ShardRaft>, MessageError> {
    Ok(match decode_whole("leader transfer response", body)? {
        WireTransferred::Accepted => Ok(()),
        WireTransferred::VoteChanged { expected, actual } => {
            Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
        }
        WireTransferred::LogNotFlushed { expected, actual } => Err(TransferLeaderError::LogNotFlushed {
            expected: expected.map(LogId::from),
            actual: actual.map(LogId::from),
        }),
    })
}

/// A leader's proposal to sleep: who leads, and where its log ends, all of it committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hibernate {
    pub(crate) vote: Vote,
    pub(crate) last: Option<LogId>,
}

pub(crate) fn encode_hibernate(proposal: &Hibernate) -> Bytes {
    encode_part(&(WireVote::from(&proposal.vote), proposal.last.as_ref().map(WireLogId::from)))
}

pub(crate) fn decode_hibernate(body: &[u8]) -> Result<Hibernate, MessageError> {
    let (vote, last): (WireVote, Option<WireLogId>) = decode_whole("hibernation", body)?;
    Ok(Hibernate { vote: vote.into(), last: last.map(LogId::from) })
}

/// A replica's checksum as of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Checked {
    pub(crate) index: u64,
    pub(crate) digest: u64,
}

pub(crate) fn encode_checked(checked: Checked) -> Bytes {
    encode_part(&checked)
}

pub(crate) fn decode_checked(body: &[u8]) -> Result<Checked, MessageError> {
    decode_whole("checksum report", body)
}

/// An index up to which a follower may read.
pub(crate) fn encode_index(index: u64) -> Bytes {
    encode_part(&index)
}

pub(crate) fn decode_index(body: &[u8]) -> Result<u64, MessageError> {
    decode_whole("read index", body)
}

/// Whether the one that was asked agrees: to sleep, or that it still votes for the leader that asks.
pub(crate) fn encode_agreement(agreed: bool) -> Bytes {
    encode_part(&agreed)
}

pub(crate) fn decode_agreement(body: &[u8]) -> Result<bool, MessageError> {
    decode_whole("yes or no", body)
}

/// A vote: in a snapshot's header the sender's, in a question the one that is asked about.
pub(crate) fn encode_vote_alone(vote: &Vote) -> Bytes {
    encode_part(&WireVote::from(vote))
}

pub(crate) fn decode_vote_alone(body: &[u8]) -> Result<Vote, MessageError> {
    Ok(Vote::from(decode_whole::<WireVote>("vote", body)?))
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use proptest::prelude::*;

    use super::*;
    use crate::command::CommandBatch;
    use crate::types::Entry;

    fn votes() -> impl Strategy<Value = Vote> {
        (any::<u64>(), any::<u64>(), any::<bool>())
            .prop_map(|(term, replica, committed)| Vote::from(WireVote { term, replica, committed }))
    }

    fn log_ids() -> impl Strategy<Value = LogId> {
        (any::<u64>(), any::<u64>(), any::<u64>())
            .prop_map(|(term, replica, index)| LogId::from(WireLogId { term, replica, index }))
    }

    fn entries() -> impl Strategy<Value = Entry> {
        (log_ids(), proptest::option::of(proptest::collection::vec(any::<u8>(), 0..64))).prop_map(|(log_id, bytes)| {
            let payload = match bytes {
                None => EntryPayload::Blank,
                Some(bytes) => EntryPayload::Normal(CommandBatch::from_trusted_bytes(bytes.into())),
            };
            Entry { log_id, payload }
        })
    }

    proptest! {
        #[test]
        fn an_append_request_survives_the_wire(
            vote in votes(),
            prev_log_id in proptest::option::of(log_ids()),
            leader_commit in proptest::option::of(log_ids()),
            entries in proptest::collection::vec(entries(), 0..5),
        ) {
            let sent = AppendEntriesRequest::<ShardRaft> { vote, prev_log_id, entries, leader_commit };
            let got = decode_append(encode_append(&sent)).unwrap();
            prop_assert_eq!(format!("{sent:?}"), format!("{got:?}"));
        }

        #[test]
        fn votes_and_transfers_survive_the_wire(
            vote in votes(),
            last in proptest::option::of(log_ids()),
            flag in any::<bool>(),
            to in any::<u64>(),
        ) {
            let mut request = VoteRequest::<ShardRaft>::new(vote, last);
            request.leadership_transfer = flag;
            prop_assert_eq!(&decode_vote_request(&encode_vote_request(&request)).unwrap(), &request);
            let response = VoteResponse::<ShardRaft>::new(vote, last, flag);
            prop_assert_eq!(&decode_vote_response(&encode_vote_response(&response)).unwrap(), &response);
            let transfer = TransferLeaderRequest::<ShardRaft>::new(vote, to, last);
            prop_assert_eq!(&decode_transfer(&encode_transfer(&transfer)).unwrap(), &transfer);
            let sleep = Hibernate { vote, last };
            prop_assert_eq!(&decode_hibernate(&encode_hibernate(&sleep)).unwrap(), &sleep);
        }

        #[test]
        fn bytes_that_are_no_message_are_refused_not_fatal(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_append(Bytes::from(bytes.clone()));
            let _ = decode_appended(&bytes);
            let _ = decode_vote_request(&bytes);
            let _ = decode_vote_response(&bytes);
            let _ = decode_transfer(&bytes);
            let _ = decode_transferred(&bytes);
            let _ = decode_hibernate(&bytes);
            let _ = decode_vote_alone(&bytes);
        }
    }

    #[test]
    fn every_append_answer_survives_the_wire() {
        let id = LogId::from(WireLogId { term: 3, replica: 2, index: 9 });
        for answer in [
            AppendEntriesResponse::<ShardRaft>::Success,
            AppendEntriesResponse::PartialSuccess(Some(id)),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(Vote::new(4, 1)),
        ] {
            assert_eq!(decode_appended(&encode_appended(&answer)).unwrap(), answer);
        }
        for answer in [
            Ok(()),
            Err(TransferLeaderError::VoteChanged { expected: Vote::new(1, 1), actual: Vote::new_committed(2, 2) }),
            Err(TransferLeaderError::LogNotFlushed { expected: Some(id), actual: None }),
        ] {
            assert_eq!(decode_transferred(&encode_transferred(&answer)).unwrap(), answer);
        }
    }
}
