//! What a run measured, in numbers and as JSON.
//!
//! Not here: tables (kvctl).

use std::time::Duration;

use serde_json::{Value, json};

use crate::process::Usage;
use crate::stats::{Results, Stats};

/// What the run cost while it was measured.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Processor time of this process.
    pub own: Duration,
    /// Processor time of the nodes it was told of; None if of none.
    pub nodes: Option<Duration>,
    /// Resident bytes of each node at the end.
    pub resident: Vec<u64>,
}

impl Cost {
    /// The first of each is this process.
    pub(crate) fn between(before: &[Usage], after: &[Usage]) -> Self {
        let mut spent =
            before.iter().zip(after).map(|(before, after)| after.processor.saturating_sub(before.processor));
        let own = spent.next().unwrap_or_default();
        let nodes: Vec<Duration> = spent.collect();
        let resident = after.iter().skip(1).map(|usage| usage.resident).collect();
        Self { own, nodes: (!nodes.is_empty()).then(|| nodes.iter().sum()), resident }
    }
}

/// What a run measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// Measured time.
    pub seconds: f64,
    /// By kind of operation.
    pub results: Results,
    /// Processor time and memory.
    pub cost: Cost,
    /// Operations of an open loop that were due and that no client had time for.
    pub unsent: u64,
    /// Keys there are or may be at the end, by number.
    pub keys: u64,
}

impl Report {
    /// All kinds together.
    #[must_use]
    pub fn all(&self) -> Stats {
        self.results.values().fold(Stats::default(), |mut all, stats| {
            all.merge(stats);
            all
        })
    }

    /// Per second of measured time.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds
    }

    /// Processor time of this process per operation, in microseconds.
    #[must_use]
    pub fn own_micros(&self) -> f64 {
        micros_each(self.cost.own, self.all().done)
    }

    /// Processor time of all nodes per operation, in microseconds.
    #[must_use]
    pub fn nodes_micros(&self) -> Option<f64> {
        self.cost.nodes.map(|spent| micros_each(spent, self.all().done))
    }

    /// Everything, as an object.
    #[must_use]
    pub fn json(&self) -> Value {
        let operations: Vec<Value> =
            self.results.iter().map(|(kind, stats)| self.stats_json(kind.name(), stats)).collect();
        json!({
            "seconds": self.seconds,
            "total": self.stats_json("all", &self.all()),
            "operations": operations,
            "unsent": self.unsent,
            "own_processor_seconds": self.cost.own.as_secs_f64(),
            "own_micros_per_operation": self.own_micros(),
            "nodes_processor_seconds": self.cost.nodes.map(|spent| spent.as_secs_f64()),
            "nodes_micros_per_operation": self.nodes_micros(),
            "nodes_resident_bytes": self.cost.resident,
        })
    }

    fn stats_json(&self, name: &str, stats: &Stats) -> Value {
        json!({
            "operation": name,
            "count": stats.done,
            "per_second": self.per_second(stats.done),
            "keys_per_second": self.per_second(stats.keys),
            "refused": stats.refused,
            "failed": stats.failed,
            "failure": stats.failure,
            "mean_us": stats.latency.mean(),
            "p50_us": stats.latency.value_at_percentile(50.0),
            "p90_us": stats.latency.value_at_percentile(90.0),
            "p99_us": stats.latency.value_at_percentile(99.0),
            "p999_us": stats.latency.value_at_percentile(99.9),
            "max_us": stats.latency.max(),
        })
    }
}

#[allow(clippy::cast_precision_loss)]
fn micros_each(spent: Duration, operations: u64) -> f64 {
    spent.as_secs_f64() * 1e6 / (operations.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_the_nodes_leaves_this_process_out() {
        let usage = |seconds, resident| Usage { processor: Duration::from_secs(seconds), resident };
        let cost =
            Cost::between(&[usage(1, 9), usage(10, 1), usage(20, 1)], &[usage(3, 9), usage(14, 5), usage(25, 6)]);
        assert_eq!(cost.own, Duration::from_secs(2));
        assert_eq!(cost.nodes, Some(Duration::from_secs(9)));
        assert_eq!(cost.resident, [5, 6]);
    }
}
