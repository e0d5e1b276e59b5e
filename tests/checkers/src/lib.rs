//! Histories of what clients asked and were told, and checkers that say whether a history keeps the promise.
//!
//! A history is recorded by whoever drives a cluster, of real processes or a simulated one, and judged afterwards:
//!
//! ```
//! use kv_checkers::history::{Call, History, Operation, Outcome};
//! use kv_checkers::verdict;
//!
//! let lost = Operation {
//!     process: 1,
//!     shard: None,
//!     invoke: 10,
//!     complete: Some(20),
//!     call: Call::Write { key: "a".into(), value: "1".into() },
//!     outcome: Outcome::Written { version: 7 },
//! };
//! let read = Operation {
//!     invoke: 30,
//!     complete: Some(40),
//!     call: Call::read("a"),
//!     outcome: Outcome::Found { entry: None },
//!     ..lost.clone()
//! };
//! let history = History { operations: vec![lost, read], ..History::default() };
//! assert!(!verdict::judge(&history).violations.is_empty());
//! ```
//!
//! Invariants:
//! - checkers know the promise (docs/guarantees.md), not the code;
//! - one property a file, and beside each checker tests that plant each kind of violation;
//! - what cannot be decided is a violation too.
//!
//! Not here: recording (kv-tests, the simulation).

pub mod verdict;
pub mod linearizability;
pub mod exactly_once;
pub mod nothing_lost;
pub mod monotonic_commits;
pub mod consistent_cut;
pub mod complete_scans;
pub mod equal_replicas;
pub mod figures;
pub mod known_writes;
#[cfg(test)]
mod planted;
pub mod violation;
pub mod history;
