//! Who leads each shard, as far as this node has heard.
//!
//! Invariants: a record is only replaced by one of the same or a higher term, so news that come late do no harm.
//! What stands here is a hint: only the leader itself knows that it leads.
//!
//! Not here: the replicas of this node, which know their own leader (host).

use std::collections::HashMap;

use kv_proto::ids::{NodeId, ShardId};
use parking_lot::RwLock;

/// A leader and the term it leads in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderRecord {
    /// Raft term; 0 if only a hint without a term was given.
    pub term: u64,
    /// The node of the leading replica.
    pub node: NodeId,
}

/// Shard -> leader; shared, cheap to read.
#[derive(Debug, Default)]
pub struct Leaders {
    table: RwLock<HashMap<ShardId, LeaderRecord>>,
}

impl Leaders {
    /// The last leader heard of.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<LeaderRecord> {
        self.table.read().get(&shard).copied()
    }

    /// Takes in what was heard; older terms change nothing.
    pub fn learn(&self, shard: ShardId, record: LeaderRecord) {
        if self.leader(shard).is_some_and(|known| known == record || known.term > record.term) {
            return;
        }
        let mut table = self.table.write();
        let entry = table.entry(shard).or_insert(record);
        if entry.term <= record.term {
            *entry = record;
        }
    }

    /// Forgets a leader that turned out not to lead, unless something newer is known by now.
    pub fn forget(&self, shard: ShardId, node: NodeId) {
        let mut table = self.table.write();
        if table.get(&shard).is_some_and(|known| known.node == node) {
            table.remove(&shard);
        }
    }

    /// Drops shards that no longer exist.
    pub fn retain(&self, exists: impl Fn(ShardId) -> bool) {
        self.table.write().retain(|shard, _| exists(*shard));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_of_an_older_term_change_nothing() {
        let leaders = Leaders::default();
        leaders.learn(ShardId(7), LeaderRecord { term: 5, node: NodeId(2) });
        leaders.learn(ShardId(7), LeaderRecord { term: 4, node: NodeId(3) });
        assert_eq!(leaders.leader(ShardId(7)).unwrap().node, NodeId(2));
        leaders.learn(ShardId(7), LeaderRecord { term: 6, node: NodeId(1) });
        assert_eq!(leaders.leader(ShardId(7)).unwrap().node, NodeId(1));
    }
}
