//! What nodes hold in memory, and what they spend on doing nothing.
//!
//! Not here: data larger than memory (large).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_client::Consistency;
use kv_load::process::{Usage, usage};
use kv_load::{Chooser, ClusterTarget, Distribution, Mix, Plan, Workload};
use kv_proto::pb::admin::v1::{CreateKeyspaceRequest, KeyspaceState};
use kv_tests::cluster::Cluster;
use kv_tests::node::NodeProcess;
use kv_tests::settings::Settings;
use kv_tests::wait;

use crate::record::{Idle, Memory, rounded};
use crate::shapes::{KEY_BYTES, VALUE_BYTES};

/// Shards that do nothing, with a replica on each of three nodes.
const SHARDS: u32 = 1000;
/// For a thousand shards to be created and to fall asleep.
const CREATED_WITHIN: Duration = Duration::from_secs(300);
/// Over which processor time is counted; the kernel counts in steps of 10 ms.
const WINDOW: Duration = Duration::from_secs(20);
/// For what a start or a load leaves behind to be done.
const SETTLE: Duration = Duration::from_secs(5);
/// For the leaders of many new shards to be spread evenly: a shard that changes its leader is not idle.
const SPREAD: Duration = Duration::from_secs(90);
/// The load of the memory part.
const MILLION: u64 = 1_000_000;
/// As many as a bulk load would use.
const LOAD_BATCH: u64 = 500;
const KIBIBYTE: f64 = 1024.0;

/// A thousand idle shards.
pub(crate) async fn idle(lines: &[String]) -> Result<Idle> {
    let settings = Settings { lines: lines.to_vec(), ..Settings::default().shards(1) };
    let cluster = Cluster::start(settings).await?;
    tokio::time::sleep(SETTLE).await;
    let before = usages(&cluster)?;
    create(&cluster).await?;
    asleep(&cluster).await?;
    tokio::time::sleep(SPREAD).await;
    // A leader that moved woke its shard.
    asleep(&cluster).await?;
    let began = usages(&cluster)?;
    tokio::time::sleep(WINDOW).await;
    let ended = usages(&cluster)?;
    cluster.discard().await?;
    let percent = |(began, ended): (&Usage, &Usage)| {
        rounded(100.0 * (ended.processor - began.processor).as_secs_f64() / WINDOW.as_secs_f64())
    };
    let grown = |(before, ended): (&Usage, &Usage)| {
        rounded((kibibytes(ended.resident) - kibibytes(before.resident)) / f64::from(SHARDS))
    };
    Ok(Idle {
        shards: SHARDS,
        node_percent: began.iter().zip(&ended).map(percent).collect(),
        replica_kib: before.iter().zip(&ended).map(grown).collect(),
    })
}

async fn create(cluster: &Cluster) -> Result<()> {
    let request = CreateKeyspaceRequest { name: "wide".to_owned(), shards: SHARDS, ..CreateKeyspaceRequest::default() };
    cluster.admin().await?.service().create_keyspace(request).await?;
    wait::until("the keyspace to be ready", CREATED_WITHIN, || async {
        let keyspaces = cluster.admin().await?.catalog().await?.keyspaces;
        let keyspace = keyspaces.into_iter().find(|keyspace| keyspace.name == "wide").context("not there")?;
        ensure!(keyspace.state() == KeyspaceState::Ready, "it is {:?}", keyspace.state());
        Ok(())
    })
    .await
}

async fn asleep(cluster: &Cluster) -> Result<()> {
    wait::until("all of its replicas to hibernate", CREATED_WITHIN, || async {
        // Rarely enough that the question does not keep the nodes busy.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let shards = cluster.admin().await?.shards("wide").await?;
        let replicas: Vec<bool> =
            shards.iter().flat_map(|shard| &shard.replicas).map(|replica| replica.hibernated).collect();
        let awake = replicas.iter().filter(|asleep| !**asleep).count();
        ensure!(replicas.len() == 3 * SHARDS as usize && awake == 0, "{awake} of {} are awake", replicas.len());
        Ok(())
    })
    .await
}

/// Nodes without data, then with a million keys.
pub(crate) async fn memory(lines: &[String]) -> Result<Memory> {
    let settings = Settings { lines: lines.to_vec(), ..Settings::default().shards(0) };
    let cluster = Cluster::start(settings).await?;
    tokio::time::sleep(SETTLE).await;
    let empty = resident(&cluster)?;
    let client = cluster.client().await?;
    let target = ClusterTarget::new(client.keyspace("default"), Consistency::Linearizable);
    let mut peak = empty.clone();
    kv_load::load_keys(&plan(), &target, LOAD_BATCH, |_| raise(&mut peak, resident(&cluster).unwrap_or_default()))
        .await
        .context("loading a million keys")?;
    tokio::time::sleep(SETTLE).await;
    let million = resident(&cluster)?;
    raise(&mut peak, million.clone());
    client.close().await;
    cluster.discard().await?;
    Ok(Memory { empty_mib: empty, million_mib: million, million_peak_mib: peak })
}

fn plan() -> Plan {
    Plan {
        mix: Mix::of(Workload::Put, 0),
        chooser: Chooser::new(Distribution::Uniform, MILLION),
        latest: false,
        clients: 1,
        keys: MILLION,
        key_bytes: KEY_BYTES,
        value_bytes: VALUE_BYTES,
        batch: 1,
        page: 1,
        rate: None,
        warm_up: Duration::ZERO,
        duration: Duration::ZERO,
        seed: 1,
    }
}

/// The larger of each pair.
pub(crate) fn raise(peak: &mut [f64], now: Vec<f64>) {
    for (peak, now) in peak.iter_mut().zip(now) {
        *peak = peak.max(now);
    }
}

/// MiB of each node.
pub(crate) fn resident(cluster: &Cluster) -> Result<Vec<f64>> {
    Ok(usages(cluster)?.iter().map(|usage| rounded(kibibytes(usage.resident) / KIBIBYTE)).collect())
}

fn usages(cluster: &Cluster) -> Result<Vec<Usage>> {
    let pids = cluster.nodes().filter_map(NodeProcess::pid);
    pids.map(|pid| Ok(usage(&pid.to_string())?)).collect()
}

#[allow(clippy::cast_precision_loss)]
fn kibibytes(bytes: u64) -> f64 {
    bytes as f64 / KIBIBYTE
}
