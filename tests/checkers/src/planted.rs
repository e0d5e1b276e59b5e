//! What the tests of checkers share: a planted history is judged, and the violation is looked for.
//!
//! Not here: the plants (beside each checker).

use crate::history::{History, Operation};
use crate::violation::Violation;

type Check = fn(&History) -> (usize, Vec<Violation>);

/// What the checker finds wrong.
pub(crate) fn judged(check: Check, operations: Vec<Operation>) -> Vec<String> {
    let (_, violations) = check(&History { operations, ..History::default() });
    violations.into_iter().map(|violation| violation.what).collect()
}

/// It finds something, and all that it finds says this.
#[track_caller]
pub(crate) fn broken(check: Check, operations: Vec<Operation>, part: &str) {
    let found = judged(check, operations);
    assert!(!found.is_empty() && found.iter().all(|what| what.contains(part)), "{part:?} is not all of {found:?}");
}
