//! Where answers of commands come: one task takes those of many, as they are there.
//!
//! Invariants: each command is answered exactly once, also if whoever had it at hand is gone: then its outcome is unknown.
//!
//! Not here: what the answer is (proposals).

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::future::poll_fn;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::ProposeError;
use crate::command::Reply;

/// What became of a command.
pub type Answer = Result<Reply, ProposeError>;

/// The answers of one task's commands. Dropping it gives them up: commands that are not proposed yet never are, the others
/// may still apply.
#[derive(Debug, Default)]
pub struct Answers {
    posted: Arc<Posted>,
}

#[derive(Debug, Default)]
struct Posted {
    /// By the number their task gave the command.
    answers: Mutex<Vec<(usize, Answer)>>,
    reader: AtomicWaker,
    is_given_up: AtomicBool,
}

impl Answers {
    /// All that are there, by the numbers of their commands; at least one.
    pub fn poll_some(&mut self, context: &mut Context<'_>) -> Poll<Vec<(usize, Answer)>> {
        self.posted.reader.register(context.waker());
        let some = mem::take(&mut *self.posted.answers.lock());
        if some.is_empty() { Poll::Pending } else { Poll::Ready(some) }
    }

    /// The answer of the only command.
    pub async fn only(mut self) -> Answer {
        let some = poll_fn(|context| self.poll_some(context)).await;
        some.into_iter().next().map_or(Err(ProposeError::OutcomeUnknown), |(_, answer)| answer)
    }

    pub(super) fn caller(&self, number: usize, deadline: Option<Instant>) -> Caller {
        Caller { posted: Some(Arc::clone(&self.posted)), number, deadline }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.posted.is_given_up.store(true, Ordering::Release);
    }
}

/// Whoever waits for the answer of one command.
#[derive(Debug)]
pub(super) struct Caller {
    /// None once it was answered.
    posted: Option<Arc<Posted>>,
    number: usize,
    pub(super) deadline: Option<Instant>,
}

impl Caller {
    pub(super) fn answer(mut self, answer: Answer) {
        self.post(answer);
    }

    pub(super) fn has_gone(&self) -> bool {
        self.posted.as_ref().is_none_or(|posted| posted.is_given_up.load(Ordering::Acquire))
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    fn post(&mut self, answer: Answer) {
        let Some(posted) = self.posted.take() else { return };
        let is_first = {
            let mut answers = posted.answers.lock();
            answers.push((self.number, answer));
            answers.len() == 1
        };
        // The others are found with it.
        if is_first {
            posted.reader.wake();
        }
    }
}

/// With whoever had it at hand, who may have proposed the command.
impl Drop for Caller {
    fn drop(&mut self) {
        self.post(Err(ProposeError::OutcomeUnknown));
    }
}

/// The callers of one entry.
pub(super) struct Callers {
    /// None for those that were answered before the entry was.
    callers: Vec<Option<Caller>>,
    /// No deadline of those that wait is earlier.
    first_deadline: Option<Instant>,
}

impl Callers {
    pub(super) fn new(callers: Vec<Caller>) -> Self {
        let first_deadline = callers.iter().filter_map(|caller| caller.deadline).min();
        Self { callers: callers.into_iter().map(Some).collect(), first_deadline }
    }

    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.first_deadline
    }

    /// Answers those whose time is up: their commands are proposed.
    pub(super) fn fail_late(&mut self, now: Instant) {
        if self.first_deadline.is_none_or(|first| now < first) {
            return;
        }
        for caller in &mut self.callers {
            if let Some(late) = caller.take_if(|caller| caller.is_late(now)) {
                late.answer(Err(ProposeError::TimedOut { proposed: true }));
            }
        }
        self.first_deadline = self.callers.iter().flatten().filter_map(|caller| caller.deadline).min();
    }

    pub(super) fn answer(self, replies: Result<Vec<Reply>, ProposeError>) {
        match replies {
            Ok(replies) => {
                for (caller, reply) in self.callers.into_iter().zip(replies) {
                    if let Some(caller) = caller {
                        caller.answer(Ok(reply));
                    }
                }
            }
            Err(error) => self.callers.into_iter().flatten().for_each(|caller| caller.answer(Err(error.clone()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    fn some(answers: &mut Answers) -> Vec<(usize, Answer)> {
        poll_fn(|context| answers.poll_some(context)).now_or_never().unwrap_or_default()
    }

    #[tokio::test]
    async fn answers_that_are_there_are_taken_together_each_once() {
        let mut answers = Answers::default();
        let callers = [7, 3, 5].map(|number| answers.caller(number, None));
        assert_eq!(some(&mut answers), []);
        let [seven, three, five] = callers;
        let take = tokio_util::task::TaskTracker::new().spawn(async move {
            let some = poll_fn(|context| answers.poll_some(context)).await;
            (answers, some)
        });
        tokio::task::yield_now().await;
        seven.answer(Ok(Reply::SessionStale));
        five.answer(Err(ProposeError::NoQuorum));
        let (mut answers, taken) = take.await.unwrap();
        assert_eq!(taken, [(7, Ok(Reply::SessionStale)), (5, Err(ProposeError::NoQuorum))]);
        drop(three);
        assert_eq!(some(&mut answers), [(3, Err(ProposeError::OutcomeUnknown))], "whoever had it is gone");
        assert_eq!(some(&mut answers), []);
    }

    #[test]
    fn a_caller_has_gone_with_its_task() {
        let answers = Answers::default();
        let caller = answers.caller(1, None);
        assert!(!caller.has_gone());
        drop(answers);
        assert!(caller.has_gone());
    }

    #[test]
    fn whose_time_is_up_while_its_entry_is_proposed_is_answered_at_once_and_the_others_later() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        let late = answers.caller(1, Some(now));
        let mut callers = Callers::new(vec![late, answers.caller(2, Some(now + Duration::from_secs(1)))]);
        callers.fail_late(now);
        assert_eq!(some(&mut answers), [(1, Err(ProposeError::TimedOut { proposed: true }))]);
        callers.answer(Ok(vec![Reply::SessionStale, Reply::SessionsFull]));
        assert_eq!(some(&mut answers), [(2, Ok(Reply::SessionsFull))], "each has the reply of its own command");
    }
}
