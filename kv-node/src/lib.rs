//! One node: hosts replicas of shards and answers requests.
//!
//! Modules stand in the order a request meets them; each imports only modules below it.
//!
//! Not here: consensus and storage of one replica (kv-raft), how a client routes and retries (kv-client).

#[cfg(not(kv_sim))]
pub mod run;

pub mod http;
pub mod server;

pub mod services;

pub mod serve;

pub mod forward;
pub mod local;

pub mod disk;

pub mod recover;

pub mod node;

pub mod bootstrap;

pub mod waiting;

pub mod accept;

pub mod overdue;

pub mod unsent;

pub mod join;

pub mod controller;

pub mod editor;

pub mod host;

pub mod peers;

pub mod validate;

pub mod admission;

pub mod errors;

pub mod router;

pub mod scan;

pub mod malformed;

pub mod metrics;

pub mod catalog;

pub mod identity;

pub mod telemetry;

pub mod config;

mod net;
