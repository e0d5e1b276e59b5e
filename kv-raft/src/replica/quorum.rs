//! Whether a majority still answers the replica that leads, and what a leader does that none answers.
//!
//! A leader that is cut off does not step down by itself: it stays the leader of its term until it hears of another. So
//! its role alone does not tell whether its shard serves.
//!
//! Such a leader would keep whoever still hears it from voting for another one, who may need that vote for a majority. So
//! it sends no heartbeats in turns that are long enough for an election. openraft does the same
//! (`quorum_loss_probe_interval`), but counts the time a shard slept as time without an answer: every other shard that
//! woke would begin with a silent turn.
//!
//! Invariants: a leader is never said to lack its quorum while a majority answers; one that lacks it is said so within
//! [`Replica::patience`], also while the shard sleeps; a leader that just woke or was just elected is never silent.
//!
//! Not here: what is refused meanwhile (proposals); who leads (mod).

use std::sync::atomic::Ordering;
use std::time::Duration;

use kv_proto::ids::NodeId;
use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use openraft::metrics::RaftMetrics;

use super::Replica;
use crate::types::{Membership, ShardRaft};

impl Replica {
    /// A silence this long outlasts an election: there would be another leader if a majority could choose one.
    pub(super) fn patience(&self) -> Duration {
        self.context.timing.election_max * 3
    }

    /// A silence is counted from now on at the earliest: it leads anew, or woke, or did not fall asleep after all, and has
    /// asked nobody yet.
    pub(super) fn begins_to_ask(&self) {
        self.asking_since.store(self.context.now_ms(), Ordering::Release);
        self.unanswered.store(false, Ordering::Release);
        self.outbound.set_silent(false);
    }

    pub(super) fn asks_for(&self) -> Duration {
        Duration::from_millis(self.context.now_ms().saturating_sub(self.asking_since.load(Ordering::Acquire)))
    }

    /// Called once in an election timeout: begins and ends the turns in which a leader that no majority answers is silent.
    /// One look is not enough to begin: a process that stood still for a while was not answered because it did not ask.
    pub(super) fn consider_silence(&self) {
        if self.is_hibernated() || self.dozing.load(Ordering::Acquire) {
            return;
        }
        let since = self.asking_since.load(Ordering::Acquire);
        let turn = self.is_silent_turn();
        let before = self.unanswered.swap(turn, Ordering::AcqRel);
        self.outbound.set_silent(turn && before);
        // It was elected or woken meanwhile.
        if self.asking_since.load(Ordering::Acquire) != since {
            self.outbound.set_silent(false);
        }
    }

    /// Ends such a turn at once if an answer came, for somebody who waits for the next.
    pub(super) fn end_silence(&self) {
        if self.outbound.is_silent() && !self.is_silent_turn() {
            self.outbound.set_silent(false);
        }
    }

    fn is_silent_turn(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let unanswered = self.since_answer(&metrics);
        unanswered.is_some_and(|since| is_silent_after(since.min(self.asks_for()), self.context.timing.election_max))
    }

    /// For how long no majority has answered this leader; None if it is none, or needs no other voter's answer.
    pub(super) fn since_answer(&self, metrics: &RaftMetrics<ShardRaft>) -> Option<Duration> {
        let leads = metrics.state == ServerState::Leader && self.is_leader();
        if !leads || metrics.membership_config.membership().voter_ids().eq([self.replica.0]) {
            return None;
        }
        Some(metrics.last_quorum_acked.map_or(Duration::MAX, |acked| acked.into_inner().elapsed()))
    }

    /// Whether it leads and no majority answers it.
    pub(super) fn lacks_quorum(&self, metrics: &RaftMetrics<ShardRaft>) -> bool {
        let patience = self.patience();
        if self.since_answer(metrics).is_none_or(|since| since < patience) {
            return false;
        }
        // In the reverse order of waking, which notes the time before it is awake.
        let is_awake = !self.is_hibernated();
        let has_asked = is_awake && self.asks_for() >= patience;
        // While nobody is asked, what comes from the voters' nodes stands in for their answers.
        let membership = metrics.membership_config.membership();
        let is_heard = |voter| membership.get_node(&voter).is_some_and(|at| self.is_heard(NodeId(at.node), patience));
        has_asked || !has_majority(membership, is_heard)
    }

    fn is_heard(&self, node: NodeId, within: Duration) -> bool {
        let transport = &self.context.transport;
        node == transport.node() || transport.last_heard(node).is_some_and(|heard| heard < within)
    }
}

/// Once the lease it gave away has run out, it is silent for as long as two elections take, speaks for as long, and so on.
fn is_silent_after(unanswered: Duration, election_max: Duration) -> bool {
    let Some(over) = unanswered.checked_sub(election_max) else { return false };
    let turn = (election_max * 2).as_millis().max(1);
    (over.as_millis() / turn).is_multiple_of(2)
}

/// Whether these are a majority of the voters, of both sets while they change.
pub(super) fn has_majority(membership: &Membership, counts: impl Fn(u64) -> bool) -> bool {
    let mut sets = membership.get_joint_config().iter();
    sets.all(|voters| voters.iter().filter(|voter| counts(**voter)).count() * 2 > voters.len())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::types::Member;

    #[test]
    fn a_leader_that_nobody_answers_is_silent_for_an_election_and_speaks_for_as_long() {
        let election = Duration::from_millis(450);
        let silent = |ms| is_silent_after(Duration::from_millis(ms), election);
        assert!(![0, 449].map(silent).contains(&true), "its lease may still run");
        assert!(![450, 1349].map(silent).contains(&false), "time to elect");
        assert!(![1350, 2249].map(silent).contains(&true), "time to be heard again");
        assert!(silent(2250));
    }

    #[test]
    fn while_voters_change_both_sets_need_a_majority() {
        let members: BTreeMap<u64, Member> = (1..=5).map(|id| (id, Member { node: id + 10 })).collect();
        let sets = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
        let membership = Membership::new(sets, members).unwrap();
        let there = |voters: &[u64]| has_majority(&membership, |voter| voters.contains(&voter));
        assert!(there(&[1, 3, 4]));
        assert!(!there(&[1, 2, 3]), "a majority of the first set only");
        assert!(!there(&[3, 4, 5]), "a majority of the second set only");
    }
}
