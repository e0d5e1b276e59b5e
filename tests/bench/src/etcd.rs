//! Three etcd processes on loopback, each with a folder of its own.
//!
//! Invariants: the processes and their data end with the value.
//!
//! Not here: the load on them (`etcd_client`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_tests::ports::free_port;
use kv_tests::wait;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use crate::etcd_client::{EtcdTarget, connect, grant_lease, status};

/// As many as our own cluster has.
const MEMBERS: usize = 3;
/// From the start until all members agree on a leader.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Where etcd stops taking writes; far above what a run writes, where the default could be reached.
const QUOTA_BYTES: u64 = 8 << 30;

/// etcd's default.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// To which members the connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Spread {
    /// One to each member.
    Members,
    /// All to the leader.
    Leader,
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Etcd {
    children: Vec<Child>,
    addresses: Vec<String>,
    _folder: TempDir,
}

impl Etcd {
    /// Starts the members and waits for a leader.
    pub(crate) async fn start(binary: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kv-bench-etcd-").tempdir()?;
        let ports = (0..MEMBERS).map(|_| Ok((free_port()?, free_port()?))).collect::<Result<Vec<_>>>()?;
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(number, (_, peer))| format!("n{number}=http://127.0.0.1:{peer}")).collect();
        let mut children = Vec::new();
        for (number, (client, peer)) in ports.iter().enumerate() {
            children.push(spawn(binary, folder.path(), number, *client, *peer, &peers.join(","))?);
        }
        let addresses = ports.iter().map(|(client, _)| format!("127.0.0.1:{client}")).collect();
        let etcd = Self { children, addresses, _folder: folder };
        wait::until("etcd to have a leader", READY_WITHIN, || async { etcd.leader().await.map(|_| ()) }).await?;
        Ok(etcd)
    }

    /// The version the members report.
    pub(crate) async fn version(&self) -> Result<String> {
        let address = self.addresses.first().context("there are members")?;
        Ok(status(connect(address).await?).await?.version)
    }

    /// Process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::id).collect()
    }

    /// Lets the members forget the buffers that earlier writes have grown: etcd 3.4 copies them for each read until two commits
    /// without keys have passed, which would slow reads down threefold for what happened before them.
    pub(crate) async fn calm(&self) -> Result<()> {
        let leader = connect(&self.leader().await?).await?;
        for _ in 0..2 {
            grant_lease(leader.clone()).await?;
            tokio::time::sleep(COMMIT_INTERVAL * 3).await;
        }
        Ok(())
    }

    /// As many connections as members; the first is to the leader, so that a single client has the shortest way.
    pub(crate) async fn targets(&self, spread: Spread, serializable: bool) -> Result<Vec<EtcdTarget>> {
        let leader = self.leader().await?;
        let others = self.addresses.iter().filter(|address| **address != leader);
        let mut targets = Vec::new();
        for address in std::iter::once(&leader).chain(others) {
            // A serializable read is any member's to answer, so it gains nothing from the leader.
            let to_leader = spread == Spread::Leader && !serializable;
            let channel = connect(if to_leader { &leader } else { address }).await?;
            targets.push(EtcdTarget::new(channel, serializable));
        }
        Ok(targets)
    }

    /// The leader's address, if all members name the same.
    async fn leader(&self) -> Result<String> {
        let mut found = None;
        let mut named = Vec::new();
        for address in &self.addresses {
            let channel: Channel = connect(address).await?;
            let status = status(channel).await?;
            let own = status.header.unwrap_or_default().member_id;
            if status.leader == own {
                found = Some(address.clone());
            }
            named.push(status.leader);
        }
        named.dedup();
        ensure!(named.len() == 1, "the members name {named:x?} as leader");
        found.context("no member leads")
    }
}

fn spawn(binary: &Path, folder: &Path, number: usize, client: u16, peer: u16, peers: &str) -> Result<Child> {
    let log = File::create(folder.join(format!("n{number}.log")))?;
    let data: PathBuf = folder.join(format!("n{number}"));
    let mut command = Command::new(binary);
    // The settings of whoever runs the benchmark are not etcd's.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
        command.env_remove(name);
    }
    command.arg(format!("--name=n{number}")).arg("--data-dir").arg(data);
    for (flag, port) in [("listen-client", client), ("advertise-client", client), ("listen-peer", peer)] {
        command.arg(format!("--{flag}-urls=http://127.0.0.1:{port}"));
    }
    command.arg(format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"));
    command.arg(format!("--initial-cluster={peers}")).arg("--initial-cluster-state=new");
    command.args(["--logger=zap", "--log-level=error"]).arg(format!("--quota-backend-bytes={QUOTA_BYTES}"));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    command.spawn().with_context(|| format!("starting {}", binary.display()))
}
