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
    /// A node's wall clock jumps.
    Clock,
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
    pub(crate) const ALL: [Self; 14] = [
        Self::Crash,
        Self::PowerLoss,
        Self::Restart,
        Self::Partition,
        Self::OneWay,
        Self::Hold,
        Self::SlowLink,
        Self::Loss,
        Self::SlowDisk,
        Self::Clock,
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
            Self::Partition => "partition",
            Self::OneWay => "one_way",
            Self::Hold => "hold",
            Self::SlowLink => "slow_link",
            Self::Loss => "loss",
            Self::SlowDisk => "slow_disk",
            Self::Clock => "clock",
            Self::Transfer => "transfer",
            Self::Move => "move",
            Self::Drain => "drain",
            Self::Silence => "silence",
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
    pub(crate) shards: u32,
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
    pub(crate) fn draw(seed: u64, ticks: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let millis = Duration::from_millis;
        let mut kinds = Kind::ALL.to_vec();
        kinds.shuffle(&mut rng);
        kinds.truncate(rng.random_range(3..=9));
        kinds.sort();
        Self {
            seed,
            ticks,
            nodes: if rng.random_bool(0.4) { 3 } else { rng.random_range(4..=5) },
            clients: rng.random_range(2..=4),
            shards: rng.random_range(1..=3),
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
        }
    }
}
