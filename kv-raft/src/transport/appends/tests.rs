//! What is sent when. All but the last test take the stream's steps by hand, so that no time passes.

use futures::FutureExt as _;
use futures::stream::{self, Pending};
use kv_proto::timestamp::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;

use super::*;
use crate::command::{Command, CommandBatch, EncodedCommand, Operation};
use crate::types::{Entry, LeaderId, Vote};

const LEADER: LeaderId = LeaderId { term: 1, node_id: 1 };
/// Held until something else has it sent.
const LONG: Duration = Duration::from_secs(3600);

type Sends = Arc<Mutex<VecDeque<(Request, oneshot::Sender<Answer>)>>>;
type Send = Box<dyn Fn(&Request) -> Append + std::marker::Send>;

fn log_id(index: u64) -> LogId {
    LogId { leader_id: LEADER, index }
}

fn entry(index: u64, commands: usize, bytes: usize) -> Entry {
    let value = vec![0; bytes];
    let operations = vec![Operation::Put { key: b"k", value: &value }];
    let command = EncodedCommand::new(&Command { session: None, conditions: Vec::new(), operations });
    let batch = CommandBatch::new(Timestamp(1), &vec![command; commands]);
    assert_eq!(batch.count(), commands);
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(batch) }
}

/// A request after those of `last`.
fn request(last: &mut Option<LogId>, entries: Vec<Entry>, committed: Option<LogId>) -> Request {
    let prev_log_id = *last;
    *last = entries.last().map(|entry| entry.log_id).or(prev_log_id);
    Request { vote: Vote { leader_id: LEADER, committed: true }, prev_log_id, entries, leader_commit: committed }
}

fn recorded(sends: &Sends) -> Send {
    let sends = Arc::clone(sends);
    Box::new(move |request| {
        let (answer, answered) = oneshot::channel();
        sends.lock().push_back((request.clone(), answer));
        Append { answer: async { answered.await.expect("the test answers") }.boxed(), bytes: 1 }
    })
}

/// A stream to a follower whose steps are taken by hand.
struct Steps {
    appends: Appends<Pending<Request>, Send>,
    sends: Sends,
    last: Option<LogId>,
    committed: Option<LogId>,
}

impl Steps {
    fn new() -> Self {
        let sends = Sends::default();
        let appends = Appends::new(stream::pending(), recorded(&sends), Holding::until(Arc::default()));
        Self { appends, sends, last: None, committed: None }
    }

    /// One entry of so many commands with values of so many bytes.
    fn ask(&mut self, commands: usize, bytes: usize) {
        let next = self.last.map_or(0, |last| last.index + 1);
        let request = request(&mut self.last, vec![entry(next, commands, bytes)], self.committed);
        self.appends.accept(request);
    }

    /// A majority has everything, and the stream is told.
    fn commit(&mut self) {
        self.committed = self.last;
        let request = request(&mut self.last, Vec::new(), self.committed);
        self.appends.accept(request);
    }

    /// The next request that was sent: of which entries, and what it told of commits.
    fn sent(&mut self) -> Option<(Vec<u64>, Option<u64>)> {
        let (request, _) = self.sends.lock().pop_front()?;
        let indexes = request.entries.iter().map(|entry| entry.log_id.index).collect();
        Some((indexes, request.leader_commit.map(|id| id.index)))
    }

    /// It answers the oldest request; through which index.
    fn answers(&mut self) -> Option<u64> {
        let appended = self.appends.appended(Ok(AppendEntriesResponse::Success));
        appended.unwrap().unwrap().map(|id| id.index)
    }

    /// Entries that are committed before it answers, until it is spared.
    fn spared() -> Self {
        let mut steps = Self::new();
        for index in 0..3_u64 {
            assert!(!steps.appends.thrift.is_spared());
            steps.ask(1, 100);
            assert_eq!(steps.sent(), Some((vec![index], index.checked_sub(1))));
            steps.commit();
            assert_eq!(steps.answers(), Some(index));
        }
        assert!(steps.appends.thrift.is_spared());
        steps
    }
}

#[test]
fn entries_are_sent_at_once_and_what_only_tells_a_commit_goes_with_the_next() {
    let mut steps = Steps::new();
    steps.commit();
    assert_eq!(steps.sent(), Some((vec![], None)), "a probe");
    steps.ask(1, 100);
    steps.commit();
    assert_eq!((steps.sent(), steps.sent()), (Some((vec![0], None)), None));
    let until = steps.appends.held.as_ref().unwrap().until;
    steps.commit();
    assert_eq!(steps.appends.held.as_ref().unwrap().until, until, "it waits no longer for being told twice");
    steps.ask(1, 100);
    assert_eq!((steps.sent(), steps.sent()), (Some((vec![1], Some(0))), None));
    steps.commit();
    steps.appends.send_held(true);
    assert_eq!(steps.sent(), Some((vec![], Some(1))));
    assert_eq!([(); 4].map(|()| steps.answers()), [None, Some(0), Some(1), Some(1)]);
}

#[test]
fn a_follower_that_comes_late_gets_a_lone_callers_entries_together() {
    let mut steps = Steps::spared();
    for _ in 3..6 {
        steps.ask(1, 100);
        steps.commit();
    }
    assert_eq!(steps.sent(), None);
    steps.appends.send_held(true);
    assert_eq!((steps.sent(), steps.sent()), (Some((vec![3, 4, 5], Some(5))), None));
    assert_eq!(steps.answers(), Some(5));
    assert!(steps.appends.thrift.is_spared(), "a majority did without it");
}

#[test]
fn what_waits_goes_before_what_does_not_and_is_bounded() {
    let mut steps = Steps::spared();
    steps.ask(1, 100);
    steps.ask(LONE_COMMANDS + 1, 100);
    assert_eq!((steps.sent(), steps.sent()), (Some((vec![3], Some(2))), Some((vec![4], Some(2)))));
    steps.ask(1, LONE_BYTES);
    assert_eq!(steps.sent(), Some((vec![5], Some(2))), "too large");
    for index in 6..15 {
        steps.ask(1, LONE_BYTES - 100);
        assert_eq!(steps.sent().is_some(), index == 14, "eight of them fill it");
    }
    steps.ask(1, 100);
    steps.appends.send_held(false);
    assert_eq!(steps.sent(), Some((vec![14, 15], Some(2))));
}

#[test]
fn a_follower_without_which_nothing_is_committed_is_spared_no_more() {
    let mut steps = Steps::spared();
    steps.ask(1, 100);
    steps.appends.send_held(true);
    assert_eq!(steps.sent(), Some((vec![3], Some(2))));
    steps.ask(1, 100);
    assert_eq!(steps.sent(), Some((vec![4], Some(2))));
    assert_eq!((steps.answers(), steps.answers()), (Some(3), Some(4)));
    steps.commit();
    for _ in 0..2 {
        steps.ask(1, 100);
        assert!(steps.sent().is_some());
        steps.commit();
        steps.answers();
    }
    assert!(!steps.appends.thrift.is_spared(), "late twice since");
}

#[test]
fn only_a_lone_callers_entries_sent_at_once_show_who_is_late() {
    let mut steps = Steps::new();
    for _ in 0..10 {
        steps.ask(LONE_COMMANDS + 1, 100);
        steps.commit();
        steps.answers();
    }
    assert!(!steps.appends.thrift.is_spared());
}

#[test]
fn a_hurry_sends_what_is_held_and_the_follower_is_still_spared() {
    let mut steps = Steps::spared();
    steps.ask(1, 100);
    steps.appends.send_held(false);
    assert_eq!(steps.sent(), Some((vec![3], Some(2))));
    assert!(steps.appends.thrift.is_spared());
}

#[tokio::test]
async fn the_stream_ends_with_what_was_held_or_with_an_error_and_hurries_when_told() {
    let begin = |sends: &Sends, hurry: &Arc<Notify>| {
        let (requests, input) = mpsc::channel(16);
        let holding = Holding { hurry: Arc::clone(hurry), notice: LONG, spared: LONG };
        let appends = Appends::new(ReceiverStream::new(input), recorded(sends), holding);
        (requests, stream::unfold(appends, Appends::next).boxed())
    };
    let (sends, hurry) = (Sends::default(), Arc::<Notify>::default());
    let (requests, mut answers) = begin(&sends, &hurry);
    let (tasks, mut last) = (TaskTracker::new(), None);
    let answering = Arc::clone(&sends);
    let follower = tasks.spawn(async move {
        let mut indexes = Vec::new();
        while indexes.last() != Some(&2) {
            let Some((request, answer)) = answering.lock().pop_front() else {
                tokio::task::yield_now().await;
                continue;
            };
            indexes.push(request.leader_commit.map_or(0, |id| id.index));
            let _ = answer.send(Ok(AppendEntriesResponse::Success));
        }
        indexes
    });
    for committed in [None, Some(log_id(0))] {
        let entries = committed.is_none().then(|| entry(0, 1, 100)).into_iter().collect();
        requests.send(request(&mut last, entries, committed)).await.unwrap();
    }
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap(), Some(log_id(0)));
    assert!(answers.next().now_or_never().is_none(), "the notice waits");
    hurry.notify_one();
    assert!(answers.next().await.is_some());
    requests.send(request(&mut last, Vec::new(), Some(log_id(2)))).await.unwrap();
    drop(requests);
    assert!(answers.next().await.is_some(), "the end of the stream sends what is held");
    assert!(answers.next().await.is_none());
    assert_eq!(follower.await.unwrap(), [0, 0, 2]);

    let sends = Sends::default();
    let (requests, mut answers) = begin(&sends, &hurry);
    requests.send(request(&mut None, vec![entry(0, 1, 100)], None)).await.unwrap();
    assert!(answers.next().now_or_never().is_none());
    let (_, answer) = sends.lock().pop_front().unwrap();
    answer.send(Ok(AppendEntriesResponse::Conflict)).unwrap();
    assert!(answers.next().await.unwrap().is_err(), "a conflict with the very beginning");
    assert!(answers.next().await.is_none());
}
