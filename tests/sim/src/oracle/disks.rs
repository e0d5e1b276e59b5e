//! What each disk holds, by what was written there: after a crash a node finds exactly that, and a vote never goes back.

use std::collections::BTreeMap;

use kv_proto::ids::{ReplicaId, ShardId};
use kv_raft::types::{LogId, Vote};

use super::Verdict;

/// One log on one disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// Whose log.
    pub(super) replica: Option<u64>,
    /// The vote.
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// A snapshot through this entry took the place of what came before; the log may still say otherwise.
    pub(super) installed: Option<LogId>,
    entries: BTreeMap<u64, LogId>,
}

impl Disk {
    /// The last entry, or the purged one.
    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, log_id)| *log_id).or(self.purged)
    }

    /// Whether this entry is there, or was there before it was purged.
    pub(super) fn has(&self, log_id: LogId) -> bool {
        self.purged.max(self.installed).is_some_and(|gone| gone.index >= log_id.index) || self.keeps(log_id)
    }

    /// Whether this entry itself is there: what a snapshot took the place of cannot be cut off.
    pub(super) fn keeps(&self, log_id: LogId) -> bool {
        self.entries.get(&log_id.index) == Some(&log_id)
    }

    pub(super) fn append(&mut self, log_id: LogId) -> Verdict {
        let last = self.last();
        if last.is_some_and(|last| last.index + 1 != log_id.index || last > log_id) {
            return Err(format!("the log does not go on: {log_id} after {last:?}"));
        }
        self.entries.insert(log_id.index, log_id);
        Ok(())
    }

    pub(super) fn truncate(&mut self, from: u64) {
        self.entries.split_off(&from);
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.purged = self.purged.max(Some(upto));
    }

    /// Whether the vote on disk is for the leader of this entry or a later one.
    pub(super) fn is_after(&self, log_id: LogId) -> bool {
        self.vote.is_some_and(|held| held.leader_id >= log_id.leader_id)
    }

    /// Whether the vote on disk is for this leader or a later one.
    pub(super) fn voted_for(&self, vote: &Vote) -> bool {
        self.vote.is_some_and(|held| held.leader_id >= vote.leader_id)
    }

    pub(super) fn vote(&mut self, vote: Vote) -> Verdict {
        match self.vote.replace(vote) {
            Some(before) if !matches!(vote.partial_cmp(&before), Some(order) if order.is_ge()) => {
                Err(format!("a vote went back: {vote} after {before}"))
            }
            _ => Ok(()),
        }
    }
}

/// All of them, by node and shard.
#[derive(Debug, Default)]
pub(super) struct Disks(BTreeMap<(usize, ShardId), Disk>);

impl Disks {
    pub(super) fn disk(&mut self, node: usize, shard: ShardId) -> &mut Disk {
        self.0.entry((node, shard)).or_default()
    }

    pub(super) fn destroy(&mut self, node: usize, shard: ShardId) {
        self.0.remove(&(node, shard));
    }

    /// The disks of a replica: one, unless it moved nodes, which no id ever does.
    pub(super) fn of(&self, shard: ShardId, replica: u64) -> impl Iterator<Item = &Disk> {
        self.0.iter().filter(move |((_, of), disk)| *of == shard && disk.replica == Some(replica)).map(|(_, disk)| disk)
    }

    /// A node found a log when it opened its engine.
    pub(super) fn found(
        &mut self,
        node: usize,
        shard: ShardId,
        replica: Option<ReplicaId>,
        (vote, purged, last): (Option<Vote>, Option<LogId>, Option<LogId>),
    ) -> Verdict {
        let Some(disk) = self.0.get(&(node, shard)) else { return Ok(()) };
        let kept = (disk.vote, disk.purged, disk.last());
        if kept != (vote, purged, last) || disk.replica != replica.map(|replica| replica.0) {
            return Err(format!("the disk held {kept:?} of replica {:?}", disk.replica));
        }
        Ok(())
    }

    /// A replica with applied state has its log.
    pub(super) fn has_log(&self, node: usize, shard: ShardId, applied: Option<LogId>) -> Verdict {
        applied.map_or(Ok(()), |applied| self.holds(node, shard, applied))
    }

    /// Nothing is applied before it is on the disk of that node.
    pub(super) fn holds(&self, node: usize, shard: ShardId, log_id: LogId) -> Verdict {
        match self.0.get(&(node, shard)) {
            Some(disk) if disk.has(log_id) => Ok(()),
            disk => Err(format!("applied {log_id}, and its log ends at {:?}", disk.and_then(Disk::last))),
        }
    }
}
