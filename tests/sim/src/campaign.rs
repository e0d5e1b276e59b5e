//! The command line: one seed, or fresh ones until there were enough or the time is up, each in a process of its own.
//!
//! Invariants: each seed is printed with the command that replays it as soon as it fails; the last line on standard
//! output is the summary as JSON.
//!
//! Not here: what a seed does (run).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::plan::Shape;
use crate::run;

/// The seed of a simulated process; see libc.c.
const SEED: &str = "KV_SIM_SEED";
/// Milliseconds with faults, unless told.
const TICKS: u64 = 30_000;
/// A seed that takes longer than this hangs.
const SEED_WITHIN: Duration = Duration::from_secs(300);

/// Names a file that takes one more line for each seed of a campaign; see tests/README.md.
const RUNS: &str = "KV_SIM_RUNS";

const USAGE: &str = "\
usage: kv-sim seed SEED [TICKS]        one seed; KV_SIM_LOG=info shows the nodes' logs
       kv-sim twice SEED [TICKS]       one seed twice: both runs must be the same
       kv-sim campaign SECONDS JOBS [SEEDS] [TICKS]
                                       fresh seeds for so long, at most so many (0: no limit)
       kv-sim shape NAME SECONDS JOBS  fresh seeds of a shape until one fails: figure-8, churn, lost-tail, leases, clocks, any";

pub(crate) fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| -> Result<u64> {
        arguments.get(at).map_or(Ok(default), |text| text.parse().with_context(|| format!("{text} is no number")))
    };
    match arguments.first().map(String::as_str) {
        Some("run") => one(number(1, TICKS)?),
        Some("seed") if arguments.len() > 1 => {
            let found = child(number(1, 0)?, number(2, TICKS)?)?;
            println!("{found}");
            Ok(if is_clean(&found) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some("twice") if arguments.len() > 1 => twice(number(1, 0)?, number(2, TICKS)?),
        Some("campaign") if arguments.len() > 2 => {
            let campaign = Campaign::fresh(number(1, 0)?, number(2, 1)?);
            let seeds = number(3, 0)?;
            Campaign { seeds: if seeds == 0 { u64::MAX } else { seeds }, ticks: number(4, TICKS)?, ..campaign }.run()
        }
        Some("shape") if arguments.len() > 3 => {
            let name = arguments.get(1).map_or("", String::as_str);
            let digit = Shape::digit(name).with_context(|| format!("there is no shape {name}"))?;
            let fresh = Campaign::fresh(number(2, 0)?, number(3, 1)?);
            Campaign { first: fresh.first / 10 * 10 + digit, step: 10, until_failure: true, ..fresh }.run()
        }
        _ => bail!(USAGE),
    }
}

/// In the process of a seed.
fn one(ticks: u64) -> Result<ExitCode> {
    // Always, and by nothing that draws the keys of hash maps: a run that is looked at is the same run.
    let filter: Targets = std::env::var("KV_SIM_LOG").unwrap_or_else(|_| "off".to_owned()).parse()?;
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .finish()
        .with(filter)
        .init();
    let seed = std::env::var(SEED).context("no seed")?.parse()?;
    println!("{}", run::run(seed, ticks)?);
    Ok(ExitCode::SUCCESS)
}

fn is_clean(found: &Value) -> bool {
    found.get("violations").and_then(Value::as_array).is_some_and(Vec::is_empty)
}

/// Runs a seed in a process of its own; a process that dies is a violation.
fn child(seed: u64, ticks: u64) -> Result<Value> {
    let mut process = Command::new(std::env::current_exe()?)
        .args(["run", &ticks.to_string()])
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let began = Instant::now();
    while process.try_wait()?.is_none() {
        if began.elapsed() > SEED_WITHIN {
            process.kill()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = process.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    let died = || json!({ "seed": seed, "violations": [format!("the process ended with {}", output.status)] });
    Ok(found.filter(|_| output.status.success()).unwrap_or_else(died))
}

fn twice(seed: u64, ticks: u64) -> Result<ExitCode> {
    let (one, two) = (child(seed, ticks)?, child(seed, ticks)?);
    println!("{one}");
    ensure!(one == two, "the second run of seed {seed} is another:\n{two}");
    Ok(if is_clean(&one) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What all seeds together saw.
#[derive(Default)]
struct Total {
    seeds: u64,
    sums: BTreeMap<String, u64>,
    failed: Vec<u64>,
}

impl Total {
    fn add(&mut self, seed: u64, found: &Value) {
        self.seeds += 1;
        if !is_clean(found) {
            self.failed.push(seed);
        }
        for (group, prefix) in [("operations", "operations."), ("faults", "faults."), ("judged", "judged.")] {
            for (name, count) in found.get(group).and_then(Value::as_object).into_iter().flatten() {
                *self.sums.entry(format!("{prefix}{name}")).or_default() += count.as_u64().unwrap_or_default();
            }
        }
        let simulated = found.get("simulated_ms").and_then(Value::as_u64).unwrap_or_default();
        *self.sums.entry("simulated_ms".to_owned()).or_default() += simulated;
    }

    fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    fn group(&self, prefix: &str) -> BTreeMap<&str, u64> {
        self.sums.iter().filter_map(|(name, count)| Some((name.strip_prefix(prefix)?, *count))).collect()
    }
}

/// A run as the page of all proofs takes it.
fn run_line(found: &Value) -> Value {
    let count = |group: &str, name: &str| found.get(group).and_then(|group| group.get(name)).and_then(Value::as_u64);
    let operations = |name: &str| count("operations", name).unwrap_or_default();
    let (done, not_done, unknown) = (operations("done"), operations("not_done"), operations("unknown"));
    let seconds = found.get("simulated_ms").and_then(Value::as_u64).unwrap_or_default() / 1_000;
    json!({
        "kind": "simulation",
        "seed": found.get("seed"),
        "seconds": seconds,
        "operations": done + not_done + unknown,
        "acknowledged": done,
        "unknown": unknown,
        "faults": found.get("faults").cloned().unwrap_or_else(|| json!({})),
        "judged": found.get("judged").cloned().unwrap_or_else(|| json!({})),
        "violations": found.get("violations").and_then(Value::as_array).map_or(1, Vec::len),
    })
}

/// Many seeds.
struct Campaign {
    budget: Duration,
    jobs: u64,
    /// At most so many.
    seeds: u64,
    first: u64,
    step: u64,
    ticks: u64,
    until_failure: bool,
}

impl Campaign {
    fn fresh(seconds: u64, jobs: u64) -> Self {
        Self {
            budget: Duration::from_secs(seconds),
            jobs: jobs.max(1),
            seeds: u64::MAX,
            first: rand::random::<u64>() >> 16,
            step: 1,
            ticks: TICKS,
            until_failure: false,
        }
    }

    fn run(&self) -> Result<ExitCode> {
        let began = Instant::now();
        let total = parking_lot::Mutex::new(Total::default());
        let append = |path| OpenOptions::new().create(true).append(true).open(path);
        let runs = std::env::var_os(RUNS).map(append).transpose().context("no file for the runs")?;
        eprintln!("seeds from {}, {} simulated ms with faults each, for {:?}", self.first, self.ticks, self.budget);
        let next = AtomicU64::new(0);
        let work = || -> Result<()> {
            while began.elapsed() < self.budget && !(self.until_failure && total.lock().has_failed()) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.seeds {
                    break;
                }
                let seed = self.first + number * self.step;
                let found = child(seed, self.ticks)?;
                if !is_clean(&found) {
                    eprintln!("seed {seed} FAILED; replay: scripts/sim {seed}\n{found}");
                }
                let mut total = total.lock();
                total.add(seed, &found);
                if let Some(mut runs) = runs.as_ref() {
                    writeln!(runs, "{}", run_line(&found))?;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
        })?;
        let total = total.into_inner();
        println!("{}", self.summary(&total, began.elapsed()));
        Ok(if total.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn summary(&self, total: &Total, took: Duration) -> Value {
        json!({
            "campaign": "simulation",
            "first_seed": self.first,
            "seeds": total.seeds,
            "ticks_each": self.ticks,
            "seconds": took.as_secs(),
            "simulated_seconds": total.group("simulated_").values().sum::<u64>() / 1_000,
            "operations": total.group("operations."),
            "faults": total.group("faults."),
            "judged": total.group("judged."),
            "violations": total.failed.len(),
            "failed_seeds": total.failed,
        })
    }
}
