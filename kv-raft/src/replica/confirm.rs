//! A quorum round for reads that leaves consensus alone.
//!
//! What an elected leader has applied in its own term, together with what it told others to be committed, holds
//! everything that was acknowledged or applied anywhere, unless another was elected since. None was if, after that was
//! looked up, a majority of the voters still have this leader in their durable vote: one of them would have had to vote
//! for the other, and a vote is durable before it is given (Raft, section 6.4). So each voter looks into its log's
//! memory, and nobody's consensus has to run.
//!
//! As many are asked as make a majority, those first that answered last; the others when one of them is away or slow. So a
//! group of three asks one, not two: a round costs its messages and little else. Now and then all are asked, so that the
//! fastest become those that are asked first.
//!
//! Invariants: an index is told only after a majority confirmed a vote of the term in which this replica applied last;
//! whatever is unusual (a leader that has applied nothing of its own term, a follower that has not heard of it, silence)
//! is left to consensus itself.
//!
//! Not here: who waits for a round (reads).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kv_proto::ids::NodeId;
use kv_proto::pb::raft::v1::FrameKind;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use tokio::time::{Instant, timeout_at};

use super::Replica;
use super::quorum::has_majority;
use crate::transport;
use crate::types::Membership;

/// One round in so many asks all voters: rarely enough to cost nothing; a slow one is left after as many at the latest.
const ALL_ASKED_EVERY: u32 = 256;

/// Who confirmed the last round, and how many rounds began since all voters were asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Witnesses {
    confirmed: BTreeSet<u64>,
    rounds: u32,
}

impl Witnesses {
    /// Counts one more round: those that it asks first; None if it asks all.
    fn next_round(&mut self) -> Option<BTreeSet<u64>> {
        self.rounds = (self.rounds + 1) % ALL_ASKED_EVERY;
        (self.rounds > 0).then(|| self.confirmed.clone())
    }
}

/// Whom a round asks, and who answered.
struct Canvass<'m> {
    membership: &'m Membership,
    /// Not asked yet; the last is asked first.
    spare: Vec<u64>,
    /// Asked and not lost, and this replica.
    hoped: BTreeSet<u64>,
    /// Those of them that follow it.
    follow: BTreeSet<u64>,
}

impl<'m> Canvass<'m> {
    /// Those that answered the round before come first; of the others, which leaders ask which is spread.
    fn new(membership: &'m Membership, own: u64, before: &BTreeSet<u64>) -> Self {
        let mut spare: Vec<_> = membership.voter_ids().filter(|voter| *voter != own).collect();
        spare.sort_by_key(|voter| std::cmp::Reverse((!before.contains(voter), *voter < own, *voter)));
        Self { membership, spare, hoped: BTreeSet::from([own]), follow: BTreeSet::from([own]) }
    }

    fn is_confirmed(&self) -> bool {
        has_majority(self.membership, |voter| self.follow.contains(&voter))
    }

    /// Who is to be asked now, so that those hoped for are a majority.
    fn next_asked(&mut self) -> Vec<u64> {
        let mut next = Vec::new();
        while !has_majority(self.membership, |voter| self.hoped.contains(&voter))
            && let Some(voter) = self.spare.pop()
        {
            self.hoped.insert(voter);
            next.push(voter);
        }
        next
    }

    /// Who is left.
    fn rest(&mut self) -> Vec<u64> {
        self.hoped.extend(&self.spare);
        std::mem::take(&mut self.spare)
    }

    /// Whether those that may still answer are too few, once there is nobody else to ask.
    fn is_hopeless(&self) -> bool {
        !has_majority(self.membership, |voter| self.hoped.contains(&voter))
    }

    fn follows(&mut self, voter: u64) {
        self.follow.insert(voter);
    }

    /// It does not answer, or its vote is another one: a majority without it says as much.
    fn is_lost(&mut self, voter: u64) {
        self.hoped.remove(&voter);
    }
}

impl Replica {
    /// An index with everything acknowledged, or applied anywhere, before the call; None if consensus must tell it.
    pub(super) async fn confirmed_index(&self) -> Option<u64> {
        let applied = self.view().ok()?.applied()?;
        let index = applied.index.max(self.outbound.told_committed());
        let vote = self.log.vote().filter(|vote| vote.leader_id == applied.leader_id)?;
        let membership = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            // A process that just began finds its vote for itself, and need not have applied what it acknowledged.
            let leads = metrics.state == ServerState::Leader && metrics.vote.leader_id == vote.leader_id;
            leads.then(|| Arc::clone(&metrics.membership_config))?
        };
        let membership = membership.membership();
        let first = self.reads.witnesses().next_round();
        let mut canvass = Canvass::new(membership, self.replica.0, first.as_ref().unwrap_or(&BTreeSet::new()));
        let body = transport::encode_vote_alone(&vote);
        let within = self.votes_within();
        let ask = |voter| {
            let node = NodeId(membership.get_node(&voter)?.node);
            let answer = self.send(node, voter, FrameKind::Confirm, body.clone(), within);
            Some(async move { (voter, answer.await) })
        };
        let mut asked = FuturesUnordered::new();
        if first.is_none() {
            asked.extend(canvass.rest().into_iter().filter_map(ask));
        }
        let began = Instant::now();
        let mut others_at = Some(began + self.witnesses_within());
        while !canvass.is_confirmed() {
            asked.extend(canvass.next_asked().into_iter().filter_map(ask));
            if canvass.is_hopeless() {
                return None;
            }
            let Ok(answer) = timeout_at(others_at.unwrap_or(began + within), asked.next()).await else {
                // One that is slow does not make the round slow.
                others_at.take()?;
                asked.extend(canvass.rest().into_iter().filter_map(ask));
                continue;
            };
            let (voter, answer) = answer?;
            match answer.map(|answer| transport::decode_agreement(&answer).unwrap_or(false)) {
                Ok(true) => canvass.follows(voter),
                Ok(false) | Err(_) => canvass.is_lost(voter),
            }
        }
        self.reads.witnesses().confirmed = canvass.follow;
        Some(index)
    }

    /// How long those asked first are waited for until the others are asked as well.
    fn witnesses_within(&self) -> Duration {
        self.context.timing.heartbeat / 5
    }

    /// How long a round waits for voters: as long as a heartbeat is, and once more on a busy machine.
    pub(super) fn votes_within(&self) -> Duration {
        self.context.timing.heartbeat * 2
    }

    /// A voter's answer: whether its vote is still for the leader that asks.
    pub(super) fn confirm(&self, body: &[u8]) -> Result<Bytes, String> {
        let leader = transport::decode_vote_alone(body).map_err(|e| e.to_string())?;
        let follows = self.log.vote().is_some_and(|vote| vote.leader_id == leader.leader_id);
        Ok(transport::encode_agreement(follows))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::types::Member;

    fn membership(sets: &[&[u64]]) -> Membership {
        let members: BTreeMap<u64, Member> = (1..=5).map(|id| (id, Member { node: id + 10 })).collect();
        Membership::new(sets.iter().map(|set| set.iter().copied().collect()).collect(), members).unwrap()
    }

    #[test]
    fn as_many_are_asked_as_make_a_majority_and_others_for_those_that_are_lost() {
        let membership = membership(&[&[1, 2, 3]]);
        let mut canvass = Canvass::new(&membership, 2, &BTreeSet::new());
        assert_eq!(canvass.next_asked(), [3], "with itself one other is enough");
        assert!(canvass.next_asked().is_empty() && !canvass.is_confirmed(), "nothing is decided before it answers");
        canvass.is_lost(3);
        assert_eq!(canvass.next_asked(), [1]);
        canvass.follows(1);
        assert!(canvass.is_confirmed());
    }

    #[test]
    fn those_that_answered_last_are_asked_first() {
        let membership = membership(&[&[1, 2, 3, 4, 5]]);
        let before = BTreeSet::from([1, 2, 4]);
        assert_eq!(Canvass::new(&membership, 1, &before).next_asked(), [2, 4]);
        assert_eq!(Canvass::new(&membership, 4, &BTreeSet::new()).next_asked(), [5, 1], "leaders begin with others");
    }

    #[test]
    fn while_voters_change_both_sets_are_asked() {
        let membership = membership(&[&[1, 2, 3], &[3, 4, 5]]);
        let mut canvass = Canvass::new(&membership, 1, &BTreeSet::new());
        let asked = canvass.next_asked();
        assert_eq!(asked, [2, 3, 4], "as they come, until both have their majority");
        canvass.follows(3);
        assert!(!canvass.is_confirmed(), "a majority of the first alone");
        canvass.follows(4);
        assert!(canvass.is_confirmed());
    }

    #[test]
    fn when_one_is_slow_all_are_asked() {
        let membership = membership(&[&[1, 2, 3]]);
        let mut canvass = Canvass::new(&membership, 1, &BTreeSet::new());
        assert_eq!(canvass.next_asked(), [2]);
        assert_eq!(canvass.rest(), [3]);
        assert!(canvass.rest().is_empty() && canvass.next_asked().is_empty());
        canvass.is_lost(3);
        assert!(!canvass.is_hopeless());
        canvass.follows(2);
        assert!(canvass.is_confirmed());
    }

    #[test]
    fn a_round_ends_when_no_majority_is_left() {
        let membership = membership(&[&[1, 2, 3, 4, 5]]);
        let mut canvass = Canvass::new(&membership, 1, &BTreeSet::new());
        assert_eq!(canvass.next_asked(), [2, 3]);
        for (lost, hopeless) in [(2, false), (3, false), (4, true)] {
            canvass.is_lost(lost);
            canvass.next_asked();
            assert_eq!(canvass.is_hopeless(), hopeless, "{lost}");
        }
    }

    #[test]
    fn now_and_then_all_are_asked() {
        let mut witnesses = Witnesses { confirmed: BTreeSet::from([2]), rounds: 0 };
        let all: Vec<u32> = (1..=2 * ALL_ASKED_EVERY).filter(|_| witnesses.next_round().is_none()).collect();
        assert_eq!(all, [ALL_ASKED_EVERY, 2 * ALL_ASKED_EVERY]);
        assert_eq!(witnesses.next_round(), Some(BTreeSet::from([2])));
    }
}
