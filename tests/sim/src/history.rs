//! What clients asked and were told, as kv-checkers takes it, and what its checkers say.
//!
//! Invariants: times count invocations and completions in the order they happened, so comparing two is exact.
//!
//! Not here: the promises (kv-checkers); what a replica may do (oracle).

use kv_checkers::history::{self, Call, Fate, Header, Operation, Outcome};
use kv_checkers::verdict;

/// All of one run.
#[derive(Debug)]
pub(crate) struct History {
    recorded: history::History,
    judged: Vec<(&'static str, usize)>,
    at: u64,
    unanswered: usize,
}

impl History {
    pub(crate) fn new(seed: u64) -> Self {
        let header = Header { source: "simulation".to_owned(), seed, ..Header::default() };
        let recorded = history::History { header, ..history::History::default() };
        Self { recorded, judged: Vec::new(), at: 0, unanswered: 0 }
    }

    /// Notes a request; its number is for [`History::end`].
    pub(crate) fn begin(&mut self, process: u64, call: Call) -> usize {
        self.at += 1;
        self.unanswered += 1;
        let outcome = Outcome::Unknown { reason: "no answer".to_owned() };
        let operation = Operation { process, shard: None, invoke: self.at, complete: None, call, outcome };
        self.recorded.operations.push(operation);
        self.recorded.operations.len() - 1
    }

    /// Notes its answer.
    pub(crate) fn end(&mut self, operation: usize, outcome: Outcome) {
        self.at += 1;
        self.unanswered -= 1;
        if let Some(operation) = self.recorded.operations.get_mut(operation) {
            (operation.complete, operation.outcome) = (Some(self.at), outcome);
        }
    }

    /// Whether some request has no answer yet.
    pub(crate) fn waits(&self) -> bool {
        self.unanswered > 0
    }

    /// All requests, in the order they were asked.
    pub(crate) fn operations(&self) -> &[Operation] {
        &self.recorded.operations
    }

    /// How many were answered so.
    pub(crate) fn count(&self, fate: Fate) -> usize {
        self.recorded.operations.iter().filter(|operation| operation.outcome.fate() == fate).count()
    }

    /// Every broken promise. All keys must have been read at the end.
    pub(crate) fn judge(&mut self) -> Vec<String> {
        let verdict = verdict::judge(&self.recorded);
        self.judged = verdict.judged;
        verdict.violations.iter().map(ToString::to_string).collect()
    }

    /// How many things each checker looked at that found any.
    pub(crate) fn judged(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.judged.iter().filter(|(_, count)| *count > 0).map(|(property, count)| (*property, *count as u64))
    }
}
