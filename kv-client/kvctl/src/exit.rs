//! How a command ends: exit codes, and failures that say what failed, why, and what to do.
//!
//! Invariants:
//! - a failed write never exits with a code that says "not applied" unless that is known;
//! - the codes are part of the interface (docs/kvctl.md).
//!
//! Not here: the contract of errors between client and node (kv-proto, errors).

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use kv_client::connection::{CallError, ConnectionError};
use kv_proto::errors::{Outcome, ServiceError};
use serde_json::{Value, json};
use tonic::Code;

use crate::output::{Look, Tone, document};

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// The cluster answered no: key not found, condition not met, refused.
    No = 1,
    /// The command line or the request is at fault.
    Usage = 2,
    /// Unavailable or too late; nothing was applied.
    Unavailable = 3,
    /// A write that may or may not be applied.
    Unknown = 4,
    /// doctor, health or shard check found problems.
    Problems = 5,
    /// A file or stream of this machine.
    Local = 6,
    /// Ended by Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The reason of a failure that is not printed.
const CLOSED_PIPE: &str = "CLOSED_PIPE";

/// Why a command did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The code to end with.
    pub(crate) exit: Exit,
    /// What was attempted: "put", "drain node 3"; empty where the message says it.
    doing: String,
    /// What went wrong.
    message: String,
    /// Reason of the error contract, or of this tool.
    reason: String,
    /// For writes: whether it may be applied.
    outcome: Option<Outcome>,
    /// What to do; empty if nothing helps.
    advice: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.doing.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{} failed: {}", self.doing, self.message)
        }
    }
}

impl Failure {
    fn new(exit: Exit, reason: &str, message: impl Into<String>) -> Self {
        Self {
            exit,
            doing: String::new(),
            message: message.into(),
            reason: reason.to_owned(),
            outcome: None,
            advice: String::new(),
        }
    }

    /// The command line is at fault.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "USAGE", message)
    }

    /// A file or stream of this machine.
    pub(crate) fn local(verb: &str, file: &Path, error: &std::io::Error) -> Self {
        let reason = if error.kind() == std::io::ErrorKind::BrokenPipe { CLOSED_PIPE } else { "LOCAL" };
        Self::new(Exit::Local, reason, format!("cannot {verb} {}: {error}", file.display()))
    }

    /// Whoever read the output has seen enough, as `head` does: nothing to tell.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        self.reason == CLOSED_PIPE
    }

    /// The cluster answered no.
    pub(crate) fn no(reason: &str, message: impl Into<String>) -> Self {
        Self::new(Exit::No, reason, message)
    }

    /// Nothing answered, or not in time; nothing was applied.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, "UNAVAILABLE", message)
    }

    /// Ctrl-C.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Exit::Interrupted, "INTERRUPTED", message)
    }

    /// A read, which has no outcome.
    fn read(error: &ServiceError) -> Self {
        let mut failure = Self::service(error);
        if failure.exit == Exit::Unknown {
            failure.exit = Exit::Unavailable;
        }
        failure
    }

    /// A write.
    fn write(error: &ServiceError, outcome: Outcome) -> Self {
        Self::service(error).with_outcome(outcome)
    }

    fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        match outcome {
            Outcome::Unknown => {
                self.exit = Exit::Unknown;
                if self.advice != NOT_A_NODE {
                    "look before you repeat it: it may be applied already, or a moment later"
                        .clone_into(&mut self.advice);
                }
            }
            Outcome::NotApplied if self.exit == Exit::Unknown => self.exit = Exit::Unavailable,
            Outcome::NotApplied => {}
        }
        self
    }

    fn service(error: &ServiceError) -> Self {
        let exit = exit_of(error);
        let reason = if error.reason().is_empty() { "FOREIGN" } else { error.reason() };
        Self::new(exit, reason, message_of(error)).advise(advice_of(error))
    }

    /// Says what was attempted; a name that fills the screen would hide the rest.
    pub(crate) fn doing(mut self, doing: impl Into<String>) -> Self {
        self.doing = doing.into();
        if let Some((cut, _)) = self.doing.char_indices().nth(DOING_CHARS) {
            self.doing.truncate(cut);
            self.doing.push('…');
        }
        self
    }

    /// Says what to do.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    /// For people.
    pub(crate) fn render(&self, look: Look) -> String {
        let mut lines = vec![format!("{} {self}", look.paint("error:", Tone::Bad))];
        match self.outcome {
            Some(Outcome::Unknown) => {
                lines.push("  the outcome is UNKNOWN: the write may or may not be applied".into())
            }
            Some(Outcome::NotApplied) if self.exit == Exit::Unavailable || self.advice == NOT_A_NODE => {
                lines.push("  nothing was applied".into())
            }
            Some(Outcome::NotApplied) | None => {}
        }
        if !self.advice.is_empty() {
            lines.push(format!("  {} {}", look.paint("hint:", Tone::Strong), self.advice));
        }
        lines.join("\n")
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let mut error = json!({
            "exit_code": self.exit as u8,
            "reason": self.reason,
            "message": self.to_string(),
        });
        if let Value::Object(fields) = &mut error {
            if let Some(outcome) = self.outcome {
                fields.insert("outcome".into(), outcome.to_string().into());
            }
            if !self.advice.is_empty() {
                fields.insert("hint".into(), self.advice.clone().into());
            }
        }
        document(json!({ "error": error }))
    }
}

/// What the client reports, as the end of a command.
pub(crate) trait Explain {
    /// Of a read.
    fn read(&self, doing: &str) -> Failure;
    /// Of a write.
    fn write(&self, doing: &str) -> Failure;
}

impl Explain for kv_client::Error {
    fn read(&self, doing: &str) -> Failure {
        match self {
            Self::Service { error, .. } => Failure::read(error),
            Self::Connection { .. } | Self::DeadlineExceeded { .. } | Self::Usage { .. } => own(self),
        }
        .doing(doing)
    }

    fn write(&self, doing: &str) -> Failure {
        match self {
            Self::Service { error, outcome, .. } => Failure::write(error, *outcome),
            Self::Connection { outcome, .. } | Self::DeadlineExceeded { outcome, .. } => {
                own(self).with_outcome(*outcome)
            }
            Self::Usage { .. } => own(self),
        }
        .doing(doing)
    }
}

/// What the client concluded by itself.
fn own(error: &kv_client::Error) -> Failure {
    if let kv_client::Error::Usage { why } = error {
        return Failure::usage(why);
    }
    let failure = Failure::unavailable(match error {
        kv_client::Error::Connection { error, .. } => silent(error),
        kv_client::Error::DeadlineExceeded { timeout, last, .. } => {
            let timeout = humantime::format_duration(*timeout);
            match last.as_deref() {
                Some(CallError::Connection(error)) => format!("no answer within {timeout}; {}", silent(error)),
                Some(CallError::Service(error)) => format!("no success within {timeout}; the last answer: {error}"),
                None => format!("no answer within {timeout}"),
            }
        }
        kv_client::Error::Service { .. } | kv_client::Error::Usage { .. } => error.to_string(),
    });
    match error.service() {
        Some(service) => failure.advise(advice_of(service)),
        None => failure.advise(UNREACHABLE),
    }
}

/// A circuit is how the client spares itself a dead node; a person wants to know which node is dead.
fn silent(error: &ConnectionError) -> String {
    match error {
        ConnectionError::CircuitOpen { address, .. } => format!("cannot reach node {address}"),
        ConnectionError::Unreachable { .. }
        | ConnectionError::Lost { .. }
        | ConnectionError::TimedOut { .. }
        | ConnectionError::Closed => error.to_string(),
    }
}

/// A server that speaks HTTP but not gRPC is told from what a node says.
pub(crate) fn message_of(error: &ServiceError) -> String {
    if let ServiceError::Foreign { code: Code::Unimplemented, message } = error
        && message.contains("grpc-status header missing")
    {
        return "what answers there does not speak gRPC".to_owned();
    }
    error.to_string()
}

/// Of what was attempted, in a message.
const DOING_CHARS: usize = 80;

const UNREACHABLE: &str =
    "check that the nodes run and --endpoints names them; scripts/cluster up starts a local cluster";

const NOT_A_NODE: &str = "no kv node serves gRPC there: check --endpoints (the HTTP port is another one)";

fn exit_of(error: &ServiceError) -> Exit {
    match error {
        ServiceError::Invalid { .. }
        | ServiceError::DeadlineMissing
        | ServiceError::CursorMismatch
        | ServiceError::CrossShard { .. } => Exit::Usage,
        ServiceError::KeyspaceNotFound { .. }
        | ServiceError::ShardNotFound { .. }
        | ServiceError::NotFound { .. }
        | ServiceError::AlreadyExists { .. }
        | ServiceError::ClusterMismatch { .. }
        | ServiceError::SnapshotUnavailable { .. }
        | ServiceError::Conflict { .. }
        | ServiceError::Refused { .. } => Exit::No,
        ServiceError::NotLeader { .. }
        | ServiceError::StaleRoute { .. }
        | ServiceError::NoLeader { .. }
        | ServiceError::Overloaded { .. }
        | ServiceError::ReadOnly { .. }
        | ServiceError::NotReady { .. } => Exit::Unavailable,
        ServiceError::OutcomeUnknown { .. } | ServiceError::SessionStale { .. } => Exit::Unknown,
        ServiceError::DeadlineExceeded { outcome, .. } | ServiceError::Internal { outcome, .. } => match outcome {
            Outcome::Unknown => Exit::Unknown,
            Outcome::NotApplied => Exit::Unavailable,
        },
        ServiceError::Foreign { code, .. } => {
            if *code == Code::InvalidArgument || *code == Code::Unimplemented {
                Exit::Usage
            } else {
                Exit::Unknown
            }
        }
    }
}

fn advice_of(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::KeyspaceNotFound { .. } => "kvctl keyspace list shows the keyspaces",
        ServiceError::ShardNotFound { .. } => "kvctl shard list shows the shards",
        ServiceError::NotFound { what, .. } => match what.as_str() {
            "node" => "kvctl node list shows the nodes",
            "action" => "kvctl action list shows the actions",
            _ => "",
        },
        ServiceError::ClusterMismatch { .. } => "the endpoints belong to different clusters: check --endpoints",
        ServiceError::CursorMismatch => "leave --cursor out to begin again",
        ServiceError::CrossShard { .. } => {
            "leave --atomic out; in a hash keyspace keys with a common hash tag, such as {user1}:name, are of one shard"
        }
        ServiceError::NotLeader { .. } | ServiceError::StaleRoute { .. } | ServiceError::NoLeader { .. } => {
            "an election takes about a second: try again; if it stays so, kvctl doctor says why"
        }
        ServiceError::DeadlineExceeded { .. } => "kvctl doctor says what is slow or down; --timeout waits longer",
        ServiceError::Overloaded { .. } => "try again in a moment, or send less at once",
        ServiceError::ReadOnly { .. } => "free disk space on that node; kvctl doctor names it",
        ServiceError::SnapshotUnavailable { .. } => {
            "snapshot reads need a keyspace with retention and a timestamp inside of it"
        }
        ServiceError::Conflict { .. } => "something changed meanwhile: look again, then repeat the command",
        ServiceError::NotReady { .. } => "the node is starting or stopping: try again, or name other --endpoints",
        ServiceError::Internal { .. } => "the node's log says more",
        ServiceError::Foreign { code, .. } if *code == Code::Unavailable => UNREACHABLE,
        ServiceError::Foreign { code, .. } if *code == Code::Unimplemented => NOT_A_NODE,
        ServiceError::Invalid { .. }
        | ServiceError::DeadlineMissing
        | ServiceError::AlreadyExists { .. }
        | ServiceError::OutcomeUnknown { .. }
        | ServiceError::SessionStale { .. }
        | ServiceError::Refused { .. }
        | ServiceError::Foreign { .. } => "",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kv_proto::ids::ShardId;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[test]
    fn a_write_of_unknown_outcome_never_ends_like_one_that_was_not_applied() {
        let error = ServiceError::OutcomeUnknown { shard: ShardId(4), retry_after: SOON };
        assert_eq!(Failure::write(&error, Outcome::Unknown).exit, Exit::Unknown);
        let error = ServiceError::NoLeader { shard: ShardId(4), retry_after: SOON };
        assert_eq!(Failure::write(&error, Outcome::NotApplied).exit, Exit::Unavailable);
        assert_eq!(Failure::write(&error, Outcome::Unknown).exit, Exit::Unknown);
    }

    #[test]
    fn a_server_that_is_no_node_is_told_in_plain_words() {
        let message = "grpc-status header missing, mapped from HTTP status code 404".to_owned();
        let error = ServiceError::Foreign { code: Code::Unimplemented, message };
        let failure = Failure::write(&error, Outcome::NotApplied).doing("put a");
        let expected = "\
error: put a failed: what answers there does not speak gRPC
  nothing was applied
  hint: no kv node serves gRPC there: check --endpoints (the HTTP port is another one)";
        assert_eq!((failure.exit, failure.render(Look::default()).as_str()), (Exit::Usage, expected));
    }

    #[test]
    fn a_long_key_does_not_hide_what_is_wrong_with_it() {
        let error = ServiceError::invalid("key", "is 5000 bytes; at most 4096");
        let shown = Failure::write(&error, Outcome::NotApplied).doing(format!("put {}", "k".repeat(5000))).to_string();
        assert!(shown.contains("kkk… failed") && shown.contains("at most 4096") && shown.len() < 200, "{shown}");
    }

    #[test]
    fn a_read_has_no_outcome() {
        let error = ServiceError::DeadlineExceeded { stage: "read".into(), outcome: Outcome::Unknown };
        assert_eq!(Failure::read(&error).exit, Exit::Unavailable);
    }

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let error = ServiceError::NoLeader { shard: ShardId(4), retry_after: SOON };
        let failure = Failure::write(&error, Outcome::NotApplied).doing("put user:1");
        let expected = "\
error: put user:1 failed: shard 4 has no leader now
  nothing was applied
  hint: an election takes about a second: try again; if it stays so, kvctl doctor says why";
        assert_eq!(failure.render(Look::default()), expected);
        let json = failure.json();
        assert_eq!(json.pointer("/error/exit_code"), Some(&Value::from(3)));
        assert_eq!(json.pointer("/error/reason"), Some(&Value::from("NO_LEADER")));
        assert_eq!(json.pointer("/error/outcome"), Some(&Value::from("NOT_APPLIED")));
    }

    #[test]
    fn a_refusal_ends_with_one_and_bad_input_with_two() {
        let refused = ServiceError::Refused { why: "too few voters".into(), force: "quorum".into() };
        assert_eq!(Failure::write(&refused, Outcome::NotApplied).exit, Exit::No);
        let invalid = ServiceError::invalid("key", "must not be empty");
        assert_eq!(Failure::write(&invalid, Outcome::NotApplied).exit, Exit::Usage);
    }
}
