//! The keys and values that are written.
//!
//! Not here: which key comes next (keys).

use bytes::{BufMut as _, Bytes, BytesMut};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Random bytes that values are slices of: longer than what a compressor looks back over in one block, so that values do
/// not compress to nothing, and made once, so that making values is no part of the measured cost.
const POOL_BYTES: usize = 1 << 20;

/// The key of a number: zero-padded decimal with a "k" in front, `bytes` long where the number fits.
#[must_use]
pub fn key(number: u64, bytes: usize) -> Bytes {
    // No longer than the key, or giving it away would take a second allocation.
    let mut key = BytesMut::with_capacity(1 + digits(number, bytes));
    put_key(&mut key, number, bytes);
    key.freeze()
}

fn digits(number: u64, bytes: usize) -> usize {
    let digits = number.checked_ilog10().map_or(1, |log| log + 1);
    bytes.saturating_sub(1).max(usize::try_from(digits).unwrap_or(1))
}

fn put_key(out: &mut BytesMut, number: u64, bytes: usize) {
    // Without the machinery of formatting: it would be a twentieth of what a load generator does.
    let digits = digits(number, bytes);
    out.put_u8(b'k');
    let (first, mut rest) = (out.len(), number);
    out.put_bytes(b'0', digits);
    for place in out.iter_mut().skip(first).rev() {
        *place = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
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
        self.at(at)
    }

    /// Keys and values of a batch. The keys are slices of one allocation and the values lie one after another, from a random place
    /// on, so that making a batch costs the generator little: what is to be measured is the store.
    pub(crate) fn entries(&self, numbers: &[u64], key_bytes: usize, random: &mut SmallRng) -> Vec<(Bytes, Bytes)> {
        let mut keys = BytesMut::with_capacity(numbers.len() * key_bytes);
        let mut at = random.random_range(0..POOL_BYTES);
        let entry = |number: &u64| {
            put_key(&mut keys, *number, key_bytes);
            let value = self.at(at);
            // One further, or values as long as the pool would all be the same.
            at = (at + self.bytes + 1) % POOL_BYTES;
            (keys.split().freeze(), value)
        };
        numbers.iter().map(entry).collect()
    }

    fn at(&self, at: usize) -> Bytes {
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

    #[test]
    fn entries_of_a_batch_have_the_keys_asked_for_and_values_that_differ() {
        let mut random = SmallRng::seed_from_u64(7);
        // The last batch goes beyond the end of the pool.
        for bytes in [8, 128, POOL_BYTES / 3 + 1, POOL_BYTES] {
            let values = Values::new(bytes, 1);
            let entries = values.entries(&[7, 123_456, 7], 4, &mut random);
            let (keys, values): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
            assert_eq!(keys, ["k007", "k123456", "k007"]);
            assert!(values.iter().all(|value| value.len() == bytes));
            assert!(values[0] != values[1] && values[1] != values[2] && values[0] != values[2]);
        }
    }
}
