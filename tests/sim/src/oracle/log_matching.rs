//! Log Matching: if two logs contain an entry with the same index and term, then the logs are identical in all entries up
//! through the given index.

use std::collections::HashMap;

use kv_proto::ids::ShardId;
use kv_raft::types::{Entry, LogId};

use super::{Verdict, digest};

/// What each entry held wherever it was seen first, and what came before it there.
#[derive(Debug, Default)]
pub(super) struct LogMatching(HashMap<(ShardId, String), (u32, Option<LogId>)>);

impl LogMatching {
    /// An entry was added to a log that ended with another.
    pub(super) fn appended(&mut self, shard: ShardId, entry: &Entry, before: Option<LogId>) -> Verdict {
        let now = (digest(entry), before);
        let first = self.0.entry((shard, entry.log_id.to_string())).or_insert(now);
        if *first == now {
            return Ok(());
        }
        Err(format!("logs differ at {}: {now:?} here, {first:?} elsewhere", entry.log_id))
    }
}
