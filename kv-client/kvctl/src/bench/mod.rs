//! `bench`: how fast the cluster is under a load of one's choice, and what that costs.
//!
//! Not here: the comparison with other systems (scripts).

mod driver;
mod report;
mod workload;
mod keys;
mod process;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use futures::stream;
use kv_client::{Client, Keyspace};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::task::JoinSet;

use crate::context::Context;
use crate::exit::{Exit, Explain as _, Failure};
use crate::progress::Progress;

use self::driver::{Plan, Results, Shared};
use self::keys::{Chooser, Distribution};
use self::process::Usage;
use self::report::{Cost, Report};
use self::workload::{Mix, Workload};

/// Keys in one batch while loading: large enough to share an entry, small enough to spread over the shards.
const LOAD_BATCH: u64 = 500;
/// Load batches under way at once.
const LOAD_AT_ONCE: usize = 8;
/// How often the progress bar moves.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The command line.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to do
    workload: Workload,
    /// Operations under way at once
    #[arg(long, short, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    clients: u32,
    /// Connections to each node that the clients share
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// How long to measure
    #[arg(long, short, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long to run before measuring
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Different keys
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    keys: u64,
    /// Bytes of a key
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=4096))]
    key_bytes: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    value_bytes: u32,
    /// How keys are drawn; the YCSB workloads say so themselves
    #[arg(long, default_value = "uniform")]
    distribution: Distribution,
    /// Share of reads in the mixed workload, in percent
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(0..=100))]
    reads: u32,
    /// Puts in a batch
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Keys in a scan
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    page: u32,
    /// Operations a second in all (open loop: latency counts from when each was due); without it, as fast as answers come
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Process ids of nodes on this machine, to report their processor time and memory
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Do not write the keys that reads expect first: a run with --keep left them; implies --keep
    #[arg(long)]
    no_load: bool,
    /// Leave the keys in the keyspace, for a later run with --no-load
    #[arg(long)]
    keep: bool,
    /// Seed of keys and values
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl BenchArgs {
    fn distribution(&self) -> Distribution {
        if self.workload.is_ycsb() { Distribution::Zipfian } else { self.distribution }
    }
}

impl Context {
    /// `bench`.
    pub(crate) async fn bench(&self, args: &BenchArgs) -> Result<Exit, Failure> {
        let plan = self.plan(args);
        let clients = self.connections(args)?;
        let first = clients.first().ok_or_else(|| Failure::usage("at least one connection"))?;
        let keyspace = first.keyspace(&self.global.keyspace);
        keyspace.routes().await.map_err(|error| error.read("find the shards"))?;
        if plan.mix.needs_keys() && !args.no_load {
            self.load(&plan, args.keys, &keyspace).await?;
        }
        let shared = Shared::new(plan, args.keys);
        let measured = self.measure(args, &clients, &shared).await;
        if args.keep || args.no_load {
            self.output.note("the keys stay in the keyspace: k000... up, one for each number");
        } else {
            self.clear(shared.keys(), as_usize(args.key_bytes), &keyspace).await?;
        }
        let (results, cost) = measured?;
        let report = Report::new(args, results, cost);
        self.output.show(report.json(), |look| report.text(look))?;
        Ok(Exit::Ok)
    }

    fn plan(&self, args: &BenchArgs) -> Plan {
        Plan {
            mix: Mix::of(args.workload, args.reads),
            chooser: Chooser::new(args.distribution(), args.keys),
            latest: args.workload.reads_latest(),
            clients: as_usize(args.clients),
            key_bytes: as_usize(args.key_bytes),
            value_bytes: as_usize(args.value_bytes),
            batch: as_usize(args.batch),
            page: as_usize(args.page),
            rate: args.rate.map(f64::from),
            warm_up: args.warm_up,
            duration: args.duration,
            consistency: self.consistency(),
            seed: args.seed,
        }
    }

    /// One client library instance per connection: each keeps one stream to each node.
    fn connections(&self, args: &BenchArgs) -> Result<Vec<Client>, Failure> {
        let connect = |_| {
            let builder = Client::builder().endpoints(self.global.endpoints.clone());
            builder.timeout(self.global.timeout).build_lazy().map_err(|error| error.read("connect"))
        };
        (0..args.connections).map(connect).collect()
    }

    /// Writes every key once.
    async fn load(&self, plan: &Plan, keys: u64, keyspace: &Keyspace) -> Result<(), Failure> {
        let progress = Progress::share(&self.output, keys);
        let batches = (0..keys).step_by(as_usize_from(LOAD_BATCH)).map(|first| {
            let mut random = SmallRng::seed_from_u64(plan.seed ^ first);
            let numbers = first..(first + LOAD_BATCH).min(keys);
            let batch = numbers.fold(keyspace.batch(), |batch, number| {
                batch.put(driver::key(number, plan.key_bytes), driver::value(&mut random, plan.value_bytes))
            });
            async move {
                for part in batch.spread().await? {
                    part.result?;
                }
                Ok::<u64, kv_client::Error>(first)
            }
        });
        let mut batches = stream::iter(batches).buffered(LOAD_AT_ONCE);
        while let Some(loaded) = batches.next().await {
            progress.set(loaded.map_err(|error| error.write("load the keys"))?, "loading keys");
        }
        Ok(())
    }

    /// Deletes every key a run may have written.
    async fn clear(&self, keys: u64, key_bytes: usize, keyspace: &Keyspace) -> Result<(), Failure> {
        let progress = Progress::share(&self.output, keys);
        let batches = (0..keys).step_by(as_usize_from(LOAD_BATCH)).map(|first| {
            let numbers = first..(first + LOAD_BATCH).min(keys);
            let batch = numbers.fold(keyspace.batch(), |batch, number| batch.delete(driver::key(number, key_bytes)));
            async move {
                for part in batch.spread().await? {
                    part.result?;
                }
                Ok::<u64, kv_client::Error>(first)
            }
        });
        let mut batches = stream::iter(batches).buffered(LOAD_AT_ONCE);
        while let Some(cleared) = batches.next().await {
            progress.set(cleared.map_err(|error| error.write("delete the keys"))?, "deleting keys");
        }
        Ok(())
    }

    async fn measure(
        &self,
        args: &BenchArgs,
        clients: &[Client],
        shared: &Arc<Shared>,
    ) -> Result<(Results, Cost), Failure> {
        let mut tasks = JoinSet::new();
        for (client, connection) in (0..as_usize(args.clients)).zip(clients.iter().cycle()) {
            tasks.spawn(driver::run(shared.clone(), connection.keyspace(&self.global.keyspace), client));
        }
        tokio::time::sleep(args.warm_up).await;
        let before = usages(&args.pids)?;
        self.watch(shared, args.duration).await;
        let cost = Cost::between(&before, &usages(&args.pids)?);
        let mut results = Results::new();
        while let Some(ended) = tasks.join_next().await {
            let of_client = ended.map_err(|error| Failure::unavailable(format!("a client ended early: {error}")))?;
            for (kind, stats) in of_client {
                results.entry(kind).or_default().merge(&stats);
            }
        }
        Ok((results, cost))
    }

    /// Moves the bar until the run ends.
    async fn watch(&self, shared: &Shared, duration: Duration) {
        let progress = Progress::share(&self.output, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let begin = tokio::time::Instant::now();
        let mut last = shared.answered.load(Ordering::Relaxed);
        while tokio::time::Instant::now() < shared.end() {
            let next = tokio::time::Instant::now() + PROGRESS_INTERVAL;
            tokio::time::sleep_until(next.min(shared.end())).await;
            let answered = shared.answered.load(Ordering::Relaxed);
            let rate = (answered - last) * 1000 / u64::try_from(PROGRESS_INTERVAL.as_millis()).unwrap_or(1);
            last = answered;
            let elapsed = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            progress.set(elapsed, format!("{} operations/s", crate::human::grouped(rate)));
        }
    }
}

/// This process first, then the nodes.
fn usages(pids: &[u32]) -> Result<Vec<Usage>, Failure> {
    let names = std::iter::once("self".to_owned()).chain(pids.iter().map(u32::to_string));
    names.map(|pid| process::usage(&pid).map_err(|error| Failure::usage(format!("{error:#}")))).collect()
}

fn as_usize(number: u32) -> usize {
    usize::try_from(number).expect("a machine of at least 32 bits")
}

fn as_usize_from(number: u64) -> usize {
    usize::try_from(number).expect("a small constant")
}
