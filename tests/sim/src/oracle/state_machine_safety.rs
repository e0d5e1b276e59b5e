//! State Machine Safety: if a replica has applied an entry at a given index, no other replica applies another there; and
//! applying it gives the same replies everywhere, also when it is applied again after a crash.

use std::collections::BTreeMap;

use kv_proto::ids::ShardId;
use kv_raft::command::Replies;
use kv_raft::types::{Entry, LogId};

use super::{Verdict, digest};

/// What was applied at each index first, and how far each replica is.
#[derive(Debug, Default)]
pub(super) struct StateMachineSafety {
    applied: BTreeMap<(ShardId, u64), (LogId, u32, u32)>,
    highest: BTreeMap<ShardId, u64>,
    progress: BTreeMap<(usize, ShardId), Option<LogId>>,
}

impl StateMachineSafety {
    pub(super) fn highest(&self, shard: ShardId) -> u64 {
        self.highest.get(&shard).copied().unwrap_or_default()
    }

    /// A replica goes on from what survived.
    pub(super) fn loaded(&mut self, node: usize, shard: ShardId, applied: Option<LogId>) {
        self.progress.insert((node, shard), applied);
    }

    pub(super) fn destroyed(&mut self, node: usize, shard: ShardId) {
        self.progress.remove(&(node, shard));
    }

    pub(super) fn applied(&mut self, node: usize, shard: ShardId, entry: &Entry, replies: &Replies) -> Verdict {
        let log_id = entry.log_id;
        let before = self.progress.insert((node, shard), Some(log_id)).flatten();
        let next = before.map_or(0, |before| before.index + 1);
        if log_id.index != next {
            return Err(format!("applied {log_id}, {next} was next"));
        }
        let highest = self.highest.entry(shard).or_default();
        *highest = (*highest).max(log_id.index);
        let now = (log_id, digest(entry), crc32c::crc32c(format!("{replies:?}").as_bytes()));
        let first = self.applied.entry((shard, log_id.index)).or_insert(now);
        if *first == now {
            return Ok(());
        }
        Err(format!("applied {now:?}, another replica {first:?}"))
    }

    pub(super) fn installed(&mut self, node: usize, shard: ShardId, last: Option<LogId>) -> Verdict {
        let before = self.progress.insert((node, shard), last).flatten();
        if before > last {
            return Err(format!("a snapshot took {before:?} back to {last:?}"));
        }
        let other = last.and_then(|last| self.applied.get(&(shard, last.index)).filter(|first| first.0 != last));
        other.map_or(Ok(()), |other| Err(format!("a snapshot ends with {last:?}, applied was {other:?}")))
    }
}
