//! A moment's wait for callers who likely come again.
//!
//! Callers that are answered together ask again together. An entry that began at once would carry the others, and the
//! two halves would take turns in entries of half the size, each of which costs the same whatever it carries.
//!
//! Invariants: nobody waits after few callers, so a lone one never pays for others; nobody waits longer than
//! [`WAIT`], whoever comes.
//!
//! Not here: what is carried (proposals). Rounds of reads do not wait: they are shorter than the way to a client.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// After so many answered callers those are waited for.
const CALLERS_MIN: usize = 16;

/// How long at most; tokio's timers add up to a millisecond.
const WAIT: Duration = Duration::from_millis(1);

/// The callers a queue waits for.
#[derive(Debug, Default)]
pub(super) struct Company {
    /// So many must wait in the queue; 0 while nobody waits for company.
    wanted: AtomicUsize,
    complete: Notify,
}

impl Company {
    /// After `answered` callers got their answers, while `waiting` others wait: returns once most are there again, or in
    /// a moment. One at a time.
    pub(super) async fn gather(&self, waiting: usize, answered: usize) {
        if answered < CALLERS_MIN {
            return;
        }
        self.wanted.store(waiting + answered - answered / 4, Ordering::Relaxed);
        let _ = tokio::time::timeout(WAIT, self.complete.notified()).await;
        self.wanted.store(0, Ordering::Relaxed);
    }

    /// A caller came, and as many wait now.
    pub(super) fn came(&self, waiting: usize) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        if wanted > 0 && waiting >= wanted && self.wanted.swap(0, Ordering::Relaxed) > 0 {
            self.complete.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Instant;

    use futures::{FutureExt as _, poll};

    use super::*;

    #[test]
    fn after_few_callers_nobody_is_waited_for() {
        assert_eq!(Company::default().gather(100, CALLERS_MIN - 1).now_or_never(), Some(()));
    }

    #[tokio::test]
    async fn most_of_those_answered_are_waited_for_beside_those_that_wait() {
        let company = Company::default();
        let mut gathering = pin!(company.gather(10, 16));
        assert!(poll!(&mut gathering).is_pending());
        company.came(10 + 11);
        assert_eq!(company.wanted.load(Ordering::Relaxed), 10 + 12, "one more is wanted");
        company.came(10 + 12);
        assert!(poll!(&mut gathering).is_ready(), "it goes on when they are there");
    }

    #[tokio::test]
    async fn who_does_not_come_is_waited_for_only_a_moment() {
        let (company, begun) = (Company::default(), Instant::now());
        company.gather(0, 1000).await;
        assert!(begun.elapsed() >= WAIT, "{:?}", begun.elapsed());
        company.came(2000);
        assert!(poll!(pin!(company.gather(0, 1000))).is_pending(), "who came late does not count for the next");
    }
}
