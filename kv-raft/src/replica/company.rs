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

/// With so many callers, those answered and those that read, the answered are waited for.
const CALLERS_MIN: usize = 16;

/// Fewer answered are not worth a wait, whoever reads.
const ANSWERED_MIN: usize = 3;

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
    /// After `answered` callers got their answers, while `waiting` others wait and `reading` read: returns once most are
    /// there again, or in a moment. One at a time.
    pub(super) async fn gather(&self, waiting: usize, answered: usize, reading: usize) {
        if answered < ANSWERED_MIN || answered + reading < CALLERS_MIN {
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
        let at_once = |answered, reading| Company::default().gather(100, answered, reading).now_or_never().is_some();
        assert!(at_once(CALLERS_MIN - 1, 0) && at_once(ANSWERED_MIN, CALLERS_MIN - ANSWERED_MIN - 1));
        assert!(at_once(ANSWERED_MIN - 1, 1000), "hardly anybody writes");
    }

    #[tokio::test]
    async fn most_of_those_answered_are_waited_for_beside_those_that_wait() {
        let company = Company::default();
        let mut gathering = pin!(company.gather(10, 16, 0));
        assert!(poll!(&mut gathering).is_pending());
        company.came(10 + 11);
        assert_eq!(company.wanted.load(Ordering::Relaxed), 10 + 12, "one more is wanted");
        company.came(10 + 12);
        assert!(poll!(&mut gathering).is_ready(), "it goes on when they are there");
    }

    #[tokio::test]
    async fn where_many_read_a_few_writers_are_waited_for() {
        let company = Company::default();
        let mut gathering = pin!(company.gather(1, 4, 12));
        assert!(poll!(&mut gathering).is_pending());
        company.came(1 + 3);
        assert!(poll!(&mut gathering).is_ready(), "as many as were answered, whoever they are, and not the readers");
    }

    #[tokio::test]
    async fn who_does_not_come_is_waited_for_only_a_moment() {
        let (company, begun) = (Company::default(), Instant::now());
        company.gather(0, 1000, 0).await;
        assert!(begun.elapsed() >= WAIT, "{:?}", begun.elapsed());
        company.came(2000);
        assert!(poll!(pin!(company.gather(0, 1000, 0))).is_pending(), "who came late does not count for the next");
    }
}
