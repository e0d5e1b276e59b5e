//! The mixture that faults are proved with: registers, counters, sets, deletes, batches, snapshot reads and scans,
//! through kv-client and through unary calls, forwarded and redirected, every answer recorded.
//!
//! Invariants: values written to one key are unique; a process waits for its answer before it goes on; bounded in
//! processes and pace, and in time by whoever stops it.
//!
//! Not here: the judgement (kv-checkers), what happens to the cluster meanwhile (nemesis).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kv_checkers::history::{Call, History, Mode, Operation, Outcome};
use kv_client::{Client, Keyspace};
use kv_proto::pb::admin::v1::{CreateKeyspaceRequest, KeyspaceKind};
use kv_proto::pb::v1::WrongNode;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::Admin;
use crate::caller::Caller;
use crate::load::read_all;
use crate::recorder::Recorder;

/// The keyspace with history, of two shards, ordered.
pub const ORDERED: &str = "ordered";
/// Keys of the default keyspace begin so; those of the ordered one begin with a tag.
const HASHED: &str = "d/";
/// One batch group in each shard of the ordered keyspace.
const TAGS: [&str; 2] = ["a", "z"];
/// Keys of a batch group.
const GROUP: u64 = 4;
/// Keys that are fought over at a time.
const REGISTERS: u64 = 4;
/// Operations after which a register is left for a fresh one; 600 a key keep even a search short.
const REGISTER_USES: u64 = 400;
/// The same for keys that are also deleted, which only a search can judge.
const DELETED_USES: u64 = 40;
/// Elements of a set that is scanned.
const SET_SIZE: u64 = 150;
/// Timestamps kept to read at.
const MOMENTS: usize = 32;

/// How much of it.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Each does one thing after the other.
    pub processes: usize,
    /// Least time between two operations of a process.
    pub pace: Duration,
    /// What is random follows from it.
    pub seed: u64,
    /// Whether some processes go through kv-client; without it all are unary.
    pub client: bool,
}

impl Default for Workload {
    fn default() -> Self {
        Self { processes: 24, pace: Duration::from_millis(15), seed: rand::random(), client: true }
    }
}

/// What a process does.
#[derive(Clone, Copy, Debug)]
enum Role {
    Registers,
    Deletes,
    Counters,
    Set,
    Batches,
    Moments,
    Scans,
}

const ROLES: [Role; 8] = [
    Role::Registers,
    Role::Counters,
    Role::Set,
    Role::Batches,
    Role::Registers,
    Role::Moments,
    Role::Deletes,
    Role::Scans,
];

/// What processes know of each other.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    values: AtomicU64,
    registers: AtomicU64,
    deletes: AtomicU64,
    elements: AtomicU64,
    /// Tags and timestamps of batches that were acknowledged lately.
    moments: Mutex<VecDeque<(usize, u64)>>,
}

/// A workload under way.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    recorder: Arc<Recorder>,
    processes: JoinSet<()>,
    routes: Vec<Arc<kv_client::Routes>>,
}

/// Creates the keyspace the workload needs besides `default`.
pub async fn prepare(mut admin: Admin) -> Result<()> {
    let request = CreateKeyspaceRequest {
        name: ORDERED.to_owned(),
        kind: KeyspaceKind::Range.into(),
        retention_seconds: 3600,
        split_keys: vec!["m".into()],
        shards: 2,
        ..CreateKeyspaceRequest::default()
    };
    admin.create_keyspace(request).await
}

impl Workload {
    /// Begins; unary calls go to these addresses.
    pub async fn start(self, client: &Client, endpoints: Vec<String>, recorder: Arc<Recorder>) -> Result<Running> {
        let shared = Arc::new(Shared::default());
        let routes = routes(client).await?;
        let mut processes = JoinSet::new();
        for number in 0..self.processes {
            let caller = |keyspace: &str| match number / ROLES.len() % 3 {
                0 if self.client => Caller::client(client.keyspace(keyspace)),
                1 => Caller::unary(endpoints.clone(), keyspace, WrongNode::Redirect),
                _ => Caller::unary(endpoints.clone(), keyspace, WrongNode::Forward),
            };
            let role = ROLES.get(number % ROLES.len()).copied().context("within the roles")?;
            let process = Process {
                number: recorder.process(),
                role,
                hashed: caller("default"),
                ordered: caller(ORDERED),
                random: StdRng::seed_from_u64(self.seed.wrapping_add(number as u64)),
                shared: shared.clone(),
                recorder: recorder.clone(),
                routes: routes.clone(),
                seen: None,
            };
            processes.spawn(process.run(self.pace));
        }
        Ok(Running { shared, recorder, processes, routes })
    }
}

async fn routes(client: &Client) -> Result<Vec<Arc<kv_client::Routes>>> {
    Ok(vec![client.keyspace("default").routes().await?, client.keyspace(ORDERED).routes().await?])
}

impl Running {
    /// Ends the load, reads everything it touched, and gives the history to be judged.
    pub async fn stop(mut self, client: &Client) -> Result<History> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.processes.join_next().await {
            ended.context("a process of the workload panicked")?;
        }
        let hashed = |key: &str| key.starts_with(HASHED);
        read_all(&Caller::client(client.keyspace("default")), &self.recorder, hashed).await?;
        read_all(&Caller::client(client.keyspace(ORDERED)), &self.recorder, |key| !hashed(key)).await?;
        let after = routes(client).await?;
        let mut history = self.recorder.take();
        if !after.iter().zip(&self.routes).all(|(one, other)| same_shards(one, other)) {
            // Which shard a key was in when is not known any more: timestamps are judged by key alone.
            history.operations.iter_mut().for_each(|operation: &mut Operation| operation.shard = None);
        }
        Ok(history)
    }
}

fn same_shards(one: &kv_client::Routes, other: &kv_client::Routes) -> bool {
    let shards = |routes: &kv_client::Routes| -> Vec<_> {
        routes.shards().iter().map(|shard| (shard.shard(), shard.range().clone())).collect()
    };
    shards(one) == shards(other)
}

struct Process {
    number: u64,
    role: Role,
    hashed: Caller,
    ordered: Caller,
    random: StdRng,
    shared: Arc<Shared>,
    recorder: Arc<Recorder>,
    routes: Vec<Arc<kv_client::Routes>>,
    /// The register this process saw last and what it held.
    seen: Option<(String, Option<String>)>,
}

impl Process {
    async fn run(mut self, pace: Duration) {
        let mut pace = interval(pace);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.shared.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            match self.role {
                Role::Registers => self.register().await,
                Role::Deletes => self.delete().await,
                Role::Counters => self.count().await,
                Role::Set => self.add().await,
                Role::Batches => self.batch().await,
                Role::Moments => self.moment().await,
                Role::Scans => self.scan().await,
            }
        }
    }

    /// A value nobody else writes.
    fn value(&self) -> String {
        format!("v{}-{:>40}", self.shared.values.fetch_add(1, Ordering::Relaxed), self.number)
    }

    fn mode(&mut self) -> Mode {
        match self.random.random_range(0..10) {
            0..=5 => Mode::Linearizable,
            6 | 7 => Mode::Lease,
            8 => Mode::Stale { max_ms: 500 },
            _ => Mode::Stale { max_ms: 0 },
        }
    }

    async fn register(&mut self) {
        let round = self.shared.registers.fetch_add(1, Ordering::Relaxed) / (REGISTERS * REGISTER_USES);
        let key = format!("{HASHED}register/{round}/{}", self.random.random_range(0..REGISTERS));
        let call = match self.random.random_range(0..100) {
            0..45 => Call::Read { key: key.clone(), mode: self.mode() },
            45..70 => Call::Write { key: key.clone(), value: self.value() },
            _ => {
                let expect = self.seen.take().filter(|(seen, _)| *seen == key).and_then(|(_, value)| value);
                Call::CompareAndSet { key: key.clone(), expect, set: self.value() }
            }
        };
        let outcome = self.hashed(call.clone()).await;
        let held = match (outcome, call) {
            (Outcome::Found { entry } | Outcome::Refused { current: entry }, _) => entry.map(|entry| entry.value),
            (Outcome::Written { .. }, Call::Write { value, .. } | Call::CompareAndSet { set: value, .. }) => {
                Some(value)
            }
            (_, _) => return,
        };
        self.seen = Some((key, held));
    }

    async fn delete(&mut self) {
        let round = self.shared.deletes.fetch_add(1, Ordering::Relaxed) / DELETED_USES;
        let key = format!("{HASHED}deleted/{round}");
        let call = match self.random.random_range(0..4) {
            0 => Call::Delete { key },
            1 => Call::Write { key, value: self.value() },
            _ => Call::read(&key),
        };
        self.hashed(call).await;
    }

    async fn count(&mut self) {
        let key = format!("{HASHED}counter/{}", self.random.random_range(0..8));
        if let Some(from) = self.hashed(Call::read(&key)).await.count() {
            self.hashed(Call::Increment { key, from }).await;
        }
    }

    /// Adds to the set that is being filled, in one of the two keyspaces.
    async fn add(&mut self) {
        let element = self.shared.elements.fetch_add(1, Ordering::Relaxed);
        let (set, value) = (element / SET_SIZE, self.value());
        if element.is_multiple_of(2) {
            self.hashed(Call::Write { key: format!("{HASHED}set/{set}/{element}"), value }).await;
        } else {
            let tag = self.tag();
            self.ordered(Call::Write { key: format!("{}/set/{set}/{element}", tag.1), value }).await;
        }
    }

    fn tag(&mut self) -> (usize, &'static str) {
        let place = self.random.random_range(0..TAGS.len());
        (place, TAGS.get(place).copied().unwrap_or_default())
    }

    async fn batch(&mut self) {
        let (place, tag) = self.tag();
        let first = self.random.random_range(0..GROUP);
        let count = self.random.random_range(2..=GROUP);
        let entries = (first..first + count).map(|key| (group_key(tag, key), self.value())).collect();
        if let Outcome::Written { version } = self.ordered(Call::WriteMany { entries }).await {
            let mut moments = self.shared.moments.lock().unwrap_or_else(PoisonError::into_inner);
            moments.push_back((place, version));
            while moments.len() > MOMENTS {
                moments.pop_front();
            }
        }
    }

    /// Reads a batch group at one point: of now, or of a timestamp.
    async fn moment(&mut self) {
        let (place, tag) = self.tag();
        let keys: Vec<String> = (0..GROUP).map(|key| group_key(tag, key)).collect();
        let known: Vec<u64> = {
            let moments = self.shared.moments.lock().unwrap_or_else(PoisonError::into_inner);
            moments.iter().filter(|(of, _)| *of == place).map(|(_, version)| *version).collect()
        };
        let at = known.get(self.random.random_range(0..known.len().max(1))).copied();
        let call = match (self.random.random_range(0..6), at) {
            (0, Some(at)) => Call::Scan { prefix: format!("{tag}/group/"), mode: Mode::Snapshot { at } },
            (1, Some(at)) => {
                let key = keys.first().cloned().unwrap_or_default();
                Call::Read { key, mode: Mode::Snapshot { at } }
            }
            (2 | 3, Some(at)) => Call::ReadMany { keys, mode: Mode::Snapshot { at } },
            (_, _) => Call::ReadMany { keys, mode: self.mode() },
        };
        self.ordered(call).await;
    }

    /// Reads the set that is being filled, or the one before.
    async fn scan(&mut self) {
        let set = self.shared.elements.load(Ordering::Relaxed) / SET_SIZE;
        let set = set.saturating_sub(self.random.random_range(0..2));
        let mode = if self.random.random_bool(0.8) { Mode::Linearizable } else { Mode::Stale { max_ms: 0 } };
        if self.random.random_bool(0.1) {
            self.hashed(Call::Scan { prefix: format!("{HASHED}set/{set}/"), mode }).await;
        } else {
            let tag = self.tag();
            self.ordered(Call::Scan { prefix: format!("{}/set/{set}/", tag.1), mode }).await;
        }
    }

    async fn hashed(&mut self, call: Call) -> Outcome {
        self.call(&self.hashed, 0, call).await
    }

    async fn ordered(&mut self, call: Call) -> Outcome {
        self.call(&self.ordered, 1, call).await
    }

    async fn call(&self, caller: &Caller, keyspace: usize, call: Call) -> Outcome {
        let shard = first_key(&call).and_then(|key| {
            let route = self.routes.get(keyspace)?.shard_of(key.as_bytes())?;
            Some(route.shard().0)
        });
        let invoke = self.recorder.now();
        let outcome = caller.call(&call).await;
        self.recorder.enter(self.number, shard, invoke, call, outcome.clone());
        outcome
    }
}

fn group_key(tag: &str, key: u64) -> String {
    format!("{tag}/group/{}", key % GROUP)
}

/// A key whose shard is that of the whole call.
fn first_key(call: &Call) -> Option<&str> {
    match call {
        Call::ReadMany { keys, .. } => keys.first().map(String::as_str),
        Call::WriteMany { entries } => entries.first().map(|(key, _)| key.as_str()),
        // Its pages come from several shards.
        Call::Scan { .. } => None,
        Call::Read { .. }
        | Call::Write { .. }
        | Call::Delete { .. }
        | Call::CompareAndSet { .. }
        | Call::Increment { .. } => call.key(),
    }
}

/// Whether each shard of both keyspaces takes a write now.
pub async fn every_shard_serves(client: &Client, seed: u64) -> Result<()> {
    let keyspaces: [Keyspace; 2] = [client.keyspace("default"), client.keyspace(ORDERED)];
    for (place, keyspace) in keyspaces.iter().enumerate() {
        let routes = keyspace.routes().await?;
        for shard in routes.shards() {
            let name = |number: u64| match place {
                0 => format!("{HASHED}serves/{seed}/{number}"),
                _ => format!("{}/serves/{seed}/{number}", TAGS.get(number as usize % 2).copied().unwrap_or_default()),
            };
            let mine = |key: &String| routes.shard_of(key.as_bytes()).is_some_and(|of| of.shard() == shard.shard());
            let key = (0..10_000).map(name).find(mine).context("no key of a shard among 10,000")?;
            keyspace.put(key, "serves").await?;
        }
    }
    Ok(())
}
