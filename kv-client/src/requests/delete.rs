//! Deleting one key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::pb::v1 as pb;
use kv_proto::timestamp::Timestamp;

use crate::connection::pipeline_call::Request;
use crate::data::Data;
use crate::error::Result;
use crate::execute::{Kind, Operation, Target};
use crate::scope::Scope;

/// Deletes a key; awaiting it tells whether there was one.
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), kv_client::Error> {
/// if !client.delete("user:1").await?.existed {
///     println!("there was no such user");
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is awaited"]
pub struct Delete {
    scope: Arc<Scope>,
    key: Bytes,
    timeout: Option<Duration>,
}

/// What a delete did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Its commit timestamp.
    pub version: Timestamp,
    /// Whether there was a key to delete.
    pub existed: bool,
}

impl Delete {
    pub(crate) fn new(scope: &Arc<Scope>, key: Data) -> Self {
        Self { scope: scope.clone(), key: key.0, timeout: None }
    }

    async fn run(self) -> Result<Deleted> {
        let scope = &self.scope;
        let message = |header| Request::Delete(pb::DeleteRequest { header: Some(header), key: self.key.clone() });
        let operation = Operation {
            target: Target::Key(&self.key),
            kind: Kind::Write,
            deadline: scope.deadline(self.timeout),
            message: &message,
        };
        let answer = scope.execute(operation).await?;
        let response = super::response!(answer.response, Delete)?;
        Ok(Deleted { version: Timestamp(response.commit_timestamp), existed: response.deleted })
    }
}

super::request!(Delete -> Deleted);
