//! kvctl: reads, writes and runs a kv cluster from a terminal or a script.
//!
//! Invariants:
//! - results go to standard output, everything else to standard error;
//! - the exit code says what became of the command (exit).
//!
//! Not here: how requests find their shard and are retried (kv-client).

// Modules: wiring, then the commands in the order the help lists them, then vocabulary.
mod args;
mod run;
mod shell;
mod completion;

mod context;

mod data;

mod cas;

mod batch;
mod scan;

mod batch_format;

mod keyspace;
mod node;
mod node_view;
mod shard;
mod shard_view;

mod action;

mod checkup;
mod cost;
mod health;

mod doctor;

mod bench;

mod exit;
mod human;
mod output;
mod progress;
mod values;
mod words;

use std::process::ExitCode;

fn main() -> ExitCode {
    run::main().into()
}
