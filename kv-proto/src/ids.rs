//! Ids as newtypes, so that two of them cannot be swapped.
//!
//! Not here: how ids are allotted (kv-node, catalog).

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

id!(
    /// A range of encoded keys and the Raft group that owns it. Never reused; 0 is no shard.
    ShardId(u64)
);
id!(
    /// One kv-node process and its data folder. Never reused; 0 is no node.
    NodeId(u64)
);
id!(
    /// One copy of a shard: unique within the shard and never reused, and the member id in its Raft group. A node that
    /// loses a replica and gains one again gets a new id, so a message to an earlier incarnation never reaches it.
    ReplicaId(u64)
);
id!(
    /// A named set of keys. Never reused.
    KeyspaceId(u32)
);
id!(
    /// Version of a shard descriptor; any change of range or replicas bumps it. 0 means "not checked".
    Epoch(u64)
);
id!(
    /// The storage area a replica's data lies under; unique within a node's data folder, never reused there.
    ExtentId(u64)
);
id!(
    /// A client across its connections and retries: 128 random bits.
    ClientId(u128)
);
id!(
    /// Number of a client's write; starts at 1, never reused by that client.
    Sequence(u64)
);

/// The shard that holds the catalog.
pub const SYSTEM_SHARD: ShardId = ShardId(1);
/// The keyspace of the catalog: a range keyspace named "system", not writable through `kv.v1`.
pub const SYSTEM_KEYSPACE: KeyspaceId = KeyspaceId(1);

impl ClientId {
    /// From its 16 wire bytes (big endian); None for any other length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(u128::from_be_bytes(bytes)))
    }

    /// Its 16 wire bytes, big endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}
