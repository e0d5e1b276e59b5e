//! Continuous load through kv-client: counters and keys written once, every answer recorded.
//!
//! Invariants: bounded in writers, pace and number of requests.
//!
//! Not here: the mixture that faults are proved with (workload), the judgement (kv-checkers).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::stream::{self, StreamExt as _};
use kv_checkers::figures::Figures;
use kv_checkers::history::{Call, History, Mode, Operation, Outcome};
use kv_checkers::verdict;
use kv_client::Client;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::caller::Caller;
use crate::recorder::Recorder;
use crate::wait;

/// What a client may notice of a leader's death: detection, election, its own retries.
const NOTICED_MAX: Duration = Duration::from_secs(2);

/// How long the load may need for the progress a test waits for.
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);
/// Reads at once when all is compared.
const READS_AT_ONCE: usize = 64;

/// How much load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Each with a counter of its own and keys of its own.
    pub writers: usize,
    /// Least time between two rounds of a writer; a round is a put, a read and an increment.
    pub pace: Duration,
    /// Most rounds of a writer; it ends by itself then.
    pub rounds_max: usize,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// The keyspace it writes.
    pub keyspace: String,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            writers: 12,
            pace: Duration::from_millis(20),
            rounds_max: 5_000,
            value_bytes: 64,
            keyspace: "default".to_owned(),
        }
    }
}

/// A load under way.
#[derive(Debug)]
pub struct Running {
    client: Client,
    keyspace: String,
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
    writers: JoinSet<()>,
}

impl Load {
    /// Begins.
    #[must_use]
    pub fn start(self, client: &Client) -> Running {
        let (recorder, stop) = (Arc::new(Recorder::new(0)), Arc::new(AtomicBool::new(false)));
        let mut writers = JoinSet::new();
        // Loads of one test do not share keys.
        let name = format!("{:08x}", rand::random::<u32>());
        for writer in 0..self.writers {
            let writer = Writer {
                process: recorder.process(),
                caller: Caller::client(client.keyspace(&self.keyspace)),
                recorder: recorder.clone(),
                name: format!("{name}/{writer}"),
            };
            writers.spawn(writer.run(self.clone(), stop.clone()));
        }
        Running { client: client.clone(), keyspace: self.keyspace, recorder, stop, writers }
    }
}

impl Running {
    /// Waits until this many further writes are acknowledged.
    pub async fn progress(&self, writes: usize) -> Result<()> {
        let goal = self.recorder.acknowledged() + writes;
        wait::until(&format!("{writes} more acknowledged writes"), PROGRESS_WITHIN, || async {
            let acknowledged = self.recorder.acknowledged();
            ensure!(acknowledged >= goal, "{} are missing", goal - acknowledged);
            Ok(())
        })
        .await
    }

    /// Ends the load.
    pub async fn stop(mut self) -> Result<Stopped> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.writers.join_next().await {
            ended.context("a writer of the load panicked")?;
        }
        Ok(Stopped { keyspace: self.keyspace, recorder: self.recorder })
    }

    /// Ends the load, reads everything it touched, judges, and prints the figures.
    pub async fn verify(self) -> Result<Figures> {
        let client = self.client.clone();
        self.stop().await?.verify(&client).await
    }

    /// The same, and no request failed or took longer than [`NOTICED_MAX`].
    pub async fn verify_unnoticed(self) -> Result<()> {
        let figures = self.verify().await?;
        ensure!(figures.not_applied + figures.unknown == 0, "requests failed: {figures}");
        ensure!(figures.slowest <= NOTICED_MAX, "a request took {:?}", figures.slowest);
        Ok(())
    }
}

/// A load that has ended and is not judged yet.
#[derive(Debug)]
pub struct Stopped {
    keyspace: String,
    recorder: Arc<Recorder>,
}

impl Stopped {
    /// Reads everything the load touched through this client, judges, and prints the figures.
    pub async fn verify(self, client: &Client) -> Result<Figures> {
        // Not among the figures: these reads are the test's, not the load's.
        let figures = self.recorder.with(|history| Figures::of(history));
        let caller = Caller::client(client.keyspace(&self.keyspace));
        read_all(&caller, &self.recorder, |_| true).await?;
        let verdict = verdict::judge(&self.recorder.take());
        println!("{verdict}");
        ensure!(verdict.violations.is_empty(), "broken promises:\n{verdict}");
        ensure!(figures.acknowledged > 0, "nothing was acknowledged: {:?}", figures.reasons);
        Ok(figures)
    }
}

/// Reads every key that the history names and `of` accepts; all must answer.
pub async fn read_all(caller: &Caller, recorder: &Recorder, of: impl Fn(&str) -> bool) -> Result<()> {
    let mut keys = recorder.with(|history| keys(history));
    keys.retain(|key| of(key));
    let process = recorder.process();
    let read = |key: String| async move {
        let (invoke, call) = (recorder.now(), Call::read(&key));
        let outcome = caller.call(&call).await;
        let failed = match &outcome {
            Outcome::NotApplied { reason } | Outcome::Unknown { reason } => Some(format!("reading {key}: {reason}")),
            Outcome::Written { .. } | Outcome::Refused { .. } | Outcome::Found { .. } | Outcome::Listed { .. } => None,
        };
        recorder.enter(process, None, invoke, call, outcome);
        failed
    };
    let failed: Vec<Option<String>> = stream::iter(keys).map(read).buffer_unordered(READS_AT_ONCE).collect().await;
    let failed: Vec<String> = failed.into_iter().flatten().take(5).collect();
    ensure!(failed.is_empty(), "the final reads failed: {failed:?}");
    Ok(())
}

/// Lists every key that begins so; it must answer.
pub async fn scan_all(caller: &Caller, recorder: &Recorder, prefix: &str) -> Result<()> {
    let call = Call::Scan { prefix: prefix.to_owned(), mode: Mode::Linearizable };
    let invoke = recorder.now();
    let outcome = caller.call(&call).await;
    let listed = matches!(outcome, Outcome::Listed { .. });
    recorder.enter(recorder.process(), None, invoke, call, outcome.clone());
    ensure!(listed, "the final scan of {prefix} failed: {outcome:?}");
    Ok(())
}

fn keys(history: &History) -> Vec<String> {
    let keys = |operation: &Operation| {
        let one = operation.call.key().map(str::to_owned);
        let many = if let Call::WriteMany { entries } = &operation.call { entries.as_slice() } else { &[] };
        one.into_iter().chain(many.iter().map(|(key, _)| key.clone())).collect::<Vec<_>>()
    };
    let mut keys: Vec<String> = history.operations.iter().flat_map(keys).collect();
    keys.sort();
    keys.dedup();
    keys
}

struct Writer {
    process: u64,
    caller: Caller,
    recorder: Arc<Recorder>,
    name: String,
}

impl Writer {
    async fn run(self, load: Load, stop: Arc<AtomicBool>) {
        let mut pace = interval(load.pace);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for round in 0..load.rounds_max {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            pace.tick().await;
            let (key, bytes) = (format!("put/{}/{round}", self.name), load.value_bytes);
            let value = format!("{:>bytes$}", format!("{key}={:016x}", rand::random::<u64>()));
            self.call(Call::Write { key, value }).await;
            self.count().await;
        }
    }

    /// Reads the counter and adds one, if the read tells what to add to.
    async fn count(&self) {
        let key = format!("counter/{}", self.name);
        if let Some(from) = self.call(Call::read(&key)).await.count() {
            self.call(Call::Increment { key, from }).await;
        }
    }

    async fn call(&self, call: Call) -> Outcome {
        let invoke = self.recorder.now();
        let outcome = self.caller.call(&call).await;
        self.recorder.enter(self.process, None, invoke, call, outcome.clone());
        outcome
    }
}
