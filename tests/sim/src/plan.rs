//! What a seed draws before it begins: the cluster, its disks and links, the load, and which faults are on.
//!
//! Faults are drawn as a swarm (Groce et al., 2012): each seed has some kinds switched off, so that those left on meet
//! more often than they would among all the others.
//!
//! Not here: when a fault happens (faults).

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A node stops dead, loses what was not synced, and comes back.
    Crash,
    /// All nodes do, at the same moment.
    PowerLoss,
    /// A node is stopped in good order and started again.
    Restart,
    /// All nodes are, at the same moment, and started again when the last one has stopped: none may wait for another.
    StopAll,
    /// Nodes and clients are cut into two parts that hear nothing of each other.
    Partition,
    /// One node is no longer heard by another, but hears it.
    OneWay,
    /// What two nodes send each other waits, and arrives all at once later.
    Hold,
    /// A link gets slow.
    SlowLink,
    /// A link drops messages, which a stream does not survive.
    Loss,
    /// A node's disk gets slow.
    SlowDisk,
    /// A node's wall clock jumps, by up to ten minutes.
    Clock,
    /// A node's clocks run faster than those of others, by up to a tenth.
    Drift,
    /// The leader of a shard stops dead.
    CrashLeader,
    /// The leader of a shard is cut off from all other nodes, not from clients.
    CutLeader,
    /// The lease of a leader is put to the test: see `acts`.
    FastRestart,
    /// An uncommitted entry is cut off at one replica and committed by another: see `acts`.
    FigureEight,
    /// A leader is asked to hand over.
    Transfer,
    /// A replica moves to another node.
    Move,
    /// A node is drained of leaders and replicas, later no more.
    Drain,
    /// The clients fall silent for long enough that shards go to sleep.
    Silence,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 20] = [
        Self::Crash,
        Self::PowerLoss,
        Self::Restart,
        Self::StopAll,
        Self::Partition,
        Self::OneWay,
        Self::Hold,
        Self::SlowLink,
        Self::Loss,
        Self::SlowDisk,
        Self::Clock,
        Self::Drift,
        Self::CrashLeader,
        Self::CutLeader,
        Self::FastRestart,
        Self::FigureEight,
        Self::Transfer,
        Self::Move,
        Self::Drain,
        Self::Silence,
    ];

    /// As it is counted.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::PowerLoss => "power_loss",
            Self::Restart => "restart",
            Self::StopAll => "stop_all",
            Self::Partition => "partition",
            Self::OneWay => "one_way",
            Self::Hold => "hold",
            Self::SlowLink => "slow_link",
            Self::Loss => "loss",
            Self::SlowDisk => "slow_disk",
            Self::Clock => "clock",
            Self::Drift => "drift",
            Self::CrashLeader => "crash_leader",
            Self::CutLeader => "cut_leader",
            Self::FastRestart => "fast_restart",
            Self::FigureEight => "figure_eight",
            Self::Transfer => "transfer",
            Self::Move => "move",
            Self::Drain => "drain",
            Self::Silence => "silence",
        }
    }
}

/// What a seed plays: its last digit says. Half of all seeds draw from everything; the others aim at what once broke
/// stores like this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Figure 8 of the paper (Ongaro and Ousterhout, 2014): an entry of an earlier term is on a majority and must not count
    /// as committed; and a client is told of a write that was cut off at one replica, not everywhere.
    FigureEight,
    /// Replicas move while others lag behind and need snapshots (openraft#1808: a stale membership survived one).
    Churn,
    /// Slow disks lose their unsynced tails, of many writes, at power cuts.
    LostTail,
    /// Leases against fast restarts and against clocks that run at different speeds.
    Leases,
    /// Clocks that jump by minutes and run at different speeds.
    Clocks,
    /// Anything.
    Any,
}

impl Shape {
    /// Of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        match seed % 10 {
            0 => Self::FigureEight,
            1 => Self::Churn,
            2 => Self::LostTail,
            3 => Self::Leases,
            4 => Self::Clocks,
            _ => Self::Any,
        }
    }

    /// The last digit of its seeds.
    pub(crate) fn digit(name: &str) -> Option<u64> {
        ["figure-8", "churn", "lost-tail", "leases", "clocks", "any"]
            .iter()
            .position(|shape| *shape == name)
            .and_then(|at| u64::try_from(at).ok())
    }

    /// Makes the plan one of this shape.
    fn apply(self, plan: &mut Plan) {
        let millis = Duration::from_millis;
        match self {
            Self::Any => {}
            Self::FigureEight => {
                (plan.nodes, plan.replicas, plan.clients, plan.plain_clients) = (5, 5, 4, 3);
                plan.pace = plan.pace.min(millis(20));
                plan.kinds = vec![Kind::CrashLeader, Kind::CutLeader, Kind::FigureEight, Kind::FigureEight];
            }
            Self::Churn => {
                plan.nodes = 5;
                plan.log_entries_kept %= 10;
                plan.flush_interval = plan.flush_interval.min(millis(1_000));
                plan.kinds = vec![Kind::Move, Kind::Move, Kind::Drain, Kind::SlowLink, Kind::Crash, Kind::CutLeader];
                plan.gap = plan.gap.min(millis(800));
            }
            Self::LostTail => {
                plan.pace = plan.pace.min(millis(10));
                plan.fsync *= 20;
                plan.kinds = vec![Kind::PowerLoss, Kind::Crash, Kind::CrashLeader, Kind::SlowDisk];
            }
            Self::Leases => {
                plan.nodes = 3;
                plan.pace = plan.pace.min(millis(10));
                plan.lease_one_in = 1;
                plan.kinds = vec![Kind::FastRestart, Kind::FastRestart, Kind::Drift, Kind::CutLeader];
            }
            Self::Clocks => {
                plan.lease_one_in = 2;
                plan.kinds = vec![Kind::Clock, Kind::Drift, Kind::CutLeader, Kind::Crash, Kind::Transfer];
            }
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Everything follows from it.
    pub(crate) seed: u64,
    /// Milliseconds with faults.
    pub(crate) ticks: u64,
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    /// So many of the clients are none of kv-client's: each asks once, without a session, and takes the answer as it is.
    pub(crate) plain_clients: usize,
    pub(crate) shards: u32,
    /// Of each shard that clients use; 3 are those of the keyspace every cluster has.
    pub(crate) replicas: u32,
    /// Keys that clients compete for.
    pub(crate) keys: u32,
    /// Longest pause of a client between two requests.
    pub(crate) pace: Duration,
    /// One in so many reads trusts the leader's lease; 0 means none.
    pub(crate) lease_one_in: u32,
    /// Longest way of a message.
    pub(crate) latency: Duration,
    /// Longest fsync of a disk in order.
    pub(crate) fsync: Duration,
    pub(crate) flush_interval: Duration,
    pub(crate) log_entries_kept: u64,
    pub(crate) hibernate_after: Duration,
    pub(crate) kinds: Vec<Kind>,
    /// Mean time between two faults.
    pub(crate) gap: Duration,
}

impl Plan {
    /// What clients use.
    pub(crate) fn keyspace(&self) -> &'static str {
        if self.replicas == 3 { "default" } else { "wide" }
    }

    pub(crate) fn draw(seed: u64, ticks: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let millis = Duration::from_millis;
        let mut kinds = Kind::ALL.to_vec();
        kinds.shuffle(&mut rng);
        kinds.truncate(rng.random_range(3..=9));
        kinds.sort();
        let mut plan = Self {
            seed,
            ticks,
            nodes: if rng.random_bool(0.4) { 3 } else { rng.random_range(4..=5) },
            clients: rng.random_range(2..=4),
            plain_clients: rng.random_range(0..=1),
            shards: rng.random_range(1..=3),
            replicas: 3,
            keys: rng.random_range(2..=8),
            pace: millis(rng.random_range(5..=60)),
            lease_one_in: if rng.random_bool(0.5) { 3 } else { 0 },
            latency: millis(rng.random_range(1..=10)),
            fsync: Duration::from_micros(rng.random_range(200..=5_000)),
            flush_interval: millis(rng.random_range(500..=4_000)),
            log_entries_kept: if rng.random_bool(0.7) { rng.random_range(0..=50) } else { 10_000 },
            hibernate_after: millis(rng.random_range(700..=2_000)),
            kinds,
            gap: millis(rng.random_range(200..=2_500)),
        };
        Shape::of(seed).apply(&mut plan);
        plan
    }
}
