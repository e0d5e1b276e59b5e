//! What a node offers to those who watch it and find their way in: metrics, probes, health and reflection.
//!
//! Not here: what makes a node unready (clocks, disk_full, membership, seeds); limits of the listeners (crowds).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kv_tests::cluster::Cluster;
use kv_tests::node::NodeProcess;
use kv_tests::open_metrics::Exposition;
use kv_tests::settings::Settings;
use kv_tests::{bare, http, raw, wait};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

const WITHIN: Duration = Duration::from_secs(30);
const KEYS: usize = 50;
/// Of kv-raft, in the order in which a request meets them.
const STAGES: [&str; 7] = ["queue", "propose", "fsync", "replicate", "commit", "apply", "read"];
/// What is said of each shard's replica, beside its role.
const OF_SHARDS: [&str; 6] = [
    "kv_shard_leader",
    "kv_shard_term",
    "kv_shard_last_index",
    "kv_shard_committed_index",
    "kv_shard_applied_index",
    "kv_shard_durable_index",
];
/// The whole node, and each service that people and clients call.
const HEALTH_OF: [&str; 3] = ["", "kv.v1.KvService", "kv.admin.v1.AdminService"];

async fn scrape(node: &NodeProcess) -> Result<Exposition> {
    let answer = http::exchange(&node.http_address(), "/metrics").await?;
    ensure!(answer.status == 200, "/metrics answers {}", answer.status);
    ensure!(answer.header("content-type").starts_with("application/openmetrics-text; version=1.0.0"), "{answer:?}");
    Exposition::parse(&answer.body)
}

/// Scrapes of all nodes at a moment when each shard has one leader and nobody lags.
async fn settled(cluster: &Cluster) -> Result<Vec<Exposition>> {
    wait::until("every follower to be caught up", WITHIN, || async {
        let mut scrapes = Vec::new();
        for node in cluster.nodes() {
            scrapes.push(scrape(node).await?);
        }
        let mut leaders: BTreeMap<String, u64> = BTreeMap::new();
        for scrape in &scrapes {
            for leads in scrape.samples("kv_shard_leader") {
                *leaders.entry(leads.label("shard").to_owned()).or_default() += u64::from(leads.value > 0.5);
            }
            let lagging: Vec<_> = scrape.samples("kv_shard_lag_entries").filter(|lag| lag.value > 0.0).collect();
            ensure!(lagging.is_empty(), "{lagging:?}");
        }
        ensure!(leaders.values().all(|leaders| *leaders == 1), "{leaders:?}");
        Ok(scrapes)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_time_every_stage_of_a_request() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    cluster.voters(3).await?;
    let client = cluster.client().await?;
    for n in 0..KEYS {
        client.put(format!("key{n}"), "value").await?;
        client.get(format!("key{n}")).await?;
    }
    let scrapes = settled(&cluster).await?;
    for scrape in &scrapes {
        let foreign: Vec<&str> = scrape.families().filter(|name| !name.starts_with("kv_")).collect();
        ensure!(foreign.is_empty(), "families of another name: {foreign:?}");
        ensure!(scrape.kind("kv_stage_seconds") == Some("histogram"), "{:?}", scrape.kind("kv_stage_seconds"));
        let stages: BTreeSet<&str> = scrape.samples("kv_stage_seconds_count").map(|s| s.label("stage")).collect();
        ensure!(stages == BTreeSet::from(STAGES), "{stages:?}");
        // Each node leads shards and follows others.
        for stage in STAGES {
            let passed = scrape.value("kv_stage_seconds_count", &[("stage", stage)])?;
            let took = scrape.value("kv_stage_seconds_sum", &[("stage", stage)])?;
            ensure!(passed > 0.0 && took > 0.0, "{stage}: {passed} passages of {took} s");
        }
    }
    let served = |call: &str| -> Result<f64> {
        scrapes.iter().map(|scrape| scrape.value("kv_requests_served_total", &[("call", call)])).sum()
    };
    for call in ["put", "get"] {
        ensure!(served(call)? >= KEYS as f64, "{call}: {}", served(call)?);
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_each_shard_its_role_term_indexes_and_lag() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    cluster.voters(3).await?;
    let client = cluster.client().await?;
    for n in 0..KEYS {
        client.put(format!("key{n}"), "value").await?;
    }
    let listings = cluster.admin().await?.shards("").await?;
    let shards: BTreeSet<String> =
        listings.iter().filter_map(|listing| Some(listing.shard.as_ref()?.shard_id.to_string())).collect();
    for scrape in settled(&cluster).await? {
        for name in OF_SHARDS {
            let told: BTreeSet<String> = scrape.samples(name).map(|sample| sample.label("shard").to_owned()).collect();
            ensure!(told == shards, "{name} is told of {told:?}");
        }
        for shard in &shards {
            let of = |name: &str| scrape.value(name, &[("shard", shard)]);
            let (applied, committed) = (of("kv_shard_applied_index")?, of("kv_shard_committed_index")?);
            ensure!(
                applied <= committed && committed <= of("kv_shard_last_index")?,
                "shard {shard}: indexes out of order"
            );
            ensure!(applied > 0.0 && of("kv_shard_term")? > 0.0, "shard {shard} is at nothing");
            let role = |name: &str| scrape.value("kv_shard_role", &[("shard", shard), ("role", name)]);
            let leads = of("kv_shard_leader")? > 0.5;
            ensure!(role(if leads { "leader" } else { "follower" })? > 0.5, "shard {shard} has another role");
            // The leader tells of each of the two others.
            let lags = scrape.samples("kv_shard_lag_entries").filter(|sample| sample.label("shard") == shard);
            let nodes: BTreeSet<&str> = lags.map(|sample| sample.label("node")).collect();
            ensure!(nodes.len() == if leads { 2 } else { 0 }, "shard {shard}: lag of {nodes:?}");
        }
    }

    // A follower that is away lags by what is written meanwhile.
    cluster.node_mut(3).kill().await?;
    for n in 0..KEYS {
        client.put(format!("key{n}"), "value").await?;
    }
    wait::until("the lag of node 3 to be told", WITHIN, || async {
        let mut worst = 0.0_f64;
        for node in [1, 2] {
            let scrape = scrape(cluster.node(node)).await?;
            let lags = scrape.samples("kv_shard_lag_entries").filter(|sample| sample.label("node") == "3");
            worst = lags.map(|sample| sample.value).fold(worst, f64::max);
        }
        ensure!(worst > 1.0, "it lags by {worst} entries");
        Ok(())
    })
    .await?;
    cluster.restart(3).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_its_cluster_lives_and_says_why_it_is_not_ready() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (nobody, mut node) = (NodeProcess::new(1, folder.path(), &[])?, NodeProcess::new(2, folder.path(), &[])?);
    node.configure(&[format!("join = [{:?}]", nobody.address())])?;
    node.start().await?;
    let (status, said) = http::get(&node.http_address(), "/livez").await?;
    ensure!((status, said.as_str()) == (200, "ok\n"), "{status}: {said}");
    for path in ["/readyz", "/readyz?verbose"] {
        let (status, said) = http::get(&node.http_address(), path).await?;
        ensure!(
            status == 503 && said.contains("[-] node: ") && said.ends_with("not ready\n"),
            "{path}: {status}: {said}"
        );
    }
    // What was counted so far can be scraped; of its replicas nothing is known yet.
    ensure!(scrape(&node).await?.samples("kv_shard_term").count() == 0);
    node.kill().await
}

/// An entry of many callers fits into one frame, and so is one write to the socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_frames_that_hold_what_many_callers_write() -> Result<()> {
    const CALLERS: u32 = 256;
    const PUT_BYTES: u32 = 256;
    let cluster = Cluster::of_three().await?;
    for node in cluster.nodes() {
        let said = bare::frame_bytes_max(&node.address()).await?;
        ensure!(said >= Some(CALLERS * PUT_BYTES), "frames to node {} hold {said:?} bytes", node.number());
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_node_lists_its_checks_only_when_asked() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    for node in cluster.nodes() {
        let (status, said) = http::get(&node.http_address(), "/livez").await?;
        ensure!((status, said.as_str()) == (200, "ok\n"), "/livez: {status}: {said}");
        let (status, said) = http::get(&node.http_address(), "/readyz").await?;
        ensure!((status, said.as_str()) == (200, "ok\n"), "/readyz: {status}: {said}");
        let (status, said) = http::get(&node.http_address(), "/readyz?verbose").await?;
        ensure!(status == 200 && said.ends_with("ok\n"), "{status}: {said}");
        for check in ["node", "catalog", "disk", "clock"] {
            ensure!(said.lines().any(|line| line == format!("[+] {check}")), "no check {check}: {said}");
        }
        let (status, _) = http::get(&node.http_address(), "/nothing").await?;
        ensure!(status == 404, "{status}");
    }
    cluster.finish().await
}

async fn health(channel: &Channel, service: &str) -> Result<ServingStatus, tonic::Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(HealthClient::new(channel.clone()).check(request).await?.into_inner().status())
}

/// Follows the health of a service; the first answer is what it is now.
async fn watch(channel: &Channel, service: &str) -> Result<tonic::Streaming<HealthCheckResponse>> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let mut stream = HealthClient::new(channel.clone()).watch(request).await?.into_inner();
    let first = stream.next().await.context("the stream ends at once")??;
    ensure!(first.status() == ServingStatus::Serving, "{service:?} is {:?}", first.status());
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_served_as_a_whole_and_by_service() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    for node in cluster.nodes() {
        let channel = raw::channel(&node.address()).await?;
        for service in HEALTH_OF {
            // It follows the readiness by half a second.
            wait::until(&format!("{service:?} to be served"), WITHIN, || async {
                let status = health(&channel, service).await?;
                ensure!(status == ServingStatus::Serving, "{status:?}");
                Ok(())
            })
            .await?;
        }
        let unknown =
            health(&channel, "kv.v1.Nothing").await.err().context("a service that is not there is healthy")?;
        ensure!(unknown.code() == tonic::Code::NotFound, "{unknown}");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_says_to_those_still_connected_that_it_serves_no_more() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let channel = raw::channel(&cluster.node(3).address()).await?;
    let mut watches = Vec::new();
    for service in HEALTH_OF {
        let stream = wait::until(&format!("{service:?} to be served"), WITHIN, || watch(&channel, service)).await?;
        watches.push((service, stream));
    }
    cluster.node(3).tell_to_stop()?;
    let http_address = cluster.node(3).http_address();
    let unready = wait::until("/readyz to say that it stops", WITHIN, || async {
        let (status, said) = http::get(&http_address, "/readyz").await?;
        ensure!(status == 503 && said.contains("[-] node: it is stopping"), "{status}: {said}");
        Ok(())
    });
    let told = async {
        for (service, stream) in &mut watches {
            let next = tokio::time::timeout(WITHIN, stream.next()).await.context("nothing is said")?;
            let next = next.with_context(|| format!("the stream of {service:?} ends without a word"))??;
            ensure!(next.status() == ServingStatus::NotServing, "{service:?} is {:?}", next.status());
        }
        Ok(())
    };
    tokio::try_join!(unready, told)?;
    let refused = raw::channel(&cluster.node(3).address()).await;
    ensure!(refused.is_err(), "a stopping node takes new connections");
    drop((watches, channel));
    let status = cluster.node_mut(3).stopped().await?;
    ensure!(status.success(), "{status}");
    cluster.restart(3).await?;
    cluster.finish().await
}

/// What reflection answers to one question.
async fn reflect(channel: &Channel, question: MessageRequest) -> Result<MessageResponse> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    let answer: ServerReflectionResponse = answers.next().await.context("no answer")??;
    answer.message_response.context("an empty answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_every_service_and_describes_its_calls() -> Result<()> {
    let cluster = Cluster::start(Settings::default().nodes(1)).await?;
    let channel = raw::channel(&cluster.node(1).address()).await?;
    let answer = reflect(&channel, MessageRequest::ListServices(String::new())).await?;
    let MessageResponse::ListServicesResponse(listed) = answer else { bail!("{answer:?}") };
    let names: BTreeSet<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    let expected = [
        ("kv.v1.KvService", "CompareAndSet"),
        ("kv.admin.v1.AdminService", "ListShards"),
        ("kv.raft.v1.TransportService", "Exchange"),
        ("kv.raft.v1.PeerService", "Join"),
        ("grpc.health.v1.Health", "Watch"),
        ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo"),
    ];
    for (service, call) in expected {
        ensure!(names.contains(service), "{service} is missing among {names:?}");
        let answer = reflect(&channel, MessageRequest::FileContainingSymbol(service.to_owned())).await?;
        let MessageResponse::FileDescriptorResponse(files) = answer else { bail!("{service}: {answer:?}") };
        let names_call = |file: &Vec<u8>| file.windows(call.len()).any(|part| part == call.as_bytes());
        ensure!(files.file_descriptor_proto.iter().any(names_call), "{service} is described without its call {call}");
    }
    let unknown = reflect(&channel, MessageRequest::FileContainingSymbol("kv.v1.Nothing".to_owned())).await;
    ensure!(matches!(unknown, Ok(MessageResponse::ErrorResponse(_)) | Err(_)), "of nothing it says {unknown:?}");
    cluster.finish().await
}
