//! Clients that vanish, stall or never speak: the node's memory stays bounded and others are served.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::future::join_all;
use kv_proto::pb::v1::{
    GetRequest, PipelineCall, PipelineRequest, PutRequest, ScanRequest, ScanStreamRequest, pipeline_call,
};
use kv_tests::cluster::Cluster;
use kv_tests::raw::{self, header};
use kv_tests::settings::Settings;
use kv_tests::wait;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

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
