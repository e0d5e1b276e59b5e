//! Log lines, and what happens when a thread panics.
//!
//! Invariants: a panic is logged and then ends the process; recovery replays the log.
//!
//! Not here: metrics (http, metrics).

use std::io::Write as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{Config, LogFormat};

/// Why log lines cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log filter {filter:?}: {source}")]
    Filter {
        /// As configured.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The process already has a subscriber.
    #[error("log lines are already being written")]
    AlreadySet,
}

/// Naming it in the filter shows all that the consensus library says.
const CONSENSUS: &str = "openraft";
/// It warns of every message to a node that is down, per shard and heartbeat, and its two outer parts call it an error
/// when a replica ends while a request is on its way to it. What a person must know of either our own lines say; why a
/// replica's core ended by itself the library says.
const QUIET_CONSENSUS: &str = "openraft=error,openraft::raft::raft_inner=off,openraft::core::heartbeat::worker=off";

fn with_quiet_consensus(filter: &str) -> String {
    if filter.contains(CONSENSUS) { filter.to_owned() } else { format!("{filter},{QUIET_CONSENSUS}") }
}

/// A filter of log lines. What a field must hold is compared as it is written: as a regular expression, a line of dots would
/// take all memory while it is compiled.
pub(crate) fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().with_regex(false).parse(directives)
}

/// Sends log lines to standard error from here on.
pub fn start(config: &Config) -> Result<(), TelemetryError> {
    let filter = filter(&with_quiet_consensus(&config.log))
        .map_err(|source| TelemetryError::Filter { filter: config.log.clone(), source })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match config.log_format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    set.map_err(|_| TelemetryError::AlreadySet)
}

/// From here on a panic on any thread is logged and aborts the process: a node that lost a part of itself must not go on.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(%info, %backtrace, "panic: the process aborts; a restart replays the log");
        // In case log lines are not set up yet, or are filtered away.
        let _ = writeln!(std::io::stderr(), "kv-node: {info}");
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_field_must_hold_is_no_regular_expression() {
        let filter = filter(&format!("kv_node[{{field={}}}]=info", ".".repeat(60)));
        assert!(filter.is_ok(), "{filter:?}");
    }
}
