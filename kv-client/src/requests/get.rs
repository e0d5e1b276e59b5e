//! Reading one key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::pb::v1 as pb;

use crate::connection::pipeline_call::Request;
use crate::data::{Consistency, Data, Entry};
use crate::error::Result;
use crate::execute::{Kind, Operation, Target};
use crate::scope::Scope;

/// Reads a key; awaiting it gives `Option<Entry>`.
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), kv_client::Error> {
/// use std::time::Duration;
/// use kv_client::Consistency;
///
/// let fresh = client.get("user:1").await?;
/// let recent = client.get("user:1").consistency(Consistency::Stale { max: Duration::from_secs(1) }).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is awaited"]
pub struct Get {
    scope: Arc<Scope>,
    key: Bytes,
    consistency: Consistency,
    timeout: Option<Duration>,
}

impl Get {
    pub(crate) fn new(scope: &Arc<Scope>, key: Data) -> Self {
        Self { scope: scope.clone(), key: key.0, consistency: Consistency::default(), timeout: None }
    }

    /// What the read promises; linearizable unless set.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    async fn run(self) -> Result<Option<Entry>> {
        let scope = &self.scope;
        let read = self.consistency.to_pb();
        let message =
            |header| Request::Get(pb::GetRequest { header: Some(header), key: self.key.clone(), read: Some(read) });
        let operation = Operation {
            target: Target::Key(&self.key),
            kind: Kind::reading(self.consistency),
            deadline: scope.deadline(self.timeout),
            message: &message,
        };
        let answer = scope.execute(operation).await?;
        let response = super::response!(answer.response, Get)?;
        Ok(response.entry.map(Entry::from))
    }
}

super::request!(Get -> Option<Entry>);
