//! What people and nodes may change in the catalog: from the records and a request to a [`Change`](super::Change), or
//! to the reason why not. Pure: no clock, no randomness, no I/O.
//!
//! Invariants:
//! - each change depends on every record it was decided from;
//! - whatever would lose quorum or data is refused with the reason, unless forced by the name that the refusal gives;
//! - at most one action runs on a shard.
//!
//! Not here: the steps of an action (controller, actions), which follow from what stands in the catalog.

pub mod actions;
pub mod bootstrap;
pub mod keyspaces;
pub mod nodes;

use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::pb::admin::v1::{Cluster, Replica, ReplicaRole, Shard};

use super::records::Records;

/// Most replicas a shard has; more only cost.
pub const REPLICAS_MAX: u32 = 7;

/// Names the check that voters may be fewer than the keyspace asks for.
pub const FORCE_QUORUM: &str = "quorum";

/// Marks what a drain removed, which grows again once there are nodes; what a person removed does not.
pub const BY_DRAIN: &str = "drain";

/// Among the checks an action was forced past: a replica was found wrong, and is replaced afterwards.
pub const BY_CHECK: &str = "check";

/// Names the check that a node must be drained before it is removed.
pub const FORCE_NOT_DRAINED: &str = "not-drained";

fn cluster(records: &Records) -> Result<Cluster, ServiceError> {
    let missing =
        || ServiceError::Internal { why: "the catalog has no cluster record".into(), outcome: Outcome::NotApplied };
    records.cluster.clone().ok_or_else(missing)
}

fn forced(force: &[String], name: &str) -> bool {
    force.iter().any(|forced| forced == name)
}

/// Refuses names of checks that do not exist, which would otherwise silently do nothing.
fn check_force(force: &[String], known: &[&str]) -> Result<(), ServiceError> {
    match force.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => {
            let known = known.join(" and ");
            Err(ServiceError::invalid("force", format!("no check is named {name:?}; this call has {known}")))
        }
        None => Ok(()),
    }
}

fn refused(why: impl Into<String>, force: &str) -> ServiceError {
    ServiceError::Refused { why: why.into(), force: force.to_owned() }
}

/// The replica on a node.
#[must_use]
pub fn replica_on(shard: &Shard, node: u64) -> Option<&Replica> {
    shard.replicas.iter().find(|replica| replica.node_id == node)
}

/// Nodes of the voters, ascending.
#[must_use]
pub fn voter_nodes(shard: &Shard) -> std::collections::BTreeSet<u64> {
    let voters = shard.replicas.iter().filter(|replica| replica.role() == ReplicaRole::Voter);
    voters.map(|replica| replica.node_id).collect()
}

/// Nodes of the learners, ascending.
#[must_use]
pub fn learner_nodes(shard: &Shard) -> std::collections::BTreeSet<u64> {
    let learners = shard.replicas.iter().filter(|replica| replica.role() == ReplicaRole::Learner);
    learners.map(|replica| replica.node_id).collect()
}

#[cfg(test)]
mod tests;
