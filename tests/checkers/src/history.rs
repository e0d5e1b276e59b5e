//! The one history format: what each process asked, when, and what it was told. A file of JSON lines.
//!
//! The first line is `{"history": {"version": 1, ...}}`; each further line is one of `operation`, `replica` and
//! `fault`. Lines may come in any order: times tell what happened before what.
//!
//! Invariants:
//! - times are nanoseconds of one clock that never goes back, from any begin; two events at the same time count as
//!   concurrent, so a coarse clock makes checkers miss violations, never invent them;
//! - a process has one operation at a time;
//! - values written to one key by writes and compare-and-sets are unique, which is what makes checking fast.
//!
//! Not here: the judgement (one module per property).

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

/// The format's version; a reader refuses any other.
pub const VERSION: u32 = 1;

/// All that was seen of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Where it comes from.
    pub header: Header,
    /// Of all processes.
    pub operations: Vec<Operation>,
    /// Content checksums of replicas.
    pub replicas: Vec<Replica>,
    /// For whoever reads a violation.
    pub faults: Vec<Fault>,
}

/// Where a history comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// What was driven: "cluster", "simulation", ...
    pub source: String,
    /// Of the run.
    pub seed: u64,
}

impl Default for Header {
    fn default() -> Self {
        Self { version: VERSION, source: String::new(), seed: 0 }
    }
}

/// One request and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked.
    pub process: u64,
    /// The shard that holds its keys, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<u64>,
    /// When it was sent.
    pub invoke: u64,
    /// When the answer came; None if it never did.
    pub complete: Option<u64>,
    /// What was asked.
    pub call: Call,
    /// What was answered.
    pub outcome: Outcome,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// One key.
    Read {
        /// Which.
        key: String,
        /// What the read promises.
        mode: Mode,
    },
    /// Several keys of one shard at one point of its history.
    ReadMany {
        /// Which.
        keys: Vec<String>,
        /// What the read promises.
        mode: Mode,
    },
    /// All keys that begin so, from all shards, page after page to the end.
    Scan {
        /// How they begin.
        prefix: String,
        /// What each page promises.
        mode: Mode,
    },
    /// Writes a value that no other request writes to this key.
    Write {
        /// Which.
        key: String,
        /// Unique for the key.
        value: String,
    },
    /// Deletes.
    Delete {
        /// Which.
        key: String,
    },
    /// Writes a value, unique for the key, if the key is as expected.
    CompareAndSet {
        /// Which.
        key: String,
        /// None: the key does not exist.
        expect: Option<String>,
        /// Unique for the key.
        set: String,
    },
    /// Adds one to a counter that was read as `from`, by a compare-and-set. An absent counter is 0.
    Increment {
        /// The counter.
        key: String,
        /// What was read before.
        from: u64,
    },
    /// Writes several keys of one shard together; each value is unique for its key.
    WriteMany {
        /// Keys and values.
        entries: Vec<(String, String)>,
    },
}

/// What a read promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Sees all that was acknowledged before it began.
    Linearizable,
    /// The same, by the leader's lease.
    Lease,
    /// A state at most this old; 0: however old.
    Stale {
        /// Milliseconds.
        max_ms: u64,
    },
    /// The state at this commit timestamp.
    Snapshot {
        /// Which.
        at: u64,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The write is acknowledged.
    Written {
        /// Its commit timestamp.
        version: u64,
    },
    /// The condition did not hold; nothing changed.
    Refused {
        /// The key as it was then.
        current: Option<Versioned>,
    },
    /// The answer to a read of one key.
    Found {
        /// None: the key does not exist.
        entry: Option<Versioned>,
    },
    /// The answer to a read of several keys, in the order they came.
    Listed {
        /// Those that exist.
        entries: Vec<Entry>,
    },
    /// It failed, was not applied and never will be.
    NotApplied {
        /// Why.
        reason: String,
    },
    /// It failed and may be applied, now or later.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// A value and the commit timestamp of the write that left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// As written.
    pub value: String,
    /// Commit timestamp; 0 where it is not known.
    pub version: u64,
}

/// A key with what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// As written.
    pub value: String,
    /// Commit timestamp; 0 where it is not known.
    pub version: u64,
}

/// The content of one replica, as a checksum that went through the log found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// When it was asked.
    pub at: u64,
    /// On which node.
    pub node: u64,
    /// Of which shard.
    pub shard: u64,
    /// The applied index it counts for.
    pub index: u64,
    /// Of data, sessions and whatever else must be equal.
    pub checksum: String,
}

/// Something that was done to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When.
    pub at: u64,
    /// As the schedule names it.
    pub what: String,
}

/// Whether a request took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It did, before it was over.
    Applied,
    /// Perhaps.
    Unknown,
    /// It did not and never will.
    NotApplied,
}

/// What an answer says about one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen<'h> {
    /// The key.
    pub key: &'h str,
    /// Its value and its version (0 where that is not known); None if it did not exist.
    pub entry: Option<(&'h str, u64)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    History(Header),
    Operation(Operation),
    Replica(Replica),
    Fault(Fault),
}

impl Call {
    /// A linearizable read of one key.
    #[must_use]
    pub fn read(key: &str) -> Self {
        Self::Read { key: key.to_owned(), mode: Mode::Linearizable }
    }

    /// The key of a request about one key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Read { key, .. }
            | Self::Write { key, .. }
            | Self::Delete { key }
            | Self::CompareAndSet { key, .. }
            | Self::Increment { key, .. } => Some(key),
            Self::ReadMany { .. } | Self::Scan { .. } | Self::WriteMany { .. } => None,
        }
    }

    /// The keys of a read of several.
    fn keys(&self) -> impl Iterator<Item = &str> {
        let keys = if let Self::ReadMany { keys, .. } = self { keys.as_slice() } else { &[] };
        keys.iter().map(String::as_str)
    }

    /// Whether it can change anything.
    #[must_use]
    pub fn is_write(&self) -> bool {
        match self {
            Self::Read { .. } | Self::ReadMany { .. } | Self::Scan { .. } => false,
            Self::Write { .. }
            | Self::Delete { .. }
            | Self::CompareAndSet { .. }
            | Self::Increment { .. }
            | Self::WriteMany { .. } => true,
        }
    }
}

impl Mode {
    /// How much earlier than its begin the read may look, in nanoseconds; None if that has no bound, or if it names
    /// its moment itself.
    #[must_use]
    pub fn looks_back(self) -> Option<u64> {
        match self {
            Self::Linearizable | Self::Lease => Some(0),
            Self::Stale { max_ms: 0 } | Self::Snapshot { .. } => None,
            Self::Stale { max_ms } => Some(max_ms.saturating_mul(1_000_000)),
        }
    }
}

impl Outcome {
    /// Whether the request took effect; a refusal did, as a read.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self {
            Self::Written { .. } | Self::Refused { .. } | Self::Found { .. } | Self::Listed { .. } => Fate::Applied,
            Self::NotApplied { .. } => Fate::NotApplied,
            Self::Unknown { .. } => Fate::Unknown,
        }
    }

    /// What a read of a counter found: 0 if there is none yet. None if it found no number, which is told at the end, or if
    /// nothing is known.
    #[must_use]
    pub fn count(&self) -> Option<u64> {
        match self {
            Self::Found { entry: None } => Some(0),
            Self::Found { entry: Some(entry) } => entry.value.parse().ok(),
            Self::Written { .. }
            | Self::Refused { .. }
            | Self::Listed { .. }
            | Self::NotApplied { .. }
            | Self::Unknown { .. } => None,
        }
    }

    /// The commit timestamp of an acknowledged write.
    #[must_use]
    pub fn written(&self) -> Option<u64> {
        match self {
            Self::Written { version } => Some(*version),
            Self::Refused { .. }
            | Self::Found { .. }
            | Self::Listed { .. }
            | Self::NotApplied { .. }
            | Self::Unknown { .. } => None,
        }
    }
}

impl Operation {
    /// When it was over; the end of time if its answer never came or says nothing.
    #[must_use]
    pub fn over(&self) -> u64 {
        match self.outcome.fate() {
            Fate::Unknown => u64::MAX,
            Fate::Applied | Fate::NotApplied => self.complete.unwrap_or(u64::MAX),
        }
    }

    /// What the answer says about the keys it was about. A scan says it only of keys that it found.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen<'_>> {
        match &self.outcome {
            Outcome::Found { entry } | Outcome::Refused { current: entry } => {
                let entry = entry.as_ref().map(|entry| (entry.value.as_str(), entry.version));
                self.call.key().map(|key| Seen { key, entry }).into_iter().collect()
            }
            Outcome::Listed { entries } => {
                let there = entries
                    .iter()
                    .map(|entry| Seen { key: entry.key.as_str(), entry: Some((entry.value.as_str(), entry.version)) });
                let missing = self.call.keys().filter(|key| !entries.iter().any(|entry| entry.key == *key));
                there.chain(missing.map(|key| Seen { key, entry: None })).collect()
            }
            Outcome::Written { .. } | Outcome::NotApplied { .. } | Outcome::Unknown { .. } => vec![],
        }
    }
}

impl History {
    /// Writes it as a file of lines.
    ///
    /// # Errors
    /// Of the writer.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut line = |line: &Line| {
            serde_json::to_writer(&mut to, line)?;
            to.write_all(b"\n")
        };
        line(&Line::History(self.header.clone()))?;
        self.operations.iter().try_for_each(|operation| line(&Line::Operation(operation.clone())))?;
        self.replicas.iter().try_for_each(|replica| line(&Line::Replica(replica.clone())))?;
        self.faults.iter().try_for_each(|fault| line(&Line::Fault(fault.clone())))
    }

    /// Reads a file of lines.
    ///
    /// # Errors
    /// If a line is none of ours, the header is missing, or the version is another.
    pub fn read(from: impl BufRead) -> io::Result<Self> {
        let mut history = Self::default();
        let mut headed = false;
        for line in from.lines() {
            match serde_json::from_str(&line?)? {
                Line::History(header) if header.version == VERSION => {
                    history.header = header;
                    headed = true;
                }
                Line::History(header) => {
                    return Err(io::Error::other(format!("history of version {}, not {VERSION}", header.version)));
                }
                Line::Operation(operation) => history.operations.push(operation),
                Line::Replica(replica) => history.replicas.push(replica),
                Line::Fault(fault) => history.faults.push(fault),
            }
        }
        if headed { Ok(history) } else { Err(io::Error::other("a history begins with its header")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        let operation = Operation {
            process: 3,
            shard: Some(2),
            invoke: 5,
            complete: None,
            call: Call::CompareAndSet { key: "k".into(), expect: None, set: "v".into() },
            outcome: Outcome::Unknown { reason: "no answer".into() },
        };
        let replica = Replica { at: 9, node: 1, shard: 2, index: 7, checksum: "abc".into() };
        let fault = Fault { at: 1, what: "kill 2".into() };
        let header = Header { source: "test".into(), seed: 4, ..Header::default() };
        History { header, operations: vec![operation], replicas: vec![replica], faults: vec![fault] }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut bytes = vec![];
        history().write(&mut bytes).unwrap();
        assert_eq!(History::read(bytes.as_slice()).unwrap(), history());
    }

    #[test]
    fn the_lines_look_as_documented() {
        let mut bytes = vec![];
        history().write(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r#"{"history":{"version":1,"source":"test","seed":4}}"#);
        assert_eq!(
            lines[1],
            r#"{"operation":{"process":3,"shard":2,"invoke":5,"complete":null,"call":{"compare_and_set":{"key":"k","expect":null,"set":"v"}},"outcome":{"unknown":{"reason":"no answer"}}}}"#
        );
    }

    #[test]
    fn another_version_and_a_missing_header_are_refused() {
        let other = r#"{"history":{"version":2,"source":"","seed":0}}"#;
        assert!(History::read(other.as_bytes()).is_err());
        assert!(History::read(b"".as_slice()).is_err());
        assert!(History::read(b"{}".as_slice()).is_err());
    }
}
