//! Sends the operations and times them.
//!
//! Closed loop: each client sends its next operation when the last one is answered. Open loop: operations are due at a
//! rate, whatever the answers do, and latency counts from then, so that waiting for a slow store is not left out
//! ("coordinated omission"). At most one operation a client is under way in either case.
//!
//! Not here: which operation comes next (workload), when it is due (pacer).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::keys::Chooser;
use crate::pacer::Pacer;
use crate::stats::Results;
use crate::target::{Answer, Operation, Target};
use crate::values::{Values, key};
use crate::workload::{Kind, Mix};

/// What to do, for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which operations.
    pub mix: Mix,
    /// On which keys.
    pub chooser: Chooser,
    /// Whether the chooser counts back from the newest key.
    pub latest: bool,
    /// Operations under way at once.
    pub clients: usize,
    /// Keys there are at the beginning; inserts add to them.
    pub keys: u64,
    /// Bytes of a key.
    pub key_bytes: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Puts in a batch.
    pub batch: usize,
    /// Keys of a scan.
    pub page: usize,
    /// Operations a second over all clients; None is a closed loop.
    pub rate: Option<f64>,
    /// How long to run before measuring.
    pub warm_up: Duration,
    /// How long to measure.
    pub duration: Duration,
    /// Of keys and values.
    pub seed: u64,
}

/// What the clients share while they run.
pub(crate) struct Shared {
    plan: Plan,
    values: Values,
    start: Instant,
    pacer: Option<Arc<Pacer>>,
    /// Operations answered so far, for the progress bar.
    pub(crate) answered: AtomicU64,
    keys: AtomicU64,
    /// Of all clients: histograms of their own would not fit into the processor's caches together.
    results: Mutex<Results>,
}

impl Shared {
    /// The run begins now.
    pub(crate) fn start(plan: Plan) -> Arc<Self> {
        let values = Values::new(plan.value_bytes, plan.seed);
        let start = Instant::now();
        let end = start + plan.warm_up + plan.duration;
        let pacer = plan.rate.map(|rate| Pacer::start(rate, start, end));
        let keys = AtomicU64::new(plan.keys);
        let results = Mutex::default();
        Arc::new(Self { plan, values, start, pacer, answered: AtomicU64::new(0), keys, results })
    }

    /// When the warm-up is over.
    pub(crate) fn measured_from(&self) -> Instant {
        self.start + self.plan.warm_up
    }

    /// When the run ends.
    pub(crate) fn end(&self) -> Instant {
        self.measured_from() + self.plan.duration
    }

    /// See [`Pacer::unsent`].
    pub(crate) fn unsent(&self) -> u64 {
        self.pacer.as_ref().map_or(0, |pacer| pacer.unsent())
    }

    /// Keys there are or may be.
    pub(crate) fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// What became of all operations so far.
    pub(crate) fn take_results(&self) -> Results {
        std::mem::take(&mut *self.results.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn record(&self, kind: Kind, answer: Result<Answer, String>, due: Instant, now: Instant) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        if due >= self.measured_from() {
            let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
            results.entry(kind).or_default().record(answer, now - due, now <= self.end());
        }
    }

    /// When the next operation of a client that is free since `free` is due; None at the end.
    async fn due(&self, free: Instant) -> Option<Instant> {
        match &self.pacer {
            Some(pacer) => pacer.next().await,
            None => Some(free).filter(|free| *free < self.end()),
        }
    }

    fn operation(&self, kind: Kind, random: &mut SmallRng) -> Operation {
        let plan = &self.plan;
        match kind {
            Kind::Get => Operation::Get(self.choose(random)),
            Kind::Put => Operation::Put(self.choose(random), self.values.draw(random)),
            Kind::Insert => {
                let number = self.keys.fetch_add(1, Ordering::Relaxed);
                Operation::Put(key(number, plan.key_bytes), self.values.draw(random))
            }
            Kind::ReadModifyWrite => Operation::ReadModifyWrite(self.choose(random), self.values.draw(random)),
            Kind::CompareAndSet => Operation::CompareAndSet(self.choose(random), self.values.draw(random)),
            Kind::Scan => Operation::Scan(self.choose(random), plan.page),
            Kind::Batch => {
                let numbers: Vec<u64> = (0..plan.batch).map(|_| self.number(random)).collect();
                Operation::Batch(self.values.entries(&numbers, plan.key_bytes, random))
            }
        }
    }

    fn choose(&self, random: &mut SmallRng) -> Bytes {
        key(self.number(random), self.plan.key_bytes)
    }

    fn number(&self, random: &mut SmallRng) -> u64 {
        let drawn = self.plan.chooser.draw(random);
        if self.plan.latest { self.keys.load(Ordering::Relaxed).saturating_sub(1).saturating_sub(drawn) } else { drawn }
    }
}

/// Runs client number `client` until the run ends.
pub(crate) async fn client(shared: Arc<Shared>, target: impl Target, client: usize) {
    let plan = &shared.plan;
    let mut random = SmallRng::seed_from_u64(plan.seed.wrapping_add(u64::try_from(client).unwrap_or(0)));
    let mut free = Instant::now();
    while let Some(due) = shared.due(free).await {
        let kind = plan.mix.draw(&mut random);
        let operation = shared.operation(kind, &mut random);
        let answer = target.operate(operation).await.map_err(|error| error.to_string());
        free = Instant::now();
        shared.record(kind, answer, due, free);
    }
}
