//! The figures of one test that repeats itself, and the line it leaves for the page of `just proof`.
//!
//! Invariants: a test that ends before it says that all was well leaves its figures with a violation.
//!
//! Not here: where the line goes (runs), the page (report).

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use kv_checkers::figures::Figures;

use crate::runs;

/// How often, how long: what a variable of the environment says, or else what a proof or a run of all tests has time for.
#[must_use]
pub fn setting(variable: &str, in_a_test: u64, in_a_proof: u64) -> u64 {
    let otherwise = if std::env::var_os("KV_PROOF_RUNS").is_some() { in_a_proof } else { in_a_test };
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What was done and seen so far.
#[derive(Debug)]
pub struct Campaign {
    kind: &'static str,
    began: Instant,
    faults: BTreeMap<String, u64>,
    operations: usize,
    acknowledged: usize,
    unknown: usize,
    is_told: bool,
}

impl Campaign {
    /// Of the kind that the page adds up by.
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        let (began, faults) = (Instant::now(), BTreeMap::new());
        Self { kind, began, faults, operations: 0, acknowledged: 0, unknown: 0, is_told: false }
    }

    /// A fault was injected.
    pub fn fault(&mut self, name: impl Into<String>) {
        *self.faults.entry(name.into()).or_default() += 1;
    }

    /// A load was judged and nothing found.
    pub fn judged(&mut self, figures: &Figures) {
        self.operations += figures.operations;
        self.acknowledged += figures.acknowledged;
        self.unknown += figures.unknown;
    }

    /// Writes that were acknowledged, and found again, without a history.
    pub fn found_again(&mut self, writes: u64) {
        let writes = usize::try_from(writes).unwrap_or(usize::MAX);
        self.operations += 2 * writes;
        self.acknowledged += writes;
    }

    /// Ends without a violation: says the figures, and leaves them where a proof wants them.
    pub fn finish(mut self) -> Result<()> {
        self.tell(0)
    }

    fn tell(&mut self, violations: u64) -> Result<()> {
        self.is_told = true;
        let run = serde_json::json!({
            "seconds": self.began.elapsed().as_secs(),
            "operations": self.operations,
            "acknowledged": self.acknowledged,
            "unknown": self.unknown,
            "faults": self.faults,
            "violations": violations,
        });
        println!("{run}");
        runs::record(self.kind, run)
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        if !self.is_told
            && let Err(error) = self.tell(1)
        {
            eprintln!("the figures of a test that failed are lost: {error:#}");
        }
    }
}
