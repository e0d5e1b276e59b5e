//! The command line, and what is measured in which order.
//!
//! Not here: how each part is measured.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kv_tests::cluster::Cluster;
use kv_tests::settings::Settings;
use tokio::signal::unix::{SignalKind, signal};

use crate::awake::Awake;
use crate::etcd::{Etcd, Spread};
use crate::failover;
use crate::footprint;
use crate::goals::goals;
use crate::large;
use crate::limits;
use crate::machine::Machine;
use crate::page;
use crate::record::{Record, Run};
use crate::shapes::{SHAPES, Shape};
use crate::table;
use crate::versus::{Rounds, Systems};

/// What can be selected beside the shapes, and what it is.
const PARTS: [(&str, &str); 5] = [
    (LIMITS, "what the machine could do at most"),
    (FAILOVER, "the leader is killed under load, 20 times"),
    (IDLE, "1,000 idle shards on each of three nodes"),
    (MEMORY, "nodes without data, then with a million keys"),
    (LARGE, "10 GiB of data; only with --all or by name: it takes long and 50 GiB of disk"),
];
const LIMITS: &str = "limits";
const FAILOVER: &str = "failover";
const IDLE: &str = "idle";
const MEMORY: &str = "memory";
const LARGE: &str = "large";

/// What to measure.
#[derive(Debug, clap::Parser)]
#[command(name = "kv-bench", about = "Measures a fresh local cluster beside etcd and the limits of the machine")]
pub(crate) struct Arguments {
    /// Two to three minutes: fewer shapes, shorter rounds
    #[arg(long)]
    quick: bool,
    /// Everything, also what takes long
    #[arg(long, conflicts_with = "quick")]
    all: bool,
    /// Only these parts, by commas; --list names them
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Names the parts
    #[arg(long)]
    list: bool,
    /// Rounds of each shape on each system
    #[arg(long)]
    rounds: Option<u64>,
    /// Seconds of a round
    #[arg(long)]
    seconds: Option<f64>,
    /// The etcd to compare with; "none" leaves it out
    #[arg(long, default_value = "etcd")]
    etcd: String,
    /// Where etcd's client sends puts and linearizable gets
    #[arg(long, default_value = "members")]
    etcd_connections: Spread,
    /// A line of every node's configuration file, as in 'data_cache = "64MiB"'
    #[arg(long = "set")]
    lines: Vec<String>,
    /// Kills of the failover part
    #[arg(long, default_value_t = failover::KILLS)]
    kills: usize,
    /// GiB of the large part
    #[arg(long, default_value_t = 10)]
    gib: u64,
    /// The folder of documents whose page, plot and kept figures are replaced; parts that are not measured stay as they are
    #[arg(long)]
    publish: Option<PathBuf>,
    /// Measures nothing: writes the page and the plot again from the kept figures
    #[arg(long, requires = "publish")]
    render: bool,
    /// Sends back what it gets (for the limits)
    #[arg(long, hide = true)]
    echo_server: Option<String>,
}

/// Runs the command line; a signal ends it and all it started.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if let Some(address) = &arguments.echo_server {
        return limits::echo::serve(address).await;
    }
    if arguments.list {
        list();
        return Ok(());
    }
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        done = measure(&arguments) => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

fn list() {
    for (name, title) in parts() {
        println!("{name:<16} {title}");
    }
}

/// Everything that can be selected, with what it is.
fn parts() -> impl Iterator<Item = (&'static str, &'static str)> {
    SHAPES.into_iter().map(|shape| (shape.name, shape.title)).chain(PARTS)
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let known: Vec<&str> = parts().map(|(name, _)| name).collect();
    for name in &arguments.only {
        ensure!(known.contains(&name.as_str()), "no part {name:?}; there are {}", known.join(", "));
    }
    let mut record = Record::default();
    if !arguments.render {
        let shapes = arguments.shapes()?;
        let others = PARTS.into_iter().map(|(name, _)| name).filter(|name| arguments.measures(name));
        let parts = shapes.iter().map(|shape| shape.name).chain(others).map(str::to_owned).collect();
        record.runs.push(Run { machine: Machine::look(), parts });
        versus(arguments, &shapes, &mut record).await?;
        alone(arguments, &mut record).await?;
        println!("\n{}", table::text(&goals(&record)));
    }
    arguments.publish.as_ref().map_or(Ok(()), |docs| publish(arguments, record, docs))
}

fn publish(arguments: &Arguments, measured: Record, docs: &Path) -> Result<()> {
    let file = docs.join("bench/latest.json");
    let mut kept = Record::load(&file)?;
    if !arguments.render {
        kept.update(measured);
        kept.save(&file)?;
    }
    page::publish(&kept, docs)
}

/// The parts that need a cluster of their own.
async fn alone(arguments: &Arguments, record: &mut Record) -> Result<()> {
    let lines = &arguments.lines;
    if arguments.measures(FAILOVER) {
        eprintln!("{FAILOVER}");
        record.failover = failover::measure(lines, arguments.kills).await?;
    }
    if arguments.measures(IDLE) {
        eprintln!("{IDLE}");
        record.idle = Some(footprint::idle(lines).await?);
    }
    if arguments.measures(MEMORY) {
        eprintln!("{MEMORY}");
        record.memory = Some(footprint::memory(lines).await?);
    }
    if arguments.measures(LARGE) {
        eprintln!("{LARGE}");
        record.large = Some(large::measure(lines, arguments.gib).await?);
    }
    Ok(())
}

/// Shapes and limits, interleaved.
async fn versus(arguments: &Arguments, shapes: &[Shape], record: &mut Record) -> Result<()> {
    let limits = arguments.measures(LIMITS);
    let rounds = arguments.rounds();
    let systems = if shapes.is_empty() { None } else { Some(arguments.start().await?) };
    if let Some(Systems { etcd: Some((etcd, _)), .. }) = &systems {
        let version = etcd.version().await?;
        record.runs.iter_mut().for_each(|run| run.machine.etcd.clone_from(&version));
    }
    let mut loaded = Vec::new();
    for round in 0..rounds.count {
        eprintln!("round {} of {}", round + 1, rounds.count);
        if limits {
            limits::round(rounds.duration / 2, record).await?;
        }
        for shape in shapes {
            if let Some(systems) = &systems {
                if !loaded.contains(&shape.keyspace) {
                    let plan = shape.plan(rounds.warm_up, rounds.duration, 0);
                    systems.load(shape.keyspace, &plan).await.context("loading the keys")?;
                    loaded.push(shape.keyspace);
                }
                systems.round(shape, rounds, round, record).await?;
            }
        }
    }
    match systems {
        Some(systems) => systems.kv.discard().await,
        None => Ok(()),
    }
}

impl Arguments {
    /// Whether a part is asked for.
    fn measures(&self, part: &str) -> bool {
        let is_quick = part == LIMITS || SHAPES.iter().any(|shape| shape.name == part && shape.quick);
        match part {
            _ if !self.only.is_empty() => self.only.iter().any(|name| name == part),
            LARGE => self.all,
            _ => is_quick || !self.quick,
        }
    }

    /// Those asked for that this machine can measure: what is not asked for by name is left out otherwise.
    fn shapes(&self) -> Result<Vec<Shape>> {
        let mut shapes: Vec<_> = SHAPES.into_iter().filter(|shape| self.measures(shape.name)).collect();
        if shapes.iter().any(|shape| shape.awake)
            && let Err(error) = Awake::keep().context("processors cannot be kept awake")
        {
            if !self.only.is_empty() {
                return Err(error);
            }
            eprintln!("without the rows of processors awake: {error:#}");
            shapes.retain(|shape| !shape.awake);
        }
        Ok(shapes)
    }

    fn rounds(&self) -> Rounds {
        let (count, seconds) = if self.quick { (3, 2.0) } else { (5, 4.0) };
        let duration = Duration::from_secs_f64(self.seconds.unwrap_or(seconds));
        Rounds { count: self.rounds.unwrap_or(count), warm_up: duration / 4, duration }
    }

    async fn start(&self) -> Result<Systems> {
        let settings = Settings { lines: self.lines.clone(), ..Settings::default().shards(0) };
        let kv = Cluster::start(settings).await?;
        let etcd = match self.etcd.as_str() {
            "none" => None,
            binary => Some((Etcd::start(Path::new(binary)).await?, self.etcd_connections)),
        };
        Ok(Systems { kv, etcd })
    }
}
