use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::pb::v1::{GetRequest, GetResponse};
use kv_raft::replica::ProposeError;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;

use super::*;

const LIMITS: StreamLimits = StreamLimits { calls: 4, bytes: 1 << 20 };

fn get(id: u64) -> PipelineCall {
    let key = id.to_string().into();
    PipelineCall { id, request: Some(Request::Get(GetRequest { header: None, key, read: None })) }
}

fn message(calls: impl IntoIterator<Item = PipelineCall>) -> Result<PipelineRequest, Status> {
    Ok(PipelineRequest { calls: calls.into_iter().collect() })
}

fn metrics() -> EdgeMetrics {
    EdgeMetrics::new(&mut Registry::default())
}

/// Calls that each go on by themselves.
struct Each<F>(F);

impl<F, R, H> Serve for Each<F>
where
    F: Fn(Request) -> R,
    R: Future<Output = Served<H>>,
{
    type Held = H;
    type Proposed = Infallible;
    type Running = R;

    fn begin(&self, request: Request, _: usize) -> ControlFlow<Served<H>, Begun<Infallible, R>> {
        ControlFlow::Continue(Begun::Runs((self.0)(request)))
    }

    fn poll_answers(&mut self, _: &mut Context<'_>) -> Poll<Vec<(usize, Answer)>> {
        Poll::Pending
    }

    fn answered(&self, call: Infallible, _: Answer) -> ControlFlow<Served<H>, R> {
        match call {}
    }
}

/// Calls that wait for their answers.
struct Answered {
    answers: mpsc::Receiver<Vec<(usize, Answer)>>,
    begun: Rc<RefCell<Vec<usize>>>,
    /// Whether those of an even number go on once they have theirs.
    even_go_on: bool,
    /// In each response.
    value: Bytes,
}

impl Serve for Answered {
    type Held = ();
    type Proposed = usize;
    type Running = std::future::Ready<Served<()>>;

    fn begin(&self, _: Request, number: usize) -> ControlFlow<Served<()>, Begun<usize, Self::Running>> {
        self.begun.borrow_mut().push(number);
        ControlFlow::Continue(Begun::Proposed(number))
    }

    fn poll_answers(&mut self, context: &mut Context<'_>) -> Poll<Vec<(usize, Answer)>> {
        match ready!(self.answers.poll_recv(context)) {
            Some(some) => Poll::Ready(some),
            None => Poll::Pending,
        }
    }

    fn answered(&self, number: usize, answer: Answer) -> ControlFlow<Served<()>, Self::Running> {
        assert_eq!(answer, Err(ProposeError::NoQuorum));
        let value = self.value.clone();
        let entry = Some(kv_proto::pb::v1::KeyValue { key: "k".into(), value, commit_timestamp: 1 });
        let served = Ok((Response::Get(GetResponse { header: None, entry }), ()));
        if self.even_go_on && number.is_multiple_of(2) {
            ControlFlow::Continue(std::future::ready(served))
        } else {
            ControlFlow::Break(served)
        }
    }
}

async fn echo(_: Request) -> Result<(Response, ()), ServiceError> {
    Ok((Response::Get(GetResponse::default()), ()))
}

fn ids((message, _): &Outgoing<()>) -> Vec<u64> {
    message.as_ref().unwrap().replies.iter().map(|reply| reply.id).collect()
}

/// So many calls, each counted when it is read.
fn counted(calls: u64, read: Rc<Cell<usize>>) -> impl Stream<Item = Result<PipelineRequest, Status>> {
    futures::stream::iter(1..=calls).map(move |id| {
        read.set(read.get() + 1);
        message([get(id)])
    })
}

/// Gives a stream that nobody reads the time to read all it will; it does not end.
async fn goes_on(mut run: Pin<&mut impl Future>) {
    for _ in 0..50 {
        assert!(run.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
}

/// So many calls are begun, and no more.
async fn goes_on_reading(begun: &RefCell<Vec<usize>>, calls: usize) {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(begun.borrow().len(), calls);
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it ends in time")
}

#[tokio::test]
async fn calls_that_are_ready_together_are_answered_in_one_message() {
    let (sender, mut receiver) = mpsc::channel(MESSAGES_UNSENT);
    let inbound = futures::stream::iter([message((1..=4).map(get))]);
    within(run(inbound, sender, Each(echo), LIMITS, (&metrics(), CancellationToken::new()))).await;
    let mut answered = ids(&receiver.recv().await.unwrap());
    answered.sort_unstable();
    assert_eq!(answered, [1, 2, 3, 4]);
    assert!(receiver.recv().await.is_none());
}

#[tokio::test]
async fn a_call_at_fault_fails_alone() {
    let (sender, mut receiver) = mpsc::channel(MESSAGES_UNSENT);
    let inbound = futures::stream::iter([message([get(1), PipelineCall { id: 2, request: None }, get(3)])]);
    let serve = async |request: Request| {
        let Request::Get(get) = request else { panic!("only gets") };
        if get.key == "3" {
            Err(ServiceError::DeadlineMissing)
        } else {
            Ok((Response::Get(GetResponse::default()), ()))
        }
    };
    within(run(inbound, sender, Each(serve), LIMITS, (&metrics(), CancellationToken::new()))).await;
    let mut reasons = std::collections::BTreeMap::new();
    while let Some((message, _)) = receiver.recv().await {
        for reply in message.unwrap().replies {
            let response = reply.response.unwrap();
            let failure = if let Response::Failure(failure) = response {
                ServiceError::from_failure(failure).reason()
            } else {
                ""
            };
            reasons.insert(reply.id, failure);
        }
    }
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), [(1, ""), (2, "INVALID_REQUEST"), (3, "DEADLINE_MISSING")]);
}

#[tokio::test]
async fn a_slow_call_holds_up_no_other() {
    let (sender, mut receiver) = mpsc::channel(MESSAGES_UNSENT);
    let (release, released) = oneshot::channel::<()>();
    let released = RefCell::new(Some(released));
    let serve = |request: Request| {
        let Request::Get(get) = request else { panic!("only gets") };
        let wait = (get.key == "1").then(|| released.borrow_mut().take()).flatten();
        async move {
            if let Some(wait) = wait {
                wait.await.unwrap();
            }
            Ok((Response::Get(GetResponse::default()), ()))
        }
    };
    let inbound = futures::stream::iter([message([get(1), get(2)])]);
    let look = async {
        assert_eq!(ids(&receiver.recv().await.unwrap()), [2]);
        release.send(()).unwrap();
        assert_eq!(ids(&receiver.recv().await.unwrap()), [1]);
    };
    let metrics = metrics();
    let run = run(inbound, sender, Each(serve), LIMITS, (&metrics, CancellationToken::new()));
    within(futures::future::join(run, look)).await;
}

#[tokio::test]
async fn no_more_is_read_than_the_stream_may_have_in_flight() {
    let (sender, _receiver) = mpsc::channel(MESSAGES_UNSENT);
    let read = Rc::new(Cell::new(0));
    let inbound = counted(100, read.clone());
    let serve = |_| std::future::pending::<Result<(Response, ()), ServiceError>>();
    let metrics = metrics();
    let run = run(inbound, sender, Each(serve), LIMITS, (&metrics, CancellationToken::new()));
    assert!(run.now_or_never().is_none());
    assert_eq!(read.get(), LIMITS.calls);
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_reading_of_its_calls() {
    let (sender, receiver) = mpsc::channel(MESSAGES_UNSENT);
    let read = Rc::new(Cell::new(0));
    let inbound = counted(1000, read.clone());
    let large = |_| async {
        let value = vec![0; 1 << 20].into();
        let entry = Some(kv_proto::pb::v1::KeyValue { key: "k".into(), value, commit_timestamp: 1 });
        Ok((Response::Get(GetResponse { header: None, entry }), ()))
    };
    let metrics = metrics();
    let mut run = Box::pin(run(inbound, sender, Each(large), LIMITS, (&metrics, CancellationToken::new())));
    goes_on(run.as_mut()).await;
    assert!(read.get() < 20, "{} calls were read though nobody reads the replies", read.get());
    drop(receiver);
    within(run).await;
}

#[tokio::test]
async fn what_a_reply_holds_is_given_back_when_the_transport_asks_for_more() {
    let (sender, receiver) = mpsc::channel(MESSAGES_UNSENT);
    let held = Rc::new(());
    let serve = async |_| Ok((Response::Get(GetResponse::default()), held.clone()));
    let (calls, inbound) = mpsc::channel(1);
    let metrics = metrics();
    let inbound = tokio_stream::wrappers::ReceiverStream::new(inbound);
    let run = run(inbound, sender, Each(serve), LIMITS, (&metrics, CancellationToken::new()));
    let look = async {
        let mut unread = Unread::new(receiver);
        for id in [1, 2] {
            calls.send(message([get(id)])).await.unwrap();
            assert_eq!(unread.next().await.unwrap().unwrap().replies.len(), 1);
            assert_eq!(Rc::strong_count(&held), 2, "while the message is being sent");
            assert!(unread.next().now_or_never().is_none());
            assert_eq!(Rc::strong_count(&held), 1);
        }
        drop(calls);
        assert!(unread.next().await.is_none());
    };
    within(futures::future::join(run, look)).await;
}

#[tokio::test]
async fn replies_that_nobody_reads_count_as_calls_in_flight() {
    let (sender, _receiver) = mpsc::channel(MESSAGES_UNSENT);
    let read = Rc::new(Cell::new(0));
    let inbound = counted(100, read.clone());
    let metrics = metrics();
    let mut run = Box::pin(run(inbound, sender, Each(echo), LIMITS, (&metrics, CancellationToken::new())));
    goes_on(run.as_mut()).await;
    assert!(read.get() <= LIMITS.calls + MESSAGES_UNSENT * LIMITS.calls, "{} calls were read", read.get());
}

#[tokio::test]
async fn a_vanished_client_leaves_nothing_behind() {
    struct Held(Rc<Cell<usize>>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }
    let held = Rc::new(Cell::new(0));
    let serve = |_| {
        held.set(held.get() + 1);
        let guard = Held(held.clone());
        async move {
            std::future::pending::<()>().await;
            Ok((Response::Get(GetResponse::default()), guard))
        }
    };
    let (sender, receiver) = mpsc::channel(MESSAGES_UNSENT);
    let inbound = futures::stream::iter([message((1..=3).map(get))]).chain(futures::stream::pending());
    let metrics = metrics();
    {
        let run = run(inbound, sender, Each(serve), LIMITS, (&metrics, CancellationToken::new()));
        let vanish = async {
            while held.get() < 3 {
                tokio::task::yield_now().await;
            }
            drop(receiver);
        };
        within(futures::future::join(run, vanish)).await;
    }
    assert_eq!(held.get(), 0);
}

#[tokio::test]
async fn a_stream_that_is_stopped_answers_what_it_has_and_ends() {
    let (sender, mut receiver) = mpsc::channel(MESSAGES_UNSENT);
    let stop = CancellationToken::new();
    let inbound = futures::stream::iter([message([get(1)])]).chain(futures::stream::pending());
    let metrics = metrics();
    let run = run(inbound, sender, Each(echo), LIMITS, (&metrics, stop.clone()));
    let look = async {
        assert_eq!(ids(&receiver.recv().await.unwrap()), [1]);
        stop.cancel();
        assert!(receiver.recv().await.is_none());
    };
    within(futures::future::join(run, look)).await;
}

#[tokio::test]
async fn calls_that_wait_for_answers_are_answered_as_those_come_and_their_places_are_used_again() {
    let (sender, mut receiver) = mpsc::channel(MESSAGES_UNSENT);
    let (answer, answers) = mpsc::channel(2);
    let begun = Rc::new(RefCell::new(Vec::new()));
    let (calls, inbound) = mpsc::channel(8);
    let inbound = tokio_stream::wrappers::ReceiverStream::new(inbound);
    let metrics = metrics();
    let serve = Answered { answers, begun: begun.clone(), even_go_on: true, value: "v".into() };
    let run = run(inbound, sender, serve, LIMITS, (&metrics, CancellationToken::new()));
    let look = async {
        calls.send(message((11..=15).map(get))).await.unwrap();
        calls.send(message([get(16)])).await.unwrap();
        let no = |number| (number, Err(ProposeError::NoQuorum));
        goes_on_reading(&begun, 5).await;
        answer.send(vec![no(3), no(0)]).await.unwrap();
        let mut ids = ids(&receiver.recv().await.unwrap());
        while ids.len() < 2 {
            ids.extend(self::ids(&receiver.recv().await.unwrap()));
        }
        ids.sort_unstable();
        assert_eq!(ids, [11, 14], "also the one that went on");
        goes_on_reading(&begun, 6).await;
        let again = begun.borrow()[5];
        assert!([0, 3].contains(&again), "{begun:?}");
        drop(calls);
        answer.send([1, 2, 4, again].map(no).into()).await.unwrap();
    };
    within(futures::future::join(run, look)).await;
}

#[tokio::test]
async fn answers_beyond_what_may_be_unsent_wait_until_the_others_are_sent() {
    // The transport takes all at once.
    let (sender, mut receiver) = mpsc::channel(16);
    let (answer, answers) = mpsc::channel(1);
    let begun = Rc::new(RefCell::new(Vec::new()));
    let serve = Answered { answers, begun: begun.clone(), even_go_on: false, value: vec![0; 1 << 20].into() };
    let calls = 3 * UNSENT_BYTES / (1 << 20);
    let inbound = futures::stream::iter([message((1..).take(calls).map(get))]);
    let metrics = metrics();
    let run = run(inbound, sender, serve, LIMITS, (&metrics, CancellationToken::new()));
    let look = async {
        goes_on_reading(&begun, calls).await;
        answer.send((0..calls).map(|number| (number, Err(ProposeError::NoQuorum))).collect()).await.unwrap();
        let mut answered = 0;
        while let Some(message) = receiver.recv().await {
            answered += ids(&message).len();
        }
        answered
    };
    assert_eq!(within(futures::future::join(run, look)).await.1, calls);
}
