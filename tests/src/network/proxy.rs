//! The proxy of one node.
//!
//! Invariants: a withheld piece is sent when the link is whole again, as TCP would; all tasks end with the value.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::owner::Owners;
use super::rules::{Party, Rule, Rules, Shocks, Table};
use crate::ports::free_port;

/// Read at once; small, so that a limited rate is even.
const PIECE_BYTES: usize = 16 << 10;
/// A frozen connection is held this long; every keepalive gives up before.
const FROZEN_FOR: Duration = Duration::from_secs(60);
/// A node that does not accept by then is down.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 2048;

/// Listens in place of a node.
#[derive(Debug)]
pub(super) struct Proxy {
    address: String,
    _tasks: JoinSet<()>,
}

/// What a connection needs to know.
#[derive(Clone)]
struct Node {
    number: usize,
    target: String,
    owners: Arc<Owners>,
    rules: Rules,
}

impl Proxy {
    pub(super) async fn start(number: usize, target: String, owners: Arc<Owners>, rules: Rules) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", free_port()?)).await?;
        let address = listener.local_addr()?.to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Node { number, target, owners, rules }));
        Ok(Self { address, _tasks: tasks })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

async fn accept(listener: TcpListener, node: Node) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                // Out of descriptors: the next one may succeed.
                let Ok((stream, from)) = accepted else { continue };
                connections.spawn(serve(stream, from, node.clone()));
            }
        }
    }
}

/// One connection from its begin to its end; errors end it, which is all a proxy can say.
async fn serve(stream: TcpStream, from: SocketAddr, node: Node) {
    let Ok(to) = stream.local_addr() else { return };
    let owners = node.owners.clone();
    let Ok(party) = spawn_blocking(move || owners.of(from, to)).await else { return };
    let rules = node.rules.watch();
    let shocks = rules.borrow().shocks(node.number);
    let towards = Direction { rules: rules.clone(), from: party, to: Party::Node(node.number) };
    let back = Direction { rules: rules.clone(), from: Party::Node(node.number), to: party };
    let passes = async {
        if towards.rule().refused {
            return;
        }
        towards.clone().whole().await;
        let Ok(Ok(target)) = timeout(CONNECT_WITHIN, TcpStream::connect(&node.target)).await else { return };
        let _ = stream.set_nodelay(true);
        let _ = target.set_nodelay(true);
        let ((client_in, client_out), (node_in, node_out)) = (stream.into_split(), target.into_split());
        let (frozen, held) = (rules.clone(), shocks);
        let pumps = async {
            // Either end closing its half ends that direction; an error ends both.
            let _ = tokio::try_join!(pump(client_in, node_out, towards), pump(node_in, client_out, back));
        };
        tokio::select! {
            () = pumps => {}
            () = shocked(frozen, node.number, held) => {}
        }
    };
    passes.await;
}

/// Returns when the connections of now are to be closed; waits before if they are to be left open without anyone.
async fn shocked(mut rules: watch::Receiver<Table>, number: usize, before: Shocks) {
    let changed = rules.wait_for(|table| table.shocks(number) != before).await;
    let frozen = changed.is_ok_and(|table| table.shocks(number).freezes != before.freezes);
    if frozen {
        sleep(FROZEN_FOR).await;
    }
}

#[derive(Clone)]
struct Direction {
    rules: watch::Receiver<Table>,
    from: Party,
    to: Party,
}

impl Direction {
    fn rule(&self) -> Rule {
        self.rules.borrow().rule(self.from, self.to)
    }

    /// Waits until it is not blocked.
    async fn whole(mut self) {
        let (from, to) = (self.from, self.to);
        // The rules outlive the proxy; without them nothing is blocked.
        let _ = self.rules.wait_for(|table| !table.rule(from, to).blocked).await;
    }

    /// Waits as long as a piece takes.
    async fn pass(&self, bytes: usize) {
        let rule = self.rule();
        let rate = if rule.bytes_per_second == 0 { 0.0 } else { bytes as f64 / rule.bytes_per_second as f64 };
        let wait = rule.delay + rule.jitter.mul_f64(rand::random()) + Duration::from_secs_f64(rate);
        if !wait.is_zero() {
            sleep(wait).await;
        }
        if self.rule().blocked {
            self.clone().whole().await;
        }
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: Direction) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece).await?;
        direction.pass(read).await;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(piece.get(..read).unwrap_or_default()).await?;
    }
}
