//! What goes in and comes out: bytes from whatever the caller has, entries, read promises.
//!
//! Not here: how keys are encoded (kv-proto, keys).

use std::time::Duration;

use bytes::Bytes;
use kv_proto::pb::v1 as pb;
use kv_proto::timestamp::Timestamp;

/// A key or a value: made from text, slices, vectors, arrays or [`Bytes`]; the owned ones are not copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Data(pub(crate) Bytes);

macro_rules! data_from {
    ($($source:ty => |$value:ident| $bytes:expr),+ $(,)?) => {
        $(impl From<$source> for Data {
            fn from($value: $source) -> Self {
                Self($bytes)
            }
        })+
    };
}

data_from! {
    Bytes => |value| value,
    &Bytes => |value| value.clone(),
    Vec<u8> => |value| Bytes::from(value),
    &Vec<u8> => |value| Bytes::copy_from_slice(value),
    String => |value| Bytes::from(value),
    &String => |value| Bytes::copy_from_slice(value.as_bytes()),
    &str => |value| Bytes::copy_from_slice(value.as_bytes()),
    &[u8] => |value| Bytes::copy_from_slice(value),
}

impl<const N: usize> From<&[u8; N]> for Data {
    fn from(value: &[u8; N]) -> Self {
        Self(Bytes::copy_from_slice(value))
    }
}

impl<const N: usize> From<[u8; N]> for Data {
    fn from(value: [u8; N]) -> Self {
        Self(Bytes::copy_from_slice(&value))
    }
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value; empty in a scan of keys only.
    pub value: Bytes,
    /// Commit timestamp of the write that left it; pass it to `expect_version` to change the key only if it is still
    /// the same.
    pub version: Timestamp,
}

impl From<pb::KeyValue> for Entry {
    fn from(entry: pb::KeyValue) -> Self {
        Self { key: entry.key, value: entry.value, version: Timestamp(entry.commit_timestamp) }
    }
}

/// What a read promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began. Trusts no clock.
    #[default]
    Linearizable,
    /// The same while clocks drift less than the documented bound; saves the round to a quorum.
    Lease,
    /// The state of any replica. With a bound it sees every write acknowledged so long before the read began.
    Stale {
        /// At most this old; zero for however old.
        max: Duration,
    },
    /// The state at a commit timestamp; needs a keyspace with retention.
    Snapshot {
        /// Which.
        at: Timestamp,
    },
}

impl Consistency {
    /// Whether any replica may answer.
    pub(crate) fn any_replica(self) -> bool {
        match self {
            Self::Stale { .. } => true,
            Self::Linearizable | Self::Lease | Self::Snapshot { .. } => false,
        }
    }

    pub(crate) fn to_pb(self) -> pb::ReadOptions {
        let options = |consistency: pb::Consistency| pb::ReadOptions {
            consistency: consistency.into(),
            ..pb::ReadOptions::default()
        };
        match self {
            Self::Linearizable => options(pb::Consistency::Linearizable),
            Self::Lease => options(pb::Consistency::Lease),
            Self::Stale { max } => {
                // Up: less than a millisecond must not become 0, which is no bound.
                let max_staleness_ms = u64::try_from(max.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
                pb::ReadOptions { max_staleness_ms, ..options(pb::Consistency::Stale) }
            }
            Self::Snapshot { at } => pb::ReadOptions { snapshot_timestamp: at.0, ..options(pb::Consistency::Snapshot) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_rounded_up_since_zero_means_none() {
        let milliseconds = |max| Consistency::Stale { max }.to_pb().max_staleness_ms;
        assert_eq!(milliseconds(Duration::ZERO), 0);
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_micros(2500)), 3);
    }
}
