//! What keeps this node from being ready, by name; `/readyz` shows it.
//!
//! Invariants: ready means that every check passes. A node that may not lead, or takes no writes, is still ready.
//!
//! Not here: whether the process lives (`/livez` answers while it does).

use std::collections::BTreeMap;

use parking_lot::RwLock;

/// How a check stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It passes.
    Passed,
    /// It passes, but a person should know this.
    Warned(String),
    /// It fails, for this reason.
    Failed(String),
}

/// The checks of a node.
#[derive(Debug, Default)]
pub struct Readiness {
    checks: RwLock<BTreeMap<&'static str, Check>>,
}

impl Readiness {
    /// Sets how a check stands; the last word counts.
    pub fn set(&self, name: &'static str, check: Check) {
        self.checks.write().insert(name, check);
    }

    /// Sets how a check stands that nobody has said anything of yet.
    pub fn set_if_new(&self, name: &'static str, check: Check) {
        self.checks.write().entry(name).or_insert(check);
    }

    /// Whether every check passes and there is one at all.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let checks = self.checks.read();
        !checks.is_empty() && checks.values().all(|check| !matches!(check, Check::Failed(_)))
    }

    /// Every check by name.
    #[must_use]
    pub fn report(&self) -> Vec<(&'static str, Check)> {
        self.checks.read().iter().map(|(name, check)| (*name, check.clone())).collect()
    }

    /// The first reason not to be ready; None if ready.
    #[must_use]
    pub fn why_not(&self) -> Option<String> {
        let failed = |check: &Check| match check {
            Check::Failed(why) => Some(why.clone()),
            Check::Passed | Check::Warned(_) => None,
        };
        self.checks.read().values().find_map(failed)
    }
}
