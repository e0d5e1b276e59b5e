//! Property: replicas of a shard that have applied the same entries hold the same content.
//!
//! Invariants: a checksum that nothing can be compared with proves nothing and is not counted.
//!
//! Not here: how a checksum is computed (the state machine does it, at a place in the log).

use std::collections::BTreeMap;

use crate::history::{History, Replica};
use crate::violation::Violation;

const PROPERTY: &str = "equal_replicas";

/// Judges all checksums; how many pairs of replicas were compared, and what is wrong.
#[must_use]
pub fn check(history: &History) -> (usize, Vec<Violation>) {
    let mut places: BTreeMap<(u64, u64), Vec<&Replica>> = BTreeMap::new();
    for replica in &history.replicas {
        places.entry((replica.shard, replica.index)).or_default().push(replica);
    }
    let mut compared = 0;
    let mut violations = vec![];
    for ((shard, index), replicas) in places {
        let Some((first, others)) = replicas.split_first() else { continue };
        compared += others.iter().filter(|other| other.node != first.node).count();
        let differing = others.iter().find(|other| other.checksum != first.checksum);
        violations.extend(differing.map(|other| {
            let what = format!(
                "shard {shard} at index {index}: node {} has {}, node {} has {}",
                first.node, first.checksum, other.node, other.checksum
            );
            Violation::new(PROPERTY, what)
        }));
    }
    (compared, violations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(node: u64, shard: u64, index: u64, checksum: &str) -> Replica {
        Replica { at: 1, node, shard, index, checksum: checksum.into() }
    }

    fn judged(replicas: Vec<Replica>) -> (usize, usize) {
        let (compared, violations) = check(&History { replicas, ..History::default() });
        (compared, violations.len())
    }

    #[test]
    fn equal_replicas_pass_and_are_counted() {
        assert_eq!(judged(vec![replica(1, 1, 5, "a"), replica(2, 1, 5, "a"), replica(3, 1, 5, "a")]), (2, 0));
    }

    #[test]
    fn a_replica_that_differs_is_caught() {
        assert_eq!(judged(vec![replica(1, 1, 5, "a"), replica(2, 1, 5, "a"), replica(3, 1, 5, "b")]), (2, 1));
    }

    #[test]
    fn a_replica_that_changes_without_an_entry_is_caught() {
        assert_eq!(judged(vec![replica(1, 1, 5, "a"), replica(1, 1, 5, "b")]), (0, 1));
    }

    #[test]
    fn other_shards_and_other_indexes_are_not_compared() {
        assert_eq!(judged(vec![replica(1, 1, 5, "a"), replica(2, 2, 5, "b"), replica(2, 1, 6, "c")]), (0, 0));
    }
}
