//! An entry is committed only once a majority of its voters has it on disk, and no committed entry is ever replaced.
//!
//! Which voters count is the last membership in the leader's log, which need not be committed: any membership after the
//! last committed one is taken for it. It need not be on any disk either: once a joint one is committed, the leader counts by
//! the last part of it as soon as it has that in memory. No majority of the joint one can do without a majority of that part.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::ids::ShardId;
use kv_raft::types::LogId;

use super::Verdict;
use super::disks::{Disk, Disks};

pub(super) type Joint = Vec<BTreeSet<u64>>;

/// What is known to be committed in one shard.
#[derive(Debug, Default)]
struct Chain {
    committed: BTreeMap<u64, Commit>,
    memberships: BTreeMap<u64, Vec<(LogId, Joint)>>,
}

/// A committed entry.
#[derive(Clone, Copy, Debug)]
struct Commit {
    log_id: LogId,
    /// An entry of the leader that committed it, or of a later one. A leader commits what earlier ones left behind only
    /// together with an entry of its own.
    by: LogId,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CommittedOnQuorum(BTreeMap<ShardId, Chain>);

impl CommittedOnQuorum {
    /// A membership was written somewhere.
    pub(super) fn membership(&mut self, shard: ShardId, log_id: LogId, joint: &[BTreeSet<u64>]) {
        let known = self.0.entry(shard).or_default().memberships.entry(log_id.index).or_default();
        if known.iter().all(|(known, _)| *known != log_id) {
            known.push((log_id, joint.to_vec()));
        }
    }

    /// Some replica takes an entry for committed.
    pub(super) fn committed(&mut self, shard: ShardId, log_id: LogId, disks: &Disks) -> Verdict {
        let chain = self.0.entry(shard).or_default();
        match chain.committed.get(&log_id.index) {
            Some(before) if before.log_id == log_id => return Ok(()),
            Some(before) => return Err(format!("both {} and {log_id} are committed", before.log_id)),
            None => {}
        }
        let next = chain.committed.range(log_id.index..).next().map(|(_, next)| next.by);
        chain.committed.insert(log_id.index, Commit { log_id, by: next.unwrap_or(log_id) });
        if next.is_some() {
            // What comes after it was on a majority, and its log holds this too.
            return Ok(());
        }
        let has = |replica: &u64| disks.of(shard, *replica).any(|disk| disk.has(log_id));
        let majority = |voters: &BTreeSet<u64>| voters.iter().filter(|id| has(id)).count() * 2 > voters.len();
        let candidates = chain.candidates(log_id.index);
        if candidates.is_empty() || candidates.iter().any(|voters| voters.iter().all(majority)) {
            return Ok(());
        }
        Err(format!("{log_id} is committed, but no majority of {candidates:?} has it on disk"))
    }

    /// Every membership that was ever written.
    pub(super) fn memberships(&self, shard: ShardId) -> impl Iterator<Item = &Joint> {
        let known = self.0.get(&shard).into_iter().flat_map(|chain| chain.memberships.values());
        known.flatten().map(|(_, joint)| joint)
    }

    /// A log is cut: nothing committed may go.
    pub(super) fn may_truncate(&self, shard: ShardId, from: u64, disk: &Disk) -> Verdict {
        let lost = self.after(shard, from).map(|commit| commit.log_id).find(|log_id| disk.keeps(*log_id));
        lost.map_or(Ok(()), |lost| Err(format!("{lost} is committed and cut off")))
    }

    /// What a leader with this disk must have: all that was committed before it was elected.
    pub(super) fn owed(&self, shard: ShardId, disk: &Disk) -> impl Iterator<Item = LogId> {
        self.after(shard, 0).filter(|commit| disk.is_after(commit.by)).map(|commit| commit.log_id)
    }

    /// What is known to be committed from an index on.
    fn after(&self, shard: ShardId, from: u64) -> impl Iterator<Item = &Commit> {
        self.0.get(&shard).into_iter().flat_map(move |chain| chain.committed.range(from..).map(|(_, commit)| commit))
    }
}

impl Chain {
    /// The memberships an entry may have been committed under.
    fn candidates(&self, index: u64) -> Vec<&[BTreeSet<u64>]> {
        let is_committed =
            |log_id: &LogId| self.committed.get(&log_id.index).is_some_and(|commit| commit.log_id == *log_id);
        let committed = self.memberships.range(..=index).rev().find_map(|(at, known)| {
            known.iter().find(|(log_id, _)| is_committed(log_id)).map(|(_, joint)| (*at, joint.as_slice()))
        });
        let from = committed.map_or(0, |(at, _)| at + 1);
        let later =
            self.memberships.range(from..).flat_map(|(_, known)| known.iter().map(|(_, joint)| joint.as_slice()));
        let last_part = committed.and_then(|(_, joint)| joint.chunks(1).next_back());
        committed.map(|(_, joint)| joint).into_iter().chain(last_part).chain(later).collect()
    }
}
