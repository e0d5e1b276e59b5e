//! Log lines, and what happens when a thread panics.
//!
//! Invariants: a panic is logged and then ends the process; recovery replays the log.
//!
//! Not here: metrics (http, metrics).

use std::io::Write as _;

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Config, LogFormat};

/// Why log lines cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log filter {filter:?}: {why}")]
    Filter {
        /// As configured.
        filter: String,
        /// What is wrong with it.
        why: String,
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

/// A filter of log lines: levels, and targets with levels. The library's larger language, with spans and fields, has a parser
/// that panics on some text and compiles patterns that take all memory.
pub(crate) fn filter(directives: &str) -> Result<Targets, String> {
    let mut targets = Vec::new();
    for directive in directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        if directive.contains(['[', ']', '{', '}']) {
            return Err(format!("{directive:?} is no level or target, as in info,kv_raft=debug"));
        }
        targets.push(directive);
    }
    if targets.is_empty() {
        return Ok(Targets::new());
    }
    targets.join(",").parse().map_err(|error: ParseError| error.to_string())
}

/// Sends log lines to standard error from here on.
pub fn start(config: &Config) -> Result<(), TelemetryError> {
    let targets = filter(&with_quiet_consensus(&config.log))
        .map_err(|why| TelemetryError::Filter { filter: config.log.clone(), why })?;
    let subscriber = tracing_subscriber::registry().with(targets);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let set = match config.log_format {
        LogFormat::Text => {
            subscriber.with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).try_init()
        }
        LogFormat::Json => subscriber.with(lines.json().flatten_event(true)).try_init(),
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
    fn a_filter_names_levels_and_targets() {
        let filter = filter(" info, kv_raft=debug,,openraft=off").unwrap();
        for (target, level, shown) in [
            ("kv_node", tracing::Level::INFO, true),
            ("kv_node", tracing::Level::DEBUG, false),
            ("kv_raft::replica", tracing::Level::DEBUG, true),
            ("openraft::core", tracing::Level::ERROR, false),
        ] {
            assert_eq!(filter.would_enable(target, &level), shown, "{target} {level}");
        }
        assert!(!super::filter(" ,").unwrap().would_enable("kv_node", &tracing::Level::ERROR));
        assert!(super::filter("kv_raft=loud").is_err());
    }

    /// Found by fuzzing: text of which the library's larger language panicked or took all memory.
    #[test]
    fn a_filter_of_spans_and_fields_is_refused() {
        let dots = format!("kv_node[{{field={}}}]=info", ".".repeat(60));
        for text in [&dots, "w,fi,\u{a0}i[5\u{fffd}", "i,4~(\u{0}oi\u{0}[{y}],i\u{0}[{{}],oi.[{y}]", "\u{a0}i["] {
            let refused = filter(text).unwrap_err();
            assert!(refused.contains("info,kv_raft=debug"), "{refused}");
        }
    }
}
