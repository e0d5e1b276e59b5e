//! A disk that fills up takes its node out of the way of writes, and never the data of others with it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_client::Client;
use kv_proto::errors::ServiceError;
use kv_proto::pb::admin::v1::ReplicaStatus;
use kv_proto::pb::v1::{GetRequest, PutRequest};
use kv_tests::admin::Admin;
use kv_tests::disk::SmallDisk;
use kv_tests::load::Load;
use kv_tests::node::NodeProcess;
use kv_tests::raw::{self, header};
use kv_tests::{http, wait};

const WITHIN: Duration = Duration::from_secs(60);
/// Below this a node takes no writes, below half of it no entries.
const FREE_MIN: &str = "disk_free_min = \"100MiB\"";

/// Three nodes, each with a small disk of its own.
struct Nodes {
    nodes: Vec<NodeProcess>,
    disks: Vec<SmallDisk>,
}

impl Nodes {
    /// None where mounting is not allowed.
    async fn start(below: &Path) -> Result<Option<Self>> {
        let mut nodes = (1..=3).map(|number| NodeProcess::new(number, below, &[])).collect::<Result<Vec<_>>>()?;
        let seeds: Vec<String> = nodes.iter().map(|node| format!("{:?}", node.address())).collect();
        let seeds = format!("join = [{}]", seeds.join(", "));
        let lines = ["bootstrap = true", &seeds, "default_shards = 3", FREE_MIN, "disk_check_interval = \"100ms\""];
        let mut disks = Vec::new();
        for node in &mut nodes {
            let Some(disk) = SmallDisk::mount(&node.data_dir(), 200)? else {
                eprintln!("SKIPPED: a small filesystem can only be mounted by root with the right to");
                return Ok(None);
            };
            disks.push(disk);
            node.configure(&lines.map(str::to_owned))?;
            node.start().await?;
        }
        let started = Self { nodes, disks };
        started.written("first").await?;
        Ok(Some(started))
    }

    async fn client(&self) -> Result<Client> {
        let client = Client::builder().endpoints(self.nodes.iter().map(NodeProcess::address));
        Ok(client.timeout(Duration::from_secs(10)).connect().await?)
    }

    /// Writes until it is acknowledged.
    async fn written(&self, key: &str) -> Result<()> {
        wait::until("a write to be acknowledged", WITHIN, || async {
            self.client().await?.put(key, "value").await?;
            Ok(())
        })
        .await
    }

    /// What the first node says of its replicas, once it is so.
    async fn first(&self, what: &str, is_so: impl Fn(&[ReplicaStatus], &[ReplicaStatus]) -> bool) -> Result<()> {
        wait::until(what, WITHIN, || async {
            let first = self.nodes.first().context("three nodes")?;
            let held = Admin::to(&first.address()).await?.node_status().await?.replicas;
            let mut others = Vec::new();
            for node in self.nodes.iter().skip(1) {
                others.extend(Admin::to(&node.address()).await?.node_status().await?.replicas);
            }
            ensure!(is_so(&held, &others), "it says {held:?}");
            Ok(())
        })
        .await
    }

    async fn stop(mut self) -> Result<()> {
        for node in &mut self.nodes {
            ensure!(node.stop().await?.success(), "node {} did not stop well", node.number());
        }
        Ok(())
    }
}

fn leads(replica: &ReplicaStatus) -> bool {
    replica.role == "leader"
}

/// Whether a replica is behind the leader of its shard.
fn lags(replica: &ReplicaStatus, others: &[ReplicaStatus]) -> bool {
    let leader = others.iter().find(|other| other.shard_id == replica.shard_id && leads(other));
    leader.is_some_and(|leader| replica.last_index < leader.committed_index)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_full_disk_leads_nothing_and_follows_again_once_there_is_room() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(nodes) = Nodes::start(folder.path()).await? else { return Ok(()) };
    let [disk, ..] = nodes.disks.as_slice() else { anyhow::bail!("three disks") };
    nodes.first("node 1 to lead", |held, _| held.iter().any(leads)).await?;
    let load = Load::default().start(&nodes.client().await?);
    load.progress(100).await?;

    disk.leave(75)?;
    nodes.first("node 1 to hand its leaderships over", |held, _| !held.is_empty() && !held.iter().any(leads)).await?;
    load.progress(100).await?;
    disk.leave(40)?;
    nodes.first("node 1 to refuse entries", |held, others| held.iter().any(|replica| lags(replica, others))).await?;
    load.progress(100).await?;
    let (status, said) = http::get(&nodes.nodes[0].http_address(), "/readyz?verbose").await?;
    ensure!(status == 200 && said.contains("[!] disk"), "{status}: {said}");

    disk.empty()?;
    nodes
        .first("node 1 to have everything and to lead again", |held, others| {
            held.iter().any(leads) && !held.iter().any(|replica| lags(replica, others))
        })
        .await?;
    let report = load.verify().await?;
    ensure!(report.not_applied + report.unknown == 0, "requests failed: {report}");
    nodes.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_disks_are_full_writes_are_refused_and_reads_go_on_until_there_is_room() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(nodes) = Nodes::start(folder.path()).await? else { return Ok(()) };
    nodes.disks.iter().try_for_each(|disk| disk.leave(75))?;
    for node in &nodes.nodes {
        wait::until("writes to be refused and reads served", WITHIN, || async {
            let mut kv = raw::kv(&node.address()).await?;
            // Another key: it may be taken before the node looks at its disk.
            let put = PutRequest { header: header(), key: "second".into(), value: "other".into() };
            let status = kv.put(put).await.err().context("still accepted")?;
            let error = ServiceError::from_status(&status);
            ensure!(error.reason() == "READ_ONLY" && error.retry_after().is_some(), "{error:?}");
            ensure!(status.code() == tonic::Code::ResourceExhausted, "{status:?}");
            let get = GetRequest { header: header(), key: "first".into(), read: None };
            ensure!(kv.get(get).await?.into_inner().entry.is_some_and(|entry| entry.value == "value"), "not as it was");
            Ok(())
        })
        .await?;
    }
    nodes.disks.iter().try_for_each(SmallDisk::empty)?;
    nodes.written("after").await?;
    nodes.stop().await
}
