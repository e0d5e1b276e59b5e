//! What a segment file holds: a header, and records of what was done to shards, each beginning at a block.
//!
//! ```text
//! block 0:  CRC32C (4), magic (8), format (4), number of the segment (8), sequence of its first record (8), salt (4)
//! records:  CRC32C (4), length of what follows the header (4), sequence (8), operations; zeros to the end of the block
//! ```
//!
//! The first record of a segment says what every shard's pointers are, so that nothing before it is needed but entries.
//! The checksum of a record is seeded with the salt, which is drawn when the segment begins: what a file held before it
//! was used again, or bytes of a caller's value that look like a record, are none of this segment.
//!
//! Invariants: sequences ascend by one from record to record, through all segments; integers are big endian.
//!
//! Not here: the bytes of entries, log ids and votes (codec); what operations mean (kept).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_proto::ids::{ReplicaId, ShardId};

use super::queue::Action;
use crate::codec::{self, CodecError};
use crate::failpoint;
use crate::types::{Entry, LogId, Vote};

/// Format of the folder; another number does not open. Changing it takes an ADR and a migration.
pub(super) const FORMAT: u32 = 2;
/// What is written at once begins and ends at multiples of it: no block that was acknowledged is ever written again, and
/// the page cache can be passed by.
pub(super) const BLOCK_BYTES: usize = 4096;
/// No record is larger: one batch of changes is far smaller, and a length beyond it is rot.
pub(super) const BYTES_MAX: usize = 256 << 20;
/// What a record takes beside its operations.
pub(super) const RECORD_HEADER_BYTES: usize = 16;

const MAGIC: &[u8; 8] = b"kv-log\r\n";
const HEADER_BYTES: usize = 36;
const MAGIC_END: usize = 12;

const ENTRIES: u8 = 1;
const MOVED: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const VOTE: u8 = 5;
const COMMITTED: u8 = 6;
const OWNER: u8 = 7;
const DESTROY: u8 = 8;
const POINTERS: u8 = 9;

/// The smallest multiple of a block that holds so many bytes.
pub(super) fn blocks(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// The first block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Number of the segment.
    pub(super) number: u64,
    /// Sequence of its first record.
    pub(super) first: u64,
    /// Seeds the checksums of its records.
    pub(super) salt: u32,
}

/// What the first block of a file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FirstBlock {
    /// A whole header of this format.
    Header(Header),
    /// A segment of another format.
    Format(u32),
    /// Neither.
    Damaged,
}

impl Header {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(0);
        out.put_slice(MAGIC);
        out.put_u32(FORMAT);
        out.put_u64(self.number);
        out.put_u64(self.first);
        out.put_u32(self.salt);
        codec::seal(out, start);
    }
}

impl FirstBlock {
    pub(super) fn of(block: &Bytes) -> Self {
        if block.len() < HEADER_BYTES || block.get(4..MAGIC_END) != Some(MAGIC) {
            return Self::Damaged;
        }
        let format = block.slice(MAGIC_END..).get_u32();
        if format != FORMAT {
            return Self::Format(format);
        }
        let Ok(mut body) = codec::unseal(block.slice(..HEADER_BYTES)) else { return Self::Damaged };
        body.advance(MAGIC.len() + 4);
        Self::Header(Header { number: body.get_u64(), first: body.get_u64(), salt: body.get_u32() })
    }
}

fn checksum(salt: u32, sealed: &[u8]) -> u32 {
    crc32c::crc32c_append(salt, sealed)
}

/// Fills the header in front of a record's operations.
pub(super) fn seal(record: &mut [u8], sequence: u64, salt: u32) {
    let length = u32::try_from(record.len().saturating_sub(RECORD_HEADER_BYTES)).unwrap_or(u32::MAX);
    if let Some((sum, sealed)) = record.split_first_chunk_mut::<4>() {
        if let Some((header, _)) = sealed.split_first_chunk_mut::<12>() {
            *header = (u128::from(length) << 64 | u128::from(sequence))
                .to_be_bytes()
                .split_last_chunk()
                .map_or(*header, |(_, last)| *last);
        }
        *sum = checksum(salt, sealed).to_be_bytes();
    }
}

/// A whole record.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) sequence: u64,
    /// Its operations.
    pub(super) operations: Bytes,
}

/// Length of the operations and sequence that a record's first bytes claim.
pub(super) fn claimed(header: &[u8]) -> Option<(usize, u64)> {
    let mut header = header.get(4..RECORD_HEADER_BYTES)?;
    Some((usize::try_from(header.get_u32()).ok()?, header.get_u64()))
}

impl Record {
    /// Bytes of the file it takes.
    pub(super) fn bytes(&self) -> usize {
        blocks(RECORD_HEADER_BYTES + self.operations.len())
    }

    /// The record at the beginning of these bytes, if a whole one of this segment is there.
    pub(super) fn parse(bytes: &Bytes, salt: u32) -> Option<Self> {
        let (length, sequence) = claimed(bytes)?;
        let record = bytes.get(..RECORD_HEADER_BYTES.checked_add(length)?)?;
        let (sum, sealed) = record.split_first_chunk::<4>()?;
        (checksum(salt, sealed) == u32::from_be_bytes(*sum))
            .then(|| Self { sequence, operations: bytes.slice(RECORD_HEADER_BYTES..record.len()) })
    }
}

/// Whether a whole record of a later sequence begins at a block of these bytes: what lies before it was acknowledged then.
pub(super) fn continues(bytes: &Bytes, sequence: u64, salt: u32) -> bool {
    let most = (bytes.len() / BLOCK_BYTES) as u64;
    (0..bytes.len()).step_by(BLOCK_BYTES).any(|at| {
        let rest = bytes.slice(at..);
        claimed(&rest).is_some_and(|(_, found)| found > sequence && found - sequence <= most)
            && Record::parse(&rest, salt).is_some()
    })
}

/// What is known of a shard but its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pointers {
    /// The replica the log belongs to.
    pub(super) owner: Option<ReplicaId>,
    /// The vote.
    pub(super) vote: Option<Vote>,
    /// The last log id known committed.
    pub(super) committed: Option<LogId>,
    /// The last log id purged.
    pub(super) purged: Option<LogId>,
    /// The last entry's log id, or the purged one.
    pub(super) last: Option<LogId>,
}

/// What a record says was done to a shard.
#[derive(Debug)]
pub(super) enum Operation {
    /// Entries follow the log's last one.
    Append(Entries),
    /// Entries the log holds already lie here from now on.
    Move(Entries),
    /// The entries from an index on are gone.
    Truncate {
        start: u64,
        /// The log's last log id now.
        tail: Option<LogId>,
    },
    /// The entries through a log id are gone.
    Purge(LogId),
    Vote(Vote),
    Committed(Option<LogId>),
    Owner(ReplicaId),
    /// Everything of the shard is gone.
    Destroy,
    /// What the operations up to here came to.
    Pointers(Pointers),
}

/// Encoded entries in a row.
#[derive(Debug)]
pub(super) struct Entries(Bytes);

impl Iterator for Entries {
    type Item = Result<Bytes, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.has_remaining().then(|| {
            let bytes = self.0.try_get_u32().map_err(|_| CodecError::Short("length of an entry"))? as usize;
            if bytes > self.0.len() {
                return Err(CodecError::Short("entry"));
            }
            Ok(self.0.split_to(bytes))
        })
    }
}

fn begin(out: &mut BytesMut, kind: u8, shard: ShardId) {
    out.put_u8(kind);
    out.put_u64(shard.0);
}

/// Puts what `put` writes behind its own length.
fn with_length(out: &mut BytesMut, put: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    put(out);
    let bytes = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    if let Some(length) = out.get_mut(start..start + 4) {
        length.copy_from_slice(&bytes.to_be_bytes());
    }
}

/// Entries that are encoded already, as [`Operation::Move`].
pub(super) fn put_moved(out: &mut BytesMut, shard: ShardId, entries: &[Bytes]) {
    begin(out, MOVED, shard);
    with_length(out, |out| entries.iter().for_each(|entry| with_length(out, |out| out.put_slice(entry))));
}

/// The operation of a change; a barrier has none.
pub(super) fn put_action(out: &mut BytesMut, shard: ShardId, action: &Action) {
    match action {
        Action::Append { entries, .. } => {
            begin(out, ENTRIES, shard);
            let put = |entry: &Entry, out: &mut BytesMut| with_length(out, |out| codec::encode_entry(entry, out));
            with_length(out, |out| entries.iter().for_each(|entry| put(entry, out)));
        }
        Action::Truncate { start, tail, .. } => {
            failpoint!("log.truncate");
            begin(out, TRUNCATE, shard);
            out.put_u64(*start);
            codec::encode_optional_log_id(tail.as_ref(), out);
        }
        Action::Purge { upto, .. } => {
            failpoint!("log.purge");
            begin(out, PURGE, shard);
            codec::encode_log_id(upto, out);
        }
        Action::SaveVote { vote, .. } => {
            failpoint!("log.vote");
            begin(out, VOTE, shard);
            codec::encode_vote(vote, out);
        }
        Action::SaveCommitted(committed) => {
            begin(out, COMMITTED, shard);
            codec::encode_optional_log_id(committed.as_ref(), out);
        }
        Action::SaveOwner(replica) => {
            begin(out, OWNER, shard);
            out.put_u64(replica.0);
        }
        Action::Destroy { .. } => {
            failpoint!("log.destroy");
            begin(out, DESTROY, shard);
        }
        Action::Barrier { .. } => {}
    }
}

/// The pointers of a shard.
pub(super) fn put_pointers(out: &mut BytesMut, shard: ShardId, pointers: &Pointers) {
    begin(out, POINTERS, shard);
    let Pointers { owner, vote, committed, purged, last } = pointers;
    out.put_u8(u8::from(owner.is_some()) | u8::from(vote.is_some()) << 1);
    out.put_u64(owner.map_or(0, |owner| owner.0));
    if let Some(vote) = vote {
        codec::encode_vote(vote, out);
    }
    for pointer in [committed, purged, last] {
        codec::encode_optional_log_id(pointer.as_ref(), out);
    }
}

fn pointers(bytes: &mut Bytes) -> Result<Pointers, CodecError> {
    let flags = bytes.try_get_u8().map_err(|_| CodecError::Short("flags"))?;
    let owner = bytes.try_get_u64().map_err(|_| CodecError::Short("replica"))?;
    Ok(Pointers {
        owner: (flags & 1 != 0).then_some(ReplicaId(owner)),
        vote: if flags & 2 == 0 { None } else { Some(codec::decode_vote(bytes)?) },
        committed: codec::decode_optional_log_id(bytes)?,
        purged: codec::decode_optional_log_id(bytes)?,
        last: codec::decode_optional_log_id(bytes)?,
    })
}

/// Takes the next operation off a record; None at its end.
pub(super) fn next_operation(bytes: &mut Bytes) -> Result<Option<(ShardId, Operation)>, CodecError> {
    if !bytes.has_remaining() {
        return Ok(None);
    }
    let kind = bytes.get_u8();
    let shard = ShardId(bytes.try_get_u64().map_err(|_| CodecError::Short("shard"))?);
    let entries = |bytes: &mut Bytes| {
        let length = bytes.try_get_u32().map_err(|_| CodecError::Short("length of entries"))? as usize;
        if length <= bytes.len() { Ok(Entries(bytes.split_to(length))) } else { Err(CodecError::Short("entries")) }
    };
    let operation = match kind {
        ENTRIES => Operation::Append(entries(bytes)?),
        MOVED => Operation::Move(entries(bytes)?),
        TRUNCATE => Operation::Truncate {
            start: bytes.try_get_u64().map_err(|_| CodecError::Short("index"))?,
            tail: codec::decode_optional_log_id(bytes)?,
        },
        PURGE => Operation::Purge(codec::decode_log_id(bytes)?),
        VOTE => Operation::Vote(codec::decode_vote(bytes)?),
        COMMITTED => Operation::Committed(codec::decode_optional_log_id(bytes)?),
        OWNER => Operation::Owner(ReplicaId(bytes.try_get_u64().map_err(|_| CodecError::Short("replica"))?)),
        DESTROY => Operation::Destroy,
        POINTERS => Operation::Pointers(pointers(bytes)?),
        value => return Err(CodecError::Unknown { what: "operation", value }),
    };
    Ok(Some((shard, operation)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(operations: &[u8], sequence: u64, salt: u32) -> Vec<u8> {
        let mut record = [&[0; RECORD_HEADER_BYTES], operations].concat();
        seal(&mut record, sequence, salt);
        record.resize(blocks(record.len()), 0);
        record
    }

    #[test]
    fn a_record_is_one_of_its_segment_only_and_only_whole() {
        let bytes = Bytes::from(sealed(b"operations", 7, 3));
        let record = Record::parse(&bytes, 3).unwrap();
        assert_eq!((record.sequence, &record.operations[..], record.bytes()), (7, &b"operations"[..], BLOCK_BYTES));
        assert!(Record::parse(&bytes, 4).is_none(), "a record of another segment");
        for at in 0..RECORD_HEADER_BYTES + 10 {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 4;
            assert!(Record::parse(&Bytes::from(flipped), 3).is_none(), "flipped at {at}");
            assert!(Record::parse(&bytes.slice(..at), 3).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn a_log_continues_where_a_later_record_of_its_segment_is_whole() {
        let rest = |records: &[Vec<u8>]| Bytes::from(records.concat());
        let (rotten, large) = (vec![0x55; BLOCK_BYTES], sealed(&[1; 9_000], 9, 3));
        assert!(continues(&rest(&[rotten.clone(), large.clone()]), 7, 3));
        assert!(continues(&rest(&[rotten.clone(), rotten.clone(), sealed(b"", 8, 3)]), 7, 3));
        let others = [vec![], vec![rotten.clone()], vec![rotten.clone(), sealed(b"", 8, 4)], vec![sealed(b"", 6, 3)]];
        for records in others {
            assert!(!continues(&rest(&records), 7, 3), "{records:?}");
        }
        assert!(!continues(&rest(&[rotten, large[..8_000].to_vec()]), 7, 3), "it is not whole");
    }

    #[test]
    fn a_first_block_is_a_header_of_this_format_or_another_or_none() {
        let header = Header { number: 5, first: 900, salt: 77 };
        let mut bytes = BytesMut::new();
        header.encode(&mut bytes);
        let whole = bytes.clone().freeze();
        assert_eq!(FirstBlock::of(&whole), FirstBlock::Header(header));
        for at in 0..whole.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let found = FirstBlock::of(&flipped.freeze());
            assert!(found == FirstBlock::Damaged || matches!(found, FirstBlock::Format(_)), "{at}: {found:?}");
            assert_eq!(FirstBlock::of(&whole.slice(..at)), FirstBlock::Damaged);
        }
    }
}
