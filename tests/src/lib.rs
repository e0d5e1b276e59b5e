//! What the cluster tests stand on: real kv-node processes, load on them, and the check of what they promised.
//!
//! Invariants: no test leaves a process behind; a test that fails keeps its folder and says where.
//!
//! Not here: the tests themselves (`tests/tests`, one file per theme).

pub mod report;
pub mod nemesis;
pub mod lying;
pub mod campaign;
pub mod workload;
pub mod load;
pub mod replicas;
pub mod cluster;
pub mod settings;
pub mod network;
pub mod caller;
pub mod recorder;

pub mod admin;
pub mod kvctl;
pub mod node;
pub mod raw;
pub mod bare;
pub mod http;
pub mod ran;
pub mod open_metrics;
pub mod logs;
pub mod ports;
pub mod files;
pub mod disk;
pub mod image;
pub mod bad_disk;
pub mod clock;
pub mod wait;
pub mod runs;
