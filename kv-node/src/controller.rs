//! The placement controller: runs where shard 1's leader is and makes the cluster what the catalog wants.
//!
//! Each round reads the catalog, asks every node what it holds, plans, and executes the plan. It keeps nothing between
//! rounds that another controller would miss: whoever leads shard 1 next resumes every action from the catalog.
//!
//! Invariants:
//! - a plan is pure; each of its steps is conditional on the records, and the shard epoch, it was planned from;
//! - membership of a group changes one safe step at a time: learner, catch up, joint consensus, removal;
//! - a replica leaves the catalog, and so is destroyed, only after its group's committed membership dropped it.
//!
//! Not here: what people may ask for (catalog, edits); how a node creates and destroys replicas (host).

pub mod run;
pub mod plan;
pub mod actions;
pub mod step;
pub mod observed;

#[cfg(test)]
mod scripts;
