//! The keys and values that are written.
//!
//! Not here: which key comes next (keys).

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Random bytes that values are slices of: longer than what a compressor looks back over in one block, so that values do
/// not compress to nothing, and made once, so that making values is no part of the measured cost.
const POOL_BYTES: usize = 1 << 20;

/// The key of a number: zero-padded decimal with a "k" in front, `bytes` long where the number fits.
#[must_use]
pub fn key(number: u64, bytes: usize) -> Bytes {
    // Without the machinery of formatting: it would be a twentieth of what a load generator does.
    let digits = number.checked_ilog10().map_or(1, |log| log + 1);
    let digits = bytes.saturating_sub(1).max(usize::try_from(digits).unwrap_or(1));
    let (mut key, mut rest) = (vec![b'k'; digits + 1], number);
    for place in key.iter_mut().skip(1).rev() {
        *place = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    key.into()
}

/// Values of one length.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pool: Bytes,
    bytes: usize,
}

impl Values {
    /// Values of `bytes` random printable bytes.
    pub(crate) fn new(bytes: usize, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let pool = (0..POOL_BYTES + bytes).map(|_| random.random_range(b' '..=b'~')).collect();
        Self { pool, bytes }
    }

    /// The next one.
    pub(crate) fn draw(&self, random: &mut SmallRng) -> Bytes {
        let at = random.random_range(0..POOL_BYTES);
        self.pool.slice(at..at + self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_length_asked_for() {
        assert_eq!(key(42, 16), "k000000000000042");
        assert_eq!(key(123_456, 4), "k123456");
        assert_eq!(key(1_000, 5), "k1000");
        assert_eq!(key(0, 0), "k0");
        assert_eq!(key(u64::MAX, 1), format!("k{}", u64::MAX));
    }

    #[test]
    fn values_have_the_length_asked_for_and_differ() {
        let mut random = SmallRng::seed_from_u64(7);
        for bytes in [0, 1, 128, 4 << 20] {
            let values = Values::new(bytes, 1);
            assert!((0..100).all(|_| values.draw(&mut random).len() == bytes));
        }
        let values = Values::new(32, 1);
        assert_ne!(values.draw(&mut random), values.draw(&mut random));
    }
}
