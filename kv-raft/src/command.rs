//! What enters the log and what apply returns.
//!
//! A command is encoded once, in the task of the request that brings it; commands that wait together are joined into
//! one [`CommandBatch`], which is one log entry. The same bytes are written to the log, sent to followers and read by
//! apply, which borrows keys and values from them.
//!
//! Invariants: keys are encoded keys (kv-proto, keys); a batch decodes to what was encoded, or refuses.
//!
//! Not here: what a command does (decide); how an entry with its log id is encoded (codec).

use std::fmt;

use bincode::{BorrowDecode, Decode, Encode};
use bytes::{BufMut, Bytes, BytesMut};
use kv_proto::ids::{ClientId, ReplicaId, Sequence};
use kv_proto::timestamp::Timestamp;

/// Format of encoded batches: the first byte of each. Changing the encoding takes a new number and an ADR.
pub const BATCH_FORMAT: u8 = 1;

/// Format of an [`Order`] to the replicas in the place of commands.
pub const ORDER_FORMAT: u8 = 2;

/// How content checksums are computed (data engine, checksum); replicas that know another one do not take part.
pub const CHECKSUM_ALGORITHM: u8 = 1;

/// format (1), stamp (8, little endian), count (4, little endian).
const BATCH_HEADER_BYTES: usize = 13;

fn bincode_config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<{ 16 << 20 }>()
}

/// Which write of which client this is, so that it is applied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SessionTag {
    /// The client.
    pub client: ClientId,
    /// The write.
    pub sequence: Sequence,
    /// Replies below this sequence are forgotten.
    pub lowest_unfinished: Sequence,
}

/// What a key must be for a command to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Expected<'a> {
    /// Holds exactly this value.
    Value(&'a [u8]),
    /// Was last written at this commit timestamp.
    WrittenAt(Timestamp),
    /// Exists, or does not.
    Exists(bool),
}

/// One condition of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Condition<'a> {
    /// Encoded key.
    pub key: &'a [u8],
    /// What it must be.
    pub expected: Expected<'a>,
}

/// One change of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Operation<'a> {
    /// Writes a key.
    Put {
        /// Encoded key.
        key: &'a [u8],
        /// At most [`kv_proto::limits::VALUE_BYTES_MAX`].
        value: &'a [u8],
    },
    /// Deletes a key, if it exists.
    Delete {
        /// Encoded key.
        key: &'a [u8],
    },
}

/// If all conditions hold, all operations apply at one commit timestamp; otherwise nothing does.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Command<'a> {
    /// None gives up exactly-once.
    pub session: Option<SessionTag>,
    /// Checked first, in order.
    pub conditions: Vec<Condition<'a>>,
    /// Applied in order; a later one sees what an earlier one did.
    pub operations: Vec<Operation<'a>>,
}

/// A command as bytes, ready to be joined into a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedCommand(Bytes);

impl EncodedCommand {
    /// Encodes; infallible but for commands beyond every limit, which requests cannot hold.
    #[must_use]
    pub fn new(command: &Command<'_>) -> Self {
        let bytes = bincode::encode_to_vec(command, bincode_config()).expect("a vector takes any command");
        Self(Bytes::from(bytes))
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

/// What an entry tells the replicas themselves; it changes no key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Order {
    /// Every replica takes a checksum of its content as of this entry and tells the leader.
    Check {
        /// See [`CHECKSUM_ALGORITHM`].
        algorithm: u8,
    },
    /// These replicas differed from the majority: they are not to be trusted any more.
    Verdict {
        /// Index of the check.
        checked: u64,
        /// Replica ids.
        wrong: Vec<u64>,
    },
}

impl Order {
    /// The check by which this replica is found wrong, if it is.
    #[must_use]
    pub fn condemns(&self, replica: ReplicaId) -> Option<u64> {
        match self {
            Self::Check { .. } => None,
            Self::Verdict { checked, wrong } => wrong.contains(&replica.0).then_some(*checked),
        }
    }
}

/// The commands of one log entry with the stamp their leader gave them.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandBatch(Bytes);

/// Why bytes are no batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a command batch: {0}")]
pub struct DecodeError(String);

impl CommandBatch {
    /// Joins commands under the leader's stamp.
    #[must_use]
    pub fn new(stamp: Timestamp, commands: &[EncodedCommand]) -> Self {
        let bytes: usize = commands.iter().map(EncodedCommand::bytes).sum();
        let mut joined = BytesMut::with_capacity(BATCH_HEADER_BYTES + bytes);
        joined.put_u8(BATCH_FORMAT);
        joined.put_u64_le(stamp.0);
        joined.put_u32_le(u32::try_from(commands.len()).expect("a batch is bounded far below u32"));
        for command in commands {
            joined.put_slice(&command.0);
        }
        Self(joined.freeze())
    }

    /// An order in the place of commands.
    #[must_use]
    pub fn order(stamp: Timestamp, order: &Order) -> Self {
        let order = bincode::encode_to_vec(order, bincode_config()).expect("a vector takes any order");
        let mut bytes = BytesMut::with_capacity(BATCH_HEADER_BYTES + order.len());
        bytes.put_u8(ORDER_FORMAT);
        bytes.put_u64_le(stamp.0);
        bytes.put_slice(&order);
        Self(bytes.freeze())
    }

    /// Whether this is an order; its commands are none then.
    #[must_use]
    pub fn is_order(&self) -> bool {
        self.0.first() == Some(&ORDER_FORMAT)
    }

    /// How many commands it says it holds; none if it is an order.
    #[must_use]
    pub fn count(&self) -> usize {
        self.header().map_or(0, |(_, count, _)| count)
    }

    /// The stamp and the order.
    pub fn decode_order(&self) -> Result<(Timestamp, Order), DecodeError> {
        let (format, rest) = self.0.split_first().ok_or_else(|| short("format"))?;
        if *format != ORDER_FORMAT {
            return Err(DecodeError(format!("format {format} is no order")));
        }
        let (stamp, rest) = rest.split_first_chunk::<8>().ok_or_else(|| short("stamp"))?;
        let (order, read) =
            bincode::decode_from_slice(rest, bincode_config()).map_err(|e| DecodeError(e.to_string()))?;
        if read != rest.len() {
            return Err(DecodeError(format!("{} bytes left over", rest.len() - read)));
        }
        Ok((Timestamp(u64::from_le_bytes(*stamp)), order))
    }

    /// From bytes that [`CommandBatch::as_bytes`] gave; refuses what does not decode completely.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, DecodeError> {
        let batch = Self(bytes);
        if batch.is_order() {
            batch.decode_order().map(drop)?
        } else {
            batch.decode().map(drop)?
        }
        Ok(batch)
    }

    /// From bytes whose checksum was verified: decoding is left to apply.
    #[must_use]
    pub fn from_trusted_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// What is stored and sent.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The stamp and the commands, borrowing from the batch.
    pub fn decode(&self) -> Result<(Timestamp, Vec<Command<'_>>), DecodeError> {
        let (stamp, count, mut rest) = self.header()?;
        let mut commands = Vec::with_capacity(count.min(rest.len()));
        for _ in 0..count {
            let (command, read) =
                bincode::borrow_decode_from_slice(rest, bincode_config()).map_err(|e| DecodeError(e.to_string()))?;
            commands.push(command);
            rest = rest.get(read..).ok_or_else(|| short("command"))?;
        }
        if !rest.is_empty() {
            return Err(DecodeError(format!("{} bytes left over", rest.len())));
        }
        Ok((stamp, commands))
    }

    /// The stamp, how many commands follow, and their bytes.
    fn header(&self) -> Result<(Timestamp, usize, &[u8]), DecodeError> {
        let (header, rest) = self.0.split_at_checked(BATCH_HEADER_BYTES).ok_or_else(|| short("header"))?;
        let (format, header) = header.split_first().ok_or_else(|| short("format"))?;
        if *format != BATCH_FORMAT {
            return Err(DecodeError(format!("format {format} is not known, only {BATCH_FORMAT}")));
        }
        let (stamp, count) = header.split_first_chunk::<8>().ok_or_else(|| short("stamp"))?;
        let count = u32::from_le_bytes(count.try_into().map_err(|_| short("count"))?);
        Ok((Timestamp(u64::from_le_bytes(*stamp)), usize::try_from(count).unwrap_or(usize::MAX), rest))
    }
}

fn short(part: &str) -> DecodeError {
    DecodeError(format!("too short for its {part}"))
}

impl fmt::Debug for CommandBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CommandBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.0.len())
    }
}

/// A value with the commit timestamp of the write that left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// When it was written.
    pub commit: Timestamp,
    /// What was written.
    pub value: Bytes,
}

/// The answer to one command. A refusal is an answer: it changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// All operations applied.
    Written {
        /// Their commit timestamp.
        commit: Timestamp,
        /// How many deletes found a key.
        deleted: u32,
    },
    /// A condition did not hold.
    Refused {
        /// Position of the first such condition.
        condition: u32,
        /// Its key as it is; None if it does not exist.
        current: Option<Versioned>,
    },
    /// The sequence lies below what its client declared finished, or was refused before and would not be refused now;
    /// it was not applied by this and never will be.
    SessionStale,
    /// The shard remembers as many clients as it may, all of them recently active; nothing was applied.
    SessionsFull,
}

/// One reply per command of an entry, in order; none for entries that are not batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies(pub Vec<Reply>);
