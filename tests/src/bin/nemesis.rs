//! Storms by hand: one of a seed or of a schedule file, a campaign of many, and the page about them.
//!
//! Not here: what a storm is (kv-tests, nemesis).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use kv_tests::cluster::Cluster;
use kv_tests::nemesis::schedule::Schedule;
use kv_tests::nemesis::storm;
use kv_tests::report;
use kv_tests::workload::Workload;

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
        /// Adds the run's figures to this file, as a line of JSON.
        #[arg(long)]
        runs: Option<PathBuf>,
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
        Command::Storm { seed, minutes, nodes, schedule, history, runs } => {
            let schedule = match schedule {
                Some(file) => Schedule::parse(&fs::read_to_string(&file)?)
                    .with_context(|| format!("reading {}", file.display()))?,
                None => Schedule::random(seed, nodes, length(minutes)?),
            };
            weather(&schedule, history.as_deref(), runs.as_deref()).await
        }
        Command::Schedule { seed, minutes, nodes } => {
            print!("{}", Schedule::random(seed, nodes, length(minutes)?));
            Ok(())
        }
        Command::Report { folder } => report::write(&folder, &Path::new(env!("CARGO_MANIFEST_DIR")).join("..")),
    }
}

async fn weather(schedule: &Schedule, history: Option<&Path>, runs: Option<&Path>) -> Result<()> {
    println!("{schedule}");
    let mut cluster = Cluster::start(storm::settings(schedule.nodes)).await?;
    let load = Workload { seed: schedule.seed, ..Workload::default() };
    let after = storm::run(&mut cluster, schedule, load).await?;
    println!("{}", after.storm);
    if let Some(file) = history {
        after.history.write(std::io::BufWriter::new(fs::File::create(file)?))?;
    }
    if let Some(file) = runs {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(file)?;
        writeln!(file, "{}", after.storm.summary())?;
    }
    after.storm.passed()?;
    ensure!(after.storm.faults() > 0, "no fault was possible");
    cluster.finish_storm().await
}
