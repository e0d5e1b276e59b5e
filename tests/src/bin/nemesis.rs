//! Storms by hand: one of a seed or of a schedule file, a campaign of many, and the page about them.
//!
//! Not here: what a storm is (kv-tests, nemesis).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use kv_tests::cluster::Cluster;
use kv_tests::nemesis::schedule::Schedule;
use kv_tests::nemesis::storm;
use kv_tests::report;
use kv_tests::runs;
use kv_tests::workload::Workload;
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Lets faults loose on a cluster under load and judges what clients saw")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One storm.
    Storm {
        /// Draws the schedule and the load.
        #[arg(long, default_value_t = rand::random::<u32>().into())]
        seed: u64,
        /// How long.
        #[arg(long, default_value_t = 1.0)]
        minutes: f64,
        /// How many nodes.
        #[arg(long, default_value_t = 4)]
        nodes: usize,
        /// A schedule instead of a drawn one.
        #[arg(long)]
        schedule: Option<PathBuf>,
        /// Writes what clients saw, as lines of JSON.
        #[arg(long)]
        history: Option<PathBuf>,
    },
    /// Prints the schedule of a seed, to be changed and given back.
    Schedule {
        /// Draws it.
        #[arg(long)]
        seed: u64,
        /// How long.
        #[arg(long, default_value_t = 1.0)]
        minutes: f64,
        /// How many nodes.
        #[arg(long, default_value_t = 4)]
        nodes: usize,
    },
    /// Writes docs/proof.md and the README's line from the runs in a folder.
    Report {
        /// Files of runs, `*.jsonl`.
        folder: PathBuf,
    },
}

fn length(minutes: f64) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(minutes * 60.0)?)
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Storm { seed, minutes, nodes, schedule, history } => {
            let schedule = match schedule {
                Some(file) => Schedule::parse(&fs::read_to_string(&file)?)
                    .with_context(|| format!("reading {}", file.display()))?,
                None => Schedule::random(seed, nodes, length(minutes)?),
            };
            weather(&schedule, history.as_deref()).await
        }
        Command::Schedule { seed, minutes, nodes } => {
            print!("{}", Schedule::random(seed, nodes, length(minutes)?));
            Ok(())
        }
        Command::Report { folder } => report::write(&folder, &Path::new(env!("CARGO_MANIFEST_DIR")).join("..")),
    }
}

/// Lets it loose, and enters its figures also if it fails.
async fn weather(schedule: &Schedule, history: Option<&Path>) -> Result<()> {
    println!("{schedule}");
    let mut run = json!({ "seed": schedule.seed, "nodes": schedule.nodes, "violations": 0 });
    let ended = let_loose(schedule, history, &mut run).await;
    if ended.is_err() && run.get("violations").and_then(Value::as_u64) == Some(0) {
        // Not served in time, a node that panicked or ended: no less than a broken promise.
        run.as_object_mut().context("a run is an object")?.insert("violations".to_owned(), 1.into());
    }
    runs::record("cluster", run)?;
    ended
}

async fn let_loose(schedule: &Schedule, history: Option<&Path>, run: &mut Value) -> Result<()> {
    let mut cluster = Cluster::start(storm::settings(schedule.nodes)).await?;
    let load = Workload::of_storm(schedule.seed, schedule.length);
    let after = storm::run(&mut cluster, schedule, load).await?;
    println!("{}", after.storm);
    *run = after.storm.summary();
    if let Some(file) = history {
        after.history.write(std::io::BufWriter::new(fs::File::create(file)?))?;
    }
    after.storm.passed()?;
    ensure!(after.storm.faults() > 0, "no fault was possible");
    cluster.finish_storm().await
}
