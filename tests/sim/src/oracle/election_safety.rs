//! Election Safety: a leader is elected by a majority whose votes are on disk, so of two leaders one supersedes the other.
//!
//! openraft orders leaders by term and replica, as Paxos orders ballots: a term may have two leaders, of which the one with the
//! higher replica id comes later. Which voters counted is what the candidate's log said, which may be any membership that
//! was ever written.

use std::collections::BTreeSet;

use kv_proto::ids::ShardId;
use kv_raft::types::Vote;

use super::Verdict;
use super::committed_on_quorum::CommittedOnQuorum;
use super::disks::{Disk, Disks};

/// The leaders there were.
#[derive(Debug, Default)]
pub(super) struct ElectionSafety(BTreeSet<(ShardId, u64, u64)>);

impl ElectionSafety {
    /// How many.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// A vote was saved.
    pub(super) fn voted(&mut self, shard: ShardId, vote: &Vote, commits: &CommittedOnQuorum, disks: &Disks) -> Verdict {
        if !vote.committed || !self.0.insert((shard, vote.leader_id.term, vote.leader_id.node_id)) {
            return Ok(());
        }
        let granted = |disk: &Disk| disk.voted_for(vote);
        let elected = |joint: &Vec<BTreeSet<u64>>| {
            joint.iter().all(|voters| {
                let votes = voters.iter().filter(|id| disks.of(shard, **id).any(granted)).count();
                votes * 2 > voters.len()
            })
        };
        let mut memberships = commits.memberships(shard).peekable();
        // The first leader of a shard is elected before anything is written.
        if memberships.peek().is_none() || memberships.any(elected) {
            return Ok(());
        }
        Err(format!("{vote} leads, and no majority has that vote on disk"))
    }
}
