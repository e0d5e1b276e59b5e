//! Property: a write is applied once, however often it is sent. A counter is what its acknowledged increments make it;
//! an increment of unknown outcome may count or not, one that was refused or not applied does not.
//!
//! Invariants: every counter with an acknowledged increment must be read after the last of them, or nothing is proved.
//!
//! Not here: values written once (nothing_lost).

use std::collections::{BTreeMap, HashMap};

use crate::history::{Call, Fate, History, Mode, Outcome};
use crate::violation::Violation;

const PROPERTY: &str = "exactly_once";

/// An increment that was not refused.
struct Increment {
    invoke: u64,
    over: u64,
    fate: Fate,
    from: u64,
}

/// A read of a counter that sees all that was acknowledged before.
struct Read {
    invoke: u64,
    over: u64,
    found: u64,
}

#[derive(Default)]
struct Counter {
    increments: Vec<Increment>,
    reads: Vec<Read>,
    faults: Vec<String>,
}

/// Judges every counter; how many acknowledged increments were counted, and what is wrong.
#[must_use]
pub fn check(history: &History) -> (usize, Vec<Violation>) {
    let mut counters = counters(history);
    let mut violations = vec![];
    let mut counted = 0;
    for (key, counter) in &mut counters {
        counter.judge();
        counted += counter.increments.iter().filter(|increment| increment.fate == Fate::Applied).count();
        let faults = counter.faults.drain(..);
        violations.extend(faults.map(|fault| Violation::new(PROPERTY, format!("counter {key}: {fault}"))));
    }
    (counted, violations)
}

fn counters(history: &History) -> BTreeMap<&str, Counter> {
    let mut counters: BTreeMap<&str, Counter> = BTreeMap::new();
    for operation in &history.operations {
        if let Call::Increment { key, from } = &operation.call {
            let counter = counters.entry(key).or_default();
            if !matches!(operation.outcome, Outcome::Refused { .. }) {
                let fate = operation.outcome.fate();
                counter.increments.push(Increment {
                    invoke: operation.invoke,
                    over: operation.over(),
                    fate,
                    from: *from,
                });
            }
        }
    }
    for operation in &history.operations {
        let fresh = match &operation.call {
            Call::Read { mode, .. } => matches!(mode, Mode::Linearizable | Mode::Lease),
            Call::Increment { .. } => true,
            Call::ReadMany { .. }
            | Call::Scan { .. }
            | Call::Write { .. }
            | Call::Delete { .. }
            | Call::CompareAndSet { .. }
            | Call::WriteMany { .. } => false,
        };
        for seen in operation.seen().into_iter().filter(|_| fresh) {
            let Some(counter) = counters.get_mut(seen.key) else { continue };
            match seen.entry.map_or(Ok(0), |(value, _)| value.trim().parse::<u64>()) {
                Ok(found) => counter.reads.push(Read { invoke: operation.invoke, over: operation.over(), found }),
                Err(_) => counter.faults.push(format!("holds {:?}, which is no number", seen.entry)),
            }
        }
    }
    counters
}

impl Counter {
    fn judge(&mut self) {
        self.judge_steps();
        self.judge_reads();
        self.judge_order();
        let last = self.increments.iter().filter(|increment| increment.fate == Fate::Applied).map(|one| one.over).max();
        if last.is_some_and(|last| !self.reads.iter().any(|read| read.invoke > last)) {
            self.faults.push("never read after its last increment".to_owned());
        }
    }

    /// No two acknowledged increments go from the same number.
    fn judge_steps(&mut self) {
        let mut from: HashMap<u64, usize> = HashMap::new();
        for increment in self.increments.iter().filter(|increment| increment.fate == Fate::Applied) {
            *from.entry(increment.from).or_default() += 1;
        }
        let mut twice: Vec<u64> = from.into_iter().filter(|(_, times)| *times > 1).map(|(from, _)| from).collect();
        twice.sort_unstable();
        self.faults.extend(twice.into_iter().map(|from| format!("two increments from {from} were acknowledged")));
    }

    /// At least what was acknowledged before the read, at most what was begun before its end.
    fn judge_reads(&mut self) {
        let sorted = |mut times: Vec<u64>| {
            times.sort_unstable();
            times
        };
        let applied = self.increments.iter().filter(|increment| increment.fate == Fate::Applied);
        let acknowledged = sorted(applied.map(|increment| increment.over).collect());
        let possible = self.increments.iter().filter(|increment| increment.fate != Fate::NotApplied);
        let begun = sorted(possible.map(|increment| increment.invoke).collect());
        for read in &self.reads {
            let least = acknowledged.partition_point(|over| *over < read.invoke) as u64;
            let most = begun.partition_point(|invoke| *invoke <= read.over) as u64;
            if !(least..=most).contains(&read.found) {
                self.faults.push(format!(
                    "was read as {} at {}; increments acknowledged before were {least}, begun {most}",
                    read.found, read.invoke
                ));
            }
        }
    }

    /// A counter never goes back.
    fn judge_order(&mut self) {
        let mut by_begin: Vec<&Read> = self.reads.iter().collect();
        by_begin.sort_by_key(|read| read.invoke);
        let mut by_end: Vec<&Read> = self.reads.iter().collect();
        by_end.sort_by_key(|read| read.over);
        let (mut ended, mut most) = (by_end.into_iter().peekable(), 0);
        for read in by_begin {
            while let Some(before) = ended.next_if(|before| before.over < read.invoke) {
                most = most.max(before.found);
            }
            if read.found < most {
                self.faults.push(format!("was read as {} at {}, after {most}", read.found, read.invoke));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Operation, Versioned};
    use crate::planted::{broken, judged};

    fn operation(at: u64, call: Call, outcome: Outcome) -> Operation {
        Operation { process: 0, shard: None, invoke: at, complete: Some(at + 1), call, outcome }
    }

    fn add(at: u64, from: u64, outcome: Outcome) -> Operation {
        operation(at, Call::Increment { key: "c".into(), from }, outcome)
    }

    fn done(at: u64, from: u64) -> Operation {
        add(at, from, Outcome::Written { version: at })
    }

    fn unknown(at: u64, from: u64) -> Operation {
        add(at, from, Outcome::Unknown { reason: String::new() })
    }

    fn not_applied(at: u64, from: u64) -> Operation {
        add(at, from, Outcome::NotApplied { reason: String::new() })
    }

    fn read(at: u64, found: u64) -> Operation {
        let entry = (found > 0).then(|| Versioned { value: found.to_string(), version: 1 });
        operation(at, Call::read("c"), Outcome::Found { entry })
    }

    #[test]
    fn a_counter_that_counts_passes() {
        assert!(judged(check, vec![done(1, 0), read(3, 1), done(5, 1), read(7, 2)]).is_empty());
    }

    #[test]
    fn an_increment_lost_or_applied_twice_is_caught() {
        broken(check, vec![done(1, 0), done(3, 1), read(5, 1)], "acknowledged before were 2");
        broken(check, vec![done(1, 0), read(5, 2)], "begun 1");
    }

    #[test]
    fn unknown_increments_are_bracketed_and_not_more() {
        for found in [1, 2] {
            assert!(judged(check, vec![done(1, 0), unknown(3, 1), not_applied(5, 1), read(7, found)]).is_empty());
        }
        broken(check, vec![done(1, 0), unknown(3, 1), not_applied(5, 1), read(7, 3)], "was read as 3");
        broken(check, vec![done(1, 0), unknown(3, 1), read(7, 0)], "was read as 0");
    }

    #[test]
    fn an_increment_that_was_refused_or_not_applied_does_not_count() {
        broken(check, vec![done(1, 0), not_applied(3, 1), read(5, 2)], "was read as 2");
        let refused = add(3, 0, Outcome::Refused { current: Some(Versioned { value: "1".into(), version: 1 }) });
        assert!(judged(check, vec![done(1, 0), refused.clone(), read(5, 1)]).is_empty());
        broken(check, vec![done(1, 0), refused, read(5, 2)], "was read as 2");
    }

    #[test]
    fn two_increments_from_the_same_number_are_caught() {
        broken(check, vec![done(1, 0), done(3, 0), read(5, 2)], "two increments from 0");
    }

    #[test]
    fn a_counter_that_goes_back_is_caught_within_its_bracket() {
        broken(check, vec![done(1, 0), unknown(3, 1), read(5, 2), read(7, 1), read(9, 2)], "after 2");
    }

    #[test]
    fn a_counter_that_is_not_read_at_the_end_proves_nothing() {
        broken(check, vec![done(1, 0), read(3, 1), done(5, 1)], "never read");
    }

    #[test]
    fn a_counter_that_holds_no_number_is_caught() {
        let entry = Some(Versioned { value: "x".into(), version: 1 });
        let found = operation(3, Call::read("c"), Outcome::Found { entry });
        broken(check, vec![done(1, 0), found, read(5, 1)], "no number");
    }
}
