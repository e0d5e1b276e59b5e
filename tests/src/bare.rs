//! gRPC as bare HTTP/2: what no client library lets its user do, as never making room for an answer, or asking for one by a
//! time that has passed already; and what a server says before any call.
//!
//! Not here: clients that keep the rules (raw).

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use kv_proto::errors::ServiceError;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Status;
use tonic::codegen::http::{HeaderMap, Request, Response};

/// A step that takes longer is hung.
const STEP: Duration = Duration::from_secs(30);

/// A connection that gives the server no more room than it is told to.
pub struct Bare {
    requests: SendRequest<Bytes>,
    _connection: JoinSet<()>,
}

impl Bare {
    /// Connects; each answer has room for `window` bytes until more is made.
    pub async fn connect(address: &str, window: u32) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        let builder = h2::client::Builder::new().initial_window_size(window).to_owned();
        let (requests, connection) = within(builder.handshake(stream)).await??;
        let mut tasks = JoinSet::new();
        // Why it ends is seen by the streams.
        tasks.spawn(async { _ = connection.await });
        Ok(Self { requests, _connection: tasks })
    }

    /// Sends a message to a method (as in `kv.v1.KvService/Get`); the response has its head and nothing of its body yet.
    pub async fn call(
        &mut self,
        method: &str,
        grpc_timeout: Option<&str>,
        message: &impl Message,
    ) -> Result<Response<RecvStream>> {
        let mut request = Request::post(format!("http://kv/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(timeout) = grpc_timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let encoded = message.encode_to_vec();
        let mut body = BytesMut::with_capacity(5 + encoded.len());
        body.put_u8(0);
        body.put_u32(u32::try_from(encoded.len())?);
        body.extend_from_slice(&encoded);
        let mut ready = within(self.requests.clone().ready()).await??;
        let (response, mut stream) = ready.send_request(request.body(())?, false)?;
        // A node that answers by the head alone, as if its time is over, may have ended the stream before; the answer tells.
        _ = stream.send_data(body.freeze(), true);
        Ok(within(response).await??)
    }
}

/// How many bytes one frame to a server may carry, as it says itself when a connection begins (RFC 9113); None if it does not.
pub async fn frame_bytes_max(address: &str) -> Result<Option<u32>> {
    const SETTINGS: u8 = 4;
    const MAX_FRAME_SIZE: u16 = 5;
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    within(stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")).await??;
    within(stream.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])).await??;
    let mut head = [0; 9];
    within(stream.read_exact(&mut head)).await??;
    let [high, middle, low, kind, ..] = head;
    ensure!(kind == SETTINGS, "a server begins with a frame of kind {kind}");
    let mut settings = vec![0; usize::try_from(u32::from_be_bytes([0, high, middle, low]))?];
    within(stream.read_exact(&mut settings)).await??;
    let mut settings = settings.as_slice();
    while settings.remaining() >= 6 {
        let (identifier, value) = (settings.get_u16(), settings.get_u32());
        if identifier == MAX_FRAME_SIZE {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// How a call ended, once its answer has been read to the end.
pub async fn ended(response: Response<RecvStream>) -> Result<Result<(), ServiceError>> {
    if let Some(refused) = status(response.headers()) {
        return Ok(Err(refused));
    }
    let mut body = response.into_body();
    while let Some(data) = within(body.data()).await? {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = within(body.trailers()).await??.context("a call ends with trailers")?;
    Ok(status(&trailers).map_or(Ok(()), Err))
}

/// The refusal that headers carry; None if they carry none.
#[must_use]
pub fn status(headers: &HeaderMap) -> Option<ServiceError> {
    let status = Status::from_header_map(headers)?;
    (status.code() != tonic::Code::Ok).then(|| ServiceError::from_status(&status))
}

async fn within<F: Future>(step: F) -> Result<F::Output> {
    timeout(STEP, step).await.context("a step of a bare call hangs")
}
