//! The catalog: the replicated truth about nodes, keyspaces and shards, as every node sees it.
//!
//! Invariants:
//! - records are keys of the system keyspace in shard 1, changed only by conditional commands;
//! - a node's view never goes back to an older version, also across restarts (the cache file is written first);
//! - the data path reads the view and never waits for shard 1.
//!
//! Not here: what the controller makes of it (controller), the replicas a node really holds (host).

pub mod store;
pub mod edits;
pub mod placement;
pub mod change;
pub mod current;
pub mod view;
pub mod leaders;
pub mod records;

pub use change::Change;
pub use leaders::{LeaderRecord, Leaders};
pub use records::{Record, RecordKey, Records};
pub use view::{CatalogView, ShardInfo};
