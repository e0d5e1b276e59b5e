//! Which followers a leader sends entries to at once, and which ones can have several together a moment later.
//!
//! An entry is committed by a majority. So as many followers as make one with the leader are prompt; the others, the spare
//! ones, get what came meanwhile in one message and sync it once. That is the thrifty way of EPaxos (Moraru, Andersen
//! and Kaminsky, SOSP 2013), but for a moment only: a spare follower takes the place of a prompt one that falls silent.
//!
//! Invariants: it changes when entries are sent, never whether; nobody waits unless all prompt followers answered lately.
//!
//! Not here: what is sent (network).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::Membership;

/// A prompt follower that has not answered for this long is not waited for. An fsync of a busy disk takes less.
const ANSWER_WITHIN: Duration = Duration::from_millis(20);

/// What a follower that is needed for a majority has not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    /// It never answered, or its last answer was an error.
    #[default]
    Lost,
    /// It answered all.
    Answered,
    /// The first of what it has not answered was sent then.
    Asked(Instant),
}

/// The followers of a leader. See the module.
#[derive(Debug, Default)]
pub(crate) struct Prompt(Mutex<Followers>);

#[derive(Debug, Default)]
struct Followers {
    prompt: BTreeMap<u64, Standing>,
    spare: BTreeSet<u64>,
}

impl Prompt {
    /// Whoever leads, and whenever that or the membership changes.
    pub(crate) fn choose(&self, membership: &Membership, leader: u64) {
        let (prompt, spare) = chosen(membership, leader);
        let mut followers = self.0.lock();
        if followers.spare != spare || !followers.prompt.keys().eq(&prompt) {
            *followers = Followers { prompt: prompt.into_iter().map(|id| (id, Standing::Lost)).collect(), spare };
        }
    }

    /// Entries were sent.
    pub(super) fn sent(&self, to: u64, at: Instant) {
        if let Some(standing) = self.0.lock().prompt.get_mut(&to)
            && *standing == Standing::Answered
        {
            *standing = Standing::Asked(at);
        }
    }

    /// An answer came; the first of what is not answered yet was sent then.
    pub(super) fn answered(&self, from: u64, rest: Option<Instant>) {
        if let Some(standing) = self.0.lock().prompt.get_mut(&from) {
            *standing = rest.map_or(Standing::Answered, Standing::Asked);
        }
    }

    /// It does not answer, or not as it should.
    pub(super) fn lost(&self, from: u64) {
        if let Some(standing) = self.0.lock().prompt.get_mut(&from) {
            *standing = Standing::Lost;
        }
    }

    /// Whether entries for a follower may wait for others.
    pub(super) fn may_wait(&self, to: u64, now: Instant) -> bool {
        let followers = self.0.lock();
        let is_prompt = |standing: &Standing| match standing {
            Standing::Lost => false,
            Standing::Answered => true,
            Standing::Asked(at) => now.saturating_duration_since(*at) < ANSWER_WITHIN,
        };
        followers.spare.contains(&to) && followers.prompt.values().all(is_prompt)
    }
}

/// The prompt and the spare followers: those after the leader in the order of their ids, as in a ring, so that shards
/// whose leaders are spread need different ones. Nobody is spare while the membership changes.
fn chosen(membership: &Membership, leader: u64) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    if membership.get_joint_config().len() != 1 || !voters.contains(&leader) {
        return (BTreeSet::new(), BTreeSet::new());
    }
    let ring = voters.range(leader + 1..).chain(voters.range(..leader)).copied();
    let needed = voters.len() / 2;
    (ring.clone().take(needed).collect(), ring.skip(needed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Member;

    fn membership(configs: &[&[u64]], learners: &[u64]) -> Membership {
        let configs: Vec<BTreeSet<u64>> = configs.iter().map(|config| config.iter().copied().collect()).collect();
        let ids = configs.iter().flatten().chain(learners);
        let nodes: BTreeMap<u64, Member> = ids.map(|id| (*id, Member { node: *id })).collect();
        Membership::new(configs, nodes).unwrap()
    }

    fn sets(prompt: &[u64], spare: &[u64]) -> (BTreeSet<u64>, BTreeSet<u64>) {
        (prompt.iter().copied().collect(), spare.iter().copied().collect())
    }

    #[test]
    fn as_many_are_prompt_as_make_a_majority_with_the_leader() {
        assert_eq!(chosen(&membership(&[&[1, 2, 3]], &[]), 1), sets(&[2], &[3]));
        assert_eq!(chosen(&membership(&[&[1, 2, 3]], &[4]), 3), sets(&[1], &[2]), "a learner is neither");
        assert_eq!(chosen(&membership(&[&[1, 2, 3, 4, 5]], &[]), 4), sets(&[1, 5], &[2, 3]));
        assert_eq!(chosen(&membership(&[&[1, 2]], &[]), 1), sets(&[2], &[]));
        assert_eq!(chosen(&membership(&[&[1, 2, 3, 4]], &[]), 2), sets(&[3, 4], &[1]));
        assert_eq!(chosen(&membership(&[&[1, 2, 3], &[2, 3, 4]], &[]), 2), sets(&[], &[]));
        assert_eq!(chosen(&membership(&[&[1, 2, 3]], &[4]), 4), sets(&[], &[]));
    }

    #[test]
    fn a_spare_follower_waits_only_while_all_prompt_ones_answer() {
        let (prompt, now) = (Prompt::default(), Instant::now());
        prompt.choose(&membership(&[&[1, 2, 3]], &[]), 1);
        assert!(!prompt.may_wait(3, now), "the prompt one never answered");
        prompt.sent(2, now);
        assert!(!prompt.may_wait(3, now));
        prompt.answered(2, None);
        assert!(prompt.may_wait(3, now));
        assert!(!prompt.may_wait(2, now) && !prompt.may_wait(4, now));
        prompt.sent(2, now);
        prompt.sent(2, now + ANSWER_WITHIN);
        assert!(prompt.may_wait(3, now + ANSWER_WITHIN / 2));
        assert!(!prompt.may_wait(3, now + ANSWER_WITHIN), "it is late");
        prompt.answered(2, Some(now + ANSWER_WITHIN));
        assert!(prompt.may_wait(3, now + ANSWER_WITHIN), "it came, and the next is not late");
        prompt.lost(2);
        assert!(!prompt.may_wait(3, now + ANSWER_WITHIN));
    }

    #[test]
    fn another_membership_begins_anew_and_the_same_one_does_not() {
        let (prompt, now) = (Prompt::default(), Instant::now());
        let three = membership(&[&[1, 2, 3]], &[]);
        prompt.choose(&three, 1);
        prompt.answered(2, None);
        prompt.choose(&three, 1);
        assert!(prompt.may_wait(3, now));
        prompt.choose(&membership(&[&[1, 2, 3], &[2, 3, 4]], &[]), 1);
        assert!(!prompt.may_wait(3, now));
        prompt.choose(&three, 1);
        assert!(!prompt.may_wait(3, now));
    }
}
