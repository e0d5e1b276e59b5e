//! What one process of the mixture does, one operation after the other.
//!
//! Not here: how keys are named (crew), how a call is sent (caller).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_checkers::history::{Call, Mode, Outcome};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::{MissedTickBehavior, interval};

use super::crew::{COUNTERS, Crew, GROUP, Moment, REGISTERS, TAGS};
use crate::caller::Caller;
use crate::recorder::Recorder;

/// A scan lists a hundred entries, all of which are kept: it takes this many times as long as other operations.
const SCAN_PACE: u32 = 10;

/// What a process does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    Registers,
    Deletes,
    Counters,
    Set,
    Batches,
    Moments,
    Scans,
}

pub(super) const ROLES: [Role; 8] = [
    Role::Registers,
    Role::Counters,
    Role::Set,
    Role::Batches,
    Role::Registers,
    Role::Moments,
    Role::Deletes,
    Role::Scans,
];

pub(super) struct Process {
    pub(super) number: u64,
    pub(super) role: Role,
    pub(super) hashed: Caller,
    pub(super) ordered: Caller,
    pub(super) random: StdRng,
    pub(super) crew: Arc<Crew>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) routes: Vec<Arc<kv_client::Routes>>,
    /// The register this process saw last and what it held.
    pub(super) seen: Option<(String, Option<String>)>,
}

impl Process {
    pub(super) async fn run(mut self, pace: Duration, stop: Arc<AtomicBool>) {
        let mut pace = interval(if matches!(self.role, Role::Scans) { pace * SCAN_PACE } else { pace });
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !stop.load(Ordering::Relaxed) {
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

    fn mode(&mut self) -> Mode {
        match self.random.random_range(0..10) {
            0..=5 => Mode::Linearizable,
            6 | 7 => Mode::Lease,
            8 => Mode::Stale { max_ms: 500 },
            _ => Mode::Stale { max_ms: 0 },
        }
    }

    async fn register(&mut self) {
        let key = self.crew.register(self.random.random_range(0..REGISTERS));
        let call = match self.random.random_range(0..100) {
            0..45 => Call::Read { key: key.clone(), mode: self.mode() },
            45..70 => Call::Write { key: key.clone(), value: self.crew.value() },
            _ => {
                let expect = self.seen.take().filter(|(seen, _)| *seen == key).and_then(|(_, value)| value);
                Call::CompareAndSet { key: key.clone(), expect, set: self.crew.value() }
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
        let key = self.crew.deleted();
        let call = match self.random.random_range(0..4) {
            0 => Call::Delete { key },
            1 => Call::Write { key, value: self.crew.value() },
            _ => Call::read(&key),
        };
        self.hashed(call).await;
    }

    async fn count(&mut self) {
        let key = self.crew.counter(self.random.random_range(0..COUNTERS));
        if let Some(from) = self.hashed(Call::read(&key)).await.count() {
            self.hashed(Call::Increment { key, from }).await;
        }
    }

    /// Adds to the set that is being filled.
    async fn add(&mut self) {
        let (_, tag) = self.tag();
        let (key, value) = (self.crew.element(tag), self.crew.value());
        let call = Call::Write { key: key.clone(), value };
        if key.starts_with(tag) {
            self.ordered(call).await
        } else {
            self.hashed(call).await
        };
    }

    fn tag(&mut self) -> (usize, &'static str) {
        let place = self.random.random_range(0..TAGS.len());
        (place, TAGS.get(place).copied().unwrap_or_default())
    }

    async fn batch(&mut self) {
        let (place, tag) = self.tag();
        let round = self.crew.round();
        let first = self.random.random_range(0..GROUP);
        let count = self.random.random_range(2..=GROUP);
        let entry = |key| (self.crew.member(tag, round, key), self.crew.value());
        let entries = (first..first + count).map(entry).collect();
        if let Outcome::Written { version } = self.ordered(Call::WriteMany { entries }).await {
            self.crew.remember(Moment { place, round, version });
        }
    }

    /// Reads a batch group at one point: of now, or of a timestamp.
    async fn moment(&mut self) {
        let (place, tag) = self.tag();
        let known = self.crew.moments(place);
        let moment = known.get(self.random.random_range(0..known.len().max(1)));
        let members = |round| (0..GROUP).map(|key| self.crew.member(tag, round, key)).collect();
        let call = match (self.random.random_range(0..6), moment) {
            (0, Some(Moment { round, version: at, .. })) => {
                Call::Scan { prefix: self.crew.group(tag, *round), mode: Mode::Snapshot { at: *at } }
            }
            (1, Some(Moment { round, version: at, .. })) => {
                Call::Read { key: self.crew.member(tag, *round, 0), mode: Mode::Snapshot { at: *at } }
            }
            (2 | 3, Some(Moment { round, version: at, .. })) => {
                Call::ReadMany { keys: members(*round), mode: Mode::Snapshot { at: *at } }
            }
            (_, _) => Call::ReadMany { keys: members(self.crew.round()), mode: self.mode() },
        };
        self.ordered(call).await;
    }

    /// Reads the set that is being filled, or the one before.
    async fn scan(&mut self) {
        let before = self.random.random_range(0..2);
        let mode = if self.random.random_bool(0.8) { Mode::Linearizable } else { Mode::Stale { max_ms: 0 } };
        if self.random.random_bool(0.1) {
            self.hashed(Call::Scan { prefix: self.crew.set(before, None), mode }).await;
        } else {
            let (_, tag) = self.tag();
            self.ordered(Call::Scan { prefix: self.crew.set(before, Some(tag)), mode }).await;
        }
    }

    async fn hashed(&self, call: Call) -> Outcome {
        self.call(&self.hashed, 0, call).await
    }

    async fn ordered(&self, call: Call) -> Outcome {
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
