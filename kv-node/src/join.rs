//! A node asks a cluster to let it in, and tells it of a changed address.
//!
//! Invariants: asks again until it is let in or refused for good; the instance id makes asking twice harmless.
//!
//! Not here: deciding (catalog, edits, nodes).

pub mod seeds;

use std::time::Duration;

use kv_proto::errors::ServiceError;
use kv_proto::pb::raft::v1::{JoinRequest, JoinResponse};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::identity::Identity;
use crate::peers::Peers;
use kv_raft::failpoint;

/// One member's time to answer: it may have to wait for an election.
const ASK: Duration = Duration::from_secs(5);

/// Between two rounds over all members; small enough that a cluster started all at once forms at once.
const PAUSE: Duration = Duration::from_millis(300);

/// Rounds between two log lines about waiting.
const ROUNDS_QUIET: u32 = 20;

/// Why a node was not let in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// For good.
    #[error("the cluster does not let this node in: {0}")]
    Refused(ServiceError),
    /// The process was asked to stop meanwhile.
    #[error("stopped while waiting to be let in")]
    Stopped,
}

/// Asks the members at these addresses in turn until one lets this node in.
pub async fn join(
    peers: &Peers,
    addresses: &[String],
    identity: &Identity,
    config: &Config,
    cancel: &CancellationToken,
) -> Result<JoinResponse, JoinError> {
    for round in 0_u32.. {
        for address in addresses {
            failpoint!("join.ask");
            let asked = peers.join(address, request(identity, config), ASK);
            let Some(answer) = cancel.run_until_cancelled(asked).await else { return Err(JoinError::Stopped) };
            match answer {
                Ok(response) => return Ok(response),
                Err(error) if is_final(&error) => return Err(JoinError::Refused(error)),
                Err(error) if round.is_multiple_of(ROUNDS_QUIET) => {
                    tracing::info!(address, %error, "waiting to be let into the cluster");
                }
                Err(error) => tracing::debug!(address, %error, "not let in yet"),
            }
        }
        if cancel.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return Err(JoinError::Stopped);
        }
    }
    Err(JoinError::Stopped)
}

/// What a node says of itself.
#[must_use]
pub fn request(identity: &Identity, config: &Config) -> JoinRequest {
    JoinRequest {
        cluster_id: identity.cluster_id.clone(),
        instance_id: identity.instance_bytes().into(),
        address: config.advertise.clone(),
        http_address: config.http_advertise.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hops: 0,
    }
}

/// Whether asking again cannot help.
#[must_use]
pub fn is_final(error: &ServiceError) -> bool {
    match error {
        ServiceError::Refused { .. } | ServiceError::ClusterMismatch { .. } | ServiceError::Invalid { .. } => true,
        ServiceError::DeadlineMissing
        | ServiceError::DeadlineExceeded { .. }
        | ServiceError::KeyspaceNotFound { .. }
        | ServiceError::ShardNotFound { .. }
        | ServiceError::NotFound { .. }
        | ServiceError::AlreadyExists { .. }
        | ServiceError::CursorMismatch
        | ServiceError::CrossShard { .. }
        | ServiceError::NotLeader { .. }
        | ServiceError::StaleRoute { .. }
        | ServiceError::NoLeader { .. }
        | ServiceError::OutcomeUnknown { .. }
        | ServiceError::SessionStale { .. }
        | ServiceError::Overloaded { .. }
        | ServiceError::ReadOnly { .. }
        | ServiceError::SnapshotUnavailable { .. }
        | ServiceError::Conflict { .. }
        | ServiceError::NotReady { .. }
        | ServiceError::Internal { .. }
        | ServiceError::Foreign { .. } => false,
    }
}
