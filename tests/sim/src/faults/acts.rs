//! Faults of several steps that wait for what the cluster does: each aims at one bug.
//!
//! - A fast restart: one follower cannot hear the leader for a while and stands again and again, with a log that lacks
//!   nothing since nobody writes; then the others die, come back at once and cannot hear the leader either. If they vote
//!   although the leader's lease runs, it serves stale reads.
//! - Figure eight: a leader is cut off with one companion, both hold entries that are not committed. The rest elects a new
//!   leader, which writes over those entries at the old one and at nobody else; then the companion is elected and commits
//!   them. If the old leader had told clients that they were not applied, that was a lie. It takes five replicas.
//!
//! Invariants: one act at a time; what an act does is over when it ends, or taken back by `Faults::heal`.
//!
//! Not here: faults of one step (faults).

use kv_proto::ids::ShardId;
use rand::RngExt as _;
use turmoil::Sim;

use super::{End, Faults, pairs};
use crate::node::name;

/// A new leader was elected by then, or the act is over.
const ELECTED_WITHIN: u64 = 3_000;

/// Where an act stands; a step begins at its time, in milliseconds.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Writes end; at the time one follower becomes deaf.
    Quiet { at: u64, leader: usize, deaf: usize, others: Vec<usize> },
    /// One follower is deaf; at the time the others restart.
    Deaf { at: u64, leader: usize, others: Vec<usize> },
    /// A leader and its companion are cut off; once another leads, the next step comes.
    Split { until: u64, shard: ShardId, cut: [usize; 2], rest: Vec<usize> },
    /// The new leader cuts the old one's log; at the time it dies, and the rest is back.
    Overwrites { at: u64, cut: [usize; 2], new: usize, rest: Vec<usize> },
    /// At the time everything is mended.
    Last { at: u64 },
}

impl Faults {
    /// The leader of a shard that clients use with all other nodes, if all run.
    fn cast(&mut self) -> Option<(usize, ShardId, Vec<usize>)> {
        // The newest shards are theirs.
        let (leader, shard) = self.world.leaders().into_iter().max_by_key(|(_, shard)| *shard)?;
        let others: Vec<usize> = (0..self.down.len()).filter(|node| *node != leader).collect();
        (!self.down.contains(&true) && others.len() > 1).then_some((leader, shard, others))
    }

    fn hold(&self, sim: &Sim<'_>, one: &[usize], other: &[usize]) {
        let names = |nodes: &[usize]| nodes.iter().map(|node| name(*node)).collect::<Vec<_>>();
        pairs(&names(one), &names(other)).for_each(|(one, other)| sim.hold(one, other));
    }

    /// See the module; false if it cannot begin now.
    pub(super) fn begin_fast_restart(&mut self, now: u64) -> bool {
        let Some((leader, _, mut others)) = self.cast() else { return false };
        let deaf = others.swap_remove(self.rng.random_range(0..others.len()));
        self.world.state.lock().only_reads = true;
        self.act = Some(Act::Quiet { at: now + self.rng.random_range(100..400), leader, deaf, others });
        true
    }

    /// See the module; false if it cannot begin now.
    pub(super) fn begin_figure_eight(&mut self, sim: &Sim<'_>, now: u64) -> bool {
        let Some((leader, shard, mut rest)) = self.cast().filter(|(_, _, others)| others.len() == 4) else {
            return false;
        };
        let companion = rest.swap_remove(self.rng.random_range(0..rest.len()));
        self.hold(sim, &[leader, companion], &rest);
        self.act = Some(Act::Split { until: now + ELECTED_WITHIN, shard, cut: [leader, companion], rest });
        true
    }

    /// The next millisecond of the act that goes on, if any.
    pub(super) fn act(&mut self, sim: &mut Sim<'_>, now: u64) {
        self.act = match self.act.take() {
            Some(Act::Quiet { at, leader, deaf, others }) if at <= now => {
                self.hold(sim, &[leader], &[deaf]);
                Some(Act::Deaf { at: now + self.rng.random_range(900..2_000), leader, others })
            }
            Some(Act::Deaf { at, leader, others }) if at <= now => {
                self.hold(sim, &[leader], &others);
                for other in others {
                    self.crash(sim, other);
                    self.after(now, 1..20, End::Start(other));
                }
                Some(Act::Last { at: now + self.rng.random_range(700..1_500) })
            }
            Some(Act::Split { until, shard, cut, rest }) => self.split(sim, now, (until, shard, cut, rest)),
            Some(Act::Overwrites { at, cut: [old, companion], new, rest }) if at <= now => {
                self.crash(sim, new);
                self.hold(sim, &[old], &[companion]);
                for back in rest {
                    sim.release(name(companion), name(back));
                    self.after(now, 1..50, End::Start(back));
                }
                let at = now + self.rng.random_range(1_800..3_000);
                self.ends.insert((at, u64::MAX), End::Start(new));
                Some(Act::Last { at })
            }
            Some(Act::Last { at }) if at <= now => {
                self.world.state.lock().only_reads = false;
                let all = self.everyone();
                pairs(&all, &all).filter(|(one, other)| one < other).for_each(|(one, other)| sim.release(one, other));
                None
            }
            going_on => going_on,
        };
    }

    fn split(
        &mut self,
        sim: &mut Sim<'_>,
        now: u64,
        (until, shard, cut, mut rest): (u64, ShardId, [usize; 2], Vec<usize>),
    ) -> Option<Act> {
        let leaders = self.world.leaders();
        let leads = |node: &usize| leaders.contains(&(*node, shard));
        let Some(at) = rest.iter().position(leads) else {
            return Some(if now < until { Act::Split { until, shard, cut, rest } } else { Act::Last { at: now } });
        };
        // What it wrote as a new leader has reached nobody yet, and will reach only the old one.
        let new = rest.swap_remove(at);
        for other in &rest {
            self.crash(sim, *other);
        }
        sim.release(name(cut[0]), name(new));
        Some(Act::Overwrites { at: now + self.rng.random_range(30..400), cut, new, rest })
    }
}
