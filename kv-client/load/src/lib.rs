//! A load of one's choice on a store, and what it measured: throughput, latencies, processor time, memory.
//!
//! Invariants:
//! - the same plan sends the same operations, whatever the store is;
//! - latency counts from when an operation was due, and no operation that was due is left out of the report.
//!
//! Not here: command lines and tables (kvctl), what is compared with what (`tests/bench`).
//!
//! The modules in the order a run meets them:

mod run;
mod driver;
mod pacer;
mod cluster;
mod report;
mod stats;
mod target;
mod values;
mod workload;
mod keys;
pub mod process;

pub use crate::cluster::ClusterTarget;
pub use crate::driver::Plan;
pub use crate::keys::{Chooser, Distribution};
pub use crate::report::{Cost, Report};
pub use crate::run::{RunError, load_keys, run};
pub use crate::stats::{Results, Stats};
pub use crate::target::{Answer, Operation, Target};
pub use crate::values::key;
pub use crate::workload::{Kind, Mix, Workload};
