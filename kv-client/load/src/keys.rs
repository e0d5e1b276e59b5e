//! Which key an operation takes: uniform, or zipfian as YCSB draws it.
//!
//! Not here: what is done with the key (workload).

use rand::Rng;
use rand::RngExt as _;

/// Skew of YCSB's zipfian generator.
const THETA: f64 = 0.99;

/// How keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Distribution {
    /// Each key as often as any other.
    Uniform,
    /// A few keys most of the time, spread over the key space by a hash.
    Zipfian,
}

/// Draws key numbers below a count.
#[derive(Clone, Debug)]
pub enum Chooser {
    /// Below the count.
    Uniform(u64),
    /// See [`Zipfian`].
    Zipfian(Zipfian),
}

impl Chooser {
    /// `keys` is at least 1.
    pub fn new(distribution: Distribution, keys: u64) -> Self {
        match distribution {
            Distribution::Uniform => Self::Uniform(keys),
            Distribution::Zipfian => Self::Zipfian(Zipfian::new(keys)),
        }
    }

    /// The next number.
    pub fn draw(&self, random: &mut impl Rng) -> u64 {
        match self {
            Self::Uniform(keys) => random.random_range(0..*keys),
            Self::Zipfian(zipfian) => zipfian.draw(random),
        }
    }
}

/// Gray et al., "Quickly generating billion-record synthetic databases", SIGMOD 1994, as YCSB uses it: rank 0 is the
/// most frequent; ranks are hashed so that hot keys do not lie side by side.
#[derive(Clone, Debug)]
pub struct Zipfian {
    keys: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Zipfian {
    fn new(keys: u64) -> Self {
        let zeta = zeta(keys);
        let eta = (1.0 - (2.0 / as_f64(keys)).powf(1.0 - THETA)) / (1.0 - zeta_of_two() / zeta);
        Self { keys, zeta, alpha: 1.0 / (1.0 - THETA), eta }
    }

    fn draw(&self, random: &mut impl Rng) -> u64 {
        scramble(self.rank(random.random::<f64>())) % self.keys
    }

    fn rank(&self, uniform: f64) -> u64 {
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < zeta_of_two() {
            return 1.min(self.keys - 1);
        }
        let rank = as_f64(self.keys) * (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        as_rank(rank).min(self.keys - 1)
    }
}

fn zeta(keys: u64) -> f64 {
    (1..=keys).map(|rank| as_f64(rank).powf(-THETA)).sum()
}

fn zeta_of_two() -> f64 {
    1.0 + 2.0_f64.powf(-THETA)
}

/// FNV-1a over the eight bytes, as YCSB scrambles.
fn scramble(rank: u64) -> u64 {
    rank.to_le_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[allow(clippy::cast_precision_loss)]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn as_rank(rank: f64) -> u64 {
    rank as u64
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn every_draw_is_below_the_count() {
        let mut random = StdRng::seed_from_u64(7);
        for keys in [1, 2, 3, 1000] {
            for distribution in [Distribution::Uniform, Distribution::Zipfian] {
                let chooser = Chooser::new(distribution, keys);
                assert!((0..2000).all(|_| chooser.draw(&mut random) < keys), "{distribution:?} of {keys}");
            }
        }
    }

    #[test]
    fn zipfian_ranks_are_as_frequent_as_their_weight_says() {
        let mut random = StdRng::seed_from_u64(7);
        let zipfian = Zipfian::new(1000);
        let draws = 200_000;
        let first = (0..draws).filter(|_| zipfian.rank(random.random::<f64>()) == 0).count();
        let expected = as_f64(draws) / zipfian.zeta;
        let seen = as_f64(u64::try_from(first).unwrap());
        assert!((seen / expected - 1.0).abs() < 0.05, "rank 0 drawn {seen} times, expected {expected}");
    }
}
