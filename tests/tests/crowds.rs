//! Clients that vanish, stall or never speak: the node's memory stays bounded and others are served.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures::future::join_all;
use kv_proto::errors::ServiceError;
use kv_proto::pb::v1::{
    BatchGetRequest, GetRequest, PipelineCall, PipelineRequest, PutRequest, ScanRequest, ScanStreamRequest,
    pipeline_call,
};
use kv_tests::bare::{self, Bare};
use kv_tests::cluster::Cluster;
use kv_tests::raw::{self, header};
use kv_tests::settings::Settings;
use kv_tests::{runs, wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The preface and an empty SETTINGS frame: a client that then says no more.
const HALF_OPEN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

const CLIENTS: usize = 1000;
/// More than this is kept per vanished client: buffers of a whole message, not bookkeeping.
const GROWTH_MAX: u64 = 128 << 20;

fn put(key: String, value: Bytes) -> PutRequest {
    PutRequest { header: header(), key: key.into(), value }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_that_vanish_or_stay_silent_leave_memory_bounded() -> Result<()> {
    let cluster = Cluster::start(Settings::default().nodes(1).shards(1)).await?;
    let address = cluster.node(1).address();
    let mut kv = raw::kv(&address).await?;
    kv.put(put("key".to_owned(), Bytes::from_static(b"value"))).await?;
    let before = cluster.node(1).resident_bytes()?;

    // Half of them connect and stay silent, half begin HTTP/2 and then say no more.
    let mut silent = Vec::new();
    for n in 0..CLIENTS {
        let Ok(mut stream) = TcpStream::connect(&address).await else { continue };
        if n % 2 == 0 {
            let _ = stream.write_all(HALF_OPEN).await;
        }
        silent.push(stream);
    }
    ensure!(silent.len() > CLIENTS / 2, "only {} of {CLIENTS} could connect", silent.len());
    kv.put(put("during".to_owned(), Bytes::from_static(b"value"))).await.context("a write beside silent clients")?;

    // As many vanish with a request on its way.
    for _ in 0..CLIENTS / 50 {
        join_all((0..50).map(|_| vanish(&address))).await;
    }
    let grown = cluster.node(1).resident_bytes()?.saturating_sub(before);
    println!("{} silent and {CLIENTS} vanished clients: {} KiB more", silent.len(), grown >> 10);
    ensure!(grown < GROWTH_MAX, "{grown} bytes more");

    drop(silent);
    wait::until("a new client to be served", Duration::from_secs(30), || async {
        let mut kv = raw::kv(&address).await?;
        kv.put(put("after".to_owned(), Bytes::from_static(b"value"))).await?;
        Ok(())
    })
    .await?;
    cluster.finish().await
}

/// Sends a pipeline of requests and hangs up without reading. Whether it even connects does not matter.
async fn vanish(address: &str) {
    let Ok(mut kv) = raw::kv(address).await else { return };
    let get = |id| PipelineCall {
        id,
        request: Some(pipeline_call::Request::Get(GetRequest { header: header(), key: "key".into(), read: None })),
    };
    let requests = tokio_stream::iter([PipelineRequest { calls: (1..=20).map(get).collect() }]);
    // The answer is dropped as soon as it begins, and with it the connection.
    let _ = kv.pipeline(requests).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_leave_memory_bounded() -> Result<()> {
    let cluster = Cluster::start(Settings::default().nodes(1).shards(1)).await?;
    let address = cluster.node(1).address();
    let mut kv = raw::kv(&address).await?;
    for n in 0..64 {
        kv.put(put(format!("big{n}"), vec![b'v'; 256 << 10].into())).await?;
    }
    let before = cluster.node(1).resident_bytes()?;
    let mut stalled = Vec::new();
    for _ in 0..50 {
        let mut kv = raw::kv(&address).await?;
        let scan = ScanRequest { header: header(), page_size: 4, ..ScanRequest::default() };
        stalled.push(kv.scan_stream(ScanStreamRequest { scan: Some(scan), limit: 0 }).await?);
    }
    kv.put(put("during".to_owned(), Bytes::from_static(b"value"))).await?;
    let grown = cluster.node(1).resident_bytes()?.saturating_sub(before);
    println!("{} stalled scans of 16 MiB each: {} KiB more", stalled.len(), grown >> 10);
    // Without pacing all of them would hold 800 MiB.
    ensure!(grown < 2 * GROWTH_MAX, "{grown} bytes more");
    drop(stalled);
    cluster.finish().await
}

/// Gets that ask for four mebibytes each and make no room for them: 800 MiB, if all were made.
const UNREAD: usize = 200;
/// A node that needs their room drops unread answers within a minute.
const DROPPED_WITHIN: Duration = Duration::from_secs(75);

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_are_bounded_keep_no_write_out_and_are_dropped() -> Result<()> {
    let cluster =
        Cluster::start(Settings::default().nodes(1).shards(1).expect("answers that nobody reads are dropped")).await?;
    let address = cluster.node(1).address();
    let mut kv = raw::kv(&address).await?;
    let keys: Vec<Bytes> = (0..16).map(|n| Bytes::from(format!("big{n}"))).collect();
    for key in &keys {
        kv.put(PutRequest { header: header(), key: key.clone(), value: vec![b'v'; 256 << 10].into() }).await?;
    }
    let get = BatchGetRequest { header: header(), keys, read: None };
    let before = cluster.node(1).resident_bytes()?;

    let (mut unread, mut refused) = (Vec::new(), 0);
    // Four connections, so that it is the node's budget and not one connection's that bounds them.
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(Bare::connect(&address, 0).await?);
    }
    for bare in &mut connections {
        for _ in 0..UNREAD / 4 {
            let response = bare.call("kv.v1.KvService/BatchGet", None, &get).await?;
            match bare::status(response.headers()) {
                None => unread.push(response),
                Some(ServiceError::Overloaded { .. }) => refused += 1,
                Some(other) => bail!("a get beside unread answers: {other:?}"),
            }
        }
    }
    kv.put(put("during".to_owned(), Bytes::from_static(b"value"))).await.context("a write beside unread answers")?;
    let grown = cluster.node(1).resident_bytes()?.saturating_sub(before);
    println!("{} answers of 4 MiB unread, {refused} refused: {} KiB more", unread.len(), grown >> 10);
    ensure!(!unread.is_empty() && refused > 0, "{} unread, {refused} refused", unread.len());
    ensure!(grown < GROWTH_MAX, "{grown} bytes more");

    // Their clients are there and answer pings: only the node can end this.
    wait::until("unread answers to be dropped", DROPPED_WITHIN, || async {
        kv.clone().batch_get(get.clone()).await?;
        Ok(())
    })
    .await?;
    wait::until("their memory to be given back", Duration::from_secs(30), || async {
        let held = cluster.node(1).resident_bytes()?.saturating_sub(before);
        ensure!(held < grown / 2, "{held} of {grown} bytes are still held");
        Ok(())
    })
    .await?;
    cluster.finish().await
}

/// More than the node takes by itself, and than any pool of good clients would open.
const SILENT: usize = 10_000;
/// What a good client may wait meanwhile.
const SERVED_WITHIN: Duration = Duration::from_secs(1);
/// As large as the generated client sends it; eight times what a node takes.
const HUGE_BYTES: usize = (64 << 20) - 1024;
/// Who sends huge messages, one after the other.
const SHOUTERS: usize = 4;
/// Each.
const SHOUTS: usize = 5;
/// While 10,000 connections are open: 40 KiB each.
const CROWD_GROWTH_MAX: u64 = 400 << 20;

/// Sockets of a crowd, of this process and of the nodes it starts.
fn allow_sockets(sockets: u64) -> Result<()> {
    let limits = getrlimit(Resource::Nofile);
    ensure!(limits.maximum.is_none_or(|most| most >= sockets), "no {sockets} files may be open here: {limits:?}");
    if limits.current.is_some_and(|now| now < sockets) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(sockets), ..limits })?;
    }
    Ok(())
}

/// Sends messages that are too large; each must be refused.
async fn shout(address: String) -> Result<()> {
    for number in 0..SHOUTS {
        let mut kv = raw::kv(&address).await?;
        let put = put(format!("huge{number}"), vec![b'v'; HUGE_BYTES].into());
        ensure!(kv.put(put).await.is_err(), "a message of 64 MiB was accepted");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_silent_connections_and_huge_messages_keep_nobody_waiting() -> Result<()> {
    allow_sockets(SILENT as u64 + 2000)?;
    // So patient that all of them are there at once, to the end.
    let settings = Settings::default()
        .nodes(1)
        .shards(1)
        .line(format!("connections_max = {}", SILENT + 1000))
        .line("handshake_timeout = \"120s\"")
        .line("keepalive_interval = \"120s\"");
    let cluster = Cluster::start(settings).await?;
    let address = cluster.node(1).address();
    let mut kv = raw::kv(&address).await?;
    kv.put(put("key".to_owned(), Bytes::from_static(b"value"))).await?;
    let before = cluster.node(1).resident_bytes()?;

    let mut silent = Vec::new();
    for n in 0..SILENT {
        let mut stream = TcpStream::connect(&address).await.with_context(|| format!("connection {n}"))?;
        // Those that never begin are closed after a while: half of them have begun.
        if n % 2 == 0 {
            stream.write_all(HALF_OPEN).await?;
        }
        silent.push(stream);
    }
    let (mut slowest, mut most, mut served) = (Duration::ZERO, 0, 0);
    let mut shouters: JoinSet<Result<()>> = (0..SHOUTERS).map(|_| shout(address.clone())).collect();
    while !shouters.is_empty() {
        let began = Instant::now();
        // The one that was there before, and one that comes now.
        kv.put(put(format!("old{served}"), Bytes::from_static(b"value"))).await?;
        slowest = slowest.max(began.elapsed());
        let began = Instant::now();
        raw::kv(&address).await?.put(put(format!("new{served}"), Bytes::from_static(b"value"))).await?;
        slowest = slowest.max(began.elapsed());
        served += 2;
        most = most.max(cluster.node(1).resident_bytes()?);
        while let Some(ended) = shouters.try_join_next() {
            ended??;
        }
    }
    let grown = most.saturating_sub(before);
    println!("{served} writes beside {SILENT} silent connections, slowest {slowest:?}, {} MiB more", grown >> 20);
    let (slowest_ms, grown_mebibytes) = (slowest.as_millis() as u64, grown >> 20);
    runs::record("overload", json!({"silent": SILENT, "slowest_ms": slowest_ms, "grown_mebibytes": grown_mebibytes}))?;
    ensure!(slowest <= SERVED_WITHIN, "a good client waited {slowest:?}");
    ensure!(grown < CROWD_GROWTH_MAX, "{grown} bytes more");
    drop(silent);
    cluster.finish().await
}
