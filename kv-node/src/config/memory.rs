//! How the memory budget of the process is divided.
//!
//! The parts that grow with load are given away here; the rest of the budget is for what does not: the program itself,
//! consensus of idle shards, buffers of connections, files being compacted, and what an allocator keeps.
//!
//! Invariants: parts that are not set add up to six eighths of the budget.
//!
//! Not here: how the engines divide their parts (kv-raft, log_store and data_engine, options).

use super::Config;

/// Shares of the memory budget, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Recent entries and write buffers of the log of all shards.
    pub log: u64,
    /// What the data engine read: blocks with their indexes and filters, and rows.
    pub data_cache: u64,
    /// Writes the data engine has not flushed.
    pub data_write_buffer: u64,
    /// Requests at work, and as much again of answers not read yet; what waits in queues holds slices of them.
    pub requests: u64,
}

impl Memory {
    /// Below it a node has no room to work in.
    pub const BUDGET_MIN: u64 = 128 << 20;

    pub(super) fn of(config: &Config) -> Self {
        let or = |set: u64, share: u64| if set == 0 { share } else { set };
        let eighth = config.memory_budget / 8;
        Self {
            log: or(config.log_cache, eighth),
            data_cache: or(config.data_cache, eighth * 2),
            data_write_buffer: or(config.data_write_buffer, eighth),
            requests: or(config.request_bytes_max, eighth),
        }
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.log, self.data_cache, self.data_write_buffer, self.requests, self.requests]
            .iter()
            .fold(0, |sum, part| sum.saturating_add(*part))
    }
}
