//! Why a call to one node failed.
//!
//! Not here: what the caller of the client sees (crate::error).

use std::sync::Arc;
use std::time::Duration;

use kv_proto::errors::{Outcome, ServiceError};

/// The node answered with an error, or did not answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// The node's answer.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// No answer.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl CallError {
    /// What became of the request, if it was a write.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Service(error) => error.outcome(),
            Self::Connection(error) => error.outcome(),
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The node failed a moment ago and has not been seen alive since.
    #[error("node {address} failed a moment ago; trying it again in {} ms", retry_after.as_millis())]
    CircuitOpen {
        /// Which node.
        address: Arc<str>,
        /// Least time until asking again may help.
        retry_after: Duration,
    },
    /// No connection could be made.
    #[error("cannot reach node {address}: {why}")]
    Unreachable {
        /// Which node.
        address: Arc<str>,
        /// What the network said.
        why: String,
    },
    /// The connection broke before the answer came.
    #[error("lost the connection to node {address}: {why}")]
    Lost {
        /// Which node.
        address: Arc<str>,
        /// What the network said.
        why: String,
        /// Whether the request may have reached the node.
        sent: bool,
    },
    /// The deadline passed before the answer came.
    #[error("node {address} did not answer in time")]
    TimedOut {
        /// Which node.
        address: Arc<str>,
        /// Whether the request may have reached the node.
        sent: bool,
    },
    /// The pool was closed.
    #[error("the connection pool is closed")]
    Closed,
}

impl ConnectionError {
    /// Whether the request may have reached the node.
    #[must_use]
    pub fn sent(&self) -> bool {
        match self {
            Self::Lost { sent, .. } | Self::TimedOut { sent, .. } => *sent,
            Self::CircuitOpen { .. } | Self::Unreachable { .. } | Self::Closed => false,
        }
    }

    /// What became of the request, if it was a write.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.sent() { Outcome::Unknown } else { Outcome::NotApplied }
    }
}
