//! `kv-node unsafe-recover-shard`: the last resort for a shard whose majority is gone for good.
//!
//! Works on the data folder of a stopped node. Its replica becomes the only voter; whatever the others had acknowledged
//! and this one had not received is lost. When the node runs again the catalog follows: the other replicas are dropped,
//! and new ones are created as the keyspace asks for.
//!
//! Invariants: refuses a folder that a process uses; changes nothing unless the loss is accepted in words.
//!
//! Not here: what is written into the log (kv-raft, recovery).

use kv_proto::ids::ShardId;
use kv_raft::log_store::LogMetrics;
use kv_raft::recovery::{RecoveryError, RecoveryReport, force_sole_voter};

use crate::config::Config;
use crate::identity::{DataFolder, IdentityError, Stage};
use crate::node::start::{StartError, open_engines};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A process uses the data folder.
    #[error("{0}: stop the node first; nothing was changed")]
    InUse(IdentityError),
    /// The data folder is not one.
    #[error(transparent)]
    Identity(IdentityError),
    /// There is no node's data in it.
    #[error("{0} holds no member of a cluster: name the node's data folder with --data-dir; nothing was changed")]
    NotAMember(String),
    /// An engine does not open.
    #[error(transparent)]
    Engines(#[from] StartError),
    /// The shard cannot be recovered from here.
    #[error("{0}; nothing was changed")]
    Refused(RecoveryError),
    /// Its log failed, before or after the first change.
    #[error("the recovery is not finished: mend the cause and run it again, which does anew whatever this run began")]
    Unfinished(#[source] RecoveryError),
}

impl From<RecoveryError> for RecoverError {
    fn from(error: RecoveryError) -> Self {
        match error {
            RecoveryError::Log(_) | RecoveryError::Io(_) => Self::Unfinished(error),
            RecoveryError::NotHeld { .. }
            | RecoveryError::Mixed { .. }
            | RecoveryError::Empty(_)
            | RecoveryError::Gap { .. } => Self::Refused(error),
        }
    }
}

impl From<IdentityError> for RecoverError {
    fn from(error: IdentityError) -> Self {
        if matches!(error, IdentityError::InUse { .. }) { Self::InUse(error) } else { Self::Identity(error) }
    }
}

/// Makes this folder's replica the only voter of its shard.
pub async fn recover(config: &Config, shard: ShardId) -> Result<RecoveryReport, RecoverError> {
    let no_member = || RecoverError::NotAMember(config.data_dir.display().to_string());
    let folder = DataFolder::open_existing(&config.data_dir)?.ok_or_else(no_member)?;
    let identity = folder.read_identity()?.filter(|identity| identity.stage == Stage::Member).ok_or_else(no_member)?;
    let engines = open_engines(&folder, config, LogMetrics::unregistered()).await?;
    let report = force_sole_voter(&engines.log, &engines.data, identity.node(), shard).await;
    engines.data.close().await;
    engines.log.close().await;
    Ok(report?)
}

/// What was done, for the person who did it.
#[must_use]
pub fn describe(report: &RecoveryReport) -> String {
    let index = |id: Option<kv_raft::types::LogId>| id.map_or(0, |id| id.index);
    format!(
        "shard {}: replica {} is now the only voter (forced entry {}).\n\
         It had applied entry {}, knew {} as committed and had {} in its log. Writes acknowledged after that are lost.\n\
         Never start the lost nodes with their old data again: they would go on without this one.\n\
         Start this node; the catalog drops the other replicas and creates new ones.",
        report.shard,
        report.replica,
        report.forced.index,
        index(report.applied),
        index(report.committed),
        index(report.last)
    )
}
