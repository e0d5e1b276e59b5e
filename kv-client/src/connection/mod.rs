//! Connections to nodes: one per address, shared by everyone, each carrying one pipelined stream.
//!
//! Invariants:
//! - a call ends by its deadline, whatever the node does;
//! - a call that was never handed to the network fails as not sent, and only then is its write surely not applied;
//! - a dead node costs one connect timeout, then its circuit refuses at once while a probe looks after it.
//!
//! Not here: which node to ask (routes), what to do about a failure (retry).

mod pool;

mod pipeline;

mod circuit;
mod error;

pub use error::{CallError, ConnectionError};
pub use kv_proto::pb::v1::{pipeline_call, pipeline_reply};
pub use pool::{ConnectionOptions, NodeConnection, NodePool};
