//! One seed: a cluster is made, faults happen to it under load, it is healed, and it must serve again and agree.
//!
//! Invariants: the clock of libc moves with the simulation, a millisecond a step; the first violation ends the run.
//!
//! Not here: many seeds (campaign).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kv_checkers::history::Fate;
use kv_proto::ids::ShardId;
use serde_json::{Value, json};
use turmoil::Sim;

use crate::clients;
use crate::faults::{self, Faults};
use crate::node;
use crate::plan::{Plan, Shape};
use crate::world::World;

/// One step.
const TICK: Duration = Duration::from_millis(1);
/// A new cluster serves by then.
const BEGIN_WITHIN: u64 = 30_000;
/// What clients ask at most before they look up: to connect, and two requests of two seconds each.
const ANSWER_WITHIN: u64 = 6_000;
/// A healed cluster serves every key by then.
const SERVE_WITHIN: u64 = 30_000;
/// Its replicas agree by then.
const AGREE_WITHIN: u64 = 60_000;

struct Run {
    world: World,
    sim: Sim<'static>,
    now: u64,
}

/// Runs a seed; what it saw, as JSON.
pub(crate) fn run(seed: u64, ticks: u64) -> Result<Value> {
    let plan = Plan::draw(seed, ticks);
    tracing::info!(?plan, "begins");
    let base = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    // Without the process's id all runs would draw the same name, and one that finds it taken draws more of its seed.
    let prefix = format!("kv-sim-{}-", std::process::id());
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(base).context("no folder for the disks")?;
    let world = World::new(plan);
    kv_raft::simulated::begin(Box::new(world.clone()));
    let mut run = Run { sim: network(&world.plan), world, now: 0 };
    let (mut faults, orders) = Faults::new(&run.world, folder.path());
    run.people(&faults, orders);
    run.all(&mut faults);
    let summary = run.summary(&faults);
    // Nodes close their files before the folder goes.
    drop(run);
    Ok(summary)
}

fn network(plan: &Plan) -> Sim<'static> {
    turmoil::Builder::new()
        .rng_seed(plan.seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(24 * 3600))
        .min_message_latency(Duration::ZERO)
        .max_message_latency(plan.latency)
        .tcp_capacity(1024)
        .enable_random_order()
        .build()
}

impl Run {
    fn people(&mut self, faults: &Faults, orders: tokio::sync::mpsc::Receiver<faults::Order>) {
        for number in 0..self.world.plan.nodes {
            let (world, folder) = (self.world.clone(), faults.folder(number));
            self.sim.host(node::name(number), move || node::run(world.clone(), number, folder.clone()));
        }
        for client in 0..self.world.plan.clients {
            self.sim.client(format!("c{client}"), clients::run(self.world.clone(), client));
        }
        self.sim.client("admin", faults::carry_out(self.world.clone(), orders));
        self.world.state.lock().silent = true;
    }

    fn all(&mut self, faults: &mut Faults) {
        if !self.until("a new cluster serves", BEGIN_WITHIN, "begin") {
            return;
        }
        self.world.state.lock().silent = false;
        let end = self.now + self.world.plan.ticks;
        while self.now < end {
            faults.tick(&mut self.sim, self.now);
            if !self.step() {
                return;
            }
        }
        faults.heal(&mut self.sim, self.now);
        self.world.state.lock().silent = true;
        if !self.answered() {
            return;
        }
        if !self.until("a healed cluster serves", SERVE_WITHIN, "heal") {
            return;
        }
        self.agree();
        let mut state = self.world.state.lock();
        state.over = true;
        let broken = state.history.judge();
        state.oracle.violations.extend(broken);
    }

    /// One millisecond; false once something is broken.
    fn step(&mut self) -> bool {
        // Moves the clocks of libc.
        std::thread::sleep(TICK);
        self.now += 1;
        self.world.state.lock().now = self.now;
        if let Err(error) = self.sim.step() {
            self.world.violated(format!("a host ended: {error}"));
        }
        self.world.state.lock().oracle.violations.is_empty()
    }

    /// Every request ends by its deadline. What ended is read again afterwards.
    fn answered(&mut self) -> bool {
        let end = self.now + ANSWER_WITHIN;
        while self.world.state.lock().history.waits() {
            if self.now > end {
                self.world.violated(format!("not within {ANSWER_WITHIN} ms: every request has an answer or an error"));
            }
            if !self.step() {
                return false;
            }
        }
        true
    }

    /// Clients prove that every key is served, again and again until it succeeds or the time is up.
    fn until(&mut self, what: &str, within: u64, client: &str) -> bool {
        let proved = Rc::new(Cell::new(false));
        let (world, done) = (self.world.clone(), Rc::clone(&proved));
        self.sim.client(client, async move {
            while let Err(error) = clients::prove(world.clone()).await {
                tracing::info!(%error, "not yet");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            done.set(true);
            Ok(())
        });
        let end = self.now + within;
        while !proved.get() {
            if self.now > end {
                self.world.violated(format!("not within {within} ms: {what}"));
            }
            if !self.step() {
                return false;
            }
        }
        true
    }

    /// Replicas of a shard that applied the same entries hold the same.
    fn agree(&mut self) {
        let end = self.now + AGREE_WITHIN;
        loop {
            if self.now.is_multiple_of(100) {
                match self.compared() {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(why) => self.world.violated(why),
                }
            }
            if self.now > end {
                self.world.violated(format!("not within {AGREE_WITHIN} ms: replicas applied the same entries"));
            }
            if !self.step() {
                return;
            }
        }
    }

    /// Whether all replicas applied the same; an error if they hold different state after it.
    fn compared(&self) -> Result<bool, String> {
        let running = self.world.running();
        let mut shards: BTreeMap<ShardId, Vec<(String, Option<String>, u64)>> = BTreeMap::new();
        for shared in &running {
            for replica in shared.host.replicas() {
                let shard = replica.shard();
                let (applied, digest) = match shared.host.context().data().checksum(shard) {
                    Ok(sum) => sum,
                    Err(error) => return Err(format!("shard {shard} has no checksum: {error}")),
                };
                let applied = applied.map(|applied| applied.to_string());
                shards.entry(shard).or_default().push((shared.config.advertise.clone(), applied, digest));
            }
        }
        let mut same = true;
        for (shard, sums) in shards {
            for (one, other) in sums.iter().zip(sums.iter().skip(1)) {
                same &= one.1 == other.1;
                if one.1 == other.1 && one.2 != other.2 {
                    return Err(format!("replicas of shard {shard} differ: {sums:?}"));
                }
            }
        }
        Ok(same && running.len() == self.world.plan.nodes)
    }

    fn summary(&self, faults: &Faults) -> Value {
        let mut state = self.world.state.lock();
        let state = &mut *state;
        for operation in state.history.operations() {
            state.oracle.mix(format!("{operation:?}").as_bytes());
        }
        let (counts, history) = (state.oracle.counts, &state.history);
        let faults: BTreeMap<&str, u64> = faults.counts.iter().map(|(kind, count)| (kind.name(), *count)).collect();
        let mut judged = BTreeMap::from([
            ("steps", counts.steps),
            ("applied", counts.applied),
            ("elections", counts.elections),
            ("snapshots", counts.snapshots),
            ("reads", counts.reads),
            ("recoveries", counts.recoveries),
        ]);
        judged.extend(history.judged());
        json!({
            "seed": self.world.plan.seed,
            "shape": format!("{:?}", Shape::of(self.world.plan.seed)),
            "simulated_ms": self.now,
            "operations": {
                "done": history.count(Fate::Applied),
                "not_done": history.count(Fate::NotApplied),
                "unknown": history.count(Fate::Unknown),
            },
            "faults": faults,
            "judged": judged,
            "trace": format!("{:016x}", state.oracle.trace_hash()),
            "violations": state.oracle.violations,
        })
    }
}
