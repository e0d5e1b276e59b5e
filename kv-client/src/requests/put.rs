//! Writing one key.

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

/// Writes a key; awaiting it gives the key's new version. Applied exactly once, however often it is sent.
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), kv_client::Error> {
/// use std::time::Duration;
///
/// let version = client.put("user:1", "Ada").timeout(Duration::from_millis(500)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is awaited"]
pub struct Put {
    scope: Arc<Scope>,
    key: Bytes,
    value: Bytes,
    timeout: Option<Duration>,
}

impl Put {
    pub(crate) fn new(scope: &Arc<Scope>, key: Data, value: Data) -> Self {
        Self { scope: scope.clone(), key: key.0, value: value.0, timeout: None }
    }

    async fn run(self) -> Result<Timestamp> {
        let scope = &self.scope;
        let message = |header| {
            let (key, value) = (self.key.clone(), self.value.clone());
            Request::Put(pb::PutRequest { header: Some(header), key, value })
        };
        let operation = Operation {
            target: Target::Key(&self.key),
            kind: Kind::Write,
            deadline: scope.deadline(self.timeout),
            message: &message,
        };
        let answer = scope.execute(operation).await?;
        let response = super::response!(answer.response, Put)?;
        Ok(Timestamp(response.commit_timestamp))
    }
}

super::request!(Put -> Timestamp);
