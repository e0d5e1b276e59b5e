//! Sends the operations and times them.
//!
//! Closed loop: each client sends its next operation when the last one is answered. Open loop: operations have a time at
//! which they are due, whatever the answers do, and latency counts from that time, so that waiting for a slow server
//! is not left out ("coordinated omission"). At most one operation a client is under way in either case.
//!
//! Not here: which operation comes next (workload), what is printed (report).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use hdrhistogram::Histogram;
use kv_client::{Consistency, Error, Keyspace};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use super::keys::Chooser;
use super::workload::{Kind, Mix};

/// Latencies from 1 us to 100 s with three significant digits.
const LATENCY_MICROS_MAX: u64 = 100_000_000;

/// What to do, for how long.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) mix: Mix,
    pub(crate) chooser: Chooser,
    pub(crate) latest: bool,
    pub(crate) clients: usize,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    pub(crate) batch: usize,
    pub(crate) page: usize,
    /// Operations a second over all clients; None is a closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    pub(crate) consistency: Consistency,
    pub(crate) seed: u64,
}

/// What became of the operations of one kind that ended inside the measured time.
#[derive(Clone)]
pub(crate) struct Stats {
    pub(crate) latency: Histogram<u64>,
    /// Keys read or written.
    pub(crate) keys: u64,
    /// Compare-and-sets that another client beat.
    pub(crate) refused: u64,
    pub(crate) failed: u64,
    /// The first failure, in words.
    pub(crate) failure: Option<String>,
}

impl Default for Stats {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3).expect("the bounds are in order");
        Self { latency, keys: 0, refused: 0, failed: 0, failure: None }
    }
}

impl Stats {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.latency += &other.latency;
        self.keys += other.keys;
        self.refused += other.refused;
        self.failed += other.failed;
        self.failure = self.failure.take().or_else(|| other.failure.clone());
    }
}

/// By kind.
pub(crate) type Results = BTreeMap<Kind, Stats>;

/// What the clients share while they run.
pub(crate) struct Shared {
    plan: Plan,
    start: Instant,
    /// Operations answered so far, for the progress bar.
    pub(crate) answered: AtomicU64,
    /// Keys there are; inserts add to them.
    keys: AtomicU64,
}

impl Shared {
    /// `keys` were loaded before.
    pub(crate) fn new(plan: Plan, keys: u64) -> Arc<Self> {
        Arc::new(Self { plan, start: Instant::now(), answered: AtomicU64::new(0), keys: AtomicU64::new(keys) })
    }

    /// Keys there are or may be.
    pub(crate) fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    fn measured_from(&self) -> Instant {
        self.start + self.plan.warm_up
    }

    /// When the run ends.
    pub(crate) fn end(&self) -> Instant {
        self.measured_from() + self.plan.duration
    }
}

/// The key of a number: zero-padded decimal with a "k" in front, `bytes` long where the number fits.
pub(crate) fn key(number: u64, bytes: usize) -> Bytes {
    Bytes::from(format!("k{number:0>width$}", width = bytes.saturating_sub(1)))
}

/// A value that does not compress to nothing: random printable bytes.
pub(crate) fn value(random: &mut SmallRng, bytes: usize) -> Bytes {
    (0..bytes).map(|_| random.random_range(b' '..=b'~')).collect()
}

/// Runs client number `client` until the run ends.
pub(crate) async fn run(shared: Arc<Shared>, keyspace: Keyspace, client: usize) -> Results {
    let plan = &shared.plan;
    let mut random = SmallRng::seed_from_u64(plan.seed.wrapping_add(u64::try_from(client).unwrap_or(0)));
    let mut results = Results::new();
    let mut sent = 0_u32;
    loop {
        let begin = match plan.rate {
            None => Instant::now(),
            Some(rate) => {
                let due = shared.start + due_after(client, plan.clients, sent, rate);
                tokio::time::sleep_until(due.min(shared.end())).await;
                due
            }
        };
        if begin >= shared.end() {
            return results;
        }
        sent = sent.saturating_add(1);
        let kind = plan.mix.draw(&mut random);
        let answer = operate(&shared, &keyspace, kind, &mut random).await;
        let now = Instant::now();
        shared.answered.fetch_add(1, Ordering::Relaxed);
        if begin >= shared.measured_from() && now <= shared.end() {
            record(results.entry(kind).or_default(), &answer, now - begin);
        }
    }
}

/// When the operation numbered `sent` of one client is due after the start.
fn due_after(client: usize, clients: usize, sent: u32, rate: f64) -> Duration {
    let each = Duration::from_secs_f64(1.0 / rate);
    let clients = u32::try_from(clients).unwrap_or(u32::MAX);
    let client = u32::try_from(client).unwrap_or(u32::MAX);
    each.saturating_mul(clients).saturating_mul(sent).saturating_add(each.saturating_mul(client))
}

/// What an operation did.
enum Answer {
    Keys(u64),
    Refused,
}

fn record(stats: &mut Stats, answer: &Result<Answer, Error>, took: Duration) {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    match answer {
        Ok(Answer::Keys(keys)) => stats.keys += keys,
        Ok(Answer::Refused) => stats.refused += 1,
        Err(error) => {
            stats.failed += 1;
            stats.failure.get_or_insert_with(|| error.to_string());
            return;
        }
    }
    stats.latency.saturating_record(micros.max(1));
}

async fn operate(shared: &Shared, keyspace: &Keyspace, kind: Kind, random: &mut SmallRng) -> Result<Answer, Error> {
    let plan = &shared.plan;
    let chosen = choose(shared, random);
    match kind {
        Kind::Get => {
            let entry = keyspace.get(chosen).consistency(plan.consistency).await?;
            Ok(Answer::Keys(u64::from(entry.is_some())))
        }
        Kind::Put => {
            keyspace.put(chosen, value(random, plan.value_bytes)).await?;
            Ok(Answer::Keys(1))
        }
        Kind::Insert => {
            let number = shared.keys.fetch_add(1, Ordering::Relaxed);
            keyspace.put(key(number, plan.key_bytes), value(random, plan.value_bytes)).await?;
            Ok(Answer::Keys(1))
        }
        Kind::ReadModifyWrite => {
            keyspace.get(chosen.clone()).consistency(plan.consistency).await?;
            keyspace.put(chosen, value(random, plan.value_bytes)).await?;
            Ok(Answer::Keys(1))
        }
        Kind::CompareAndSet => compare_and_set(plan, keyspace, chosen, random).await,
        Kind::Scan => scan(plan, keyspace, chosen).await,
        Kind::Batch => batch(shared, keyspace, random).await,
    }
}

fn choose(shared: &Shared, random: &mut SmallRng) -> Bytes {
    let drawn = shared.plan.chooser.draw(random);
    let number = if shared.plan.latest {
        shared.keys.load(Ordering::Relaxed).saturating_sub(1).saturating_sub(drawn)
    } else {
        drawn
    };
    key(number, shared.plan.key_bytes)
}

async fn compare_and_set(
    plan: &Plan,
    keyspace: &Keyspace,
    chosen: Bytes,
    random: &mut SmallRng,
) -> Result<Answer, Error> {
    let entry = keyspace.get(chosen.clone()).consistency(plan.consistency).await?;
    let request = keyspace.compare_and_set(chosen);
    let expecting = match entry {
        Some(entry) => request.expect_version(entry.version),
        None => request.expect_absent(),
    };
    let result = expecting.set(value(random, plan.value_bytes)).await?;
    Ok(if result.applied() { Answer::Keys(1) } else { Answer::Refused })
}

async fn scan(plan: &Plan, keyspace: &Keyspace, start: Bytes) -> Result<Answer, Error> {
    let request = keyspace.scan().start(start).limit(plan.page).page_size(plan.page).consistency(plan.consistency);
    let mut stream = request.stream();
    let mut keys = 0;
    while let Some(entry) = stream.next().await {
        entry?;
        keys += 1;
    }
    Ok(Answer::Keys(keys))
}

async fn batch(shared: &Shared, keyspace: &Keyspace, random: &mut SmallRng) -> Result<Answer, Error> {
    let plan = &shared.plan;
    let request = (0..plan.batch).fold(keyspace.batch(), |request, _| {
        let chosen = choose(shared, random);
        request.put(chosen, value(random, plan.value_bytes))
    });
    for part in request.spread().await? {
        part.result?;
    }
    Ok(Answer::Keys(u64::try_from(plan.batch).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_spreads_its_operations_evenly_over_the_clients() {
        let due = |client, sent| due_after(client, 4, sent, 1000.0);
        assert_eq!(due(0, 0), Duration::ZERO);
        assert_eq!(due(3, 0), Duration::from_millis(3));
        assert_eq!(due(0, 1), Duration::from_millis(4));
        assert_eq!(due(2, 250), Duration::from_millis(1002));
    }

    #[test]
    fn keys_have_the_length_asked_for() {
        assert_eq!(key(42, 16), "k000000000000042");
        assert_eq!(key(123_456, 4), "k123456");
    }
}
