//! `bench`: how fast the cluster is under a load of one's choice, and what that costs.
//!
//! Not here: how operations are drawn, sent and timed (kv-load), the comparison with other systems (`tests/bench`).

mod view;

use std::time::Duration;

use clap::Args;
use kv_client::{Client, Keyspace};
use kv_load::{Chooser, ClusterTarget, Distribution, Mix, Plan, Report, RunError, Workload, key, load_keys};

use crate::context::Context;
use crate::exit::{Exit, Explain as _, Failure};
use crate::human;
use crate::progress::Progress;

use self::view::View;

/// Keys in one batch while loading: large enough to share an entry, small enough to spread over the shards.
const LOAD_BATCH: u64 = 500;
/// Keys looked for at once.
const LOOK_BATCH: u64 = 500;
/// Keys deleted at once: enough to give every shard a full batch.
const CLEAR_BATCH: u64 = 4000;

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
    /// Overwrite, and in the end delete, keys named as the run's own that are there already
    #[arg(long)]
    overwrite: bool,
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
        let plan = plan(args);
        let targets = self.targets(args)?;
        let first = targets.first().ok_or_else(|| Failure::usage("at least one connection"))?;
        let keyspace = self.client.keyspace(&self.global.keyspace);
        keyspace.routes().await.map_err(|error| error.read("find the shards"))?;
        if !args.no_load && !args.overwrite {
            self.check_vacant(args, &keyspace).await?;
        }
        if plan.mix.needs_keys() && !args.no_load {
            self.load(&plan, first).await?;
        }
        let measured = self.measure(plan, &targets, &args.pids).await;
        if args.keep || args.no_load {
            self.output.note("the keys stay in the keyspace: k000... up, one for each number");
        } else {
            let keys = measured.as_ref().map_or(args.keys, |report| report.keys);
            self.clear(keys, as_usize(args.key_bytes), &keyspace).await?;
        }
        let report = measured?;
        let view = View { args, report: &report };
        self.output.show(view.json(), |look| view.text(look))?;
        Ok(Exit::Ok)
    }

    /// One client library instance per connection: each keeps one stream to each node.
    fn targets(&self, args: &BenchArgs) -> Result<Vec<ClusterTarget>, Failure> {
        let connect = |_| {
            let builder = Client::builder().endpoints(self.global.endpoints.clone()).timeout(self.global.timeout);
            let client = builder.build_lazy().map_err(|error| error.read("connect"))?;
            Ok(ClusterTarget::new(client.keyspace(&self.global.keyspace), self.consistency()))
        };
        (0..args.connections).map(connect).collect()
    }

    /// Writes every key once.
    async fn load(&self, plan: &Plan, target: &ClusterTarget) -> Result<(), Failure> {
        let progress = Progress::share(&self.output, plan.keys);
        let loaded = load_keys(plan, target, LOAD_BATCH, |written| progress.set(written, "loading keys"));
        loaded.await.map_err(|error| error.write("load the keys"))
    }

    /// Somebody's own keys are neither overwritten nor deleted.
    async fn check_vacant(&self, args: &BenchArgs, keyspace: &Keyspace) -> Result<(), Failure> {
        let progress = Progress::share(&self.output, args.keys);
        let mut first = 0;
        while first < args.keys {
            let end = (first + LOOK_BATCH).min(args.keys);
            let keys = (first..end).map(|number| key(number, as_usize(args.key_bytes)));
            let found = keyspace.batch_get(keys).await.map_err(|error| error.read("look whether keys are there"))?;
            if let Some(there) = found.iter().flatten().next() {
                return Err(Failure::usage(format!(
                    "keyspace \"{}\" holds {} already, which the run would overwrite and delete: give it a keyspace of its \
                     own (kvctl keyspace create bench; kvctl -k bench bench ...), or say --overwrite",
                    keyspace.name(),
                    self.show_key(&there.key)
                )));
            }
            first = end;
            progress.set(first, "looking for keys");
        }
        Ok(())
    }

    /// Deletes every key a run may have written.
    async fn clear(&self, keys: u64, key_bytes: usize, keyspace: &Keyspace) -> Result<(), Failure> {
        let progress = Progress::share(&self.output, keys);
        let mut first = 0;
        while first < keys {
            let end = (first + CLEAR_BATCH).min(keys);
            let batch = (first..end).fold(keyspace.batch(), |batch, number| batch.delete(key(number, key_bytes)));
            for part in batch.spread().await.map_err(|error| error.write("delete the keys"))? {
                part.result.map_err(|error| error.write("delete the keys"))?;
            }
            first = end;
            progress.set(first, "deleting keys");
        }
        Ok(())
    }

    async fn measure(&self, plan: Plan, targets: &[ClusterTarget], pids: &[u32]) -> Result<Report, Failure> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let progress = Progress::share(&self.output, millis(plan.duration));
        let told = kv_load::run(plan, targets, pids, |elapsed, rate| {
            progress.set(millis(elapsed), format!("{} operations/s", human::grouped(rate)));
        });
        told.await.map_err(|error| match error {
            RunError::Process(error) => Failure::usage(error.to_string()),
            RunError::NoTarget | RunError::Client(_) => Failure::unavailable(error.to_string()),
        })
    }
}

fn plan(args: &BenchArgs) -> Plan {
    Plan {
        mix: Mix::of(args.workload, args.reads),
        chooser: Chooser::new(args.distribution(), args.keys),
        latest: args.workload.reads_latest(),
        clients: as_usize(args.clients),
        keys: args.keys,
        key_bytes: as_usize(args.key_bytes),
        value_bytes: as_usize(args.value_bytes),
        batch: as_usize(args.batch),
        page: as_usize(args.page),
        rate: args.rate.map(f64::from),
        warm_up: args.warm_up,
        duration: args.duration,
        seed: args.seed,
    }
}

fn as_usize(number: u32) -> usize {
    usize::try_from(number).expect("a machine of at least 32 bits")
}
