//! How many retries the whole client may spend: a token bucket filled by successes.
//!
//! While a shard elects a leader every request on it retries a few times; the bucket covers that. When most requests
//! fail for long it runs dry, and retries go on at a slower pace (retry), so that clients never multiply an overload.
//!
//! Invariants: never more than [`CAPACITY`] tokens.
//!
//! Not here: what a retry waits (retry).

use std::sync::atomic::{AtomicU32, Ordering};

/// Thousandths of a retry that one success earns.
const EARNED: u32 = 200;

/// Thousandths of a retry at most: some hundred requests that wait for an election of a second or two.
const CAPACITY: u32 = 4_000_000;

/// Thousandths.
#[derive(Debug)]
pub(crate) struct Budget(AtomicU32);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(CAPACITY))
    }

    /// A request succeeded.
    pub(crate) fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < CAPACITY {
            self.change(|tokens| Some(tokens.saturating_add(EARNED).min(CAPACITY)));
        }
    }

    /// Takes one retry; false if there is none left.
    pub(crate) fn spend(&self) -> bool {
        self.change(|tokens| tokens.checked_sub(1000))
    }

    fn change(&self, to: impl Fn(u32) -> Option<u32>) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, to).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_successes_earn_one_retry() {
        let budget = Budget::new();
        while budget.spend() {}
        (0..4).for_each(|_| budget.earn());
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        assert!(!budget.spend());
    }
}
