//! What the nodes say of themselves at one moment, condensed for the plan.
//!
//! Invariants: of several replicas that claim to lead a shard, and that a majority answers, only the one of the highest term
//! is believed.
//!
//! Not here: asking the nodes (run).

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::pb::admin::v1::{NodeStatus, ReplicaStatus};

/// Entries a learner may be behind and still count as caught up: far less than a second of a busy shard.
pub const CAUGHT_UP_ENTRIES: u64 = 256;

/// A group as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Where the leader is.
    pub leader_node: u64,
    /// Which replica leads.
    pub leader: u64,
    /// In which term.
    pub term: u64,
    /// Replica ids; both sets while a change is half done.
    pub voters: BTreeSet<u64>,
    /// Replica ids.
    pub learners: BTreeSet<u64>,
    /// Last index of the leader's log.
    pub last: u64,
    /// What the others have on disk, by replica id.
    pub matched: BTreeMap<u64, u64>,
}

/// One round of asking everyone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Wall clock of the controller.
    pub now_ms: u64,
    /// Nodes that answered.
    pub alive: BTreeSet<u64>,
    /// Of these, nodes that may lead.
    pub may_lead: BTreeSet<u64>,
    /// Replicas that exist, as (shard, replica).
    pub held: BTreeSet<(u64, u64)>,
    /// Of these, replicas in quarantine.
    pub damaged: BTreeSet<(u64, u64)>,
    /// Groups that have a leader, by shard.
    pub groups: BTreeMap<u64, Group>,
    /// Shards whose leader could not be moved lately: they wait, the others do not wait for them.
    pub stuck: BTreeSet<u64>,
    /// Whether leaders and replicas may be moved just for balance now.
    pub calm: bool,
}

impl Observed {
    /// Condenses the answers, by node id.
    #[must_use]
    pub fn new(now_ms: u64, answers: &BTreeMap<u64, NodeStatus>) -> Self {
        let mut observed = Self { now_ms, ..Self::default() };
        for (node, status) in answers {
            observed.alive.insert(*node);
            if status.may_lead {
                observed.may_lead.insert(*node);
            }
            for replica in &status.replicas {
                observed.add(*node, replica);
            }
        }
        observed
    }

    fn add(&mut self, node: u64, replica: &ReplicaStatus) {
        self.held.insert((replica.shard_id, replica.replica_id));
        if replica.quarantined {
            self.damaged.insert((replica.shard_id, replica.replica_id));
        }
        let known = self.groups.get(&replica.shard_id).map_or(0, |group| group.term);
        // One that a majority does not answer could take no step.
        if replica.role != "leader" || replica.no_quorum || replica.term < known {
            return;
        }
        let group = Group {
            leader_node: node,
            leader: replica.replica_id,
            term: replica.term,
            voters: replica.voter_replica_ids.iter().copied().collect(),
            learners: replica.learner_replica_ids.iter().copied().collect(),
            last: replica.last_index,
            matched: replica.followers.iter().map(|lag| (lag.replica_id, lag.matched_index)).collect(),
        };
        self.groups.insert(replica.shard_id, group);
    }
}

impl Group {
    /// Whether the group knows the replica at all.
    #[must_use]
    pub fn names(&self, replica: u64) -> bool {
        self.voters.contains(&replica) || self.learners.contains(&replica)
    }

    /// Whether a replica has nearly everything the leader has.
    #[must_use]
    pub fn caught_up(&self, replica: u64) -> bool {
        let matched = self.matched.get(&replica).copied().unwrap_or(0);
        replica == self.leader || (matched > 0 && matched + CAUGHT_UP_ENTRIES >= self.last)
    }

    /// How much of the leader's log a replica has, 0 to 100.
    #[must_use]
    pub fn percent(&self, replica: u64) -> u32 {
        let matched = self.matched.get(&replica).copied().unwrap_or(0).min(self.last);
        u32::try_from(matched * 100 / self.last.max(1)).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(node_id: u64, term: u64, no_quorum: bool) -> (u64, NodeStatus) {
        let replica = ReplicaStatus {
            shard_id: 7,
            replica_id: node_id,
            term,
            no_quorum,
            role: "leader".into(),
            ..Default::default()
        };
        (node_id, NodeStatus { replicas: vec![replica], ..Default::default() })
    }

    fn believed(answers: impl IntoIterator<Item = (u64, NodeStatus)>) -> Option<u64> {
        Observed::new(0, &answers.into_iter().collect()).groups.get(&7).map(|group| group.leader_node)
    }

    #[test]
    fn the_leader_of_the_highest_term_is_believed_unless_no_majority_answers_it() {
        assert_eq!(believed([leader(1, 3, false), leader(2, 4, false), leader(3, 2, false)]), Some(2));
        assert_eq!(believed([leader(1, 4, true), leader(2, 3, false)]), Some(2));
        assert_eq!(believed([leader(1, 4, true)]), None);
    }
}
