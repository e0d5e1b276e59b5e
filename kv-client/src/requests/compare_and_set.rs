//! Changing one key if it is as expected.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::pb::v1 as pb;
use kv_proto::pb::v1::condition::Expected;
use kv_proto::timestamp::Timestamp;

use crate::connection::pipeline_call::Request;
use crate::data::{Data, Entry};
use crate::error::Result;
use crate::execute::{Kind, Operation, Target};
use crate::scope::Scope;

/// Begins a conditional write: say what is expected, then what to do.
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), kv_client::Error> {
/// use kv_client::CasResult;
///
/// match client.compare_and_set("lock").expect_absent().set("me").await? {
///     CasResult::Applied { version } => println!("mine since {version}"),
///     CasResult::Refused { current } => println!("held: {current:?}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "say what is expected and what to do"]
pub struct CompareAndSet {
    scope: Arc<Scope>,
    key: Bytes,
}

/// An expectation without an action yet.
#[derive(Clone, Debug)]
#[must_use = "say what to do: `set` or `delete`"]
pub struct Expecting {
    scope: Arc<Scope>,
    condition: pb::Condition,
}

/// A conditional write; awaiting it gives a [`CasResult`].
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is awaited"]
pub struct ConditionalWrite {
    scope: Arc<Scope>,
    condition: pb::Condition,
    new_value: Option<Bytes>,
    timeout: Option<Duration>,
}

/// What a conditional write did. A refusal is an answer, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CasResult {
    /// The key was as expected and has been changed.
    Applied {
        /// Its new version.
        version: Timestamp,
    },
    /// The key was not as expected; nothing changed.
    Refused {
        /// The key as it is; None if it does not exist.
        current: Option<Entry>,
    },
}

impl CasResult {
    /// Whether it changed the key.
    #[must_use]
    pub fn applied(&self) -> bool {
        match self {
            Self::Applied { .. } => true,
            Self::Refused { .. } => false,
        }
    }
}

impl CompareAndSet {
    pub(crate) fn new(scope: &Arc<Scope>, key: Data) -> Self {
        Self { scope: scope.clone(), key: key.0 }
    }

    fn expect(self, expected: Expected) -> Expecting {
        let condition = pb::Condition { key: self.key, expected: Some(expected) };
        Expecting { scope: self.scope, condition }
    }

    /// The key holds exactly this value.
    pub fn expect_value(self, value: impl Into<Data>) -> Expecting {
        self.expect(Expected::Value(value.into().0))
    }

    /// The key was last written at this version.
    pub fn expect_version(self, version: Timestamp) -> Expecting {
        self.expect(Expected::CommitTimestamp(version.0))
    }

    /// The key does not exist.
    pub fn expect_absent(self) -> Expecting {
        self.expect(Expected::Exists(false))
    }

    /// The key exists.
    pub fn expect_exists(self) -> Expecting {
        self.expect(Expected::Exists(true))
    }
}

impl Expecting {
    /// Then write this value.
    pub fn set(self, value: impl Into<Data>) -> ConditionalWrite {
        self.then(Some(value.into().0))
    }

    /// Then delete the key.
    pub fn delete(self) -> ConditionalWrite {
        self.then(None)
    }

    fn then(self, new_value: Option<Bytes>) -> ConditionalWrite {
        ConditionalWrite { scope: self.scope, condition: self.condition, new_value, timeout: None }
    }
}

impl ConditionalWrite {
    async fn run(self) -> Result<CasResult> {
        let scope = &self.scope;
        let message = |header| {
            let (condition, new_value) = (Some(self.condition.clone()), self.new_value.clone());
            Request::CompareAndSet(pb::CompareAndSetRequest { header: Some(header), condition, new_value })
        };
        let operation = Operation {
            target: Target::Key(&self.condition.key),
            kind: Kind::Write,
            deadline: scope.deadline(self.timeout),
            message: &message,
        };
        let answer = scope.execute(operation).await?;
        let response = super::response!(answer.response, CompareAndSet)?;
        Ok(if response.succeeded {
            CasResult::Applied { version: Timestamp(response.commit_timestamp) }
        } else {
            CasResult::Refused { current: response.current.map(Entry::from) }
        })
    }
}

super::request!(ConditionalWrite -> CasResult);
