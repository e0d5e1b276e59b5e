//! Continuous load through kv-client: counters and keys written once, every answer recorded.
//!
//! Invariants: bounded in writers, pace and number of requests; each counter has one writer, which waits for its
//! answer before it goes on, so what it may read next is known.
//!
//! Not here: the judgement (history).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kv_client::Client;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::history::{Failure, History, Record, Report, Request};
use crate::wait;

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
    shared: Arc<Shared>,
    writers: JoinSet<Vec<Record>>,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    stop: AtomicBool,
    acknowledged: AtomicUsize,
}

impl Load {
    /// Begins.
    #[must_use]
    pub fn start(self, client: &Client) -> Running {
        let shared =
            Arc::new(Shared { began: Instant::now(), stop: AtomicBool::new(false), acknowledged: AtomicUsize::new(0) });
        let mut writers = JoinSet::new();
        // Loads of one test do not share keys.
        let name = format!("{:08x}", rand::random::<u32>());
        for writer in 0..self.writers {
            let writer = Writer {
                keyspace: client.keyspace(&self.keyspace),
                shared: shared.clone(),
                name: format!("{name}/{writer}"),
                records: Vec::new(),
            };
            writers.spawn(writer.run(self.clone()));
        }
        Running { client: client.clone(), keyspace: self.keyspace, shared, writers }
    }
}

impl Running {
    /// Waits until this many further writes are acknowledged.
    pub async fn progress(&self, writes: usize) -> Result<()> {
        let goal = self.shared.acknowledged.load(Ordering::Relaxed) + writes;
        wait::until(&format!("{writes} more acknowledged writes"), PROGRESS_WITHIN, || async {
            let acknowledged = self.shared.acknowledged.load(Ordering::Relaxed);
            ensure!(acknowledged >= goal, "{} are missing", goal - acknowledged);
            Ok(())
        })
        .await
    }

    /// Ends the load; what it saw.
    pub async fn stop(mut self) -> Result<History> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut history = History::default();
        while let Some(records) = self.writers.join_next().await {
            history.records.extend(records.context("a writer of the load panicked")?);
        }
        Ok(history)
    }

    /// Ends the load, reads everything it touched, compares, and prints the figures.
    pub async fn verify(self) -> Result<Report> {
        let (client, keyspace) = (self.client.clone(), self.keyspace.clone());
        let history = self.stop().await?;
        let found = read_all(&client, &keyspace, history.keys()).await?;
        match history.check(&found) {
            Ok(report) => {
                println!("{report}");
                ensure!(report.acknowledged > 0, "nothing was acknowledged: {:?}", report.reasons);
                Ok(report)
            }
            Err(broken) => {
                let shown = broken.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
                bail!("{} broken promises:\n{shown}", broken.len())
            }
        }
    }
}

/// The values of these keys as they are now, absent ones left out.
pub async fn read_all(client: &Client, keyspace: &str, keys: Vec<String>) -> Result<BTreeMap<String, String>> {
    let keyspace = client.keyspace(keyspace);
    let read = |key: String| {
        let get = keyspace.get(&key);
        async move {
            let entry = get.await.with_context(|| format!("reading {key} at the end"))?;
            anyhow::Ok(entry.map(|entry| (key, String::from_utf8_lossy(&entry.value).into_owned())))
        }
    };
    let found: Vec<Option<(String, String)>> =
        stream::iter(keys).map(read).buffer_unordered(READS_AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

struct Writer {
    keyspace: kv_client::Keyspace,
    shared: Arc<Shared>,
    name: String,
    records: Vec<Record>,
}

impl Writer {
    async fn run(mut self, load: Load) -> Vec<Record> {
        let mut pace = interval(load.pace);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for round in 0..load.rounds_max {
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            pace.tick().await;
            self.put(round, load.value_bytes).await;
            self.count().await;
        }
        self.records
    }

    async fn put(&mut self, round: usize, bytes: usize) {
        let key = format!("put/{}/{round}", self.name);
        let value = format!("{:>bytes$}", format!("{key}={:016x}", rand::random::<u64>()));
        let began = self.shared.began.elapsed();
        let result = self.keyspace.put(&key, &value).await;
        self.record(Request::Put { key, value }, began, result.map(|_| ()).map_err(|error| failure(&error)));
    }

    /// Reads the counter and adds one, if the read tells what to add to.
    async fn count(&mut self) {
        let counter = format!("counter/{}", self.name);
        let began = self.shared.began.elapsed();
        let read = self.keyspace.get(&counter).await;
        let (read, found) = match read {
            Ok(None) => (Ok(()), Some(0)),
            Ok(Some(entry)) => (Ok(()), String::from_utf8_lossy(&entry.value).parse::<u64>().ok()),
            Err(error) => (Err(failure(&error)), None),
        };
        let is_read = read.is_ok();
        // A counter that holds no number is found at the end.
        let found = found.unwrap_or_default();
        self.record(Request::Read { counter: counter.clone(), found }, began, read);
        if is_read {
            self.increment(counter, found).await;
        }
    }

    async fn increment(&mut self, counter: String, found: u64) {
        let began = self.shared.began.elapsed();
        let change = self.keyspace.compare_and_set(&counter);
        let change = if found == 0 { change.expect_absent() } else { change.expect_value(found.to_string()) };
        let result = match change.set((found + 1).to_string()).await {
            Ok(answer) if answer.applied() => Ok(()),
            // An increment of unknown outcome came in between.
            Ok(_) => Err(Failure { outcome: kv_proto::errors::Outcome::NotApplied, reason: "refused".to_owned() }),
            Err(error) => Err(failure(&error)),
        };
        self.record(Request::Increment { counter }, began, result);
    }

    fn record(&mut self, request: Request, began: Duration, result: Result<(), Failure>) {
        let is_read = matches!(request, Request::Read { .. });
        if result.is_ok() && !is_read {
            self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self.records.push(Record { request, began, ended: self.shared.began.elapsed(), result });
    }
}

fn failure(error: &kv_client::Error) -> Failure {
    Failure { outcome: error.outcome(), reason: error.to_string() }
}
