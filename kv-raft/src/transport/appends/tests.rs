//! What is sent when, by a stream whose answers the test gives.

use std::sync::Arc;

use futures::FutureExt as _;
use kv_proto::timestamp::Timestamp;
use openraft::EntryPayload;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;

use super::*;
use crate::command::{Command, CommandBatch, EncodedCommand, Operation};
use crate::types::{Entry, LeaderId, Vote};

/// Longest wait for anything that must happen.
const DEADLINE: Duration = Duration::from_secs(30);
/// Held until something else has it sent.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(50);

type Sends = Arc<Mutex<VecDeque<(Request, oneshot::Sender<Answer>)>>>;

/// A stream to a follower, and the follower.
struct Follower {
    requests: mpsc::Sender<Request>,
    sends: Sends,
    hurry: Arc<Notify>,
    answers: mpsc::Receiver<Appended>,
    committed: Option<LogId>,
    last: Option<LogId>,
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }
}

fn entry(index: u64, bytes: usize) -> Entry {
    let value = vec![0; bytes];
    let operations = vec![Operation::Put { key: b"k", value: &value }];
    let command = EncodedCommand::new(&Command { session: None, conditions: Vec::new(), operations });
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(CommandBatch::new(Timestamp(1), &[command])) }
}

impl Follower {
    fn new(tasks: &TaskTracker, hold: Duration) -> Self {
        let (requests, input) = mpsc::channel(16);
        let (results, answers) = mpsc::channel(16);
        let hurry = Arc::<Notify>::default();
        let holding = Holding { hurry: Arc::clone(&hurry), notice: hold, spared: hold };
        let sends = Sends::default();
        let recorded = Arc::clone(&sends);
        let send = move |request: &Request| {
            let (answer, answered) = oneshot::channel();
            recorded.lock().push_back((request.clone(), answer));
            Append { answer: async { answered.await.expect("the test answers") }.boxed(), bytes: 1 }
        };
        tasks.spawn(async move {
            let mut appends = Appends::new(ReceiverStream::new(input), send, holding);
            while let Some((appended, rest)) = appends.next().await {
                let _ = results.send(appended).await;
                appends = rest;
            }
        });
        Self { requests, sends, hurry, answers, committed: None, last: None }
    }

    /// The leader's next request, with so many bytes for each entry.
    async fn ask(&mut self, entries: &[usize]) {
        let prev_log_id = self.last;
        let first = prev_log_id.map_or(0, |id| id.index + 1);
        let entries: Vec<Entry> = entries.iter().zip(first..).map(|(bytes, index)| entry(index, *bytes)).collect();
        self.last = entries.last().map(|entry| entry.log_id).or(prev_log_id);
        let vote = Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: true };
        let request = Request { vote, prev_log_id, entries, leader_commit: self.committed };
        self.requests.send(request).await.unwrap();
    }

    /// A majority has all entries, with this follower or without, and the stream knows.
    async fn commit(&mut self) {
        self.committed = self.last;
        self.ask(&[]).await;
        while self.requests.capacity() < self.requests.max_capacity() {
            tokio::task::yield_now().await;
        }
    }

    /// The next request the follower gets: how many entries, and the answer to it.
    async fn gets(&self) -> (Request, oneshot::Sender<Answer>) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(sent) = self.sends.lock().pop_front() {
                return sent;
            }
            assert!(Instant::now() < deadline, "nothing was sent");
            tokio::task::yield_now().await;
        }
    }

    /// It gets so many entries in one request, and answers.
    async fn takes(&mut self, entries: usize) {
        let (request, answer) = self.gets().await;
        assert_eq!(request.entries.len(), entries, "{request:?}");
        self.answers(answer).await;
    }

    async fn answers(&mut self, answer: oneshot::Sender<Answer>) {
        answer.send(Ok(AppendEntriesResponse::Success)).unwrap();
        self.answers.recv().await.unwrap().unwrap().unwrap();
    }

    /// So many entries that are committed before it answers.
    async fn comes_late(&mut self, times: u32) {
        for _ in 0..times {
            self.ask(&[100]).await;
            let (request, answer) = self.gets().await;
            assert_eq!(request.entries.len(), 1);
            self.commit().await;
            self.answers(answer).await;
        }
    }
}

#[tokio::test]
async fn entries_are_sent_at_once_and_what_only_tells_a_commit_goes_with_the_next() {
    let tasks = TaskTracker::new();
    let mut follower = Follower::new(&tasks, LONG);
    follower.ask(&[]).await;
    follower.takes(0).await;
    follower.ask(&[100]).await;
    follower.takes(1).await;
    follower.commit().await;
    assert!(follower.sends.lock().is_empty(), "it waits for company");
    follower.ask(&[100]).await;
    let (request, answer) = follower.gets().await;
    assert_eq!((request.entries.len(), request.leader_commit), (1, Some(log_id(0))));
    follower.answers(answer).await;
    assert!(follower.sends.lock().is_empty(), "the commit was told with the entry");

    let mut follower = Follower::new(&tasks, SHORT);
    follower.ask(&[100]).await;
    follower.takes(1).await;
    follower.commit().await;
    follower.takes(0).await;
}

#[tokio::test]
async fn a_follower_that_comes_late_gets_small_entries_together() {
    let tasks = TaskTracker::new();
    let mut follower = Follower::new(&tasks, LONG);
    follower.comes_late(3).await;
    for _ in 0..3 {
        follower.ask(&[100]).await;
        follower.commit().await;
    }
    assert!(follower.sends.lock().is_empty(), "they wait for company");
    follower.ask(&[HELD_BYTES]).await;
    let (request, answer) = follower.gets().await;
    assert_eq!((request.entries.len(), request.leader_commit), (3, Some(log_id(5))));
    follower.answers(answer).await;
    follower.takes(1).await;

    let mut follower = Follower::new(&tasks, SHORT);
    follower.comes_late(3).await;
    follower.ask(&[100]).await;
    follower.commit().await;
    let (request, answer) = follower.gets().await;
    assert_eq!((request.entries.len(), request.leader_commit), (1, follower.last));
    follower.answers(answer).await;
}

#[tokio::test]
async fn a_spared_follower_whose_entries_are_not_committed_without_it_is_spared_no_more() {
    let tasks = TaskTracker::new();
    let mut follower = Follower::new(&tasks, LONG);
    follower.comes_late(2).await;
    follower.ask(&[100]).await;
    follower.takes(1).await;
    follower.comes_late(2).await;
    follower.ask(&[100]).await;
    follower.takes(1).await;

    let mut follower = Follower::new(&tasks, SHORT);
    follower.comes_late(3).await;
    let mut is_held_for = async || {
        let asked = Instant::now();
        follower.ask(&[100]).await;
        follower.takes(1).await;
        asked.elapsed()
    };
    assert!(is_held_for().await >= SHORT, "it was spared");
    for _ in 0..10 {
        if is_held_for().await < SHORT {
            return;
        }
    }
    panic!("its entries wait although they are not committed without it");
}

#[tokio::test]
async fn a_follower_in_a_hurry_gets_what_is_held_and_is_still_spared() {
    let tasks = TaskTracker::new();
    let mut follower = Follower::new(&tasks, LONG);
    follower.comes_late(3).await;
    follower.ask(&[100]).await;
    follower.commit().await;
    assert!(follower.sends.lock().is_empty());
    follower.hurry.notify_one();
    let (request, answer) = follower.gets().await;
    assert_eq!((request.entries.len(), request.leader_commit), (1, follower.last));
    follower.answers(answer).await;
    follower.ask(&[100]).await;
    follower.commit().await;
    assert!(follower.sends.lock().is_empty());
}

#[tokio::test]
async fn what_is_held_is_sent_when_the_stream_ends_and_nothing_after_an_error() {
    let tasks = TaskTracker::new();
    let mut follower = Follower::new(&tasks, LONG);
    follower.comes_late(3).await;
    follower.ask(&[100]).await;
    follower.requests = mpsc::channel(1).0;
    follower.takes(1).await;
    assert!(follower.answers.recv().await.is_none());

    let mut follower = Follower::new(&tasks, LONG);
    follower.ask(&[100]).await;
    let (_, answer) = follower.gets().await;
    follower.commit().await;
    answer.send(Ok(AppendEntriesResponse::Conflict)).unwrap();
    assert!(follower.answers.recv().await.unwrap().is_err(), "a conflict with the very beginning");
    assert!(follower.answers.recv().await.is_none());
    assert!(follower.sends.lock().is_empty());
}
