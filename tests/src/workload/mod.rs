//! The mixture that faults are proved with: registers, counters, sets, deletes, batches, snapshot reads and scans,
//! through kv-client and through unary calls, forwarded and redirected, every answer recorded.
//!
//! Invariants:
//! - values written to one key are unique, and a key is left for a fresh one after some hundred operations, so that
//!   judging it costs milliseconds;
//! - a process waits for its answer before it goes on;
//! - bounded in processes, pace and operations, and in time by whoever stops it.
//!
//! Not here: what one process does (process), the judgement (kv-checkers), what happens to the cluster meanwhile
//! (nemesis).

mod process;
mod crew;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kv_checkers::history::{History, Operation};
use kv_client::{Client, Keyspace};
use kv_proto::pb::admin::v1::{CreateKeyspaceRequest, KeyspaceKind};
use kv_proto::pb::v1::WrongNode;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use self::crew::{Crew, HASHED, TAGS};
use self::process::{Process, ROLES};
use crate::admin::Admin;
use crate::caller::{Caller, Nodes};
use crate::load::{read_all, scan_all};
use crate::recorder::Recorder;

/// The keyspace with history, of two shards, ordered.
pub const ORDERED: &str = "ordered";
/// Each role by kv-client, by redirected and by forwarded calls.
const CREW: usize = 3 * ROLES.len();
/// Of one workload: its history is held in memory, some 300 bytes each, until it is judged.
const OPERATIONS_MAX: u64 = 2_000_000;

/// How much of it.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Each of 24 processes with keys of their own.
    pub crews: usize,
    /// Least time between two operations of a process; scans take longer ones.
    pub pace: Duration,
    /// What is random follows from it.
    pub seed: u64,
    /// Whether some processes go through kv-client; without it all are unary.
    pub client: bool,
}

impl Workload {
    /// For a storm of this length: so many processes that operations go on while many of them wait for nodes that are
    /// gone.
    #[must_use]
    pub fn of_storm(seed: u64, length: Duration) -> Self {
        let load = Self { crews: 20, pace: Duration::from_millis(80), seed, client: true };
        let processes = u32::try_from(load.crews * CREW).unwrap_or(u32::MAX);
        let least = (length * processes).div_f64(OPERATIONS_MAX as f64);
        Self { pace: load.pace.max(least), ..load }
    }
}

/// A workload under way.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    crews: Vec<Arc<Crew>>,
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
        let stop = Arc::new(AtomicBool::new(false));
        let routes = routes(client).await?;
        let crews: Vec<Arc<Crew>> = (0..self.crews).map(|number| Arc::new(Crew::new(number))).collect();
        let mut processes = JoinSet::new();
        for crew in &crews {
            // As many clients of one machine share their connections.
            let nodes = Arc::new(Nodes::new(endpoints.clone()));
            for number in 0..CREW {
                let caller = |keyspace: &str| match number / ROLES.len() {
                    0 if self.client => Caller::client(client.keyspace(keyspace)),
                    1 => Caller::unary(nodes.clone(), keyspace, WrongNode::Redirect),
                    _ => Caller::unary(nodes.clone(), keyspace, WrongNode::Forward),
                };
                let process = recorder.process();
                let process = Process {
                    number: process,
                    role: ROLES.get(number % ROLES.len()).copied().context("within the roles")?,
                    hashed: caller("default"),
                    ordered: caller(ORDERED),
                    random: StdRng::seed_from_u64(self.seed.wrapping_add(process)),
                    crew: crew.clone(),
                    recorder: recorder.clone(),
                    routes: routes.clone(),
                    seen: None,
                };
                processes.spawn(process.run(self.pace, stop.clone()));
            }
        }
        Ok(Running { stop, crews, recorder, processes, routes })
    }
}

async fn routes(client: &Client) -> Result<Vec<Arc<kv_client::Routes>>> {
    Ok(vec![client.keyspace("default").routes().await?, client.keyspace(ORDERED).routes().await?])
}

impl Running {
    /// Ends the load, reads everything it touched, and gives the history to be judged.
    pub async fn stop(mut self, client: &Client) -> Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.processes.join_next().await {
            ended.context("a process of the workload panicked")?;
        }
        self.read_all(client).await?;
        let after = routes(client).await?;
        let mut history = self.recorder.take();
        if !after.iter().zip(&self.routes).all(|(one, other)| same_shards(one, other)) {
            // Which shard a key was in when is not known any more: timestamps are judged by key alone.
            history.operations.iter_mut().for_each(|operation: &mut Operation| operation.shard = None);
        }
        Ok(history)
    }

    /// Elements of sets by scans, since each is a key of its own; everything else key by key.
    async fn read_all(&self, client: &Client) -> Result<()> {
        let (hashed, ordered) = (Caller::client(client.keyspace("default")), Caller::client(client.keyspace(ORDERED)));
        let is_hashed = |key: &str| key.starts_with(HASHED);
        let sets: Vec<String> = self.crews.iter().flat_map(|crew| crew.sets()).collect();
        let is_element = |key: &str| sets.iter().any(|set| key.starts_with(set));
        read_all(&hashed, &self.recorder, |key| is_hashed(key) && !is_element(key)).await?;
        read_all(&ordered, &self.recorder, |key| !is_hashed(key) && !is_element(key)).await?;
        for set in &sets {
            scan_all(if is_hashed(set) { &hashed } else { &ordered }, &self.recorder, set).await?;
        }
        Ok(())
    }
}

fn same_shards(one: &kv_client::Routes, other: &kv_client::Routes) -> bool {
    let shards = |routes: &kv_client::Routes| -> Vec<_> {
        routes.shards().iter().map(|shard| (shard.shard(), shard.range().clone())).collect()
    };
    shards(one) == shards(other)
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
