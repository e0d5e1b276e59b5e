//! `/metrics`, `/livez` and `/readyz` over HTTP.
//!
//! Invariants: `/livez` answers while the process runs its event loop, also before the node has started; `/readyz`
//! answers 200 only when every check passes.
//!
//! Not here: the checks (node, readiness); grpc.health.v1 (server).

mod scrape;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Telemetry;
use crate::node::NodeShared;
use crate::node::readiness::{Check, Readiness};

/// Scrapers and probes are few.
const CONNECTIONS_MAX: usize = 256;

/// A scrape takes milliseconds.
const END: Duration = Duration::from_secs(1);

/// Longest life of a connection: scrapers connect again, and connections that say nothing give their places back.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);

/// What the endpoints tell of.
pub struct Status {
    telemetry: Arc<Telemetry>,
    readiness: Arc<Readiness>,
    node: OnceLock<Arc<NodeShared>>,
}

impl Status {
    /// Of a node that has not started yet.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>, readiness: Arc<Readiness>) -> Self {
        Self { telemetry, readiness, node: OnceLock::new() }
    }

    /// The node has started.
    pub fn started(&self, node: Arc<NodeShared>) {
        assert!(self.node.set(node).is_ok(), "a node starts once");
    }
}

/// The listener while it runs.
pub struct Http {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Http {
    /// Begins to serve.
    #[must_use]
    pub fn start(listener: TcpListener, status: Arc<Status>) -> Self {
        Self::serve(listener, status, CONNECTION_LIFE)
    }

    fn serve(listener: TcpListener, status: Arc<Status>, life: Duration) -> Self {
        let http = Self { tasks: TaskTracker::new(), stop: CancellationToken::new() };
        let routes = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .with_state(status);
        let listener = Limited { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), life };
        let stop = http.stop.clone();
        let serving = axum::serve(listener, routes).with_graceful_shutdown(async move { stop.cancelled().await });
        http.tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the HTTP listener ended");
            }
        });
        http
    }

    /// Closes the listener and its connections.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        // A connection kept open by its client may outlive this.
        let _ = tokio::time::timeout(END, self.tasks.wait()).await;
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    let write = move || scrape::text(&status.telemetry.registry, status.node.get().map(AsRef::as_ref));
    // Off the async threads: it looks up tables and the disk.
    let Ok(text) = kv_raft::blocking::spawn_blocking(write).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], text).into_response()
}

async fn readyz(State(status): State<Arc<Status>>, Query(query): Query<HashMap<String, String>>) -> Response {
    let mut checks = status.readiness.report();
    let started = status.node.get().is_some();
    if !started {
        checks.push(("listener", Check::Failed("it does not serve requests yet".to_owned())));
    }
    let ready = started && status.readiness.is_ready();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, report(ready, &checks, query.contains_key("verbose"))).into_response()
}

fn report(ready: bool, checks: &[(&str, Check)], verbose: bool) -> String {
    let mut text = String::new();
    for (name, check) in checks {
        let (mark, why) = match check {
            Check::Passed => ("+", ""),
            Check::Warned(why) => ("!", why.as_str()),
            Check::Failed(why) => ("-", why.as_str()),
        };
        if verbose || mark == "-" {
            let colon = if why.is_empty() { "" } else { ": " };
            let _ = writeln!(text, "[{mark}] {name}{colon}{why}");
        }
    }
    text.push_str(if ready { "ok\n" } else { "not ready\n" });
    text
}

/// A listener with a bounded number of connections; more wait in the system's queue.
struct Limited {
    listener: TcpListener,
    places: Arc<Semaphore>,
    life: Duration,
}

/// A connection that gives its place back when dropped, and ends when its time is up.
struct Placed {
    stream: TcpStream,
    life: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl axum::serve::Listener for Limited {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        let _place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (Placed { stream, life: Box::pin(tokio::time::sleep(self.life)), _place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

mod placed {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Placed;

    impl AsyncRead for Placed {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if self.life.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            Pin::new(&mut self.stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Placed {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_node_that_has_not_started_lives_but_is_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let http = Http::start(listener, Arc::new(Status::new(Arc::default(), Arc::default())));
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let ready = ask(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("[-] listener"), "{ready}");
        let metrics = ask(address, "/metrics").await;
        assert!(metrics.contains("kv_stage_seconds_bucket") && metrics.trim_end().ends_with("# EOF"), "{metrics}");
        http.shutdown().await;
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_the_endpoints_from_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(Status::new(Arc::default(), Arc::default()));
        let http = Http::serve(listener, status, Duration::from_millis(100));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
        drop(silent);
        http.shutdown().await;
    }

    #[test]
    fn a_report_lists_every_check_only_when_asked() {
        let checks = [
            ("catalog", Check::Passed),
            ("disk", Check::Warned("low".to_owned())),
            ("shards", Check::Failed("no leader".to_owned())),
        ];
        assert_eq!(report(false, &checks, false), "[-] shards: no leader\nnot ready\n");
        let verbose = "[+] catalog\n[!] disk: low\n[-] shards: no leader\nnot ready\n";
        assert_eq!(report(false, &checks, true), verbose);
    }
}
