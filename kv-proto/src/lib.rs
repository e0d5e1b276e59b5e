//! The vocabulary every crate shares: the wire schema, ids, key encodings, limits and the one error contract.
//!
//! Invariants: this crate does no I/O; what it encodes it decodes, or refuses with a typed error.
//!
//! Not here: how a log entry is encoded (kv-raft), how a client retries (kv-client).

pub mod errors;

pub mod keys;
pub mod slot;
pub mod key_range;

pub mod limits;
mod operation;
pub mod timestamp;
pub mod ids;

#[cfg(kv_sim)]
pub mod simulated;

/// Generated from `proto/`; the comments there are the reference.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod pb {
    /// `kv.v1`: data.
    pub mod v1 {
        tonic::include_proto!("kv.v1");
    }
    /// `kv.admin.v1`: nodes, keyspaces, shards, membership, status.
    pub mod admin {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("kv.admin.v1");
        }
    }
    /// `kv.raft.v1`: between nodes.
    pub mod raft {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("kv.raft.v1");
        }
    }
}

/// All schemas as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
