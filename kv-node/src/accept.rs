//! Connections on their way to the gRPC server.
//!
//! Invariants: a connection holds its place in the limit until it is dropped; only connections that began to speak are
//! handed on.
//!
//! Not here: HTTP/2 itself, its keepalive and limits (tonic).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::config::Config;
use crate::metrics::EdgeMetrics;
use crate::net::{TcpListener, TcpStream};

/// Connections that began to speak and wait for the server to take them.
const BEGUN: usize = 64;

/// After a failed accept (no file descriptors left) something must close before it helps to try again.
const ACCEPT_FAILED_WAIT: Duration = Duration::from_millis(50);

/// A connection within the limit.
pub struct Connection {
    stream: TcpStream,
    open: Gauge,
    _place: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// Accepts until `stop`.
pub fn incoming(
    listener: TcpListener,
    config: &Config,
    metrics: &Arc<EdgeMetrics>,
    (tasks, stop): (&TaskTracker, &CancellationToken),
) -> ReceiverStream<io::Result<Connection>> {
    let (begun, connections) = mpsc::channel(BEGUN);
    let places = Arc::new(Semaphore::new(usize::try_from(config.connections_max).unwrap_or(Semaphore::MAX_PERMITS)));
    let (handshake_timeout, metrics) = (config.handshake_timeout, Arc::clone(metrics));
    let (owner, stop) = (tasks.clone(), stop.clone());
    tasks.spawn(async move {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_FAILED_WAIT).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                metrics.connections_refused.inc();
                continue;
            };
            metrics.connections.inc();
            let mut connection = Connection { stream, open: metrics.connections.clone(), _place: place };
            let (begun, stop, metrics) = (begun.clone(), stop.clone(), Arc::clone(&metrics));
            owner.spawn(stop.run_until_cancelled_owned(async move {
                match tokio::time::timeout(handshake_timeout, connection.begins()).await {
                    // The server is gone only when the node stops.
                    Ok(true) => _ = begun.send(Ok(connection)).await,
                    Ok(false) | Err(_) => _ = metrics.connections_refused.inc(),
                }
            }));
        }
    });
    ReceiverStream::new(connections)
}

impl Connection {
    /// Whether the client says something before it hangs up.
    async fn begins(&mut self) -> bool {
        // Small answers must not wait for more to send; without it they are only slower.
        let _ = self.stream.set_nodelay(true);
        self.stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes > 0)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.stream.local_addr().ok(), remote_addr: self.stream.peer_addr().ok() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};
    use prometheus_client::registry::Registry;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn within<F: Future>(future: F) -> F::Output {
        tokio::time::timeout(Duration::from_secs(10), future).await.expect("it ends in time")
    }

    #[tokio::test]
    async fn silent_and_surplus_connections_are_closed_and_others_served() {
        let config = Config { connections_max: 2, handshake_timeout: Duration::from_millis(100), ..Config::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(EdgeMetrics::new(&mut Registry::default()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut connections = incoming(listener, &config, &metrics, (&tasks, &stop));

        let mut speaks = TcpStream::connect(address).await.unwrap();
        speaks.write_all(b"P").await.unwrap();
        let served = within(connections.next()).await.unwrap().unwrap();
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert_eq!(within(silent.read(&mut [0])).await.unwrap(), 0, "the silent one is closed");
        assert!(connections.next().now_or_never().is_none());

        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(b"P").await.unwrap();
        let other = within(connections.next()).await.unwrap().unwrap();
        let mut surplus = TcpStream::connect(address).await.unwrap();
        surplus.write_all(b"P").await.unwrap();
        // Closed with unread bytes, which TCP tells by a reset.
        assert!(matches!(within(surplus.read(&mut [0])).await, Ok(0) | Err(_)), "the surplus one is closed");
        assert_eq!((metrics.connections.get(), metrics.connections_refused.get()), (2, 2));

        drop((served, other));
        assert_eq!(metrics.connections.get(), 0);
        stop.cancel();
        tasks.close();
        within(tasks.wait()).await;
    }
}
