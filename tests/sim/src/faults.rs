//! When what breaks, and when it is mended: drawn as the run goes on.
//!
//! To add a kind: name it in `plan`, begin it in `Faults::begin`, and let what ends it be an [`End`]. It must end by
//! itself or in `Faults::heal`, which mends everything.
//!
//! Kinds of several steps that wait for what the cluster does are in `acts`.
//!
//! Invariants: every fault ends; nothing of a healed cluster remembers a fault but its nodes.
//!
//! Not here: which kinds a seed has (plan); what a crash loses (kv-raft, simulated).

mod acts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kv_client::admin::pb;
use kv_proto::ids::ShardId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, mpsc};
use turmoil::Sim;

use self::acts::Act;
use crate::node::name;
use crate::plan::Kind;
use crate::world::World;

/// How much faster a node's clocks may run, in thousandths: a fast one among slow ones, each off by a twentieth. Leases
/// must bear a tenth.
const DRIFT_MAX: u64 = 100;
/// Administrative calls that may wait; more faults than this at once do not fit a run.
const CALLS_MAX: usize = 256;

/// What ends a fault.
#[derive(Clone, Debug)]
enum End {
    /// Starts a node that is down.
    Start(usize),
    /// Starts a node that is down or stopped; one that does not stop in time is killed.
    StartStopped(usize),
    /// Starts these once all of them have stopped. Those that were started meanwhile listen to another call to stop.
    StartAll(Vec<(usize, Arc<Notify>)>),
    Repair(Vec<String>, Vec<String>),
    RepairOneWay(String, String),
    Release(String, String),
    Latency(String, String),
    Loss(String, String),
    Disk(usize),
    Clock(usize),
    Drift(usize),
    Undrain(u64),
    Speak,
}

/// A call to the cluster's administration.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    Transfer { shard: u64, to: u64 },
    Move { shard: u64, from: u64, to: u64 },
    Drain { node: u64 },
    Undrain { node: u64 },
}

/// See the module.
pub(crate) struct Faults {
    world: World,
    rng: StdRng,
    folder: PathBuf,
    next: u64,
    ends: BTreeMap<(u64, u64), End>,
    numbered: u64,
    down: Vec<bool>,
    act: Option<Act>,
    orders: mpsc::Sender<Order>,
    /// By kind.
    pub(crate) counts: BTreeMap<Kind, u64>,
}

impl Faults {
    /// The receiver is for [`carry_out`].
    pub(crate) fn new(world: &World, folder: &Path) -> (Self, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel(CALLS_MAX);
        let faults = Self {
            rng: StdRng::seed_from_u64(world.plan.seed ^ 0xfa17),
            folder: folder.to_owned(),
            next: 0,
            ends: BTreeMap::new(),
            numbered: 0,
            down: vec![false; world.plan.nodes],
            act: None,
            orders,
            counts: BTreeMap::new(),
            world: world.clone(),
        };
        (faults, receiver)
    }

    /// The next millisecond.
    pub(crate) fn tick(&mut self, sim: &mut Sim<'_>, now: u64) {
        while let Some(entry) = self.ends.first_entry().filter(|entry| entry.key().0 <= now) {
            let end = entry.remove();
            self.end(sim, end, now);
        }
        self.act(sim, now);
        if now < self.next {
            return;
        }
        let gap = self.world.plan.gap.mul_f64(self.rng.random_range(0.1..2.0));
        self.next = now + millis(gap).max(1);
        let kinds = self.world.plan.kinds.clone();
        if let Some(kind) = kinds.choose(&mut self.rng)
            && self.begin(sim, *kind, now)
        {
            *self.counts.entry(*kind).or_default() += 1;
            tracing::info!(kind = kind.name(), now, "fault");
        }
    }

    /// Mends everything.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>, now: u64) {
        for end in std::mem::take(&mut self.ends).into_values() {
            if let End::StartAll(told) = &end {
                self.start_all(sim, told, now);
            } else {
                self.end(sim, end, now);
            }
        }
        self.act = None;
        self.world.state.lock().only_reads = false;
        let all = self.everyone();
        for (one, other) in pairs(&all, &all).filter(|(one, other)| one < other) {
            sim.release(one, other);
            sim.repair(one, other);
        }
        for node in 0..self.down.len() {
            self.start(sim, node);
        }
        self.ends.clear();
    }

    fn everyone(&self) -> Vec<String> {
        let plan = &self.world.plan;
        (0..plan.nodes).map(name).chain((0..plan.clients).map(|client| format!("c{client}"))).collect()
    }

    fn after(&mut self, now: u64, range: std::ops::Range<u64>, end: End) {
        self.numbered += 1;
        let at = now + self.rng.random_range(range);
        self.ends.insert((at, self.numbered), end);
    }

    /// False if it cannot happen now.
    fn begin(&mut self, sim: &mut Sim<'_>, kind: Kind, now: u64) -> bool {
        let nodes = self.world.plan.nodes;
        let node = self.rng.random_range(0..nodes);
        let other = (node + self.rng.random_range(1..nodes)) % nodes;
        let pair = || (name(node), name(other));
        match kind {
            Kind::Crash => {
                if self.is_down(node) {
                    return false;
                }
                self.crash(sim, node);
                self.after(now, 20..3_000, End::Start(node));
            }
            Kind::PowerLoss => {
                for node in 0..nodes {
                    self.crash(sim, node);
                    self.after(now, 20..1_500, End::Start(node));
                }
            }
            Kind::Restart => {
                if self.is_down(node) {
                    return false;
                }
                self.seat(node, |seat| seat.stop.notify_one());
                self.after(now, 500..4_000, End::StartStopped(node));
            }
            Kind::StopAll => {
                let mut told = Vec::new();
                for node in (0..nodes).filter(|node| !self.is_down(*node)) {
                    self.seat(node, |seat| {
                        seat.stop.notify_one();
                        told.push((node, Arc::clone(&seat.stop)));
                    });
                }
                self.after(now, 500..4_000, End::StartAll(told));
            }
            Kind::Partition => {
                let (one, rest): (Vec<_>, Vec<_>) =
                    self.everyone().into_iter().partition(|_| self.rng.random_bool(0.4));
                if one.is_empty() || rest.is_empty() {
                    return false;
                }
                pairs(&one, &rest).for_each(|(one, other)| sim.partition(one, other));
                self.after(now, 50..4_000, End::Repair(one, rest));
            }
            Kind::OneWay => {
                sim.partition_oneway(pair().0, pair().1);
                self.after(now, 50..4_000, End::RepairOneWay(pair().0, pair().1));
            }
            Kind::Hold => {
                sim.hold(pair().0, pair().1);
                self.after(now, 20..2_000, End::Release(pair().0, pair().1));
            }
            Kind::SlowLink => {
                let latency = Duration::from_millis(self.rng.random_range(50..400));
                sim.set_link_max_message_latency(pair().0, pair().1, latency);
                self.after(now, 200..5_000, End::Latency(pair().0, pair().1));
            }
            Kind::Loss => {
                sim.set_link_fail_rate(pair().0, pair().1, 0.02);
                self.after(now, 50..1_500, End::Loss(pair().0, pair().1));
            }
            Kind::SlowDisk => {
                let times = self.rng.random_range(10..200);
                self.seat(node, |seat| seat.disk = times);
                self.after(now, 100..5_000, End::Disk(node));
            }
            Kind::Clock => {
                let ahead = self.rng.random_range(-600_000..=600_000);
                let ahead = ahead / if self.rng.random_bool(0.4) { 1 } else { 1_000 };
                self.seat(node, |seat| seat.clock_ms += ahead);
                self.after(now, 100..8_000, End::Clock(node));
            }
            Kind::Drift => {
                let thousandths = self.rng.random_range(1..=DRIFT_MAX);
                self.seat(node, |seat| seat.drift = thousandths);
                self.after(now, 1_000..10_000, End::Drift(node));
            }
            Kind::CrashLeader => {
                let Some((node, _)) = self.leader() else { return false };
                self.crash(sim, node);
                self.after(now, 1..1_500, End::Start(node));
            }
            Kind::CutLeader => {
                let Some((node, _)) = self.leader() else { return false };
                let (one, rest): (Vec<_>, Vec<_>) = (0..nodes).map(name).partition(|other| *other == name(node));
                pairs(&one, &rest).for_each(|(one, other)| sim.partition(one, other));
                self.after(now, 50..3_000, End::Repair(one, rest));
            }
            Kind::FastRestart => return self.act.is_none() && self.begin_fast_restart(now),
            Kind::FigureEight => return self.act.is_none() && self.begin_figure_eight(sim, now),
            Kind::Transfer => return self.transfer(),
            Kind::Move => return self.relocate(),
            Kind::Drain => {
                if nodes < 4 {
                    return false;
                }
                let node = self.node_id(node);
                self.order(Order::Drain { node });
                self.after(now, 1_000..6_000, End::Undrain(node));
            }
            Kind::Silence => {
                self.world.state.lock().silent = true;
                let least = millis(self.world.plan.hibernate_after) + 300;
                self.after(now, least..least + 2_500, End::Speak);
            }
        }
        true
    }

    fn end(&mut self, sim: &mut Sim<'_>, end: End, now: u64) {
        match end {
            End::Start(node) => self.start(sim, node),
            End::StartStopped(node) => {
                if !self.is_down(node) {
                    // Whatever is left of it is killed, as a supervisor does after its patience.
                    self.crash(sim, node);
                }
                self.after(now, 1..200, End::Start(node));
            }
            End::StartAll(told) => {
                let waits = self.told(&told).into_iter().any(|(_, has_stopped)| !has_stopped);
                if waits {
                    self.after(now, 100..200, End::StartAll(told));
                } else {
                    self.start_all(sim, &told, now);
                }
            }
            End::Repair(one, rest) => pairs(&one, &rest).for_each(|(one, other)| sim.repair(one, other)),
            End::RepairOneWay(from, to) => sim.repair_oneway(from, to),
            End::Release(one, other) => sim.release(one, other),
            End::Latency(one, other) => sim.set_link_max_message_latency(one, other, self.world.plan.latency),
            End::Loss(one, other) => sim.set_link_fail_rate(one, other, 0.0),
            End::Disk(node) => self.seat(node, |seat| seat.disk = 1),
            End::Clock(node) => self.seat(node, |seat| seat.clock_ms = 0),
            End::Drift(node) => self.seat(node, |seat| seat.drift = 0),
            End::Undrain(node) => self.order(Order::Undrain { node }),
            End::Speak => self.world.state.lock().silent = false,
        }
    }

    /// Those that were told to stop and have not been down since, and whether they have stopped.
    fn told(&self, told: &[(usize, Arc<Notify>)]) -> Vec<(usize, bool)> {
        let state = self.world.state.lock();
        let is_the_same = |(node, stop): &(usize, Arc<Notify>)| {
            let seat = state.seats.get(*node).filter(|seat| Arc::ptr_eq(&seat.stop, stop) && !self.is_down(*node))?;
            Some((*node, seat.stopped))
        };
        told.iter().filter_map(is_the_same).collect()
    }

    fn start_all(&mut self, sim: &mut Sim<'_>, told: &[(usize, Arc<Notify>)], now: u64) {
        for (node, _) in self.told(told) {
            self.end(sim, End::StartStopped(node), now);
        }
    }

    fn seat(&self, node: usize, change: impl FnOnce(&mut crate::world::Seat)) {
        if let Some(seat) = self.world.state.lock().seats.get_mut(node) {
            change(seat);
        }
    }

    fn is_down(&self, node: usize) -> bool {
        self.down.get(node).copied().unwrap_or(true)
    }

    fn crash(&mut self, sim: &mut Sim<'_>, node: usize) {
        if let Some(down) = self.down.get_mut(node)
            && !std::mem::replace(down, true)
        {
            sim.crash(name(node));
            let mut forget = Vec::new();
            self.seat(node, |seat| forget = std::mem::take(&mut seat.forget));
            forget.into_iter().for_each(|forget| forget());
        }
    }

    /// Starts a node that is down.
    fn start(&mut self, sim: &mut Sim<'_>, node: usize) {
        if let Some(down) = self.down.get_mut(node)
            && std::mem::replace(down, false)
        {
            self.seat(node, |seat| (seat.stopped, seat.stop) = (false, Arc::default()));
            sim.bounce(name(node));
        }
    }

    /// A node that takes itself for the leader of a shard.
    fn leader(&mut self) -> Option<(usize, ShardId)> {
        self.world.leaders().choose(&mut self.rng).copied()
    }

    /// The id of the node at this place; nodes join in any order.
    fn node_id(&self, node: usize) -> u64 {
        let running = self.world.running();
        running.get(node % running.len().max(1)).map_or(0, |shared| shared.node().0)
    }

    /// A shard with the nodes that hold it, as some node knows it.
    fn shard(&mut self) -> Option<(u64, Vec<u64>, Vec<u64>)> {
        let shared = self.world.running().choose(&mut self.rng).cloned()?;
        let view = shared.view.load();
        let shards: Vec<_> = view.shards().cloned().collect();
        let shard = shards.choose(&mut self.rng)?;
        let holds: Vec<u64> = shard.nodes().map(|node| node.0).collect();
        let others = view.members().map(|node| node.node_id).filter(|node| !holds.contains(node)).collect();
        Some((shard.id().0, holds, others))
    }

    fn transfer(&mut self) -> bool {
        let Some((shard, holds, _)) = self.shard() else { return false };
        let Some(to) = holds.choose(&mut self.rng).copied() else { return false };
        self.order(Order::Transfer { shard, to });
        true
    }

    fn relocate(&mut self) -> bool {
        let Some((shard, holds, others)) = self.shard() else { return false };
        let (Some(from), Some(to)) = (holds.choose(&mut self.rng).copied(), others.choose(&mut self.rng).copied())
        else {
            return false;
        };
        self.order(Order::Move { shard, from, to });
        true
    }

    fn order(&self, order: Order) {
        // One too many is a fault that does not happen.
        let _ = self.orders.try_send(order);
    }

    /// Where a node's data lies.
    pub(crate) fn folder(&self, node: usize) -> PathBuf {
        self.folder.join(name(node))
    }
}

fn pairs<'a>(one: &'a [String], other: &'a [String]) -> impl Iterator<Item = (&'a str, &'a str)> {
    one.iter().flat_map(move |one| other.iter().map(move |other| (one.as_str(), other.as_str())))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Sends orders on, each once, except that a drain is always taken back.
pub(crate) async fn carry_out(world: World, mut orders: mpsc::Receiver<Order>) -> turmoil::Result {
    let admin = crate::clients::connect(&world)?.admin();
    while let Some(order) = orders.recv().await {
        let done = match order.clone() {
            Order::Transfer { shard, to } => {
                let request = pb::TransferLeaderRequest { shard_id: shard, to_node_id: to, epoch: 0 };
                admin.transfer_leader(request).await.map(|_| ())
            }
            Order::Move { shard, from, to } => {
                let request = pb::MoveReplicaRequest { shard_id: shard, from_node_id: from, to_node_id: to, epoch: 0 };
                admin.move_replica(request).await.map(|_| ())
            }
            Order::Drain { node } => {
                admin.drain_node(pb::DrainNodeRequest { node_id: node, force: Vec::new() }).await.map(|_| ())
            }
            Order::Undrain { node } => {
                while let Err(error) = admin.undrain_node(pb::UndrainNodeRequest { node_id: node }).await {
                    if world.state.lock().over || matches!(error, kv_client::Error::Service { .. }) {
                        break;
                    }
                }
                Ok(())
            }
        };
        tracing::info!(?order, ?done, "order");
    }
    Ok(())
}
