//! How long a shard is not served when its leader dies, with nothing else wrong and the load going on.
//!
//! Invariants: a write counts that began after the kill, and was acknowledged by the shard that lost its leader.
//!
//! Not here: kills among other faults (storm), where a shard may have no majority for as long as they last.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kv_checkers::history::History;

use super::action;
use crate::cluster::Cluster;
use crate::recorder::Recorder;
use crate::wait;

/// Longer than this is no recovery.
const SERVED_WITHIN: Duration = Duration::from_secs(60);

/// Kills the node that leads most shards; until every one of them took a write. It is up again when this returns.
pub(super) async fn of_a_killed_leader(cluster: &mut Cluster, recorder: &Recorder) -> Result<Duration> {
    cluster.ready().await?;
    let (leader, shards) = action::busiest_leader(cluster).await.context("nobody leads after the storm")?;
    let (killed, before) = (recorder.now(), recorder.with(|history| history.operations.len()));
    recorder.fault(format!("kill {leader}, alone"));
    cluster.node_mut(leader).kill().await?;
    let served = wait::until("every shard of a killed leader to take a write", SERVED_WITHIN, || async {
        let first = recorder.with(|history| first_writes(history, before, killed));
        let served = |shard: &u64| first.get(shard).copied().with_context(|| format!("shard {shard} did not yet"));
        shards.iter().map(served).try_fold(killed, |last, time| Ok(last.max(time?)))
    })
    .await?;
    cluster.restart(leader).await?;
    Ok(Duration::from_nanos(served - killed))
}

/// When each shard first acknowledged a write that began after a time.
fn first_writes(history: &History, from: usize, after: u64) -> BTreeMap<u64, u64> {
    let mut first = BTreeMap::new();
    for operation in history.operations.iter().skip(from) {
        let written = operation.outcome.written().is_some() && operation.invoke > after;
        if let (true, Some(shard), Some(complete)) = (written, operation.shard, operation.complete) {
            let time = first.entry(shard).or_insert(complete);
            *time = complete.min(*time);
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_checkers::history::{Call, Operation, Outcome};

    #[test]
    fn only_acknowledged_writes_that_began_after_the_kill_count() {
        let write = |shard, invoke, complete, outcome| Operation {
            process: 1,
            shard: Some(shard),
            invoke,
            complete: Some(complete),
            call: Call::Write { key: "k".into(), value: "v".into() },
            outcome,
        };
        let done = || Outcome::Written { version: 1 };
        let operations = vec![
            write(1, 5, 30, done()),
            write(1, 12, 40, done()),
            write(1, 13, 35, done()),
            write(2, 12, 14, Outcome::Unknown { reason: String::new() }),
            write(2, 12, 50, done()),
        ];
        let history = History { operations, ..History::default() };
        assert_eq!(first_writes(&history, 0, 10), BTreeMap::from([(1, 35), (2, 50)]));
        assert_eq!(first_writes(&history, 3, 10), BTreeMap::from([(2, 50)]));
    }
}
