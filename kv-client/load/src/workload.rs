//! What a benchmark does: the mix of operations, and which one comes next.
//!
//! Not here: how an operation is sent and timed (driver).

use rand::Rng;
use rand::RngExt as _;

/// One kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Read one key.
    Get,
    /// Overwrite one key.
    Put,
    /// Write a key that was not there before.
    Insert,
    /// Read one key, then write it if it is as read.
    CompareAndSet,
    /// Read one key, then overwrite it.
    ReadModifyWrite,
    /// Read a page from a key on.
    Scan,
    /// Write many keys at once.
    Batch,
}

impl Kind {
    /// As the table and the JSON name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Insert => "insert",
            Self::CompareAndSet => "compare-and-set",
            Self::ReadModifyWrite => "read-modify-write",
            Self::Scan => "scan",
            Self::Batch => "batch",
        }
    }
}

/// A workload by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Overwrites.
    Put,
    /// Reads, in the mode --consistency names.
    Get,
    /// Reads and overwrites, --reads percent of them reads.
    Mixed,
    /// Reads a key and writes it if it is as read.
    Cas,
    /// Batches of --batch puts, split by shard.
    Batch,
    /// Pages of --page keys.
    Scan,
    /// YCSB A: 50% reads, 50% updates, zipfian.
    YcsbA,
    /// YCSB B: 95% reads, 5% updates, zipfian.
    YcsbB,
    /// YCSB C: reads only, zipfian.
    YcsbC,
    /// YCSB D: 95% reads of the newest keys, 5% inserts.
    YcsbD,
    /// YCSB E: 95% short scans, 5% inserts, zipfian.
    YcsbE,
    /// YCSB F: 50% reads, 50% read-modify-writes, zipfian.
    YcsbF,
}

/// Kinds with their weights in percent; they sum to 100.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    kinds: Vec<(Kind, u32)>,
}

impl Mix {
    /// `reads` (0 to 100) counts only for [`Workload::Mixed`].
    pub fn of(workload: Workload, reads: u32) -> Self {
        let kinds = match workload {
            Workload::Put => vec![(Kind::Put, 100)],
            Workload::Get | Workload::YcsbC => vec![(Kind::Get, 100)],
            Workload::Mixed => vec![(Kind::Get, reads), (Kind::Put, 100 - reads)],
            Workload::Cas => vec![(Kind::CompareAndSet, 100)],
            Workload::Batch => vec![(Kind::Batch, 100)],
            Workload::Scan => vec![(Kind::Scan, 100)],
            Workload::YcsbA => vec![(Kind::Get, 50), (Kind::Put, 50)],
            Workload::YcsbB => vec![(Kind::Get, 95), (Kind::Put, 5)],
            Workload::YcsbD => vec![(Kind::Get, 95), (Kind::Insert, 5)],
            Workload::YcsbE => vec![(Kind::Scan, 95), (Kind::Insert, 5)],
            Workload::YcsbF => vec![(Kind::Get, 50), (Kind::ReadModifyWrite, 50)],
        };
        Self { kinds }
    }

    /// The next operation's kind.
    pub fn draw(&self, random: &mut impl Rng) -> Kind {
        let mut point = random.random_range(0..100);
        for (kind, weight) in &self.kinds {
            if point < *weight {
                return *kind;
            }
            point -= weight;
        }
        Kind::Get
    }

    /// Whether it ever does operations of this kind.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.kinds.iter().any(|(of_mix, weight)| *of_mix == kind && *weight > 0)
    }

    /// Whether it reads keys that must be there first.
    pub fn needs_keys(&self) -> bool {
        self.kinds.iter().any(|(kind, weight)| {
            let reads = matches!(kind, Kind::Get | Kind::CompareAndSet | Kind::ReadModifyWrite | Kind::Scan);
            reads && *weight > 0
        })
    }
}

impl Workload {
    /// Whether reads favour the newest keys (YCSB's "latest" distribution).
    pub fn reads_latest(self) -> bool {
        self == Self::YcsbD
    }

    /// Whether the workload fixes the key distribution as zipfian.
    pub fn is_ycsb(self) -> bool {
        matches!(self, Self::YcsbA | Self::YcsbB | Self::YcsbC | Self::YcsbD | Self::YcsbE | Self::YcsbF)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn every_mix_sums_to_a_hundred_and_is_drawn_as_it_says() {
        let mut random = StdRng::seed_from_u64(7);
        for workload in <Workload as clap::ValueEnum>::value_variants() {
            let mix = Mix::of(*workload, 90);
            assert_eq!(mix.kinds.iter().map(|(_, weight)| weight).sum::<u32>(), 100, "{workload:?}");
            let draws: Vec<Kind> = (0..20_000).map(|_| mix.draw(&mut random)).collect();
            for (kind, weight) in &mix.kinds {
                let share = draws.iter().filter(|drawn| *drawn == kind).count() / 200;
                assert!(share.abs_diff(usize::try_from(*weight).unwrap()) <= 2, "{workload:?} {kind:?}: {share}%");
            }
        }
    }
}
