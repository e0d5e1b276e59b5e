//! What clients do: reads, writes and compare-and-sets of a few keys they compete for, and keys written once; then the
//! proof that the cluster serves again.
//!
//! Invariants: each value is written by one request; every request and answer goes into the history.
//!
//! Not here: the judgement (history).

use std::time::Duration;

use kv_client::{CasResult, Client, Consistency, Outcome};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::sleep;

use crate::history::{Answer, Ask};
use crate::node::{PORT, name};
use crate::world::World;

/// Time a request gets: long enough for an election, short enough that outcomes stay unknown now and then.
const TIMEOUT: Duration = Duration::from_millis(2_000);
/// How often a client that holds still looks up.
const STILL: Duration = Duration::from_millis(50);

/// A client of the whole cluster.
pub(crate) fn connect(world: &World) -> Result<Client, kv_client::Error> {
    let endpoints = (0..world.plan.nodes).map(|node| format!("{}:{PORT}", name(node)));
    Client::builder().endpoints(endpoints).timeout(TIMEOUT).attempt_timeout(Duration::from_millis(700)).build_lazy()
}

/// One client, until the run is over.
pub(crate) async fn run(world: World, number: usize) -> turmoil::Result {
    let client = connect(&world)?;
    let seed = world.plan.seed ^ (0xc11e_0000 + number as u64);
    let mut user = User { world, client, number, rng: StdRng::seed_from_u64(seed), written: 0 };
    loop {
        let (silent, over) = {
            let state = user.world.state.lock();
            (state.silent, state.over)
        };
        if over {
            return Ok(());
        }
        if silent {
            sleep(STILL).await;
            continue;
        }
        user.one().await;
        let pause = user.world.plan.pace.mul_f64(user.rng.random());
        sleep(pause).await;
    }
}

struct User {
    world: World,
    client: Client,
    number: usize,
    rng: StdRng,
    written: u64,
}

impl User {
    async fn one(&mut self) {
        let key = format!("k{}", self.rng.random_range(0..self.world.plan.keys));
        match self.rng.random_range(0..10) {
            0..=2 => _ = self.read(&key).await,
            3..=5 => self.write(&key).await,
            6..=8 => self.swap(&key).await,
            _ => {
                let fresh = format!("once/{}/{}", self.number, self.written);
                self.write(&fresh).await;
            }
        }
    }

    fn value(&mut self) -> String {
        self.written += 1;
        format!("{}-{}", self.number, self.written)
    }

    fn begin(&self, key: &str, ask: Ask) -> usize {
        self.world.state.lock().history.begin(key, ask)
    }

    fn end(&self, call: usize, answer: Answer) {
        self.world.state.lock().history.end(call, answer);
    }

    async fn read(&mut self, key: &str) -> Option<Option<(u64, String)>> {
        let lease = match self.world.plan.lease_one_in {
            0 => false,
            one_in => self.rng.random_range(0..one_in) == 0,
        };
        let consistency = if lease { Consistency::Lease } else { Consistency::Linearizable };
        let call = self.begin(key, Ask::Read);
        let found = match self.client.get(key).consistency(consistency).await {
            Ok(found) => found.map(|entry| (entry.version.0, text(&entry.value))),
            Err(_) => {
                // A read that failed saw nothing.
                self.end(call, Answer::Unknown);
                return None;
            }
        };
        self.end(call, Answer::Found(found.clone()));
        Some(found)
    }

    async fn write(&mut self, key: &str) {
        let value = self.value();
        let call = self.begin(key, Ask::Write(value.clone()));
        let answer = match self.client.put(key, value).await {
            Ok(version) => Answer::Done(version.0),
            Err(error) => failed(&error),
        };
        self.end(call, answer);
    }

    /// Reads, then writes only if nothing came between.
    async fn swap(&mut self, key: &str) {
        let Some(found) = self.read(key).await else { return };
        let value = self.value();
        let expected = found.map(|(version, _)| version);
        let call = self.begin(key, Ask::Swap(expected.unwrap_or_default(), value.clone()));
        let change = self.client.compare_and_set(key);
        let change = match expected {
            None => change.expect_absent(),
            Some(version) => change.expect_version(kv_client::Timestamp(version)),
        };
        let answer = match change.set(value).await {
            Ok(CasResult::Applied { version }) => Answer::Done(version.0),
            Ok(CasResult::Refused { current }) => {
                Answer::Found(current.map(|entry| (entry.version.0, text(&entry.value))))
            }
            Err(error) => failed(&error),
        };
        self.end(call, answer);
    }
}

fn failed(error: &kv_client::Error) -> Answer {
    match error.outcome() {
        Outcome::NotApplied => Answer::NotDone,
        Outcome::Unknown => Answer::Unknown,
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Writes and reads keys of every shard, and whatever was ever written, once each; what failed is not tried again here.
pub(crate) async fn prove(world: World) -> Result<(), kv_client::Error> {
    let client = connect(&world)?;
    let prover = User { number: 1000, rng: StdRng::seed_from_u64(world.plan.seed ^ 0x9e0f), written: 0, client, world };
    for key in 0..16 {
        prover.client.put(format!("live/{key}"), "x").await?;
    }
    let mut keys: Vec<String> = prover.world.state.lock().history.calls.iter().map(|call| call.key.clone()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let call = prover.begin(&key, Ask::Read);
        let found = prover.client.get(key.as_str()).await?;
        prover.end(call, Answer::Found(found.map(|entry| (entry.version.0, text(&entry.value)))));
    }
    Ok(())
}
