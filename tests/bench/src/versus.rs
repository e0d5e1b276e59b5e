//! The load shapes on both systems, in short rounds that alternate, so that what else the machine does hits both alike.
//!
//! Not here: the shapes (shapes), what the figures say (goals).

use std::time::Duration;

use anyhow::Result;
use kv_client::{Client, Consistency};
use kv_load::{ClusterTarget, Plan, Target};
use kv_proto::pb::admin::v1::CreateKeyspaceRequest;
use kv_tests::cluster::Cluster;

use crate::awake::Awake;
use crate::etcd::{Etcd, Spread};
use crate::record::{Record, Sample};
use crate::shapes::{Keyspace, SPREAD_SHARDS, Shape};

/// Keys written at once while loading: etcd takes at most 128 in one transaction.
const LOAD_BATCH: u64 = 100;
/// Between two measurements, so that what one system still has to write is not the other's cost.
const SETTLE: Duration = Duration::from_millis(500);
/// As etcd's client has it.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    pub(crate) count: u64,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

/// The systems of a run; without etcd only our own is measured.
pub(crate) struct Systems {
    pub(crate) kv: Cluster,
    pub(crate) etcd: Option<(Etcd, Spread)>,
}

impl Systems {
    /// Writes all keys to a keyspace of ours, which is created if it is not there, and if it is the default one to etcd.
    pub(crate) async fn load(&self, keyspace: Keyspace, plan: &Plan) -> Result<()> {
        if keyspace == Keyspace::Spread {
            let name = keyspace.name().to_owned();
            let request = CreateKeyspaceRequest { name, shards: SPREAD_SHARDS, ..CreateKeyspaceRequest::default() };
            self.kv.admin().await?.create_keyspace(request).await?;
        }
        for target in self.kv_targets(keyspace, false)?.iter().take(1) {
            kv_load::load_keys(plan, target, LOAD_BATCH, |_| ()).await?;
        }
        if let (Keyspace::Default, Some((etcd, spread))) = (keyspace, &self.etcd) {
            for target in etcd.targets(*spread, false).await?.iter().take(1) {
                kv_load::load_keys(plan, target, LOAD_BATCH, |_| ()).await?;
            }
        }
        Ok(())
    }

    /// Runs one round of a shape on each system; every other round begins with the other one.
    pub(crate) async fn round(&self, shape: &Shape, rounds: Rounds, round: u64, record: &mut Record) -> Result<()> {
        let _awake = shape.awake.then(Awake::keep).transpose()?;
        let plan = || shape.plan(rounds.warm_up, rounds.duration, round);
        let etcd_first = round % 2 == 1;
        if etcd_first {
            self.etcd(shape, plan(), record).await?;
        }
        let pids: Vec<u32> = self.kv.nodes().filter_map(kv_tests::node::NodeProcess::pid).collect();
        let sample = measure("kv", shape, plan(), &self.kv_targets(shape.keyspace, shape.stale)?, &pids).await?;
        record.shapes.entry(shape.name.to_owned()).or_default().kv.push(sample);
        if !etcd_first {
            self.etcd(shape, plan(), record).await?;
        }
        Ok(())
    }

    /// Not again what another shape measured.
    async fn etcd(&self, shape: &Shape, plan: Plan, record: &mut Record) -> Result<()> {
        if let (Keyspace::Default, Some((etcd, spread))) = (shape.keyspace, &self.etcd) {
            if shape.only_reads() {
                etcd.calm().await?;
            }
            let targets = etcd.targets(*spread, shape.stale).await?;
            let sample = measure("etcd", shape, plan, &targets, &etcd.pids()).await?;
            record.shapes.entry(shape.name.to_owned()).or_default().etcd.push(sample);
        }
        Ok(())
    }

    /// One client library, which has one connection to each node.
    fn kv_targets(&self, keyspace: Keyspace, stale: bool) -> Result<Vec<ClusterTarget>> {
        let client = Client::builder().endpoints(self.kv.endpoints()).timeout(CLIENT_TIMEOUT).build_lazy()?;
        let consistency = if stale { Consistency::Stale { max: Duration::ZERO } } else { Consistency::Linearizable };
        Ok(vec![ClusterTarget::new(client.keyspace(keyspace.name()), consistency)])
    }
}

async fn measure<T: Target>(system: &str, shape: &Shape, plan: Plan, targets: &[T], pids: &[u32]) -> Result<Sample> {
    tokio::time::sleep(SETTLE).await;
    let report = kv_load::run(plan, targets, pids, |_, _| ()).await?;
    if let Some(failure) = report.all().failure {
        eprintln!("  {system} {}: {} failed, the first: {failure}", shape.name, report.all().failed);
    }
    let sample = Sample::from(&report);
    eprintln!(
        "  {:<16} {system:<5} {:>9.0}/s  p50 {:>7.0} us  p99 {:>7.0} us  nodes {:>6.1} us  client {:>5.1} us",
        shape.name, sample.keys_per_second, sample.p50_us, sample.p99_us, sample.nodes_us, sample.own_us
    );
    Ok(sample)
}
