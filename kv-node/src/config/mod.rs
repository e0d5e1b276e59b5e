//! What a node is told before it starts: one struct, filled from defaults < file < environment < flags.
//!
//! Invariants:
//! - a [`Config`] that [`load`] returns is complete and its values fit together;
//! - every fault is reported, not only the first;
//! - unknown keys of the file and unknown flags are refused. Unknown `KV_*` variables are not: container platforms
//!   inject such names for services they know.
//!
//! Not here: what a data folder remembers of its node (identity).

mod check;
mod layers;
mod memory;
mod settings;
mod units;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kv_proto::limits::KEYSPACE_SHARDS_MAX;

pub use layers::{Faults, RECOVER, command, load, print, subcommand_of};
pub use memory::Memory;

/// Threads of all nodes that one busy shard employs: the leader about two, the followers as much between them.
const THREADS_PER_SHARD: u32 = 4;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Everything a node is told. Each field is also a key of the file, a flag (`--data-dir`) and a variable (`KV_DATA_DIR`).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Folder of this node alone.
    pub data_dir: PathBuf,
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// The address others reach it by; empty only before the defaults are filled in.
    pub advertise: String,
    /// Where metrics and health are served over HTTP.
    pub http_listen: SocketAddr,
    /// The address others reach that by.
    pub http_advertise: String,

    /// Begin a new cluster if the folder is empty; with `join`, only as the first of that list and if all others of it
    /// are empty too.
    pub bootstrap: bool,
    /// The `default` keyspace is created once this many nodes joined; 0 means as many as `join` names, at least one.
    pub bootstrap_nodes: u32,
    /// Shards of a hash keyspace whose creator names no number, `default` too; 0 means one for each four threads of the
    /// bootstrap nodes.
    pub default_shards: u32,
    /// Addresses of any members of the cluster to join if the folder is empty.
    pub join: Vec<String>,

    /// Filter of log lines, as in `info,kv_raft=debug`.
    pub log: String,
    /// Form of log lines.
    pub log_format: LogFormat,

    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// Least silence of a leader before an election.
    pub election_timeout_min: Duration,
    /// Most.
    pub election_timeout_max: Duration,
    /// A shard idle for this long stops its heartbeats.
    pub hibernate_after: Duration,
    /// A node whose clock differs more from its peers' refuses to lead.
    pub clock_offset_max: Duration,

    /// Threads that serve requests and consensus; 0 means half of the cores, at least one.
    pub worker_threads: u32,
    /// What the process may use in all; the parts below are shares of it unless they are set.
    pub memory_budget: u64,
    /// Memory for the log of all shards; 0 means a share of the budget.
    pub log_cache: u64,
    /// Memory for blocks of the data engine; 0 means a share of the budget.
    pub data_cache: u64,
    /// Memory for writes the data engine has not flushed; 0 means a share of the budget.
    pub data_write_buffer: u64,
    /// How often applied data is flushed, so that the log can be purged.
    pub flush_interval: Duration,
    /// Log entries of a shard kept beyond need, so that a follower that was away briefly needs no snapshot.
    pub log_entries_kept: u64,
    /// The same in bytes, whichever is reached first.
    pub log_bytes_kept: u64,
    /// Most bytes per second a node sends as snapshots; 0 means no limit.
    pub snapshot_bytes_per_second: u64,
    /// How often the replicas of a shard that was written to compare their content; zero only on demand.
    pub check_interval: Duration,
    /// Bytes per second read for it; 0 sets no limit.
    pub check_bytes_per_second: u64,
    /// Below this much free disk the node takes no writes.
    pub disk_free_min: u64,
    /// How often the free disk is looked at.
    pub disk_check_interval: Duration,

    /// Most connections at once.
    pub connections_max: u32,
    /// Most requests at once on one connection.
    pub connection_requests_max: u32,
    /// A connection that has not finished its HTTP/2 handshake by then is closed.
    pub handshake_timeout: Duration,
    /// Silence after which a connection is probed.
    pub keepalive_interval: Duration,
    /// A probed connection that does not answer by then is closed.
    pub keepalive_timeout: Duration,
    /// Most requests this node works on at once.
    pub requests_max: u32,
    /// Most bytes of requests this node works on at once; 0 means a share of the memory budget.
    pub request_bytes_max: u64,
    /// Most unanswered calls of one pipelined stream.
    pub stream_calls_max: u32,
    /// Most bytes of unanswered calls of one pipelined stream.
    pub stream_bytes_max: u64,

    /// How long a shutdown may take before the process ends all the same.
    pub shutdown_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7001)),
            advertise: String::new(),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 7101)),
            http_advertise: String::new(),
            bootstrap: false,
            bootstrap_nodes: 0,
            default_shards: 0,
            join: Vec::new(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            heartbeat_interval: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(350),
            election_timeout_max: Duration::from_millis(450),
            hibernate_after: Duration::from_secs(1),
            clock_offset_max: Duration::from_millis(500),
            worker_threads: 0,
            memory_budget: 512 << 20,
            log_cache: 0,
            data_cache: 0,
            data_write_buffer: 0,
            flush_interval: Duration::from_secs(30),
            log_entries_kept: 10_000,
            log_bytes_kept: 64 << 20,
            snapshot_bytes_per_second: 128 << 20,
            check_interval: Duration::from_secs(600),
            check_bytes_per_second: 32 << 20,
            disk_free_min: 256 << 20,
            disk_check_interval: Duration::from_secs(1),
            connections_max: 8192,
            connection_requests_max: 1024,
            handshake_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
            requests_max: 65_536,
            request_bytes_max: 0,
            stream_calls_max: 4096,
            stream_bytes_max: 16 << 20,
            shutdown_timeout: Duration::from_secs(15),
        }
    }
}

impl Config {
    /// How the memory budget is divided.
    #[must_use]
    pub fn memory(&self) -> Memory {
        Memory::of(self)
    }

    /// Threads that serve requests and consensus, with the default worked out. The log's writer, flushes, compactions and
    /// what reads from disk have threads of their own, so half of the cores is left to them; and the fewer threads share
    /// the tasks, the less each of them costs.
    #[must_use]
    pub fn worker_threads(&self) -> usize {
        if self.worker_threads == 0 {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            (cores / 2).max(1)
        } else {
            self.worker_threads as usize
        }
    }

    /// Shards of a hash keyspace whose creator names no number, with the default worked out: few, since what waits
    /// together costs less (`docs/adr/0018`), but enough of them to keep all threads of the bootstrap nodes at work.
    #[must_use]
    pub fn default_shards(&self) -> u32 {
        if self.default_shards != 0 {
            return self.default_shards;
        }
        let threads = u32::try_from(self.worker_threads()).unwrap_or(u32::MAX).saturating_mul(self.bootstrap_nodes());
        (threads / THREADS_PER_SHARD).clamp(1, KEYSPACE_SHARDS_MAX)
    }

    /// Nodes that make a cluster complete, with the default worked out.
    #[must_use]
    pub fn bootstrap_nodes(&self) -> u32 {
        let named = u32::try_from(self.join.len()).unwrap_or(u32::MAX);
        if self.bootstrap_nodes == 0 { named.max(1) } else { self.bootstrap_nodes }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
