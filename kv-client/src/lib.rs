//! The client of the key-value cluster.
pub mod connection;
