//! Linearizability of a register by search, after Wing and Gong with Lowe's memory of what was tried.
//!
//! Invariants: it answers for any register, but its time grows exponentially with how many operations overlap.
//!
//! Not here: the fast algorithm for unique values (zones).

use std::collections::HashSet;

use super::{Action, Step};
use crate::history::Fate;

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An order explains all answers.
    Linearizable,
    /// None does.
    Not,
    /// It took too many steps.
    Undecided,
}

/// What was put into the order so far, and what the register holds then.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Prefix<'h> {
    placed: Vec<u64>,
    value: Option<&'h str>,
}

impl Prefix<'_> {
    fn holds(&self, place: usize) -> bool {
        self.placed.get(place / 64).is_some_and(|word| word & (1 << (place % 64)) != 0)
    }

    fn put(&mut self, place: usize) {
        if let Some(word) = self.placed.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
    }
}

/// Searches for an order, at most so many prefixes of one.
#[must_use]
pub fn check(steps: &[Step<'_>], prefixes_max: usize) -> Answer {
    let mut steps: Vec<&Step<'_>> = steps.iter().filter(|step| step.fate != Fate::NotApplied).collect();
    steps.sort_by_key(|step| step.invoke);
    let first = Prefix { placed: vec![0; steps.len().div_ceil(64)], value: None };
    let mut tried = HashSet::from([first.clone()]);
    let mut open = vec![first];
    while let Some(prefix) = open.pop() {
        if tried.len() > prefixes_max {
            return Answer::Undecided;
        }
        let missing = || steps.iter().enumerate().filter(|(place, _)| !prefix.holds(*place));
        let bound = missing().filter(|(_, step)| step.fate == Fate::Applied).map(|(_, step)| step.complete).min();
        let Some(bound) = bound else { return Answer::Linearizable };
        for (place, step) in missing().take_while(|(_, step)| step.invoke <= bound) {
            let Some(value) = after(prefix.value, step.action) else { continue };
            let mut longer = Prefix { value, ..prefix.clone() };
            longer.put(place);
            if tried.insert(longer.clone()) {
                open.push(longer);
            }
        }
    }
    Answer::Not
}

/// What the register holds after the action; None if the action cannot have seen this value.
fn after<'h>(value: Option<&'h str>, action: Action<'h>) -> Option<Option<&'h str>> {
    match action {
        Action::Read(seen) => (seen == value).then_some(value),
        Action::Write(new) => Some(new),
        Action::Swap(seen, new) => (seen == value).then_some(Some(new)),
        Action::Never => None,
    }
}
