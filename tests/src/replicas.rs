//! Orders checks of shards' content, as `kvctl shard check` does, and records what each replica reported.
//!
//! Invariants: what is recorded is each replica's own report, not what the cluster concludes from it.
//!
//! Not here: the judgement (kv-checkers, equal_replicas).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_checkers::history::Replica;
use kv_proto::pb::admin::v1::{CheckShardRequest, CheckShardResponse, ShardListing};

use crate::admin::Admin;
use crate::cluster::Cluster;
use crate::recorder::Recorder;
use crate::wait;

/// Until every replica of a shard reported; one may still be taking a snapshot, on a loaded machine.
const REPORTED_WITHIN: Duration = Duration::from_secs(60);

/// Checks one shard once.
pub async fn check(admin: &mut Admin, listing: &ShardListing, recorder: &Recorder) -> Result<CheckShardResponse> {
    let shard = listing.shard.as_ref().context("a listing is of a shard")?;
    let request = CheckShardRequest { shard_id: shard.shard_id };
    let found = admin.service().check_shard(request).await?.into_inner();
    for report in &found.digests {
        // Replaced since the listing was made: nothing is known of where it is.
        let Some(replica) = shard.replicas.iter().find(|of| of.replica_id == report.replica_id) else { continue };
        recorder.replica(Replica {
            at: recorder.now(),
            node: replica.node_id,
            shard: shard.shard_id,
            index: found.index,
            checksum: format!("{:016x}", report.digest),
        });
    }
    Ok(found)
}

/// Checks every shard until all its replicas have reported of one index.
pub async fn check_all(cluster: &Cluster, recorder: &Recorder) -> Result<()> {
    let shards = cluster.admin().await?.shards("").await?;
    for shard in shards.iter().filter_map(|listing| Some(listing.shard.as_ref()?.shard_id)) {
        wait::until(&format!("all replicas of shard {shard} to report"), REPORTED_WITHIN, || async {
            let mut admin = cluster.admin().await?;
            let listing = admin.shard(shard).await?;
            let found = check(&mut admin, &listing, recorder).await?;
            ensure!(found.missing_replica_ids.is_empty(), "{found:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
