//! Which slot a key of a hash keyspace belongs to: CRC16-XMODEM modulo 16384 with hash tags, as in the Redis Cluster
//! specification, so that clients of either protocol agree.
//!
//! Not here: which shard holds a slot (a route or the catalog knows).

use std::fmt;

use crc::{CRC_16_XMODEM, Crc};

/// Slots of every hash keyspace.
pub const SLOTS: u16 = 16_384;

const CRC16: Crc<u16, crc::Table<16>> = Crc::<u16, crc::Table<16>>::new(&CRC_16_XMODEM);

/// A slot, below [`SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot of a user key.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(CRC16.checksum(hash_tag(key)) % SLOTS)
    }

    /// None at or above [`SLOTS`].
    #[must_use]
    pub fn new(slot: u16) -> Option<Self> {
        (slot < SLOTS).then_some(Self(slot))
    }

    /// Its number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The part of the key that is hashed: between the first `{` and the next `}` if that is not empty, else all of it.
fn hash_tag(key: &[u8]) -> &[u8] {
    let tag = || {
        let rest = key.get(key.iter().position(|byte| *byte == b'{')? + 1..)?;
        let tag = rest.get(..rest.iter().position(|byte| *byte == b'}')?)?;
        (!tag.is_empty()).then_some(tag)
    };
    tag().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_crc16_vector_holds() {
        assert_eq!(CRC16.checksum(b"123456789"), 0x31c3);
    }

    #[test]
    fn hash_tags_follow_the_redis_cluster_specification() {
        assert_eq!(Slot::of(b"{user1000}.following"), Slot::of(b"{user1000}.followers"));
        assert_eq!(hash_tag(b"foo{}{bar}"), b"foo{}{bar}");
        assert_eq!(hash_tag(b"foo{{bar}}zap"), b"{bar");
        assert_eq!(hash_tag(b"foo{bar}{zap}"), b"bar");
        assert_eq!(hash_tag(b"foo{bar"), b"foo{bar");
        assert_eq!(Slot::of(b"foo").get(), 12_182, "CLUSTER KEYSLOT foo");
    }
}
