//! Commit timestamps: hybrid logical clocks (Kulkarni et al., 2014) in 64 bits.
//!
//! Not here: the clock itself (kv-raft, clock).

use std::fmt;

/// Bits of the logical counter.
const COUNTER_BITS: u32 = 16;

/// Milliseconds since the Unix epoch in the upper 48 bits, a counter in the lower 16. 0 is before every commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// After every commit.
    pub const MAX: Self = Self(u64::MAX);

    /// The first timestamp of a millisecond.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(millis << COUNTER_BITS)
    }

    /// Its physical part, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// The next timestamp.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
