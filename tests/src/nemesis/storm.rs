//! One storm: load, faults by the schedule, heal, serve, judge.
//!
//! Invariants: after the heal every shard takes a write within [`SERVES_WITHIN`]; a node that ends by itself fails the
//! storm.
//!
//! Not here: what a fault does (action).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_checkers::history::History;
use kv_checkers::verdict::{self, Verdict};
use kv_client::Client;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::action::{self, Undo};
use super::recovery;
use super::schedule::{Kind, Schedule};
use crate::cluster::Cluster;
use crate::recorder::Recorder;
use crate::replicas;
use crate::settings::Settings;
use crate::wait;
use crate::workload::{self, Workload};

/// From the end of all faults, with all processes running, until every shard takes a write.
pub const SERVES_WITHIN: Duration = Duration::from_secs(10);
/// What nodes may need to start after their disks and links are whole.
const HEALS_WITHIN: Duration = Duration::from_secs(60);

/// Leaders killed one after the other when the storm is over.
const LEADER_KILLS: usize = 2;

/// What a storm showed.
#[derive(Clone, Debug)]
pub struct Storm {
    /// The schedule's.
    pub seed: u64,
    /// How many nodes there were.
    pub nodes: usize,
    /// How long load and faults ran.
    pub length: Duration,
    /// Operations that ended while faults did.
    pub under_faults: usize,
    /// How often each kind of fault was injected.
    pub injected: BTreeMap<Kind, usize>,
    /// Faults that were not possible when their time came.
    pub skipped: usize,
    /// Faults that began while another one lasted.
    pub overlapping: usize,
    /// From the end of all faults until every shard took a write.
    pub served_after: Duration,
    /// From the death of a leader, afterwards and alone, until every shard it led took a write.
    pub leader_kills: Vec<Duration>,
    /// What the checkers say.
    pub verdict: Verdict,
}

/// Everything a storm left behind.
#[derive(Debug)]
pub struct Aftermath {
    /// Its figures.
    pub storm: Storm,
    /// What the clients saw.
    pub history: History,
}

/// A cluster that storms can be let loose on: small limits, so that logs are purged and snapshots sent within seconds.
#[must_use]
pub fn settings(nodes: usize) -> Settings {
    let lines = [
        "flush_interval = \"500ms\"",
        "log_entries_kept = 500",
        "disk_free_min = \"100MiB\"",
        "disk_check_interval = \"100ms\"",
    ];
    lines.into_iter().fold(Settings::default().nodes(nodes).breakable(), Settings::line)
}

/// Lets the schedule loose on the cluster under this load.
pub async fn run(cluster: &mut Cluster, schedule: &Schedule, load: Workload) -> Result<Aftermath> {
    workload::prepare(cluster.admin().await?).await?;
    let recorder = Arc::new(Recorder::new(schedule.seed));
    let client = cluster.client().await?;
    let load = load.start(&client, cluster.endpoints(), recorder.clone()).await?;
    let mut faults = Faults::new(schedule.seed, recorder.clone());
    faults.run(cluster, schedule).await?;
    let under_faults = recorder.with(|history| history.operations.len());
    let served_after = faults.heal(cluster, schedule.seed).await?;
    let mut leader_kills = vec![];
    for _ in 0..LEADER_KILLS {
        leader_kills.push(recovery::of_a_killed_leader(cluster, &recorder).await?);
    }
    replicas::check_all(cluster, &recorder).await?;
    let history = load.stop(&client).await?;
    let Faults { injected, skipped, overlapping, .. } = faults;
    let storm = Storm {
        seed: schedule.seed,
        nodes: schedule.nodes,
        length: schedule.length,
        under_faults,
        injected,
        skipped,
        overlapping,
        served_after,
        leader_kills,
        verdict: verdict::judge(&history),
    };
    Ok(Aftermath { storm, history })
}

struct Faults {
    random: StdRng,
    recorder: Arc<Recorder>,
    injected: BTreeMap<Kind, usize>,
    skipped: usize,
    overlapping: usize,
    /// By the time they are due.
    undos: Vec<(Instant, Undo)>,
}

impl Faults {
    fn new(seed: u64, recorder: Arc<Recorder>) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { random, recorder, injected: BTreeMap::new(), skipped: 0, overlapping: 0, undos: vec![] }
    }

    async fn run(&mut self, cluster: &mut Cluster, schedule: &Schedule) -> Result<()> {
        let began = Instant::now();
        for step in &schedule.steps {
            self.undo_until(cluster, began + step.at).await?;
            sleep_until(began + step.at).await;
            let done = action::begin(cluster, step, &mut self.random).await;
            match done.with_context(|| format!("{step} at {:?}", step.at))? {
                None => self.skipped += 1,
                Some(undo) => {
                    self.recorder.fault(step.to_string());
                    *self.injected.entry(step.kind).or_default() += 1;
                    self.overlapping += usize::from(!self.undos.is_empty());
                    self.undos.extend(undo.map(|undo| (Instant::now() + step.lasts, undo)));
                    self.undos.sort_by_key(|(due, _)| *due);
                }
            }
        }
        self.undo_until(cluster, began + schedule.length).await?;
        sleep_until(began + schedule.length).await;
        Ok(())
    }

    async fn undo_until(&mut self, cluster: &mut Cluster, time: Instant) -> Result<()> {
        while let Some((due, _)) = self.undos.first().filter(|(due, _)| *due <= time) {
            sleep_until(*due).await;
            let (_, undo) = self.undos.remove(0);
            self.recorder.fault(format!("undo {undo:?}"));
            action::undo(cluster, undo).await?;
        }
        Ok(())
    }

    /// Ends all faults, starts what is down, and measures how long it takes until every shard takes a write.
    async fn heal(&mut self, cluster: &mut Cluster, seed: u64) -> Result<Duration> {
        self.recorder.fault("heal");
        cluster.network().context("a storm needs a network")?.rules().heal();
        for (_, undo) in std::mem::take(&mut self.undos) {
            action::undo(cluster, undo).await?;
        }
        let started = cluster.start_missing();
        timeout_at(Instant::now() + HEALS_WITHIN, started).await.context("nodes do not start after the storm")??;
        let healed = Instant::now();
        let cluster = &*cluster;
        wait::until("every shard to take a write after the storm", HEALS_WITHIN, || async {
            // A client of its own: it has no routes yet, and no connections that hang.
            let client: Client = cluster.client().await?;
            workload::every_shard_serves(&client, seed).await
        })
        .await?;
        Ok(healed.elapsed())
    }
}

impl Storm {
    /// Faults of all kinds.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.injected.values().sum()
    }

    /// Fails unless the promise was kept, the cluster served in time and the checkers had something to judge.
    pub fn passed(&self) -> Result<()> {
        ensure!(self.verdict.violations.is_empty(), "the promise is broken:\n{self}");
        ensure!(self.served_after <= SERVES_WITHIN, "it served only after {:?}\n{self}", self.served_after);
        for (property, judged) in &self.verdict.judged {
            ensure!(*judged > 0, "{property} judged nothing\n{self}");
        }
        Ok(())
    }

    /// Operations that ended in a second of the storm.
    fn rate(&self) -> u64 {
        (self.under_faults as f64 / self.length.as_secs_f64().max(1.0)) as u64
    }

    /// Its figures for the page of a campaign.
    #[must_use]
    pub fn summary(&self) -> serde_json::Value {
        let faults: BTreeMap<&str, usize> = self.injected.iter().map(|(kind, times)| (kind.name(), *times)).collect();
        let judged: BTreeMap<&str, usize> = self.verdict.judged.iter().copied().collect();
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let undecided = self.verdict.violations.iter().filter(|violation| violation.is_undecided()).count();
        serde_json::json!({
            "seed": self.seed,
            "nodes": self.nodes,
            "seconds": self.length.as_secs(),
            "under_faults": self.under_faults,
            "per_second": self.rate(),
            "operations": self.verdict.figures.operations,
            "acknowledged": self.verdict.figures.acknowledged,
            "unknown": self.verdict.figures.unknown,
            "faults": faults,
            "skipped": self.skipped,
            "overlapping": self.overlapping,
            "judged": judged,
            "violations": self.verdict.violations.len(),
            "undecided": undecided,
            "served_after_ms": milliseconds(self.served_after),
            "leader_kills": self.leader_kills.len(),
            "leader_kill_ms": milliseconds(self.leader_kills.iter().max().copied().unwrap_or_default()),
            "longest_gap_ms": milliseconds(self.verdict.figures.longest_gap),
        })
    }
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> =
            self.injected.iter().map(|(kind, times)| format!("{} {times}", kind.name())).collect();
        writeln!(
            f,
            "storm of seed {}, {} nodes, {:?}: {} faults ({}), {} skipped, {} overlapping; {} operations/s; every shard \
             served {:?} after the heal and {:?} after a leader's death",
            self.seed,
            self.nodes,
            self.length,
            self.faults(),
            faults.join(", "),
            self.skipped,
            self.overlapping,
            self.rate(),
            self.served_after,
            self.leader_kills
        )?;
        write!(f, "{}", self.verdict)
    }
}
