//! What became of operations: how many, how long they took.
//!
//! Not here: what they cost (report).

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::target::Answer;
use crate::workload::Kind;

/// Latencies from 1 us to 100 s with three significant digits.
const LATENCY_MICROS_MAX: u64 = 100_000_000;

/// What became of the operations of one kind that were due inside the measured time.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Latencies in microseconds of all that were answered, also of those answered after the measured time: leaving
    /// the slowest out would flatter.
    pub latency: Histogram<u64>,
    /// Operations answered inside the measured time; what throughput counts.
    pub done: u64,
    /// Keys read or written by these.
    pub keys: u64,
    /// Compare-and-sets that another client beat.
    pub refused: u64,
    /// Operations that failed.
    pub failed: u64,
    /// The first failure, in words.
    pub failure: Option<String>,
}

impl Default for Stats {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3).expect("the bounds are in order");
        Self { latency, done: 0, keys: 0, refused: 0, failed: 0, failure: None }
    }
}

/// By kind.
pub type Results = BTreeMap<Kind, Stats>;

impl Stats {
    /// Adds those of another client.
    pub fn merge(&mut self, other: &Self) {
        self.latency += &other.latency;
        self.done += other.done;
        self.keys += other.keys;
        self.refused += other.refused;
        self.failed += other.failed;
        self.failure = self.failure.take().or_else(|| other.failure.clone());
    }

    /// Adds one operation; `in_time` if it was answered inside the measured time.
    pub(crate) fn record(&mut self, answer: Result<Answer, String>, took: Duration, in_time: bool) {
        match answer {
            Ok(answer) => {
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.latency.saturating_record(micros.max(1));
                if in_time {
                    self.count(answer);
                }
            }
            Err(failure) => {
                self.failed += 1;
                self.failure.get_or_insert(failure);
            }
        }
    }

    fn count(&mut self, answer: Answer) {
        self.done += 1;
        match answer {
            Answer::Keys(keys) => self.keys += keys,
            Answer::Refused => self.refused += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_after_the_measured_time_counts_for_latency_and_not_for_throughput() {
        let mut stats = Stats::default();
        stats.record(Ok(Answer::Keys(3)), Duration::from_micros(50), true);
        stats.record(Ok(Answer::Keys(1)), Duration::from_secs(2), false);
        stats.record(Ok(Answer::Refused), Duration::from_micros(60), true);
        stats.record(Err("gone".to_owned()), Duration::from_secs(5), true);
        assert_eq!((stats.done, stats.keys, stats.refused, stats.failed), (2, 3, 1, 1));
        assert_eq!(stats.latency.len(), 3);
        assert!(stats.latency.max() >= 1_990_000);
        assert_eq!(stats.failure.as_deref(), Some("gone"));
    }
}
