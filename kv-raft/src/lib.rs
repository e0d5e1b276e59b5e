//! One replica's consensus and storage.
//!
//! Not here: which replicas a node holds (kv-node, host), what a request means on the wire (kv-node, services).

pub mod replica;
pub mod transport;
pub mod recovery;
pub mod state_machine;
pub mod data_engine;
pub mod log_store;
pub mod codec;
pub mod blocking;
pub mod clock;
#[cfg(kv_sim)]
pub mod simulated;
pub mod metrics;
pub mod timing;
pub mod types;
pub mod command;
pub mod failpoint;
mod background;
mod direct;
mod failure;
