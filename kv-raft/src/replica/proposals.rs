//! Commands on their way into the log: those that wait together become one entry.
//!
//! Invariants: whatever waits when an entry is done goes into the next, which lingers only for the company of those just
//! answered. A second entry is proposed beside one in flight only if that one is large. Every command taken from the
//! queue is answered exactly once; one whose caller has gone, or was told that its time is up, before it was taken is never
//! proposed, so a caller whose time runs out knows whether it may still apply. While anything waits a task proposes, and it
//! fails those whose time is up, with one timer for all. While entries get no answer from a majority, what waits behind them is
//! refused, not held.
//!
//! Whether a proposal can still apply, by openraft's own account (0.10.0-alpha.37): `ClientWriteError::ForwardToLeader`
//! is only sent by `write_entries` before `leader_append_entries`, and for a leader other than expected before
//! `write_entries` (core/raft_core.rs 659, 1771), so the entry never was in the log; an entry that was in the log and
//! is truncated or purged below a snapshot gets `LogEntryDiscarded` (2476, 2498), which leaves it open.
//!
//! Not here: what commands do (state machine); which replica to ask (kv-node, router).

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use kv_proto::limits::BATCH_BYTES_MAX;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, ForwardReason};
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant as Deadline;

use super::answers::{Answer, Answers, Caller, Callers};
use super::company::Company;
use super::{ProposeError, ReadError, Replica};
use crate::command::{CommandBatch, EncodedCommand, Reply};
use crate::failpoint;
use crate::metrics::Stage;
use crate::types::ShardRaft;

/// Entries of one replica proposed at once. Consensus costs per entry, so commands had better wait for company than set
/// out alone; but while a large entry is sent and synced the next can be on its way.
const IN_FLIGHT: usize = 2;

/// With so many bytes in flight another entry is proposed beside them.
const LARGE_BYTES: usize = 64 << 10;

/// An entry ends before it exceeds this many bytes, unless one command does: small enough that it does not hold up the
/// next for long, and that the 64 entries openraft reads at once when it applies a log again at start fit in memory for
/// several shards.
const ENTRY_BYTES_TARGET: usize = 256 << 10;

/// Most commands of one entry; bounds the time one apply takes.
const ENTRY_COMMANDS_MAX: usize = 4096;

/// Commands that may wait at one replica: a second's worth at full speed; beyond it waiting is of no use to anyone.
const QUEUE_COMMANDS: usize = 65_536;

/// The same in bytes.
const QUEUE_BYTES: usize = 64 << 20;

/// Looking at all that wait takes time, and they cannot be joined meanwhile: not for each whose time is up.
const LOOK_EVERY: Duration = Duration::from_millis(5);

const _: () = assert!(QUEUE_BYTES > 2 * BATCH_BYTES_MAX);

struct Waiting {
    command: EncodedCommand,
    caller: Caller,
    since: Instant,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// Tasks that propose entries. Invariant: at most [`IN_FLIGHT`].
    in_flight: usize,
    /// Bytes of their entries.
    in_flight_bytes: usize,
    /// When somebody looks next whose time is up: no deadline of those that wait is earlier, but for [`LOOK_EVERY`]. None if
    /// none of them has any.
    next_look: Option<Deadline>,
    /// The entries in flight wait for a majority that does not answer.
    silent: bool,
}

/// The queue of one replica.
#[derive(Default)]
pub(super) struct Proposals {
    queue: Mutex<Queue>,
    company: Company,
    /// A command came whose deadline is the first.
    look_earlier: Notify,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.waiting.len() >= QUEUE_COMMANDS || self.bytes >= QUEUE_BYTES
    }

    /// Tells whether its deadline is the first of all.
    fn push(&mut self, waiting: Waiting) -> bool {
        let deadline = waiting.caller.deadline;
        let is_first = deadline.is_some_and(|deadline| self.next_look.is_none_or(|at| deadline < at));
        if is_first {
            self.next_look = deadline;
        }
        self.bytes += waiting.command.bytes();
        self.waiting.push_back(waiting);
        is_first
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        self.bytes -= waiting.command.bytes();
        if self.waiting.is_empty() {
            self.next_look = None;
        }
        Some(waiting)
    }

    /// Takes those out whose time is up.
    fn take_late(&mut self, now: Deadline) -> VecDeque<Waiting> {
        if self.next_look.is_none_or(|at| now < at) {
            return VecDeque::new();
        }
        let (late, waiting): (VecDeque<_>, _) = self.waiting.drain(..).partition(|waiting| waiting.caller.is_late(now));
        self.bytes -= late.iter().map(|waiting| waiting.command.bytes()).sum::<usize>();
        let first = waiting.iter().filter_map(|waiting| waiting.caller.deadline).min();
        self.next_look = first.map(|first| first.max(now + LOOK_EVERY));
        self.waiting = waiting;
        late
    }

    /// Whether an entry may be proposed beside `others` in flight.
    fn may_propose(&self, others: usize) -> bool {
        others == 0 || (others < IN_FLIGHT && self.in_flight_bytes >= LARGE_BYTES)
    }

    /// What the next entry holds and its bytes, for a task that has none in flight; None ends it.
    fn next_entry(&mut self) -> Option<(Vec<Waiting>, usize)> {
        let (taken, bytes) = if self.may_propose(self.in_flight - 1) { self.take() } else { Default::default() };
        if taken.is_empty() {
            self.in_flight -= 1;
            return None;
        }
        self.in_flight_bytes += bytes;
        Some((taken, bytes))
    }

    /// Whether what waits needs another task now; counts it.
    fn begin_another(&mut self) -> bool {
        let begin = !self.waiting.is_empty() && self.may_propose(self.in_flight);
        self.in_flight += usize::from(begin);
        begin
    }

    fn drain(&mut self) -> Vec<Waiting> {
        std::iter::from_fn(|| self.pop()).collect()
    }

    /// What the next entry holds, and its bytes; leaves out callers that have gone.
    fn take(&mut self) -> (Vec<Waiting>, usize) {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.waiting.front() {
            let full = bytes + next.command.bytes() > ENTRY_BYTES_TARGET || taken.len() >= ENTRY_COMMANDS_MAX;
            if full && !taken.is_empty() {
                break;
            }
            let Some(next) = self.pop() else { break };
            if !next.caller.has_gone() {
                bytes += next.command.bytes();
                taken.push(next);
            }
        }
        (taken, bytes)
    }
}

impl Proposals {
    /// Whether anything waits or is proposed.
    pub(super) fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        queue.in_flight == 0 && queue.waiting.is_empty()
    }

    /// Answers what was not proposed yet.
    pub(super) fn fail_waiting(&self, error: &ProposeError) {
        let waiting = self.queue.lock().drain();
        refuse(waiting, error);
    }

    /// Before the next entry: so many callers got their answers, and so many others read.
    async fn gather(&self, answered: usize, reading: usize) {
        let (waiting, alone) = {
            let queue = self.queue.lock();
            (queue.waiting.len(), queue.in_flight == 1)
        };
        if alone {
            self.company.gather(waiting, answered, reading).await;
        }
    }

    /// Answers those that wait and whose time is up.
    fn fail_late(&self, now: Deadline) {
        let late = self.queue.lock().take_late(now);
        refuse(late, &ProposeError::TimedOut { proposed: false });
    }

    /// Returns when the time of somebody who waits is up, or at this moment.
    async fn late_by(&self, at: Option<Deadline>) {
        loop {
            let next_look = self.queue.lock().next_look;
            let Some(at) = next_look.into_iter().chain(at).min() else {
                self.look_earlier.notified().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(at) => return,
                () = self.look_earlier.notified() => {}
            }
        }
    }

    /// Whether a majority answers the entries in flight; if not, what waits behind them is refused.
    fn set_silent(&self, silent: bool) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.silent = silent;
            if silent { queue.drain() } else { Vec::new() }
        };
        refuse(waiting, &ProposeError::NoQuorum);
    }
}

fn refuse(waiting: impl IntoIterator<Item = Waiting>, error: &ProposeError) {
    for waiting in waiting {
        waiting.caller.answer(Err(error.clone()));
    }
}

impl Replica {
    /// Proposes a command and waits for its reply. Dropping the future gives the reply up; the command may still
    /// apply.
    pub async fn propose(&self, command: EncodedCommand) -> Answer {
        let answers = Answers::default();
        self.propose_into(command, None, &answers, 0)?;
        answers.only().await
    }

    /// The same for a task that proposes many: the command is proposed when this returns, and its answer comes under this
    /// number; none comes after an error. After the deadline [`ProposeError::TimedOut`] tells whether it may still apply.
    pub fn propose_into(
        &self,
        command: EncodedCommand,
        deadline: Option<Deadline>,
        answers: &Answers,
        number: usize,
    ) -> Result<(), ProposeError> {
        self.check_leads().map_err(|error| self.count_overload(error))?;
        self.used();
        let since = Instant::now();
        let (is_first, start, waiting) = {
            let mut queue = self.proposals.queue.lock();
            if queue.silent {
                return Err(ProposeError::NoQuorum);
            }
            if queue.is_full() {
                return Err(self.count_overload(ProposeError::Overloaded { queue: "the shard's queue of proposals" }));
            }
            // From here on it is answered.
            let is_first = queue.push(Waiting { command, caller: answers.caller(number, deadline), since });
            (is_first, queue.begin_another(), queue.waiting.len())
        };
        self.proposals.company.came(waiting);
        if start && let Some(replica) = self.arc() {
            self.tasks.spawn(replica.proposer());
        } else if is_first {
            self.proposals.look_earlier.notify_one();
        }
        Ok(())
    }

    fn count_overload(&self, error: ProposeError) -> ProposeError {
        if matches!(error, ProposeError::Overloaded { .. }) {
            self.context.metrics.overloaded.inc();
        }
        error
    }

    pub(super) fn check_leads(&self) -> Result<(), ProposeError> {
        if let Some(reason) = self.failure() {
            return Err(ProposeError::Fatal(reason));
        }
        if self.stopping.is_cancelled() {
            return Err(ProposeError::Stopped);
        }
        if self.is_leader() && !self.is_quarantined() {
            return Ok(());
        }
        Err(ProposeError::NotLeader { leader: self.leader().filter(|leader| leader.replica != self.replica) })
    }

    /// Boxed, since a task that proposes may begin another.
    fn proposer(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.propose_waiting())
    }

    /// Proposes entry after entry until nothing waits.
    async fn propose_waiting(self: Arc<Self>) {
        loop {
            self.proposals.fail_late(Deadline::now());
            let (next, another) = {
                let mut queue = self.proposals.queue.lock();
                let next = queue.next_entry();
                (next, queue.begin_another())
            };
            if another {
                self.tasks.spawn(Arc::clone(&self).proposer());
            }
            let Some((taken, bytes)) = next else {
                // What it was told of whose time is up first, the other task is to know.
                self.proposals.look_earlier.notify_one();
                return;
            };
            let count = taken.len();
            let mut commands = Vec::with_capacity(count);
            let mut callers = Vec::with_capacity(count);
            let now = Instant::now();
            for waiting in taken {
                self.context.metrics.observe_duration(Stage::Queue, now.saturating_duration_since(waiting.since));
                commands.push(waiting.command);
                callers.push(waiting.caller);
            }
            let mut callers = Callers::new(callers);
            let proposed = self.propose_watched(&commands, &mut callers).await;
            self.proposals.queue.lock().in_flight_bytes -= bytes;
            let is_applied = proposed.is_ok();
            callers.answer(proposed);
            if is_applied {
                self.proposals.gather(count, self.reads.readers()).await;
            }
        }
    }

    /// Proposes an entry. Meanwhile those whose time is up are told so, and while no majority answers, what waits behind it
    /// is refused.
    async fn propose_watched(
        &self,
        commands: &[EncodedCommand],
        callers: &mut Callers,
    ) -> Result<Vec<Reply>, ProposeError> {
        let mut proposed = pin!(self.propose_entry(commands));
        let mut patience = pin!(tokio::time::sleep(self.patience()));
        loop {
            tokio::select! {
                biased;
                result = &mut proposed => {
                    self.proposals.set_silent(false);
                    return result;
                }
                () = self.proposals.late_by(callers.first_deadline()) => {
                    let now = Deadline::now();
                    self.proposals.fail_late(now);
                    callers.fail_late(now);
                }
                () = &mut patience => {
                    self.proposals.set_silent(self.lacks_quorum(&self.raft.metrics().borrow_watched()));
                    patience.as_mut().reset(Deadline::now() + self.patience());
                }
            }
        }
    }

    /// One entry; as many replies as commands.
    pub(super) async fn propose_entry(&self, commands: &[EncodedCommand]) -> Result<Vec<Reply>, ProposeError> {
        let metrics = &self.context.metrics;
        let begun = Instant::now();
        let written = match self.write(commands).await? {
            // The shard slept, or hears from no majority: a quorum round tells which.
            Err(ClientWriteError::ForwardToLeader(forward)) if forward.reason == ForwardReason::LeaseExpired => {
                self.quorum_round().await.map_err(not_confirmed)?;
                self.write(commands).await?
            }
            written => written,
        };
        let replies = match written {
            Ok(response) => response.data.0,
            Err(ClientWriteError::ForwardToLeader(forward)) => {
                return Err(match forward.reason {
                    ForwardReason::LeaseExpired => ProposeError::NoQuorum,
                    ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
                        ProposeError::NotLeader { leader: self.forwarded(&forward) }
                    }
                });
            }
            Err(ClientWriteError::LogEntryDiscarded(_)) => return Err(ProposeError::OutcomeUnknown),
            Err(error @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_))) => {
                tracing::error!(shard = %self.shard, %error, "an answer no proposal of commands can have");
                return Err(ProposeError::OutcomeUnknown);
            }
        };
        metrics.observe(Stage::Propose, begun);
        metrics.proposals.inc();
        metrics.commands.inc_by(u64::try_from(commands.len()).unwrap_or(0));
        assert_eq!(replies.len(), commands.len(), "apply answers each command of a batch");
        Ok(replies)
    }

    async fn write(&self, commands: &[EncodedCommand]) -> Result<ClientWriteResult<ShardRaft>, ProposeError> {
        self.write_batch(CommandBatch::new(self.context.clock.now(), commands)).await
    }

    pub(super) async fn write_batch(&self, batch: CommandBatch) -> Result<ClientWriteResult<ShardRaft>, ProposeError> {
        self.context.count_log_bytes(batch.as_bytes().len());
        let begun = Instant::now();
        let (responder, committed, completed) = ProgressResponder::new();
        failpoint!("replica.propose");
        if let Err(fatal) = self.raft.client_write_ff(batch, Some(responder)).await {
            // Consensus had ended before it took the entry.
            return Err(if self.stopping.is_cancelled() {
                ProposeError::Stopped
            } else {
                ProposeError::Fatal(fatal.to_string())
            });
        }
        let observed = async {
            if committed.await.is_ok() {
                self.context.metrics.observe(Stage::Commit, begun);
            }
        };
        let (completed, ()) = tokio::join!(completed, observed);
        // The responder is only lost when consensus ends with the entry at hand.
        completed.map_err(|_| ProposeError::OutcomeUnknown)
    }
}

/// Why a quorum round before a write failed; the write was not handed over.
pub(super) fn not_confirmed(error: ReadError) -> ProposeError {
    match error {
        ReadError::NotLeader { leader } => ProposeError::NotLeader { leader },
        ReadError::NoQuorum | ReadError::TooFarAhead(_) => ProposeError::NoQuorum,
        ReadError::Overloaded { queue } => ProposeError::Overloaded { queue },
        ReadError::Stopped => ProposeError::Stopped,
        ReadError::Fatal(reason) => ProposeError::Fatal(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Operation};

    fn waiting(bytes: usize, caller: Caller) -> Waiting {
        let value = vec![0; bytes];
        let operations = vec![Operation::Put { key: b"k", value: &value }];
        let command = EncodedCommand::new(&Command { session: None, conditions: Vec::new(), operations });
        Waiting { command, caller, since: Instant::now() }
    }

    #[test]
    fn what_waits_together_becomes_one_entry_up_to_its_size() {
        let (mut queue, answers) = (Queue::default(), Answers::default());
        for bytes in [10, 10, ENTRY_BYTES_TARGET, 10] {
            queue.push(waiting(bytes, answers.caller(0, None)));
        }
        assert_eq!(queue.take().0.len(), 2, "the large one does not fit with the first two");
        assert_eq!(queue.take().0.len(), 1, "the large one goes alone");
        assert_eq!(queue.take().0.len(), 1);
        assert!(queue.take().0.is_empty());
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn a_second_entry_is_proposed_only_beside_a_large_one() {
        let (mut queue, answers) = (Queue::default(), Answers::default());
        let push = |queue: &mut Queue, bytes| queue.push(waiting(bytes, answers.caller(0, None)));
        push(&mut queue, 10);
        assert!(queue.may_propose(0));
        queue.in_flight = 1;
        let (_, small) = queue.next_entry().unwrap();
        push(&mut queue, LARGE_BYTES);
        assert!(!queue.may_propose(queue.in_flight), "what comes meanwhile waits for company");
        queue.in_flight_bytes -= small;
        let (_, large) = queue.next_entry().unwrap();
        assert!(large >= LARGE_BYTES && queue.may_propose(queue.in_flight));
        queue.in_flight = 2;
        push(&mut queue, 10);
        assert!(queue.next_entry().is_some(), "the second task proposes beside the large entry");
        assert!(!queue.may_propose(queue.in_flight));
        queue.in_flight_bytes -= large;
        push(&mut queue, 10);
        assert!(queue.next_entry().is_none(), "the first leaves what waits to the second, whose entry is small");
        assert!(queue.next_entry().is_some_and(|(taken, _)| taken.len() == 1));
    }

    #[test]
    fn a_caller_that_has_gone_is_not_proposed() {
        let (mut queue, gone, answers) = (Queue::default(), Answers::default(), Answers::default());
        queue.push(waiting(10, gone.caller(0, None)));
        queue.push(waiting(10, answers.caller(0, None)));
        drop(gone);
        assert_eq!(queue.take().0.len(), 1);
    }

    #[test]
    fn whose_time_is_up_while_it_waits_is_never_taken() {
        let (mut queue, answers, now) = (Queue::default(), Answers::default(), Deadline::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let firsts = [2, 1, 3].map(|seconds| queue.push(waiting(10, answers.caller(0, Some(at(seconds))))));
        assert_eq!(firsts, [true, true, false]);
        assert!(queue.take_late(at(0)).is_empty());
        assert_eq!((queue.take_late(at(2)).len(), queue.next_look), (2, Some(at(3))));
        queue.push(waiting(10, answers.caller(0, Some(at(3) + LOOK_EVERY / 2))));
        assert_eq!((queue.take_late(at(3)).len(), queue.next_look), (1, Some(at(3) + LOOK_EVERY)), "not at once again");
        assert_eq!(queue.take().0.len(), 1);
        assert_eq!((queue.bytes, queue.next_look), (0, None));
    }

    #[test]
    fn a_queue_is_full_by_bytes() {
        let (mut queue, answers) = (Queue::default(), Answers::default());
        let mut accepted = 0;
        while !queue.is_full() {
            queue.push(waiting(4 << 20, answers.caller(0, None)));
            accepted += 1;
        }
        assert_eq!(accepted, QUEUE_BYTES / (4 << 20));
    }
}
