//! The routes of one keyspace, fetched when needed and corrected by hints.
//!
//! Invariants: at most one fetch per keyspace at a time; everyone who needs routes meanwhile waits for that one.
//!
//! Not here: what routes are (routes), when they are fetched anew (retry, execute).

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use kv_proto::errors::ServiceError;
use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::pb::v1 as pb;
use kv_proto::pb::v1::kv_service_client::KvServiceClient;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::connection::{CallError, ConnectionError};
use crate::core::{Core, header};
use crate::routes::{Merged, Routes};

/// Most time one node gets to list routes before the next is asked.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// Most time for one fetch over all nodes; callers with a later deadline begin another.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);

type Fetch = Shared<BoxFuture<'static, Result<Arc<Routes>, CallError>>>;

/// The routes of one keyspace.
pub(crate) struct RouteCache {
    core: Arc<Core>,
    name: Arc<str>,
    routes: Arc<ArcSwapOption<Routes>>,
    fetch: Mutex<Option<Fetch>>,
}

impl RouteCache {
    pub(crate) fn new(core: Arc<Core>, name: Arc<str>) -> Self {
        Self { core, name, routes: Arc::default(), fetch: Mutex::default() }
    }

    /// What is known now.
    pub(crate) fn known(&self) -> Option<Arc<Routes>> {
        self.routes.load_full()
    }

    /// What is known, or else fetched.
    pub(crate) async fn get(&self, deadline: Instant) -> Result<Arc<Routes>, CallError> {
        match self.known() {
            Some(routes) => Ok(routes),
            None => self.refresh(deadline).await,
        }
    }

    /// Fetches anew, or joins a fetch under way.
    pub(crate) async fn refresh(&self, deadline: Instant) -> Result<Arc<Routes>, CallError> {
        let fetch = self.join();
        // Boxed: every request would carry the space of this rare way.
        match Box::pin(timeout_at(deadline, fetch)).await {
            Ok(result) => result,
            Err(_) => Err(ConnectionError::TimedOut { address: Arc::from("any"), sent: false }.into()),
        }
    }

    fn join(&self) -> Fetch {
        let mut current = self.fetch.lock();
        match &*current {
            Some(fetch) if fetch.peek().is_none() => fetch.clone(),
            Some(_) | None => {
                let fetch = fetch(self.core.clone(), self.name.clone(), self.routes.clone()).boxed().shared();
                *current = Some(fetch.clone());
                fetch
            }
        }
    }

    /// Takes over what a node said.
    pub(crate) fn merge(&self, hint: &pb::RouteHint) {
        // Two hints at once: the swap is tried again on the newer routes, and epochs decide.
        self.routes.rcu(|routes| match routes.as_ref().map(|routes| routes.merge(hint)) {
            Some(Merged::Changed(next)) => Some(Arc::new(next)),
            Some(Merged::InPlace) | None => routes.clone(),
        });
    }
}

async fn fetch(core: Arc<Core>, name: Arc<str>, routes: Arc<ArcSwapOption<Routes>>) -> Result<Arc<Routes>, CallError> {
    let deadline = Instant::now() + FETCH_TIMEOUT;
    let known = routes.load_full();
    let addresses = core.addresses(known.as_deref());
    let mut failure: Option<CallError> = None;
    for address in addresses {
        if Instant::now() >= deadline {
            break;
        }
        match fetch_from(&core, &address, &name, deadline.min(Instant::now() + NODE_TIMEOUT)).await {
            Ok(answer) => {
                let fetched = Arc::new(Routes::from_pb(&answer, known.as_deref())?);
                core.answered(&address);
                routes.store(Some(fetched.clone()));
                return Ok(fetched);
            }
            Err(error) => failure = Some(worse(failure, error)),
        }
    }
    Err(failure.unwrap_or(ConnectionError::TimedOut { address: Arc::from("any"), sent: false }.into()))
}

/// An answer of one node says more than the silence of another.
fn worse(first: Option<CallError>, second: CallError) -> CallError {
    match first {
        Some(first @ CallError::Service(_)) => first,
        Some(CallError::Connection(_)) | None => second,
    }
}

async fn fetch_from(
    core: &Core,
    address: &str,
    keyspace: &str,
    deadline: Instant,
) -> Result<pb::ListRoutesResponse, CallError> {
    let node = core.pool.get(address);
    let channel = node.channel(deadline).await?;
    let mut client = KvServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let header =
        pb::RequestHeader { keyspace: keyspace.to_owned(), ..header(core.cluster_name().to_owned(), deadline) };
    let request = pb::ListRoutesRequest { header: Some(header) };
    let answer = match timeout_at(deadline, client.list_routes(request)).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return Err(ServiceError::from_status(&status).into()),
        Err(_) => return Err(ConnectionError::TimedOut { address: node.address().clone(), sent: true }.into()),
    };
    core.check_cluster(&answer.cluster_id)?;
    Ok(answer)
}
