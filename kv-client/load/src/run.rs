//! A run from start to report: the keys that reads expect, the clients, and what they cost.
//!
//! Not here: a single client (driver).

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::driver::{Plan, Shared, client};
use crate::process::{ProcessError, Usage, usage};
use crate::report::{Cost, Report};
use crate::target::{Operation, Target};
use crate::values::Values;

/// Load batches under way at once.
const LOAD_AT_ONCE: usize = 8;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Why a run has no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is nothing to send operations to.
    #[error("no target")]
    NoTarget,
    /// A process whose cost was asked for cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A fault of ours.
    #[error("a client ended early")]
    Client(#[from] JoinError),
}

/// Writes every key of the plan once, in batches of `batch`; tells `progress` how many are written.
///
/// # Errors
/// The first failure.
pub async fn load_keys<T: Target>(
    plan: &Plan,
    target: &T,
    batch: u64,
    mut progress: impl FnMut(u64),
) -> Result<(), T::Error> {
    let values = Values::new(plan.value_bytes, plan.seed);
    let step = usize::try_from(batch).unwrap_or(usize::MAX).max(1);
    let batches = (0..plan.keys).step_by(step).map(|first| {
        let mut random = SmallRng::seed_from_u64(plan.seed ^ first);
        let end = (first + batch).min(plan.keys);
        let numbers: Vec<u64> = (first..end).collect();
        let entries = values.entries(&numbers, plan.key_bytes, &mut random);
        async move { target.operate(Operation::Batch(entries)).await.map(|_| end) }
    });
    let mut batches = stream::iter(batches).buffered(LOAD_AT_ONCE);
    while let Some(written) = batches.next().await {
        progress(written?);
    }
    Ok(())
}

/// Runs the plan with its clients spread over `targets`; tells `progress` the time measured so far and the rate.
/// Costs are of this process and of the processes `pids`.
///
/// # Errors
/// If a process cannot be looked at. Failures of operations are part of the report.
pub async fn run<T: Target>(
    plan: Plan,
    targets: &[T],
    pids: &[u32],
    mut progress: impl FnMut(Duration, u64),
) -> Result<Report, RunError> {
    if targets.is_empty() {
        return Err(RunError::NoTarget);
    }
    let (clients, seconds) = (plan.clients, plan.duration.as_secs_f64());
    let shared = Shared::start(plan);
    let mut tasks = JoinSet::new();
    for (number, target) in (0..clients).zip(targets.iter().cycle()) {
        tasks.spawn(client(shared.clone(), target.clone(), number));
    }
    sleep_until(shared.measured_from()).await;
    let before = usages(pids)?;
    let mut last = shared.answered.load(Ordering::Relaxed);
    while Instant::now() < shared.end() {
        sleep_until((Instant::now() + PROGRESS_INTERVAL).min(shared.end())).await;
        let answered = shared.answered.load(Ordering::Relaxed);
        let rate = (answered - last) * 1000 / u64::try_from(PROGRESS_INTERVAL.as_millis()).unwrap_or(1);
        last = answered;
        progress(shared.measured_from().elapsed(), rate);
    }
    let cost = Cost::between(&before, &usages(pids)?);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(Report { seconds, results: shared.take_results(), cost, unsent: shared.unsent(), keys: shared.keys() })
}

/// This process first, then the others.
fn usages(pids: &[u32]) -> Result<Vec<Usage>, ProcessError> {
    let names = std::iter::once("self".to_owned()).chain(pids.iter().map(u32::to_string));
    names.map(|pid| usage(&pid)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::keys::{Chooser, Distribution};
    use crate::target::Answer;
    use crate::workload::{Kind, Mix, Workload};

    /// Answers after a while and remembers the keys it was asked to write.
    #[derive(Clone, Default)]
    struct Slow {
        takes: Duration,
        written: Arc<Mutex<BTreeSet<Vec<u8>>>>,
    }

    impl Target for Slow {
        type Error = String;

        async fn operate(&self, operation: Operation) -> Result<Answer, String> {
            tokio::time::sleep(self.takes).await;
            match operation {
                Operation::Batch(entries) => {
                    let keys = entries.len();
                    self.written.lock().unwrap().extend(entries.into_iter().map(|(key, _)| key.to_vec()));
                    Ok(Answer::Keys(keys as u64))
                }
                Operation::CompareAndSet(..) => Ok(Answer::Refused),
                Operation::Scan(_, limit) => Ok(Answer::Keys(limit as u64)),
                Operation::Get(_) | Operation::Put(..) | Operation::ReadModifyWrite(..) => Ok(Answer::Keys(1)),
            }
        }
    }

    fn plan(workload: Workload, clients: usize) -> Plan {
        Plan {
            mix: Mix::of(workload, 50),
            chooser: Chooser::new(Distribution::Uniform, 1000),
            latest: workload.reads_latest(),
            clients,
            keys: 1000,
            key_bytes: 16,
            value_bytes: 8,
            batch: 10,
            page: 7,
            rate: None,
            // What is sent first is measured, however slow the machine is.
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(400),
            seed: 1,
        }
    }

    #[tokio::test]
    async fn every_workload_runs_and_is_counted_by_its_kinds() {
        for workload in <Workload as clap::ValueEnum>::value_variants() {
            let target = Slow { takes: Duration::from_micros(10), ..Slow::default() };
            let report = run(plan(*workload, 4), &[target], &[], |_, _| ()).await.unwrap();
            let all = report.all();
            assert!(!all.latency.is_empty() && all.failed == 0, "{workload:?}: {all:?}");
            let unlike = [(Workload::Scan, 7), (Workload::Batch, 10), (Workload::Cas, 0)];
            let keys_each = unlike.iter().find(|(unlike, _)| unlike == workload).map_or(1, |(_, keys)| *keys);
            if *workload != Workload::YcsbE {
                assert_eq!(all.keys, all.done * keys_each, "{workload:?}");
            }
            assert_eq!(all.refused, if *workload == Workload::Cas { all.done } else { 0 });
            assert!(report.results.keys().all(|kind| Mix::of(*workload, 50).has(*kind)), "{workload:?}");
        }
    }

    #[tokio::test]
    async fn an_open_loop_that_the_store_cannot_follow_shows_the_queue() {
        let slow = Slow { takes: Duration::from_millis(40), ..Slow::default() };
        let rate = Some(1000.0);
        let report = run(Plan { rate, ..plan(Workload::Put, 2) }, &[slow], &[], |_, _| ()).await.unwrap();
        let puts = report.results.get(&Kind::Put).unwrap();
        assert!(puts.latency.max() > 100_000, "the last ones waited for the others: {} us", puts.latency.max());
        assert!(report.unsent > 100, "most were never sent: {}", report.unsent);
    }

    #[tokio::test]
    async fn loading_writes_every_key_once() {
        let target = Slow::default();
        let mut told = Vec::new();
        load_keys(&plan(Workload::Get, 1), &target, 300, |keys| told.push(keys)).await.unwrap();
        assert_eq!(told, [300, 600, 900, 1000]);
        assert_eq!(target.written.lock().unwrap().len(), 1000);
    }
}
