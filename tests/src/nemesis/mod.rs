//! What happens to a cluster while clients use it: faults by a schedule, then the end of all faults, then the proof
//! that it serves.
//!
//! Invariants: a schedule is a file; what is random in it was drawn from its seed before it began.
//!
//! Not here: the load (workload), the network that is broken (network).

pub mod storm;
mod recovery;
mod action;
pub mod schedule;
