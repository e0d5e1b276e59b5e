//! Whole snapshots over a network that cuts connections.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::by_hand::{Hand, kept};
use super::*;

const MIB: u64 = 1 << 20;
/// More than frames, indexes, filters and the small files take; less than what coming twice would.
const SLACK: u64 = 512 << 10;
/// A file is made once all of the one before is confirmed, so whatever breaks here has something to save.
const IN_SECOND_FILE: u64 = LATEST_BYTES + MIB / 2;
const ALL: u64 = LATEST_BYTES + HISTORY_BYTES;

/// Carries connections to a node, each until so many bytes of the sender have passed. After the last of them the node
/// cannot be found until it is [mended](Wire::mend).
struct Wire {
    address: SocketAddr,
    found: Arc<Other>,
    carried: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
    /// Cuts what is open now.
    cut: Arc<Notify>,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Wire {
    async fn between(from: &Node, to: &Node, cuts: Vec<u64>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (address, found, node) = (listener.local_addr().unwrap(), Arc::clone(&from.other), to.address);
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        let wire = Self { address, found, carried: Arc::default(), cut: Arc::default(), tasks, end };
        wire.mend();
        let (found, carried, cut) = (Arc::clone(&wire.found), Arc::clone(&wire.carried), Arc::clone(&wire.cut));
        let (tasks, end) = (wire.tasks.clone(), wire.end.clone());
        wire.tasks.spawn(wire.end.clone().run_until_cancelled_owned(async move {
            let mut cuts = cuts.into_iter();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let count = Arc::new(AtomicU64::new(0));
                carried.lock().push(Arc::clone(&count));
                let (most, is_last) = cuts.next().map_or((u64::MAX, false), |most| (most, cuts.len() == 0));
                let (found, cut) = (Arc::clone(&found), Arc::clone(&cut));
                tasks.spawn(end.clone().run_until_cancelled_owned(async move {
                    let mut sockets = (socket, TcpStream::connect(node).await.unwrap());
                    tokio::select! {
                        () = carry(&mut sockets, most, &count) => {}
                        () = cut.notified() => {}
                    }
                    if is_last {
                        *found.0.write() = None;
                    }
                }));
            }
        }));
        wire
    }

    fn mend(&self) {
        *self.found.0.write() = Some(self.address);
    }

    fn carried(&self) -> Vec<u64> {
        self.carried.lock().iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    async fn stop(self) {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn carry((from, to): &mut (TcpStream, TcpStream), most: u64, count: &AtomicU64) {
    let ((mut here, mut back), (mut answers, mut there)) = (from.split(), to.split());
    let forward = async {
        let mut buffer = vec![0; 16 << 10];
        while count.load(Ordering::Relaxed) < most {
            let left = most - count.load(Ordering::Relaxed);
            let room = usize::try_from(left).unwrap().min(buffer.len());
            let Ok(read @ 1..) = here.read(&mut buffer[..room]).await else { break };
            if there.write_all(&buffer[..read]).await.is_err() {
                break;
            }
            count.fetch_add(read as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        () = forward => {}
        _ = tokio::io::copy(&mut answers, &mut back) => {}
    }
}

async fn two(waits: Waits, cuts: Vec<u64>) -> (Node, Node, Wire) {
    let (from, to) = (Node::start(1, waits).await, Node::start(2, waits).await);
    from.fill().await;
    let wire = Wire::between(&from, &to, cuts).await;
    (from, to, wire)
}

/// What a snapshot comes to that is not over before something else is.
async fn meanwhile<T>(
    sending: impl Future<Output = Result<Vote, String>>,
    something: impl Future<Output = T>,
) -> (Result<Vote, String>, T) {
    let mut sending = std::pin::pin!(sending);
    let done = tokio::select! {
        biased;
        sent = &mut sending => panic!("it ended too early: {sent:?}"),
        done = something => done,
    };
    (tokio::time::timeout(PATIENCE, sending).await.unwrap(), done)
}

fn assert_equal(from: &Node, to: &Node) {
    assert_eq!(from.engine.checksum(SHARD).unwrap(), to.engine.checksum(SHARD).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_connection_breaks_again_and_again_comes_over_once() {
    let (from, to, wire) = two(LONG, vec![IN_SECOND_FILE, MIB / 2, MIB / 2, u64::MAX]).await;
    let sent = tokio::time::timeout(PATIENCE, from.send()).await.unwrap();
    assert_eq!(sent, Ok(vote(3)));
    assert_equal(&from, &to);
    let (carried, metrics) = (wire.carried(), &to.inner.metrics);
    assert_eq!(carried.len(), 4, "{carried:?}");
    assert_eq!((metrics.snapshots_resumed.get(), metrics.snapshots_installed.get()), (3, 1));
    let received = metrics.snapshot_bytes_received.get();
    assert!((ALL..ALL + SLACK).contains(&received), "every chunk came once: {received}");
    let rest = carried[3];
    assert!(rest < ALL + SLACK - 3 * MIB, "only what was left was sent: {carried:?}");
    assert_eq!(*to.held[&SHARD].votes.lock(), [vote(3)]);
    wire.stop().await;
    from.stop().await;
    to.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_whose_receiver_began_another_snapshot_gives_up_and_the_next_attempt_sends_all() {
    let (from, to, wire) = two(LONG, vec![IN_SECOND_FILE]).await;
    let another = async {
        eventually("a part came and is kept", || kept(&to) == 1).await;
        let mut another = Hand::open(&to, SHARD, 1).await.unwrap();
        assert_eq!(another.ready().await.have, None);
        wire.mend();
        another
    };
    let (sent, another) = meanwhile(from.send(), another).await;
    assert!(sent.unwrap_err().contains("let go of what was sent"));
    assert_eq!(to.inner.metrics.snapshots_resumed.get(), 0);
    drop(another);
    let before = to.inner.metrics.snapshot_bytes_received.get();
    assert_eq!(tokio::time::timeout(PATIENCE, from.send()).await.unwrap(), Ok(vote(3)));
    assert!(to.inner.metrics.snapshot_bytes_received.get() - before >= ALL);
    assert_equal(&from, &to);
    wire.stop().await;
    from.stop().await;
    to.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_whose_receiver_does_not_come_back_lets_go_of_its_view_and_its_place() {
    let waits = Waits { resume_within: Duration::from_millis(700), ..LONG };
    let (from, to, wire) = two(waits, vec![IN_SECOND_FILE]).await;
    let sent = tokio::time::timeout(PATIENCE, from.send()).await.unwrap();
    println!("{}", sent.unwrap_err());
    assert_eq!(from.lying(), 0);
    assert_eq!(from.inner.snapshots.sending.available_permits(), SENT_AT_ONCE);
    assert_eq!(from.inner.snapshots.interrupted.available_permits(), INTERRUPTED_AT_ONCE);
    wire.stop().await;
    from.stop().await;
    to.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_loses_the_connection_while_the_snapshot_is_installed_hears_the_answer() {
    let (from, to, wire) = two(LONG, vec![u64::MAX, u64::MAX]).await;
    let installs = &to.held[&SHARD].installs;
    installs.forget_permits(8);
    let lost = async {
        eventually("it is to be installed", || to.held[&SHARD].asked.load(Ordering::Relaxed) == 1).await;
        wire.cut.notify_waiters();
        eventually("the sender has come again", || to.inner.metrics.snapshots_resumed.get() == 1).await;
        installs.add_permits(1);
    };
    let (sent, ()) = meanwhile(from.send(), lost).await;
    assert_eq!(sent, Ok(vote(3)));
    assert_equal(&from, &to);
    assert!(to.inner.metrics.snapshot_bytes_received.get() < ALL + SLACK);
    wire.stop().await;
    from.stop().await;
    to.stop().await;
}
