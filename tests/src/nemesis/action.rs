//! What each fault does to a cluster, and how it is undone.
//!
//! Invariants: what cannot be done now (the node is down already) is skipped and counted as such, never an error; an
//! error is a node that does not do what it must.
//!
//! Not here: when (storm).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kv_proto::ids::SYSTEM_KEYSPACE;
use kv_proto::pb::admin::v1::{MoveReplicaRequest, ShardListing, TransferLeaderRequest};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::timeout;

use super::schedule::{Kind, Step, Target};
use crate::admin::Admin;
use crate::clock::{self, Wrong};
use crate::cluster::Cluster;
use crate::network::Network;
use crate::network::rules::{Link, Party, Rule};

/// Seconds; far beyond `clock_offset_max`.
const CLOCK_JUMP: i64 = 600;
/// Percent; leases allow for a tenth.
const CLOCK_DRIFT: u32 = 5;
/// Left of a disk that is filled: too little to take writes, and less than the engines of a node that goes on writing fill.
const DISK_LEFT_MEBIBYTES: u64 = 60;
/// Administration during a storm may hang on what is cut off.
const ADMIN_WITHIN: Duration = Duration::from_secs(3);

/// What has to be undone.
#[derive(Debug)]
pub(super) enum Undo {
    /// Start what was killed.
    Start(Vec<usize>),
    /// Let it run again, if it is still this process.
    Resume(usize, Option<u32>),
    /// Start it again with the right clock.
    Clock(usize),
    /// End the fault of the network of this name.
    Links(u64),
    /// Make room again.
    Disk(usize),
}

/// Carries a fault out. None if it was not possible now.
pub(super) async fn begin(cluster: &mut Cluster, step: &Step, random: &mut StdRng) -> Result<Option<Option<Undo>>> {
    let number = match step.target {
        None => 0,
        Some(Target::Node(number)) => number,
        Some(Target::Leader) => match busiest_leader(cluster).await {
            Some((leader, _)) => leader,
            None => return Ok(None),
        },
    };
    match step.kind {
        Kind::Kill | Kind::Pause | Kind::Restart | Kind::ClockJump | Kind::ClockDrift
            if !cluster.node(number).is_started() =>
        {
            Ok(None)
        }
        Kind::Kill => {
            cluster.node_mut(number).kill().await?;
            Ok(Some(Some(Undo::Start(vec![number]))))
        }
        Kind::KillAll => {
            cluster.kill_all().await?;
            Ok(Some(Some(Undo::Start(cluster.nodes().map(|node| node.number()).collect()))))
        }
        Kind::Pause => {
            cluster.node(number).pause()?;
            Ok(Some(Some(Undo::Resume(number, cluster.node(number).pid()))))
        }
        Kind::Restart => restart(cluster, number).await,
        Kind::ClockJump => {
            let seconds = if random.random_bool(0.5) { CLOCK_JUMP } else { -CLOCK_JUMP };
            set_clock(cluster, number, Some(Wrong::By(seconds))).await?;
            Ok(Some(Some(Undo::Clock(number))))
        }
        Kind::ClockDrift => {
            let percent = if random.random_bool(0.5) { 100 + CLOCK_DRIFT } else { 100 - CLOCK_DRIFT };
            set_clock(cluster, number, Some(Wrong::Rate(percent))).await?;
            Ok(Some(Some(Undo::Clock(number))))
        }
        Kind::HalfOpen | Kind::Reset => {
            let rules = network(cluster)?.rules();
            if step.kind == Kind::Reset {
                rules.reset(number)
            } else {
                rules.freeze(number)
            }
            Ok(Some(None))
        }
        Kind::FillDisk => match cluster.disk(number) {
            None => Ok(None),
            Some(disk) => {
                disk.leave(DISK_LEFT_MEBIBYTES)?;
                Ok(Some(Some(Undo::Disk(number))))
            }
        },
        Kind::Transfer => Ok(transfer(cluster, random).await.map(|()| None)),
        Kind::Move => Ok(relocate(cluster, random).await.map(|()| None)),
        Kind::Isolate
        | Kind::Mute
        | Kind::Deafen
        | Kind::CutClients
        | Kind::CutOff
        | Kind::Slow
        | Kind::Throttle
        | Kind::Jitter
        | Kind::Refuse => {
            let links = links(step.kind, number, cluster.nodes().count());
            Ok(Some(Some(Undo::Links(network(cluster)?.rules().begin(links)))))
        }
    }
}

/// Takes a fault back.
pub(super) async fn undo(cluster: &mut Cluster, undo: Undo) -> Result<()> {
    match undo {
        Undo::Start(numbers) => {
            for number in numbers {
                if !cluster.node(number).is_started() {
                    cluster.node_mut(number).start().await?;
                }
            }
            Ok(())
        }
        Undo::Resume(number, pid) => {
            let same = pid.is_some() && cluster.node(number).pid() == pid;
            if same { cluster.node(number).resume() } else { Ok(()) }
        }
        Undo::Clock(number) => set_clock(cluster, number, None).await,
        Undo::Links(fault) => {
            network(cluster)?.rules().end(fault);
            Ok(())
        }
        Undo::Disk(number) => cluster.disk(number).map_or(Ok(()), |disk| disk.empty()),
    }
}

fn network(cluster: &Cluster) -> Result<&Network> {
    cluster.network().context("a storm needs a cluster whose network can be broken")
}

/// Starts it again with a wrong clock or the right one; if it is down, its next start has that clock.
async fn set_clock(cluster: &mut Cluster, number: usize, wrong: Option<Wrong>) -> Result<()> {
    let node = cluster.node_mut(number);
    let folder = node.log().parent().context("a log lies in a folder")?.to_owned();
    node.preload(wrong.map(|wrong| clock::library(wrong, &folder)).transpose()?);
    if node.is_started() {
        node.kill().await?;
        node.start().await?;
    }
    Ok(())
}

/// SIGTERM may find the node cut off from whom it hands leadership to, or paused: then it is killed.
async fn restart(cluster: &mut Cluster, number: usize) -> Result<Option<Option<Undo>>> {
    let node = cluster.node_mut(number);
    if timeout(ADMIN_WITHIN, node.stop()).await.is_err() && node.is_started() {
        node.kill().await?;
    }
    Ok(Some(Some(Undo::Start(vec![number]))))
}

/// What is wrong with which directions.
fn links(kind: Kind, number: usize, nodes: usize) -> Vec<Link> {
    let it = Party::Node(number);
    let others = || (1..=nodes).filter(|other| *other != number).map(Party::Node);
    let out = |rule: Rule| others().map(move |other| (it, other, rule)).collect::<Vec<Link>>();
    let into = |rule: Rule| others().map(move |other| (other, it, rule)).collect::<Vec<Link>>();
    let clients = |rule: Rule| vec![(Party::Clients, it, rule), (it, Party::Clients, rule)];
    let blocked = Rule::blocked();
    match kind {
        Kind::Isolate => [out(blocked), into(blocked)].concat(),
        Kind::Mute => out(blocked),
        Kind::Deafen => into(blocked),
        Kind::CutClients => clients(blocked),
        Kind::CutOff => [out(blocked), into(blocked), clients(blocked)].concat(),
        Kind::Slow => {
            let rule = Rule { delay: Duration::from_millis(60), ..Rule::default() };
            [out(rule), into(rule), clients(rule)].concat()
        }
        Kind::Throttle => {
            let rule = Rule { bytes_per_second: 256 << 10, ..Rule::default() };
            [out(rule), into(rule)].concat()
        }
        Kind::Refuse => {
            let rule = Rule { refused: true, ..Rule::default() };
            [into(rule), clients(rule)].concat()
        }
        Kind::Jitter => {
            let rule = Rule { jitter: Duration::from_millis(40), ..Rule::default() };
            let parties: Vec<Party> = (1..=nodes).map(Party::Node).chain([Party::Clients]).collect();
            let from = |from: Party| parties.iter().map(move |to| (from, *to, rule));
            parties.iter().flat_map(|party| from(*party)).collect()
        }
        Kind::Kill
        | Kind::KillAll
        | Kind::Pause
        | Kind::Restart
        | Kind::ClockJump
        | Kind::ClockDrift
        | Kind::HalfOpen
        | Kind::Reset
        | Kind::FillDisk
        | Kind::Transfer
        | Kind::Move => vec![],
    }
}

/// All shards, as a node tells that answers.
async fn shards(cluster: &Cluster) -> Option<Vec<ShardListing>> {
    for node in cluster.nodes().filter(|node| node.is_started()) {
        let asked = async { Admin::to(&node.address()).await?.shards("").await };
        if let Ok(Ok(shards)) = timeout(ADMIN_WITHIN, asked).await {
            return Some(shards);
        }
    }
    None
}

fn leader_of(listing: &ShardListing) -> Option<u64> {
    listing.replicas.iter().find(|replica| replica.role == "leader").map(|replica| replica.node_id)
}

/// The node that leads most of the shards the load writes to, and those.
pub(super) async fn busiest_leader(cluster: &Cluster) -> Option<(usize, Vec<u64>)> {
    let mut led: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for listing in shards(cluster).await? {
        let (leader, shard) = (leader_of(&listing), listing.shard.unwrap_or_default());
        if let Some(leader) = leader.filter(|_| shard.keyspace_id != SYSTEM_KEYSPACE.0) {
            led.entry(leader).or_default().push(shard.shard_id);
        }
    }
    let (leader, shards) = led.into_iter().max_by_key(|(_, shards)| shards.len())?;
    let leader = usize::try_from(leader).ok().filter(|leader| (1..=cluster.nodes().count()).contains(leader))?;
    Some((leader, shards))
}

/// Any of them.
fn drawn<T: Copy>(random: &mut StdRng, among: &[T]) -> Option<T> {
    among.get(random.random_range(0..among.len().max(1))).copied()
}

async fn transfer(cluster: &Cluster, random: &mut StdRng) -> Option<()> {
    let shards = shards(cluster).await?;
    let listing = shards.get(random.random_range(0..shards.len().max(1)))?;
    let leader = leader_of(listing);
    let to: Vec<u64> =
        listing.replicas.iter().map(|replica| replica.node_id).filter(|node| Some(*node) != leader).collect();
    let request =
        TransferLeaderRequest { shard_id: listing.shard.as_ref()?.shard_id, to_node_id: drawn(random, &to)?, epoch: 0 };
    asked(cluster, async |mut admin| admin.service().transfer_leader(request).await.is_ok()).await
}

async fn relocate(cluster: &Cluster, random: &mut StdRng) -> Option<()> {
    let shards = shards(cluster).await?;
    let listing = shards.get(random.random_range(0..shards.len().max(1)))?;
    let on: Vec<u64> = listing.replicas.iter().map(|replica| replica.node_id).collect();
    let free: Vec<u64> = (1..=cluster.nodes().count() as u64).filter(|node| !on.contains(node)).collect();
    let request = MoveReplicaRequest {
        shard_id: listing.shard.as_ref()?.shard_id,
        from_node_id: drawn(random, &on)?,
        to_node_id: drawn(random, &free)?,
        epoch: 0,
    };
    asked(cluster, async |mut admin| admin.service().move_replica(request).await.is_ok()).await
}

/// Asks the first node that answers; a refusal (another action runs) counts as not done.
async fn asked(cluster: &Cluster, ask: impl AsyncFn(Admin) -> bool) -> Option<()> {
    let asking = async { ask(cluster.admin().await.ok()?).await.then_some(()) };
    timeout(ADMIN_WITHIN, asking).await.ok().flatten()
}
