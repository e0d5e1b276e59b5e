//! A cluster of real processes, from start to the check of its logs.
//!
//! Invariants:
//! - node ids follow the numbers (1, 2, ...), since nodes start one after the other;
//! - a test ends with [`Cluster::finish`]; without it (a failure) the folder is kept and its place printed.
//!
//! Not here: load and what it must find (load, kv-checkers).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;
use kv_client::Client;
use kv_proto::pb::admin::v1::ReplicaRole;
use tempfile::TempDir;

use crate::admin::Admin;
use crate::disk::SmallDisk;
use crate::http;
use crate::image::ImageDisk;
use crate::logs;
use crate::network::Network;
use crate::node::NodeProcess;
use crate::settings::Settings;
use crate::wait;

/// From the last start until every shard has a leader; generous, since a loaded machine of two cores runs this.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Of the disk of each node whose disk can be filled; storms write far less.
const DISK_MEBIBYTES: u64 = 1024;
/// One request of a test's own client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Nodes that belong together.
#[derive(Debug)]
pub struct Cluster {
    folder: Option<TempDir>,
    settings: Settings,
    network: Option<Network>,
    nodes: Vec<NodeProcess>,
    disks: BTreeMap<usize, SmallDisk>,
    images: BTreeMap<usize, ImageDisk>,
}

impl Cluster {
    /// Starts the nodes and waits until every shard has a leader.
    pub async fn start(settings: Settings) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kv-test-").tempdir()?;
        let network = settings.breakable.then(|| Network::new(folder.path().to_owned()));
        let mut cluster = Self::empty(folder, settings, network);
        for _ in 0..cluster.settings.nodes {
            cluster.join_node().await?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// As [`Cluster::start`], but node `number`, one more than the settings say if it joins, has these failpoints at its
    /// first start; tells whether it ended of them. It is killed otherwise, and started again without them.
    pub async fn start_with_failpoints(settings: Settings, number: usize, failpoints: &str) -> Result<(Self, bool)> {
        let folder = tempfile::Builder::new().prefix("kv-test-").tempdir()?;
        let mut cluster = Self::empty(folder, settings, None);
        for _ in 1..number {
            cluster.join_node().await?;
        }
        let below = cluster.folder.as_ref().context("the cluster is finished")?.path();
        let mut lines = cluster.settings.lines.clone();
        lines.extend(cluster.origin(number));
        let mut node = NodeProcess::new(number, below, &lines)?;
        node.set_failpoints(Some(failpoints.to_owned()));
        node.start_to_crash()?;
        let ended = node.end_within(CLIENT_TIMEOUT).await?;
        if ended.is_none() {
            node.kill().await?;
        }
        node.set_failpoints(None);
        node.start().await?;
        cluster.nodes.push(node);
        cluster.ready().await?;
        Ok((cluster, ended.is_some()))
    }

    fn empty(folder: TempDir, settings: Settings, network: Option<Network>) -> Self {
        let (nodes, disks, images) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { folder: Some(folder), settings, network, nodes, disks, images }
    }

    /// Three nodes with the usual settings.
    pub async fn of_three() -> Result<Self> {
        Self::start(Settings::default()).await
    }

    /// Node `number`, from 1.
    #[must_use]
    pub fn node(&self, number: usize) -> &NodeProcess {
        self.nodes.get(number - 1).expect("tests name nodes they started")
    }

    /// The same, to start and stop it.
    pub fn node_mut(&mut self, number: usize) -> &mut NodeProcess {
        self.nodes.get_mut(number - 1).expect("tests name nodes they started")
    }

    /// All of them, started or not.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeProcess> {
        self.nodes.iter()
    }

    /// Its network, if it can be broken.
    #[must_use]
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The disk of node `number`, if it has one of its own.
    #[must_use]
    pub fn disk(&self, number: usize) -> Option<&SmallDisk> {
        self.disks.get(&number)
    }

    /// From here on lines of WARN and ERROR with this part are no surprise.
    pub fn expect(&mut self, part: impl Into<String>) {
        self.settings.expected.push(part.into());
    }

    /// Starts one more node, as a new member; returns its number. It is a member when this returns.
    pub async fn join_node(&mut self) -> Result<usize> {
        let number = self.nodes.len() + 1;
        let folder = self.folder.as_ref().context("the cluster is finished")?.path();
        let mut lines = self.settings.lines.clone();
        lines.extend(self.origin(number));
        let mut node = NodeProcess::new(number, folder, &lines)?;
        if let Some(network) = &mut self.network {
            node.advertise(network.add(number, &node.address()).await?);
            node.configure(&lines)?;
            self.disks.extend(SmallDisk::mount(&node.data_dir(), DISK_MEBIBYTES)?.map(|disk| (number, disk)));
        }
        if self.settings.mains {
            self.images.extend(ImageDisk::mount(&node.data_dir())?.map(|image| (number, image)));
        }
        node.start().await?;
        let address = node.address();
        self.nodes.push(node);
        wait::until(&format!("node {number} to be a member"), READY_WITHIN, || async {
            let status = Admin::to(&address).await?.node_status().await?;
            ensure!(status.node_id == number as u64, "it is node {}", status.node_id);
            Ok(())
        })
        .await?;
        Ok(number)
    }

    /// How node `number` finds its cluster while its folder is empty.
    fn origin(&self, number: usize) -> Vec<String> {
        if number == 1 {
            return vec![
                "bootstrap = true".to_owned(),
                format!("bootstrap_nodes = {}", self.settings.nodes),
                format!("default_shards = {}", self.settings.default_shards),
            ];
        }
        let members: Vec<String> = self.nodes.iter().map(|node| format!("{:?}", node.advertised())).collect();
        vec![format!("join = [{}]", members.join(", "))]
    }

    /// Kills all nodes that run, at once.
    pub async fn kill_all(&mut self) -> Result<()> {
        try_join_all(self.nodes.iter_mut().filter(|node| node.is_started()).map(NodeProcess::kill)).await?;
        Ok(())
    }

    /// Whether the power of every node can be cut.
    #[must_use]
    pub fn has_mains(&self) -> bool {
        self.images.len() == self.nodes.len()
    }

    /// Takes the power from all disks at once, then from the nodes: what was not synced is gone. None runs afterwards.
    pub async fn cut_power(&mut self) -> Result<()> {
        ImageDisk::cut(self.images.values())?;
        self.kill_all().await?;
        try_join_all(self.images.values().map(ImageDisk::power_on)).await?;
        Ok(())
    }

    /// Starts all nodes that were stopped or killed, at once; fails if one ended by itself.
    pub async fn start_missing(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            ensure!(!node.has_ended()?, "node {} ended by itself; its log is {}", node.number(), node.log().display());
        }
        try_join_all(self.nodes.iter_mut().filter(|node| !node.is_started()).map(NodeProcess::start)).await?;
        Ok(())
    }

    /// Starts all nodes that do not run, at once, and waits until every shard has a leader.
    pub async fn start_all(&mut self) -> Result<()> {
        try_join_all(self.nodes.iter_mut().filter(|node| !node.is_started()).map(NodeProcess::start)).await?;
        self.ready().await
    }

    /// Starts node `number` again and waits until every shard has a leader.
    pub async fn restart(&mut self, number: usize) -> Result<()> {
        self.node_mut(number).start().await?;
        self.ready().await
    }

    /// Waits until every started node is ready and every shard has a leader.
    pub async fn ready(&self) -> Result<()> {
        for node in self.nodes.iter().filter(|node| node.is_started()) {
            wait::until(&format!("node {} to be ready", node.number()), READY_WITHIN, || async {
                let (status, body) = http::get(&node.http_address(), "/readyz?verbose").await?;
                ensure!(status == 200, "/readyz answers {status}: {body}");
                Ok(())
            })
            .await?;
        }
        wait::until("every shard to have a leader", READY_WITHIN, || async {
            let mut admin = self.admin().await?;
            ensure!(!admin.shards("default").await?.is_empty(), "the default keyspace has no shards yet");
            for listing in admin.shards("").await? {
                let shard = listing.shard.as_ref().map_or(0, |shard| shard.shard_id);
                let leaders = listing.replicas.iter().filter(|replica| replica.role == "leader").count();
                ensure!(leaders == 1, "shard {shard} has {leaders} leaders");
                // Until the catalog knows, it begins no action on the shard.
                let creating = listing.shard.as_ref().is_some_and(|shard| shard.creating);
                ensure!(!creating, "the catalog does not know yet that shard {shard} has a leader");
            }
            Ok(())
        })
        .await
    }

    /// Waits until every shard, that of the catalog too, has a voter on so many nodes: it begins with fewer.
    pub async fn voters(&self, wanted: usize) -> Result<()> {
        wait::until(&format!("every shard to have {wanted} voters"), READY_WITHIN, || async {
            for listing in self.admin().await?.shards("").await? {
                let shard = listing.shard.as_ref().map_or(0, |shard| shard.shard_id);
                // As the group itself has them, and as the catalog says.
                let leader = listing.replicas.iter().find(|replica| replica.role == "leader").context("no leader")?;
                let in_catalog = listing.shard.iter().flat_map(|shard| &shard.replicas);
                let in_catalog = in_catalog.filter(|replica| replica.role() == ReplicaRole::Voter).count();
                let voters = (leader.voter_replica_ids.len(), in_catalog);
                ensure!(voters == (wanted, wanted), "shard {shard} has {voters:?}");
            }
            Ok(())
        })
        .await
    }

    /// Administration through any node that answers.
    pub async fn admin(&self) -> Result<Admin> {
        let mut last = anyhow::anyhow!("no node is started");
        for node in self.nodes.iter().filter(|node| node.is_started()) {
            match Admin::to(&node.address()).await {
                Ok(admin) => return Ok(admin),
                Err(reason) => last = reason,
            }
        }
        Err(last)
    }

    /// Addresses of all nodes, started or not.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(NodeProcess::advertised).collect()
    }

    /// A client of its own that knows all nodes.
    pub async fn client(&self) -> Result<Client> {
        Ok(Client::builder().endpoints(self.endpoints()).timeout(CLIENT_TIMEOUT).connect().await?)
    }

    /// Ends the test: looks through the logs, stops the nodes gracefully, looks again, removes everything.
    pub async fn finish(mut self) -> Result<()> {
        self.no_surprises()?;
        let stops = self.nodes.iter_mut().filter(|node| node.is_started()).map(|node| async {
            let number = node.number();
            let status = node.stop().await?;
            ensure!(status.success(), "node {number} stopped with {status}");
            Ok(())
        });
        try_join_all(stops).await?;
        self.no_surprises()?;
        self.images.clear();
        self.folder = None;
        Ok(())
    }

    /// Ends a test of faults: warnings and errors are what it provoked, a panic is not.
    pub async fn finish_storm(mut self) -> Result<()> {
        for node in &self.nodes {
            ensure!(!logs::contains(&node.log(), "panicked")?, "node {} panicked", node.number());
        }
        let stops = self.nodes.iter_mut().filter(|node| node.is_started()).map(|node| async {
            let number = node.number();
            let status = node.stop().await?;
            ensure!(status.success(), "node {number} stopped with {status}");
            Ok(())
        });
        try_join_all(stops).await?;
        self.disks.clear();
        self.images.clear();
        self.folder = None;
        Ok(())
    }

    /// Kills the nodes and removes everything, whatever the logs say.
    pub async fn discard(mut self) -> Result<()> {
        self.kill_all().await?;
        self.disks.clear();
        self.images.clear();
        self.folder = None;
        Ok(())
    }

    fn no_surprises(&self) -> Result<()> {
        let mut surprises = Vec::new();
        for node in &self.nodes {
            let lines = logs::unexpected(&node.log(), &self.settings.expected)?;
            surprises.extend(lines.into_iter().map(|line| format!("node {}: {line}", node.number())));
        }
        if !surprises.is_empty() {
            surprises.sort();
            surprises.truncate(20);
            bail!("lines of WARN or ERROR that this test does not expect:\n{}", surprises.join("\n"));
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(folder) = self.folder.take() {
            eprintln!("the test did not finish: data and logs are kept in {}", folder.keep().display());
        }
    }
}
