//! What the simulated nodes share with the run: which node runs now, how its disk and clock behave, who judges.
//!
//! Invariants: a node is known by its runtime, which ends with its crash; everything is drawn from the seed.
//!
//! Not here: the judgement (oracle); what changes disks and clocks (faults).

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kv_node::node::NodeShared;
use kv_proto::ids::ShardId;
use kv_raft::simulated::{Disk, Event};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;

use crate::history::History;
use crate::oracle::Oracle;
use crate::plan::Plan;

/// One node as the run sees it.
#[derive(Default)]
pub(crate) struct Seat {
    /// While it runs and has started.
    pub(crate) shared: Weak<NodeShared>,
    /// What ends with its process.
    pub(crate) forget: Vec<Box<dyn FnOnce() + Send>>,
    /// Asks it to stop in good order.
    pub(crate) stop: Arc<Notify>,
    /// It stopped in good order.
    pub(crate) stopped: bool,
    /// How many times slower its disk is.
    pub(crate) disk: u32,
    /// How far its wall clock is ahead, in milliseconds.
    pub(crate) clock_ms: i64,
    /// How much faster its clocks run, in thousandths.
    pub(crate) drift: u64,
}

/// What may be changed while the simulation runs.
pub(crate) struct State {
    pub(crate) oracle: Oracle,
    pub(crate) history: History,
    pub(crate) seats: Vec<Seat>,
    /// Milliseconds of the simulation.
    pub(crate) now: u64,
    /// Clients hold still.
    pub(crate) silent: bool,
    /// Clients only read.
    pub(crate) only_reads: bool,
    /// Clients end.
    pub(crate) over: bool,
    runtimes: BTreeMap<u64, usize>,
    rng: StdRng,
}

/// See the module; clones share it.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) plan: Arc<Plan>,
    pub(crate) state: Arc<Mutex<State>>,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let seats = (0..plan.nodes).map(|_| Seat { disk: 1, ..Seat::default() }).collect();
        let state = State {
            oracle: Oracle::default(),
            history: History::new(plan.seed),
            seats,
            now: 0,
            silent: false,
            only_reads: false,
            over: false,
            runtimes: BTreeMap::new(),
            rng: StdRng::seed_from_u64(plan.seed ^ 0xd15c),
        };
        Self { plan: Arc::new(plan), state: Arc::new(Mutex::new(state)) }
    }

    /// The caller's runtime is this node's from now on.
    pub(crate) fn enter(&self, node: usize) {
        self.state.lock().runtimes.insert(number(Handle::current().id()), node);
    }

    /// Broken for good.
    pub(crate) fn violated(&self, what: String) {
        self.state.lock().oracle.violated(what);
    }

    /// Milliseconds of the simulation, and how much faster this node's clocks run, in thousandths.
    pub(crate) fn time(&self, node: usize) -> (u64, u64) {
        let state = self.state.lock();
        (state.now, state.seats.get(node).map_or(0, |seat| seat.drift))
    }

    /// The places of nodes that take themselves for the leader of a shard, with the shard.
    pub(crate) fn leaders(&self) -> Vec<(usize, ShardId)> {
        let running: Vec<_> = self.state.lock().seats.iter().map(|seat| seat.shared.upgrade()).enumerate().collect();
        let led = |(node, shared): (usize, Option<Arc<NodeShared>>)| {
            let replicas = shared.map(|shared| shared.host.replicas()).unwrap_or_default();
            replicas.into_iter().filter(|replica| replica.is_leader()).map(move |replica| (node, replica.shard()))
        };
        running.into_iter().flat_map(led).collect()
    }

    /// The nodes that run, in order.
    pub(crate) fn running(&self) -> Vec<Arc<NodeShared>> {
        self.state.lock().seats.iter().filter_map(|seat| seat.shared.upgrade()).collect()
    }
}

/// Ids are opaque but for their text.
fn number(id: Id) -> u64 {
    id.to_string().parse().unwrap_or_default()
}

impl State {
    fn node(&self) -> Option<usize> {
        self.runtimes.get(&number(Handle::try_current().ok()?.id())).copied()
    }

    fn seat(&self) -> Option<&Seat> {
        self.seats.get(self.node()?)
    }
}

impl kv_raft::simulated::World for World {
    fn saw(&self, shard: ShardId, event: Event<'_>) {
        let mut state = self.state.lock();
        if let Some(node) = state.node() {
            state.oracle.saw(node, shard, &event);
        }
    }

    fn began(&self, forget: Box<dyn FnOnce() + Send>) {
        let mut state = self.state.lock();
        let node = state.node();
        if let Some(seat) = node.and_then(|node| state.seats.get_mut(node)) {
            seat.forget.push(forget);
        }
    }

    fn read_begins(&self, shard: ShardId) -> u64 {
        self.state.lock().oracle.applied_anywhere(shard)
    }

    fn delay(&self, step: Disk) -> Duration {
        let mut state = self.state.lock();
        let slow = state.seat().map_or(1, |seat| seat.disk);
        let longest = match step {
            Disk::Work => Duration::from_millis(2),
            Disk::BeforeWrite | Disk::BeforeAnswer => self.plan.fsync / 2,
        };
        longest.mul_f64(state.rng.random()) * slow
    }

    fn clock_offset_ms(&self) -> i64 {
        self.state.lock().seat().map_or(0, |seat| seat.clock_ms)
    }
}
