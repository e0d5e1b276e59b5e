//! Disks that fail, tear, rot, fill and slow down under a cluster at work: the node that has one ends by itself, or
//! refuses; nothing wrong is ever read, and nothing acknowledged is lost. By hand:
//! `BAD_DISK_ROUNDS=10 cargo test --release -p kv-tests --test bad_disks`.
//!
//! Not here: disks that are nearly full (disk_full), files damaged while nobody runs (bad_days), lost power (power_cut).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_proto::pb::v1::{Consistency, GetRequest, PutRequest, ReadOptions, ScanRequest};
use kv_tests::bad_disk::{BadDisk, Fault, Rule};
use kv_tests::campaign::{Campaign, setting};
use kv_tests::cluster::Cluster;
use kv_tests::load::{Load, Running};
use kv_tests::node::NodeProcess;
use kv_tests::raw::{self, header};
use kv_tests::settings::Settings;
use kv_tests::wait;

/// Of all faults, in a run of all tests.
const ROUNDS: u64 = 1;
/// By `just proof`.
const PROOF_ROUNDS: u64 = 10;
const WITHIN: Duration = Duration::from_secs(30);

/// What the node with the disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It says why and ends.
    Ends,
    /// It ends, or what failed was a compaction, which the engine does again.
    MayEnd,
    /// It dies of the fault itself.
    Dies,
    /// It ends, or fails the read, or reads again: never a wrong value.
    NeverWrong,
    /// It goes on.
    GoesOn,
}

const LOG: (&str, &str) = ("/data/log/", ".log");
const TABLES: (&str, &str) = ("/data/data/", ".sst");
const NOTE: (&str, &str) = ("/data/log/", "ACKNOWLEDGED");
const ALL: (&str, &str) = ("/data/", "");

/// What happens, to which files, how often, and what the node does then.
type Case = (&'static str, Fault, (&'static str, &'static str), u32, Then);

const CASES: [Case; 13] = [
    ("EIO of a sync of the log", Fault::SyncFails, LOG, 1, Then::Ends),
    ("EIO of a sync of a table", Fault::SyncFails, TABLES, 1, Then::MayEnd),
    ("EIO of a write of the note", Fault::WriteFails, NOTE, 1, Then::Ends),
    ("EIO of a write of the log", Fault::WriteFails, LOG, 1, Then::Ends),
    ("EIO of a write of a table", Fault::WriteFails, TABLES, 1, Then::MayEnd),
    ("ENOSPC of the log", Fault::DiskFull, LOG, 1, Then::Ends),
    ("ENOSPC of a table", Fault::DiskFull, TABLES, 1, Then::MayEnd),
    ("torn write of the log", Fault::Torn, LOG, 1, Then::Dies),
    ("torn write of a table", Fault::Torn, TABLES, 1, Then::Dies),
    ("rot in a table", Fault::Rot, TABLES, u32::MAX, Then::NeverWrong),
    ("short read of a table", Fault::ShortRead, TABLES, u32::MAX, Then::NeverWrong),
    ("EIO of a read of a table", Fault::ReadFails, TABLES, u32::MAX, Then::NeverWrong),
    ("slow syncs", Fault::Slow, ALL, 30, Then::GoesOn),
];

/// As the page of `just proof` calls it.
fn kind(fault: Fault) -> &'static str {
    match fault {
        Fault::SyncFails | Fault::WriteFails | Fault::ReadFails => "eio",
        Fault::DiskFull => "enospc",
        Fault::Torn => "torn",
        Fault::Rot => "rot",
        Fault::ShortRead => "short read",
        Fault::SyncLies => "lie",
        Fault::Slow => "slow",
    }
}

fn load() -> Load {
    Load { pace: Duration::from_millis(30), ..Load::default() }
}

/// A cluster whose nodes have such disks, under load.
struct Nodes {
    cluster: Cluster,
    disks: Vec<BadDisk>,
    load: Running,
}

impl Nodes {
    async fn start(folder: &Path) -> Result<Self> {
        let settings = Settings::default()
            .line("flush_interval = \"200ms\"")
            .line("log_entries_kept = 200")
            .line("log_cache = \"1MiB\"");
        let mut cluster = Cluster::start(settings).await?;
        let mut disks = Vec::new();
        for number in 1..=3 {
            let disk = BadDisk::new(&folder.join(number.to_string()))?;
            cluster.node_mut(number).stop().await?;
            cluster.node_mut(number).preload(Some(disk.library()));
            cluster.restart(number).await?;
            disks.push(disk);
        }
        let load = load().start(&cluster.client().await?);
        Ok(Self { cluster, disks, load })
    }

    fn disk(&self, number: usize) -> Result<&BadDisk> {
        self.disks.get(number - 1).context("a disk for each node")
    }

    async fn hit(&self, number: usize, then: Then) -> Result<()> {
        wait::until("the fault to be met", WITHIN, || async {
            let seen = if then == Then::NeverWrong { self.read_all(number).await } else { Ok(()) };
            ensure!(seen.is_err() || self.disk(number)?.hits()? > 0, "nobody came there");
            Ok(seen)
        })
        .await?
    }

    /// What the node itself reads; an error is an answer, a wrong value is not.
    async fn read_all(&self, number: usize) -> Result<()> {
        let Ok(mut kv) = raw::kv(&self.cluster.node(number).address()).await else { return Ok(()) };
        let read = Some(ReadOptions { consistency: Consistency::Stale.into(), ..ReadOptions::default() });
        let mut cursor = bytes::Bytes::new();
        loop {
            let request = ScanRequest { header: header(), page_size: 500, cursor, read, ..ScanRequest::default() };
            let Ok(page) = kv.scan(request).await else { return Ok(()) };
            let page = page.into_inner();
            for entry in &page.entries {
                let (key, value) = (String::from_utf8(entry.key.to_vec())?, String::from_utf8_lossy(&entry.value));
                let right = !key.starts_with("put/") || value.trim_start().starts_with(&format!("{key}="));
                ensure!(right, "WRONG: {key} is {value}");
            }
            if page.cursor.is_empty() {
                return Ok(());
            }
            cursor = page.cursor;
        }
    }

    async fn meet(&mut self, number: usize, (_, fault, (part, suffix), times, then): Case) -> Result<()> {
        if then == Then::NeverWrong {
            // Nothing is in its memory then.
            self.cluster.node_mut(number).kill().await?;
            self.cluster.restart(number).await?;
        }
        let skip = rand::random_range(0..5);
        self.disk(number)?.arm(Rule { fault, part, suffix, skip, times })?;
        self.hit(number, then).await?;
        let ended = match then {
            Then::Ends | Then::Dies => {
                let status = self.cluster.node_mut(number).end_within(WITHIN).await?.context("it goes on")?;
                ensure!(status.code() == (then == Then::Ends).then_some(1), "it ended with {status}");
                true
            }
            Then::MayEnd | Then::NeverWrong => {
                self.cluster.node_mut(number).end_within(Duration::from_secs(2)).await?.is_some()
            }
            Then::GoesOn => false,
        };
        self.load.progress(100).await?;
        self.disk(number)?.disarm()?;
        if ended {
            self.cluster.restart(number).await?;
        }
        ensure!(!self.cluster.node_mut(number).has_ended()?, "it ended later");
        self.read_all(number).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_fails_ends_by_itself_and_nothing_wrong_is_read_and_nothing_lost() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut nodes = Nodes::start(folder.path()).await?;
    let mut campaign = Campaign::new("disk");
    let mut number = 0;
    for _ in 0..setting("BAD_DISK_ROUNDS", ROUNDS, PROOF_ROUNDS) {
        nodes.load.progress(500).await?;
        for case in CASES {
            let (name, fault, ..) = case;
            number = number % 3 + 1;
            let began = std::time::Instant::now();
            nodes.meet(number, case).await.with_context(|| format!("{name} on node {number}"))?;
            println!("{name} on node {number}: {:?}", began.elapsed());
            campaign.fault(kind(fault));
        }
        let next = load().start(&nodes.cluster.client().await?);
        campaign.judged(&std::mem::replace(&mut nodes.load, next).verify().await?);
    }
    let Nodes { cluster, load, .. } = nodes;
    load.stop().await?;
    campaign.finish()?;
    cluster.finish_storm().await
}

fn put(number: u32) -> PutRequest {
    PutRequest { header: header(), key: format!("key-{number}").into(), value: "value".into() }
}

/// Alone, it answers each write after its own sync: whatever is acknowledged after a fault was not synced as it should be.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_node_acknowledges_nothing_after_the_first_fault_of_its_log() -> Result<()> {
    for fault in [Fault::SyncFails, Fault::WriteFails, Fault::DiskFull] {
        let folder = tempfile::tempdir()?;
        let disk = BadDisk::new(&folder.path().join("disk"))?;
        let lines = ["bootstrap = true", "default_shards = 1"].map(str::to_owned);
        let mut node = NodeProcess::new(1, folder.path(), &lines)?;
        node.preload(Some(disk.library()));
        node.start().await?;
        let mut kv = wait::until("the first write", WITHIN, || async {
            let mut kv = raw::kv(&node.address()).await?;
            kv.put(put(0)).await?;
            Ok(kv)
        })
        .await?;
        disk.arm(Rule { fault, part: LOG.0, suffix: LOG.1, skip: 50, times: 1 })?;
        let mut acknowledged = vec![0];
        // Until the port is closed.
        for number in 1..5_000 {
            let met = disk.hits()? > 0;
            let answer = kv.put(put(number)).await;
            ensure!(answer.is_err() || !met, "{fault:?}: write {number} was acknowledged after it");
            if answer.is_ok() {
                acknowledged.push(number);
            } else if node.has_ended()? {
                break;
            }
        }
        let status = node.end_within(WITHIN).await?.with_context(|| format!("{fault:?}: it goes on"))?;
        ensure!(status.code() == Some(1), "{fault:?}: {status}");
        ensure!(acknowledged.len() > 20, "{fault:?}: only {} writes before", acknowledged.len());
        disk.disarm()?;
        node.start().await?;
        for number in acknowledged {
            wait::until(&format!("key-{number} to be read"), WITHIN, || async {
                let mut kv = raw::kv(&node.address()).await?;
                let get = GetRequest { header: header(), key: format!("key-{number}").into(), read: None };
                ensure!(kv.get(get).await?.into_inner().entry.is_some(), "it is lost");
                Ok(())
            })
            .await?;
        }
        node.stop().await?;
    }
    Ok(())
}
