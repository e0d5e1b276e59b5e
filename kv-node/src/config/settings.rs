//! The table of settings: one row per field of [`Config`].
//!
//! Not here: how values fit together (check).

use super::Config;
use super::units::{duration, list, log_format, path, plain, size};

/// One setting.
pub(super) struct Setting {
    /// Its key in the file; the flag and the variable follow from it.
    pub(super) key: &'static str,
    /// What a value looks like.
    pub(super) value: &'static str,
    /// For `--help`.
    pub(super) help: &'static str,
    /// Whether the flag may stand without a value, which means true.
    pub(super) switch: bool,
    /// Whether the file shows it in quotes.
    pub(super) quoted: bool,
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
    pub(super) show: fn(&Config) -> String,
}

impl Setting {
    pub(super) fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    pub(super) fn variable(&self) -> String {
        format!("KV_{}", self.key.to_uppercase())
    }
}

macro_rules! setting {
    ($field:ident, $kind:ident, $value:literal, $help:literal) => {
        Setting {
            key: stringify!($field),
            value: $value,
            help: $help,
            switch: matches!($value.as_bytes(), b"BOOL"),
            quoted: !matches!($value.as_bytes(), b"BOOL" | b"NUMBER"),
            set: |config, text| {
                config.$field = $kind::parse(text)?;
                Ok(())
            },
            show: |config| $kind::show(&config.$field),
        }
    };
}

pub(super) const SETTINGS: &[Setting] = &[
    setting!(data_dir, path, "FOLDER", "Folder of this node alone; needed"),
    setting!(listen, plain, "ADDRESS", "Where gRPC listens"),
    setting!(advertise, plain, "ADDRESS", "The address others reach it by [default: listen]"),
    setting!(http_listen, plain, "ADDRESS", "Where /metrics, /livez and /readyz are served"),
    setting!(http_advertise, plain, "ADDRESS", "The address others reach that by [default: http-listen]"),
    setting!(
        bootstrap,
        plain,
        "BOOL",
        "Begin a new cluster if the data folder is empty; with join: if this node is the first it names and all others are empty"
    ),
    setting!(
        bootstrap_nodes,
        plain,
        "NUMBER",
        "Create the default keyspace once this many nodes joined; 0: as many as join names, at least one"
    ),
    setting!(
        default_shards,
        plain,
        "NUMBER",
        "Shards of a keyspace made without a number, `default` too; 0: one for each 4 worker threads of the bootstrap nodes"
    ),
    setting!(join, list, "ADDRESSES", "Members of the cluster to join if the data folder is empty, by commas"),
    setting!(log, plain, "FILTER", "Which log lines, as in info,kv_raft=debug"),
    setting!(log_format, log_format, "FORMAT", "text or json"),
    setting!(heartbeat_interval, duration, "DURATION", "Time between heartbeats"),
    setting!(election_timeout_min, duration, "DURATION", "Least silence of a leader before an election"),
    setting!(election_timeout_max, duration, "DURATION", "Most silence of a leader before an election"),
    setting!(
        hibernate_after,
        duration,
        "DURATION",
        "A shard idle for this long, and for election_timeout_max, stops its heartbeats"
    ),
    setting!(clock_offset_max, duration, "DURATION", "A node whose clock is further off refuses to lead"),
    setting!(worker_threads, plain, "NUMBER", "Threads for requests and consensus; 0: half of the cores"),
    setting!(memory_budget, size, "SIZE", "What the process may use in all"),
    setting!(log_cache, size, "SIZE", "Memory for the log; 0: an eighth of the budget"),
    setting!(data_cache, size, "SIZE", "Memory for blocks and rows that were read; 0: a quarter of the budget"),
    setting!(data_write_buffer, size, "SIZE", "Memory for data not flushed yet; 0: an eighth of the budget"),
    setting!(flush_interval, duration, "DURATION", "How often applied data is flushed"),
    setting!(log_entries_kept, plain, "NUMBER", "Log entries kept for followers that were away briefly"),
    setting!(log_bytes_kept, size, "SIZE", "The same in bytes, for each shard"),
    setting!(snapshot_bytes_per_second, size, "SIZE", "Most bytes sent as snapshots per second; 0: no limit"),
    setting!(check_interval, duration, "DURATION", "How often replicas compare their content; 0: only on demand"),
    setting!(check_bytes_per_second, size, "SIZE", "Most bytes read per second for it; 0: no limit"),
    setting!(disk_free_min, size, "SIZE", "Below this much free disk the node takes no writes"),
    setting!(disk_check_interval, duration, "DURATION", "How often the free disk is looked at"),
    setting!(connections_max, plain, "NUMBER", "Most connections at once"),
    setting!(connection_requests_max, plain, "NUMBER", "Most requests at once on one connection"),
    setting!(handshake_timeout, duration, "DURATION", "Closes connections that do not begin by then"),
    setting!(keepalive_interval, duration, "DURATION", "Silence after which a connection is probed"),
    setting!(keepalive_timeout, duration, "DURATION", "Closes probed connections that do not answer by then"),
    setting!(requests_max, plain, "NUMBER", "Most requests at once"),
    setting!(
        request_bytes_max,
        size,
        "SIZE",
        "Most bytes of requests at once, and as much of unread answers; 0: an eighth of the budget"
    ),
    setting!(stream_calls_max, plain, "NUMBER", "Most unanswered calls of one pipelined stream"),
    setting!(stream_bytes_max, size, "SIZE", "Most bytes of unanswered calls of one pipelined stream"),
    setting!(shutdown_timeout, duration, "DURATION", "Longest time a shutdown may take"),
];
