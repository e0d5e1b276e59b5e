//! Administration: every call of `kv.admin.v1`, over whichever endpoint answers.
//!
//! Invariants: a call that changes something is sent again only if it was surely not carried out.
//!
//! Not here: what the calls mean (kv-proto, `kv.admin.v1`).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::limits::MESSAGE_BYTES_MAX;
/// The messages of `kv.admin.v1`.
pub use kv_proto::pb::admin::v1 as pb;
use kv_proto::pb::admin::v1::admin_service_client::AdminServiceClient;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::connection::{CallError, ConnectionError};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::execute::Deadline;
use crate::retry::{Attempt, Decision, decide};

/// Nodes, keyspaces, shards, membership and status. Cheap to clone.
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), kv_client::Error> {
/// use kv_client::admin::pb;
///
/// for listing in client.admin().list_nodes(pb::ListNodesRequest {}).await?.nodes {
///     let node = listing.node.unwrap_or_default();
///     println!("{} {} {}", node.node_id, node.address, listing.unreachable_reason);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Admin {
    core: Arc<Core>,
    timeout: Duration,
    only: Option<Arc<str>>,
}

/// Whether a call may be sent again after it was perhaps carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Reads,
    Changes,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $effect:ident $name:ident($request:ident) -> $response:ident;)+) => {
        impl Admin {
            $($(#[$doc])*
            ///
            /// # Errors
            /// What the cluster answered, or that no endpoint did.
            pub async fn $name(&self, request: pb::$request) -> Result<pb::$response> {
                self.call(Effect::$effect, request, async |mut client, request| client.$name(request).await).await
            })+
        }
    };
}

calls! {
    /// The whole catalog as one node knows it.
    Reads get_catalog(GetCatalogRequest) -> GetCatalogResponse;
    /// All nodes, with what each says of itself where it answers.
    Reads list_nodes(ListNodesRequest) -> ListNodesResponse;
    /// A node's own account of itself; see [`Admin::only`] to choose the node.
    Reads get_node_status(GetNodeStatusRequest) -> GetNodeStatusResponse;
    /// Moves leaders and replicas off a node.
    Changes drain_node(DrainNodeRequest) -> DrainNodeResponse;
    /// Takes a drain back.
    Changes undrain_node(UndrainNodeRequest) -> UndrainNodeResponse;
    /// Removes a drained node, or a dead one whose replicas have been replaced.
    Changes remove_node(RemoveNodeRequest) -> RemoveNodeResponse;
    /// Creates a keyspace.
    Changes create_keyspace(CreateKeyspaceRequest) -> CreateKeyspaceResponse;
    /// All keyspaces.
    Reads list_keyspaces(ListKeyspacesRequest) -> ListKeyspacesResponse;
    /// Deletes a keyspace with all its data.
    Changes delete_keyspace(DeleteKeyspaceRequest) -> DeleteKeyspaceResponse;
    /// Shards with the state of each replica.
    Reads list_shards(ListShardsRequest) -> ListShardsResponse;
    /// Adds a learner replica of a shard on a node.
    Changes add_learner(AddLearnerRequest) -> AddLearnerResponse;
    /// Makes a caught-up learner a voter.
    Changes promote_learner(PromoteLearnerRequest) -> PromoteLearnerResponse;
    /// Changes a shard's voters to exactly the replicas on these nodes.
    Changes change_voters(ChangeVotersRequest) -> ChangeVotersResponse;
    /// Removes a shard's replica from a node.
    Changes remove_replica(RemoveReplicaRequest) -> RemoveReplicaResponse;
    /// Adds on one node, catches up, promotes, removes from the other.
    Changes move_replica(MoveReplicaRequest) -> MoveReplicaResponse;
    /// Hands a shard's leadership to the replica on a node.
    Changes transfer_leader(TransferLeaderRequest) -> TransferLeaderResponse;
    /// Compares the content of a shard's replicas.
    Reads check_shard(CheckShardRequest) -> CheckShardResponse;
    /// Long actions and how far they are.
    Reads list_actions(ListActionsRequest) -> ListActionsResponse;
    /// Ends an action before its next step.
    Changes cancel_action(CancelActionRequest) -> CancelActionResponse;
}

impl Admin {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let timeout = core.timeouts.request;
        Self { core, timeout, only: None }
    }

    /// Time each call gets instead of the client's.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Asks this address (`host:port`) and no other.
    #[must_use]
    pub fn only(mut self, address: &str) -> Self {
        self.only = Some(Arc::from(address));
        self
    }

    /// The addresses it asks, in the order of their liveness.
    #[must_use]
    pub fn addresses(&self) -> Vec<Arc<str>> {
        self.only.clone().map_or_else(|| self.core.addresses(None), |only| vec![only])
    }

    async fn call<Q, A, F>(&self, effect: Effect, request: Q, send: F) -> Result<A>
    where
        Q: Clone,
        F: AsyncFn(AdminServiceClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    {
        let deadline = Deadline::after(self.timeout);
        let (mut number, mut outcome) = (0, Outcome::NotApplied);
        let mut turns = Turns::default();
        loop {
            let address = turns.next(self.addresses()).ok_or_else(|| Error::usage("no endpoints"))?;
            number += 1;
            let error = match self
                .ask(effect, &address, deadline, async |client, timeout| {
                    let mut request = Request::new(request.clone());
                    request.set_timeout(timeout);
                    send(client, request).await
                })
                .await
            {
                Ok(answer) => {
                    self.core.answered(&address);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            // What does not know the call has not done it.
            let foreign = matches!(&error, CallError::Service(ServiceError::Foreign { code: Code::Unimplemented, .. }));
            if effect == Effect::Changes && error.outcome() == Outcome::Unknown && !foreign {
                outcome = Outcome::Unknown;
            }
            let remaining = deadline.at.saturating_duration_since(Instant::now());
            let attempt = Attempt { number, repeatable: effect == Effect::Reads, remaining, budget: true };
            // No endpoint can be reached, one alone at the second try: no use to wait for all of them.
            turns.reached |= !matches!(&error, CallError::Connection(error) if !error.sent());
            let all_silent = !turns.reached && number > 1 && turns.all_asked;
            // A node may be a moment behind the catalog; once all were asked, there is no such shard.
            let unknown_to_all =
                matches!(&error, CallError::Service(ServiceError::ShardNotFound { .. })) && turns.all_asked;
            match decide(&error, attempt) {
                Decision::Retry { least, window, .. } if !remaining.is_zero() && !all_silent && !unknown_to_all => {
                    let pause = least + window.mul_f64(rand::random());
                    sleep_until((Instant::now() + pause).min(deadline.at)).await;
                }
                Decision::Retry { .. } | Decision::Fail => return Err(Error::from_call(error, outcome, number)),
            }
        }
    }

    /// Asks one node.
    async fn ask<A, F>(&self, effect: Effect, address: &str, deadline: Deadline, send: F) -> Result<A, CallError>
    where
        F: AsyncFnOnce(AdminServiceClient<Channel>, Duration) -> Result<Response<A>, Status>,
    {
        // A change may take long and must not be asked for twice; a read may as well be answered by another node.
        let until = match effect {
            Effect::Reads => deadline.at.min(Instant::now() + self.core.timeouts.attempt.max(self.timeout / 2)),
            Effect::Changes => deadline.at,
        };
        let node = self.core.pool.get(address);
        let channel = node.channel(until).await?;
        let client = AdminServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let sent = send(client, until.saturating_duration_since(Instant::now()));
        flatten(timeout_at(until, sent), node.address()).await
    }
}

/// Whose turn it is: every endpoint's once, then everyone's again. Their order may change between two turns.
#[derive(Debug, Default)]
struct Turns {
    asked: Vec<Arc<str>>,
    /// Whether all have had their turn.
    all_asked: bool,
    /// Whether anyone was reached.
    reached: bool,
}

impl Turns {
    fn next(&mut self, addresses: Vec<Arc<str>>) -> Option<Arc<str>> {
        if addresses.iter().all(|address| self.asked.contains(address)) {
            self.asked.clear();
        }
        let address = addresses.iter().find(|address| !self.asked.contains(address))?.clone();
        self.asked.push(address.clone());
        self.all_asked |= addresses.iter().all(|address| self.asked.contains(address));
        Some(address)
    }
}

async fn flatten<A>(
    answer: impl Future<Output = Result<Result<Response<A>, Status>, tokio::time::error::Elapsed>>,
    address: &Arc<str>,
) -> Result<A, CallError> {
    match answer.await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(to_error(&status, address)),
        Err(_) => Err(ConnectionError::TimedOut { address: address.clone(), sent: true }.into()),
    }
}

/// A status with a source is the transport's, not the node's.
fn to_error(status: &Status, address: &Arc<str>) -> CallError {
    let error = ServiceError::from_status(status);
    if matches!(error, ServiceError::Foreign { .. }) && std::error::Error::source(status).is_some() {
        let why = status.message().to_owned();
        return ConnectionError::Lost { address: address.clone(), why, sent: true }.into();
    }
    error.into()
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("timeout", &self.timeout).field("only", &self.only).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(turns: &mut Turns, order: &[&str]) -> (String, bool) {
        let address = turns.next(order.iter().map(|address| Arc::from(*address)).collect()).unwrap();
        (address.to_string(), turns.all_asked)
    }

    #[test]
    fn everyone_is_asked_once_though_a_dead_node_changes_places() {
        let mut turns = Turns::default();
        assert_eq!(turn(&mut turns, &["dead", "live"]), ("dead".to_owned(), false));
        assert_eq!(turn(&mut turns, &["live", "dead"]), ("live".to_owned(), true));
        assert_eq!(turn(&mut turns, &["live", "dead"]), ("live".to_owned(), true));
        assert_eq!(turn(&mut turns, &["live", "dead"]), ("dead".to_owned(), true));
        assert!(Turns::default().next(Vec::new()).is_none());
    }
}
