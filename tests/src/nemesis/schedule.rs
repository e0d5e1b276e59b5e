//! A schedule: which fault begins when and how long it lasts. A text file.
//!
//! ```text
//! kv-nemesis 1
//! seed 42
//! nodes 4
//! seconds 60
//! # seconds since the begin, the fault, on whom, how long
//! 2.0 kill leader for 3.0
//! 3.5 isolate 2 for 4.0
//! 9.0 kill-all for 1.0
//! 12.0 transfer
//! ```
//!
//! Invariants: a written schedule is read as the same; faults may overlap; all end before `seconds`.
//!
//! Not here: what a fault does (action).

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The format's version.
const VERSION: u32 = 1;

/// Without faults at the end, so that what still hangs from the last one shows.
const QUIET: Duration = Duration::from_secs(2);

/// Mean time between the begins of two faults.
const BETWEEN: f64 = 1.8;

/// All that happens in one storm.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Where it comes from; also the load's.
    pub seed: u64,
    /// How many nodes it is for.
    pub nodes: usize,
    /// How long the load runs.
    pub length: Duration,
    /// In the order of their begins.
    pub steps: Vec<Step>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Since the begin.
    pub at: Duration,
    /// What.
    pub kind: Kind,
    /// On whom, where the kind needs one.
    pub target: Option<Target>,
    /// Until it is undone; zero for what is over at once.
    pub lasts: Duration,
}

/// On whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The node of this number.
    Node(usize),
    /// The node that leads most shards when the fault begins.
    Leader,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $name:literal $target:literal $lasts:literal;)+) => {
        /// What kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind,)+
        }

        impl Kind {
            /// Each of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// As a schedule names it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// Whether it is done to one node.
            #[must_use]
            pub fn has_target(self) -> bool {
                match self {
                    $(Self::$kind => $target,)+
                }
            }

            /// Seconds it lasts at most; 0 if it is over at once.
            #[must_use]
            pub fn lasts_max(self) -> f64 {
                match self {
                    $(Self::$kind => $lasts,)+
                }
            }
        }
    };
}

kinds! {
    /// SIGKILL, and a start afterwards.
    Kill "kill" true 5.0;
    /// SIGKILL to all nodes at once, and a start of all.
    KillAll "kill-all" false 1.5;
    /// SIGSTOP and SIGCONT.
    Pause "pause" true 5.0;
    /// SIGTERM, and a start at once.
    Restart "restart" true 0.0;
    /// SIGKILL, and a start with a wall clock ten minutes ahead or behind; afterwards again with the right one.
    ClockJump "clock-jump" true 6.0;
    /// SIGKILL, and a start with clocks that run 5% too fast or too slow; afterwards again with the right ones.
    ClockDrift "clock-drift" true 6.0;
    /// No other node is reached, in either direction; clients on both sides go on.
    Isolate "isolate" true 6.0;
    /// What the node sends to other nodes does not arrive.
    Mute "mute" true 5.0;
    /// What other nodes send to the node does not arrive.
    Deafen "deafen" true 5.0;
    /// Clients do not reach the node, other nodes do.
    CutClients "cut-clients" true 5.0;
    /// The node is cut off from all others and from clients.
    CutOff "cut-off" true 5.0;
    /// Everything to and from the node takes 60 ms longer.
    Slow "slow" true 6.0;
    /// Everything to and from the node passes at 256 KiB/s.
    Throttle "throttle" true 6.0;
    /// Every piece on every link waits up to 40 ms at random, so that streams overtake each other.
    Jitter "jitter" false 6.0;
    /// All connections to the node stay open with nobody at the other end.
    HalfOpen "half-open" true 0.0;
    /// All connections to the node are closed.
    Reset "reset" true 0.0;
    /// New connections to the node are closed at once.
    Refuse "refuse" true 4.0;
    /// The node's filesystem is filled until it takes no writes.
    FillDisk "fill-disk" true 4.0;
    /// A shard's leadership goes to another of its nodes.
    Transfer "transfer" false 0.0;
    /// A shard's replica moves to a node that has none of it: learner, snapshot, joint consensus, removal.
    Move "move" false 0.0;
}

impl Schedule {
    /// Draws a schedule from a seed: overlapping faults of all kinds, each kind about as often.
    #[must_use]
    pub fn random(seed: u64, nodes: usize, length: Duration) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut steps, mut at, mut bag) = (vec![], 1.0, vec![]);
        while at + QUIET.as_secs_f64() < length.as_secs_f64() {
            if bag.is_empty() {
                bag = Kind::ALL.to_vec();
            }
            let kind = bag.swap_remove(random.random_range(0..bag.len()));
            let target = kind.has_target().then(|| match random.random_range(0..10) {
                0..5 => Target::Leader,
                _ => Target::Node(random.random_range(1..=nodes)),
            });
            let left = length.as_secs_f64() - QUIET.as_secs_f64() - at;
            let lasts = (kind.lasts_max() * random.random_range(0.3..1.0)).min(left);
            steps.push(Step { at: tenths(at), kind, target, lasts: tenths(lasts) });
            at += random.random_range(0.2..2.0 * BETWEEN);
        }
        Self { seed, nodes, length, steps }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// With the line that is none of a schedule.
    pub fn parse(text: &str) -> Result<Self> {
        let mut schedule = Self { seed: 0, nodes: 3, length: Duration::ZERO, steps: vec![] };
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let mut lines = lines.enumerate().filter(|(_, line)| !line.is_empty());
        let (_, first) = lines.next().context("the schedule is empty")?;
        ensure!(first == format!("kv-nemesis {VERSION}"), "the first line is {first:?}, not kv-nemesis {VERSION}");
        for (number, line) in lines {
            schedule.line(line).with_context(|| format!("line {}: {line:?}", number + 1))?;
        }
        ensure!(!schedule.length.is_zero(), "no line says how many seconds");
        schedule.steps.sort_by_key(|step| step.at);
        Ok(schedule)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["seed", seed] => self.seed = seed.parse()?,
            ["nodes", nodes] => self.nodes = nodes.parse()?,
            ["seconds", seconds] => self.length = Duration::try_from_secs_f64(seconds.parse()?)?,
            [at, kind, rest @ ..] => self.steps.push(step(at, kind, rest)?),
            [_] | [] => bail!("a word alone"),
        }
        Ok(())
    }
}

fn step(at: &str, kind: &str, rest: &[&str]) -> Result<Step> {
    let at = Duration::try_from_secs_f64(at.parse()?)?;
    let kind = Kind::ALL.iter().copied().find(|known| known.name() == kind).context("no such fault")?;
    let (target, lasts) = match rest {
        [] => (None, None),
        ["for", lasts] => (None, Some(lasts)),
        [target] => (Some(target), None),
        [target, "for", lasts] => (Some(target), Some(lasts)),
        _ => bail!("not `TIME FAULT [NODE] [for SECONDS]`"),
    };
    let target = target.map(|name| match *name {
        "leader" => Ok(Target::Leader),
        number => number.parse().map(Target::Node),
    });
    let (target, lasts) = (target.transpose()?, lasts.map_or(Ok(0.0), |lasts| lasts.parse())?);
    ensure!(
        target.is_some() == kind.has_target(),
        "it {} a node",
        if kind.has_target() { "needs" } else { "takes no" }
    );
    Ok(Step { at, kind, target, lasts: Duration::try_from_secs_f64(lasts)? })
}

fn tenths(seconds: f64) -> Duration {
    Duration::from_millis(100) * ((seconds.max(0.0) * 10.0).round() as u32)
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kv-nemesis {VERSION}\nseed {}\nnodes {}", self.seed, self.nodes)?;
        writeln!(f, "seconds {}", self.length.as_secs_f64())?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{:.1} {step}", step.at.as_secs_f64()))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.name())?;
        match self.target {
            Some(Target::Leader) => write!(f, " leader")?,
            Some(Target::Node(number)) => write!(f, " {number}")?,
            None => {}
        }
        if self.lasts.is_zero() { Ok(()) } else { write!(f, " for {:.1}", self.lasts.as_secs_f64()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_random_schedule_is_the_same_for_the_same_seed_and_survives_its_file() {
        let schedule = Schedule::random(7, 4, Duration::from_secs(60));
        assert_eq!(schedule, Schedule::random(7, 4, Duration::from_secs(60)));
        assert_ne!(schedule, Schedule::random(8, 4, Duration::from_secs(60)));
        assert_eq!(Schedule::parse(&schedule.to_string()).unwrap(), schedule);
    }

    #[test]
    fn a_minute_holds_all_kinds_and_overlaps() {
        for seed in 0..50 {
            let steps = Schedule::random(seed, 4, Duration::from_secs(60)).steps;
            let kinds: BTreeSet<Kind> = steps.iter().map(|step| step.kind).collect();
            assert_eq!(kinds.len(), Kind::ALL.len(), "seed {seed}");
            let overlaps = steps.iter().zip(steps.iter().skip(1)).filter(|(one, next)| next.at < one.at + one.lasts);
            assert!(overlaps.count() >= 5, "seed {seed}");
            assert!(steps.iter().all(|step| step.at + step.lasts <= Duration::from_secs(58)), "seed {seed}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_its_line() {
        for bad in [
            "",
            "kv-nemesis 2\nseconds 1",
            "kv-nemesis 1",
            "kv-nemesis 1\nseconds 1\n1.0 explode 1",
            "kv-nemesis 1\nseconds 1\n1.0 kill",
            "kv-nemesis 1\nseconds 1\n1.0 kill-all 2",
            "kv-nemesis 1\nseconds 1\n1.0 kill 1 until 3",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad:?}");
        }
    }
}
