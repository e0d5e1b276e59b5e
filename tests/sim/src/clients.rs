//! What clients do: reads, writes and compare-and-sets of a few keys they compete for, and keys written once; then the
//! proof that the cluster serves again. Some clients are plain: they write by unary calls without a session, each sent once.
//!
//! Invariants: each value is written by one request; every request and answer goes into the history.
//!
//! Not here: the judgement (history).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use kv_checkers::history::{Call, Mode, Outcome, Versioned};
use kv_client::admin::pb::CreateKeyspaceRequest;
use kv_client::{CasResult, Client, Consistency};
use kv_proto::errors::{self, ServiceError};
use kv_proto::pb::v1 as pb;
use kv_proto::pb::v1::kv_service_client::KvServiceClient;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use crate::node::{PORT, name};
use crate::plan::Plan;
use crate::world::World;

/// Time a request gets: long enough for an election, short enough that outcomes stay unknown now and then.
const TIMEOUT: Duration = Duration::from_millis(2_000);
/// Time to connect; longer than the slowest link takes.
const CONNECT: Duration = Duration::from_millis(1_000);
/// How often a client that holds still looks up.
const STILL: Duration = Duration::from_millis(50);

/// The process that proves.
const PROVER: usize = 1_000;

/// A client of the whole cluster.
pub(crate) fn connect(world: &World) -> Result<Client, kv_client::Error> {
    let endpoints = (0..world.plan.nodes).map(|node| format!("{}:{PORT}", name(node)));
    let client = Client::builder().endpoints(endpoints).keyspace(world.plan.keyspace());
    client.timeout(TIMEOUT).attempt_timeout(Duration::from_millis(700)).build_lazy()
}

/// One client, until the run is over.
pub(crate) async fn run(world: World, number: usize) -> turmoil::Result {
    let client = connect(&world)?;
    let seed = world.plan.seed ^ (0xc11e_0000 + number as u64);
    let plain = (number < world.plan.plain_clients).then(Plain::default);
    let mut user = User { world, client, plain, number, rng: StdRng::seed_from_u64(seed), written: 0 };
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
    plain: Option<Plain>,
    number: usize,
    rng: StdRng,
    written: u64,
}

impl User {
    async fn one(&mut self) {
        let key = format!("k{}", self.rng.random_range(0..self.world.plan.keys));
        let writes_too = !self.world.state.lock().only_reads;
        match self.rng.random_range(0..if writes_too { 10 } else { 3 }) {
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

    fn begin(&self, call: Call) -> usize {
        self.world.state.lock().history.begin(self.number as u64, call)
    }

    fn end(&self, operation: usize, outcome: Outcome) {
        self.world.state.lock().history.end(operation, outcome);
    }

    /// What is there; None if the read failed.
    async fn read(&mut self, key: &str) -> Option<Option<Versioned>> {
        let lease = match self.world.plan.lease_one_in {
            0 => false,
            one_in => self.rng.random_range(0..one_in) == 0,
        };
        let (mode, consistency) =
            if lease { (Mode::Lease, Consistency::Lease) } else { (Mode::Linearizable, Consistency::Linearizable) };
        let operation = self.begin(Call::Read { key: key.to_owned(), mode });
        match self.client.get(key).consistency(consistency).await {
            Ok(found) => {
                let entry = found.map(versioned);
                self.end(operation, Outcome::Found { entry: entry.clone() });
                Some(entry)
            }
            Err(error) => {
                self.end(operation, failed(&error));
                None
            }
        }
    }

    async fn write(&mut self, key: &str) {
        let value = self.value();
        let operation = self.begin(Call::Write { key: key.to_owned(), value: value.clone() });
        let outcome = match &mut self.plain {
            Some(plain) => plain.put(&self.world.plan, &mut self.rng, key, &value).await,
            None => match self.client.put(key, value).await {
                Ok(version) => Outcome::Written { version: version.0 },
                Err(error) => failed(&error),
            },
        };
        self.end(operation, outcome);
    }

    /// Reads, then writes only if nothing came between.
    async fn swap(&mut self, key: &str) {
        let Some(found) = self.read(key).await else { return };
        let set = self.value();
        let expect = found.as_ref().map(|entry| entry.value.clone());
        let operation = self.begin(Call::CompareAndSet { key: key.to_owned(), expect, set: set.clone() });
        let change = self.client.compare_and_set(key);
        let change = match found {
            None => change.expect_absent(),
            Some(entry) => change.expect_version(kv_client::Timestamp(entry.version)),
        };
        let outcome = match change.set(set).await {
            Ok(CasResult::Applied { version }) => Outcome::Written { version: version.0 },
            Ok(CasResult::Refused { current }) => Outcome::Refused { current: current.map(versioned) },
            Err(error) => failed(&error),
        };
        self.end(operation, outcome);
    }
}

/// Unary calls to one node, until it does not answer well; then to another.
#[derive(Default)]
struct Plain {
    node: usize,
    service: Option<KvServiceClient<Channel>>,
}

impl Plain {
    async fn put(&mut self, plan: &Plan, rng: &mut StdRng, key: &str, value: &str) -> Outcome {
        let Some(mut service) = self.service().await else {
            self.node = rng.random_range(0..plan.nodes);
            return Outcome::NotApplied { reason: "no connection".to_owned() };
        };
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let header = pb::RequestHeader {
            keyspace: plan.keyspace().to_owned(),
            timeout_ms: u32::try_from(TIMEOUT.as_millis()).unwrap_or(u32::MAX),
            wrong_node: pb::WrongNode::Redirect.into(),
            ..pb::RequestHeader::default()
        };
        let put = pb::PutRequest { header: Some(header), key: bytes(key), value: bytes(value) };
        let answer = timeout(TIMEOUT, service.put(put)).await;
        if let Ok(Ok(answer)) = answer {
            return Outcome::Written { version: answer.into_inner().commit_timestamp };
        }
        (self.node, self.service) = (rng.random_range(0..plan.nodes), None);
        let Ok(Err(status)) = answer else { return Outcome::Unknown { reason: "no answer".to_owned() } };
        let error = ServiceError::from_status(&status);
        outcome(error.outcome(), error.to_string())
    }

    async fn service(&mut self) -> Option<KvServiceClient<Channel>> {
        if self.service.is_none() {
            let endpoint = Endpoint::from_shared(format!("http://{}:{PORT}", name(self.node))).ok()?;
            let connected = timeout(CONNECT, kv_proto::simulated::connect(&endpoint)).await;
            self.service = connected.ok()?.ok().map(KvServiceClient::new);
        }
        self.service.clone()
    }
}

fn failed(error: &kv_client::Error) -> Outcome {
    outcome(error.outcome(), error.to_string())
}

fn outcome(outcome: errors::Outcome, reason: String) -> Outcome {
    match outcome {
        errors::Outcome::NotApplied => Outcome::NotApplied { reason },
        errors::Outcome::Unknown => Outcome::Unknown { reason },
    }
}

fn versioned(entry: kv_client::Entry) -> Versioned {
    Versioned { value: String::from_utf8_lossy(&entry.value).into_owned(), version: entry.version.0 }
}

/// Writes and reads keys of every shard, and whatever was ever written, once each; what failed is not tried again here.
pub(crate) async fn prove(world: World) -> Result<(), kv_client::Error> {
    let client = connect(&world)?;
    let begins = world.state.lock().history.operations().is_empty();
    if begins && world.plan.replicas != 3 {
        let (name, replicas) = (world.plan.keyspace().to_owned(), world.plan.replicas);
        let create = CreateKeyspaceRequest { name, replicas, shards: world.plan.shards, ..Default::default() };
        // It may be there since the last time; without it nothing else succeeds.
        let _ = client.admin().create_keyspace(create).await;
    }
    let rng = StdRng::seed_from_u64(world.plan.seed ^ 0x9e0f);
    let prover = User { number: PROVER, rng, written: 0, client, plain: None, world };
    for key in 0..16 {
        prover.client.put(format!("live/{key}"), "x").await?;
    }
    let keys: BTreeSet<String> = {
        let state = prover.world.state.lock();
        state.history.operations().iter().filter_map(|operation| operation.call.key().map(str::to_owned)).collect()
    };
    for key in keys {
        let operation = prover.begin(Call::read(&key));
        let found = prover.client.get(key.as_str()).await;
        let outcome =
            found.as_ref().map_or_else(failed, |found| Outcome::Found { entry: found.clone().map(versioned) });
        prover.end(operation, outcome);
        found?;
    }
    Ok(())
}
