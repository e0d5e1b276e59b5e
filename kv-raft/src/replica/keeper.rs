//! What is done for all replicas of a node on a schedule: flushing, purging, comparing, going to sleep, waking when a node
//! is lost, and looking after shards whose leader is missing or unanswered.
//!
//! Invariants: one timer each for all replicas; a sleeping replica costs a look at one flag; the log is purged only up
//! to what is durably applied, because only a flush asks for it, and no further than the snapshot that names it.
//!
//! Not here: how a shard goes to sleep (sleep); what purging deletes (log_store).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::context::Shared;
use crate::failpoint;

/// How often the flush job looks whether a flush is due.
const FLUSH_CHECK: Duration = Duration::from_millis(500);

/// How often it is looked whether a check is due, within these bounds.
const CHECK_LOOK_MIN: Duration = Duration::from_millis(50);
const CHECK_LOOK_MAX: Duration = Duration::from_secs(10);

/// Fails the context when an engine fails.
pub(super) async fn watch_storage(shared: Arc<Shared>) {
    let failed = async {
        tokio::select! {
            reason = shared.log.failed() => format!("log engine: {reason}"),
            reason = shared.data.failed() => format!("data engine: {reason}"),
        }
    };
    if let Some(reason) = shared.cancel.run_until_cancelled(failed).await {
        shared.fail(&reason);
    }
}

/// Flushes when the interval is over or enough went into the log, unless nothing did.
pub(super) async fn flush(shared: Arc<Shared>) {
    let mut ticks = interval(FLUSH_CHECK.min(shared.timing.flush_interval));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut flushed_at, mut flushed_bytes) = (Instant::now(), 0);
    while shared.cancel.run_until_cancelled(ticks.tick()).await.is_some() {
        let written = shared.log_bytes().saturating_sub(flushed_bytes);
        let due = flushed_at.elapsed() >= shared.timing.flush_interval && written > 0;
        if !due && written < shared.timing.flush_log_bytes {
            continue;
        }
        flushed_bytes = shared.log_bytes();
        if let Err(error) = flush_once(&shared).await {
            shared.fail(&format!("flush: {error}"));
            return;
        }
        flushed_at = Instant::now();
    }
}

/// Makes what is applied durable, then lets each replica that advanced purge its log up to there.
pub(super) async fn flush_once(shared: &Arc<Shared>) -> Result<(), String> {
    let flushed = shared.data.flush().await.map_err(|e| e.to_string())?;
    failpoint!("purge.flushed");
    for (shard, applied) in flushed {
        let Some(replica) = shared.replica(shard) else { continue };
        if replica.durable.fetch_max(applied.index, Ordering::AcqRel) < applied.index {
            // Fails only for a replica that stops.
            let _ = replica.raft.trigger().snapshot().await;
        }
        // openraft keeps a number of entries, whatever their size. It purges no further than the snapshot it knows
        // (engine_impl, trigger_purge_log), and that is never ahead of what a flush made durable; what this flush
        // added is purged by the next if its snapshot is not known yet.
        if let Some(index) = shared.log.excess(shard, shared.timing.log_bytes_kept) {
            let _ = replica.raft.trigger().purge_log(index.min(applied.index)).await;
        }
    }
    Ok(())
}

/// Offers sleep to every replica that is awake.
pub(super) async fn put_to_sleep(shared: Arc<Shared>) {
    let Some(after) = shared.timing.hibernate_after else { return };
    let mut ticks = interval(after / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shared.cancel.run_until_cancelled(ticks.tick()).await.is_some() {
        for replica in shared.awake() {
            replica.consider_sleep(after);
        }
    }
}

/// Lets the shards led here compare their replicas when it is time.
pub(super) async fn compare(shared: Arc<Shared>, check: Duration) {
    let mut ticks = interval((check / 16).clamp(CHECK_LOOK_MIN, CHECK_LOOK_MAX));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shared.cancel.run_until_cancelled(ticks.tick()).await.is_some() {
        for replica in shared.replicas() {
            replica.consider_check(check);
        }
    }
}

/// Looks for shards that have no leader because the replica that could be elected may not lead, or because others hear one
/// that hears nobody.
pub(super) async fn watch_elections(shared: Arc<Shared>) {
    let mut ticks = interval(shared.timing.election_max);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shared.cancel.run_until_cancelled(ticks.tick()).await.is_some() {
        for replica in shared.awake() {
            replica.consider_standing();
            replica.consider_silence();
        }
    }
}

/// Wakes the sleeping replicas that nodes which are lost, came, or began anew concern.
pub(super) async fn follow_nodes(shared: Arc<Shared>) {
    let mut alive = shared.transport.watch_alive();
    while let Some(Ok(())) = shared.cancel.run_until_cancelled(alive.changed()).await {
        let now = alive.borrow_and_update().clone();
        for replica in shared.replicas() {
            replica.nodes_changed(&now);
        }
    }
}
