//! What a caller sees of a failure.
//!
//! Invariants: [`Error::outcome`] is [`Outcome::NotApplied`] only if no attempt of the write can have been applied.
//!
//! Not here: errors of one attempt (connection), what is retried (retry).

use std::time::Duration;

use kv_proto::errors::{Outcome, ServiceError};

use crate::connection::{CallError, ConnectionError};

/// The result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request failed for good.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The cluster answered with an error that sending again would not change, or the client foresaw that answer.
    #[error("{error}")]
    Service {
        /// What it answered.
        error: ServiceError,
        /// What became of the write, over all attempts.
        outcome: Outcome,
        /// How often it was sent.
        attempts: u32,
    },
    /// A node did not answer, and sending again might apply the request twice.
    #[error("{error}")]
    Connection {
        /// Why not.
        error: ConnectionError,
        /// What became of the write.
        outcome: Outcome,
        /// How often it was sent.
        attempts: u32,
    },
    /// The time was up before an attempt succeeded.
    #[error("no answer within {timeout:?} after {attempts} attempts{}", because(last.as_deref()))]
    DeadlineExceeded {
        /// The request's timeout.
        timeout: Duration,
        /// How often it was sent.
        attempts: u32,
        /// What became of the write, over all attempts.
        outcome: Outcome,
        /// Why the last attempt failed.
        last: Option<Box<CallError>>,
    },
    /// What was given to the client is not usable.
    #[error("{why}")]
    Usage {
        /// In one line.
        why: String,
    },
}

fn because(last: Option<&CallError>) -> String {
    last.map(|error| format!(", the last: {error}")).unwrap_or_default()
}

impl Error {
    pub(crate) fn usage(why: impl Into<String>) -> Self {
        Self::Usage { why: why.into() }
    }

    /// An answer the client foresaw without asking.
    pub(crate) fn foreseen(error: ServiceError) -> Self {
        Self::Service { error, outcome: Outcome::NotApplied, attempts: 0 }
    }

    pub(crate) fn from_call(error: CallError, outcome: Outcome, attempts: u32) -> Self {
        match error {
            CallError::Service(error) => Self::Service { error, outcome, attempts },
            CallError::Connection(error) => Self::Connection { error, outcome, attempts },
        }
    }

    /// What became of the write. For a read always [`Outcome::NotApplied`].
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Service { outcome, .. }
            | Self::Connection { outcome, .. }
            | Self::DeadlineExceeded { outcome, .. } => *outcome,
            Self::Usage { .. } => Outcome::NotApplied,
        }
    }

    /// What the cluster answered last, if it answered.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceError> {
        match self {
            Self::Service { error, .. } => Some(error),
            Self::DeadlineExceeded { last, .. } => match last.as_deref() {
                Some(CallError::Service(error)) => Some(error),
                Some(CallError::Connection(_)) | None => None,
            },
            Self::Connection { .. } | Self::Usage { .. } => None,
        }
    }

    /// How often the request was sent.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        match self {
            Self::Service { attempts, .. }
            | Self::Connection { attempts, .. }
            | Self::DeadlineExceeded { attempts, .. } => *attempts,
            Self::Usage { .. } => 0,
        }
    }
}
