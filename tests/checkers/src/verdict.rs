//! All checkers on one history.
//!
//! Not here: the properties (one module each).

use std::fmt;

use crate::figures::Figures;
use crate::history::History;
use crate::violation::Violation;
use crate::{
    complete_scans, consistent_cut, equal_replicas, exactly_once, linearizability, monotonic_commits, nothing_lost,
};

/// Shown of the violations of one history; the file has them all.
const SHOWN: usize = 20;

/// What all checkers say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What the history holds.
    pub figures: Figures,
    /// How many things each checker looked at, by its name: of nothing, nothing is proved.
    pub judged: Vec<(&'static str, usize)>,
    /// Of all checkers.
    pub violations: Vec<Violation>,
}

/// Runs all checkers.
#[must_use]
pub fn judge(history: &History) -> Verdict {
    let linear = linearizability::check(history);
    let checks = [
        ("linearizability", (linear.steps, linear.violations)),
        ("exactly_once", exactly_once::check(history)),
        ("nothing_lost", nothing_lost::check(history)),
        ("monotonic_commits", monotonic_commits::check(history)),
        ("consistent_cut", consistent_cut::check(history)),
        ("complete_scans", complete_scans::check(history)),
        ("equal_replicas", equal_replicas::check(history)),
    ];
    let mut verdict = Verdict { figures: Figures::of(history), ..Verdict::default() };
    for (property, (judged, violations)) in checks {
        verdict.judged.push((property, judged));
        verdict.violations.extend(violations);
    }
    verdict
}

impl Verdict {
    /// How many things the checker of this name looked at.
    #[must_use]
    pub fn judged(&self, property: &str) -> usize {
        self.judged.iter().find(|(name, _)| *name == property).map_or(0, |(_, judged)| *judged)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.figures)?;
        let judged: Vec<String> = self.judged.iter().map(|(name, judged)| format!("{name} {judged}")).collect();
        write!(f, "judged: {}; violations: {}", judged.join(", "), self.violations.len())?;
        self.violations.iter().take(SHOWN).try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Call, Operation, Outcome};

    #[test]
    fn violations_of_all_checkers_are_there() {
        let operation = |at, call, outcome| Operation {
            process: 0,
            shard: None,
            invoke: at,
            complete: Some(at + 1),
            call,
            outcome,
        };
        let write = Call::Write { key: "a".into(), value: "1".into() };
        let operations = vec![
            operation(1, write, Outcome::Written { version: 1 }),
            operation(3, Call::read("a"), Outcome::Found { entry: None }),
        ];
        let verdict = judge(&History { operations, ..History::default() });
        let properties: Vec<&str> = verdict.violations.iter().map(|violation| violation.property).collect();
        assert_eq!(properties, ["linearizability", "nothing_lost"]);
        assert_eq!((verdict.judged("linearizability"), verdict.judged("exactly_once")), (2, 0));
        assert!(verdict.to_string().contains("violations: 2"));
    }
}
