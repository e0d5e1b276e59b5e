//! What a run measured, as a table and as JSON.
//!
//! Not here: how it was measured (driver).

use std::time::Duration;

use serde_json::{Value, json};

use crate::human;
use crate::output::{Grid, Look, Text, Tone, toned};

use super::BenchArgs;
use super::driver::{Results, Stats};
use super::process::Usage;

/// Percentiles that are shown, with their names.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// What the run cost while it was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cost {
    /// Processor time of this process.
    own: Duration,
    /// Processor time of the nodes it was told of; None if of none.
    nodes: Option<Duration>,
    /// Resident bytes of each node at the end.
    resident: Vec<u64>,
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
pub(crate) struct Report {
    workload: String,
    clients: u32,
    connections: u32,
    seconds: f64,
    rate: Option<u32>,
    results: Results,
    cost: Cost,
}

impl Report {
    pub(crate) fn new(args: &BenchArgs, results: Results, cost: Cost) -> Self {
        Self {
            workload: format!("{:?}", args.workload).to_lowercase(),
            clients: args.clients,
            connections: args.connections,
            seconds: args.duration.as_secs_f64(),
            rate: args.rate,
            results,
            cost,
        }
    }

    fn all(&self) -> Stats {
        self.results.values().fold(Stats::default(), |mut all, stats| {
            all.merge(stats);
            all
        })
    }

    pub(crate) fn json(&self) -> Value {
        let all = self.all();
        let operations: Vec<Value> =
            self.results.iter().map(|(kind, stats)| self.stats_json(kind.name(), stats)).collect();
        json!({
            "workload": self.workload,
            "clients": self.clients,
            "connections": self.connections,
            "seconds": self.seconds,
            "rate": self.rate,
            "total": self.stats_json("all", &all),
            "operations": operations,
            "own_processor_seconds": self.cost.own.as_secs_f64(),
            "nodes_processor_seconds": self.cost.nodes.map(|spent| spent.as_secs_f64()),
            "nodes_micros_per_operation": self.cost.nodes.map(|spent| micros_each(spent, all.latency.len())),
            "nodes_resident_bytes": self.cost.resident,
        })
    }

    fn stats_json(&self, name: &str, stats: &Stats) -> Value {
        json!({
            "operation": name,
            "count": stats.latency.len(),
            "per_second": self.per_second(stats.latency.len()),
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

    #[allow(clippy::cast_precision_loss)]
    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds
    }

    pub(crate) fn text(&self, look: Look) -> String {
        let mut names = vec!["OPERATION", ">OPS/S", ">KEYS/S"];
        names.extend([">P50", ">P90", ">P99", ">P99.9", ">MAX", ">REFUSED?", ">FAILED"]);
        let mut grid = Grid::new(&names);
        for (kind, stats) in &self.results {
            grid.row(self.row(kind.name(), stats));
        }
        if self.results.len() > 1 {
            grid.row(self.row("all", &self.all()));
        }
        let mut lines = vec![grid.render(look), String::new(), self.cost_line()];
        if let Some(failure) = self.results.values().find_map(|stats| stats.failure.as_ref()) {
            lines.push(look.paint(&format!("first failure: {failure}"), Tone::Bad));
        }
        lines.join("\n")
    }

    fn row(&self, name: &str, stats: &Stats) -> Vec<Text> {
        let mut row: Vec<Text> = vec![name.into(), rounded(self.per_second(stats.latency.len())).into()];
        row.push(rounded(self.per_second(stats.keys)).into());
        let micros = |micros: u64| Text::from(human::duration(Duration::from_micros(micros)));
        row.extend(PERCENTILES.iter().map(|(_, percentile)| micros(stats.latency.value_at_percentile(*percentile))));
        row.push(micros(stats.latency.max()));
        row.push(human::grouped(stats.refused).into());
        row.push(if stats.failed == 0 { "0".into() } else { toned(human::grouped(stats.failed), Tone::Bad) });
        row
    }

    fn cost_line(&self) -> String {
        let operations = self.all().latency.len();
        let own =
            format!("this process: {:.1} µs of processor time an operation", micros_each(self.cost.own, operations));
        let Some(nodes) = self.cost.nodes else {
            return own;
        };
        let resident: Vec<String> = self.cost.resident.iter().map(|bytes| human::size(*bytes)).collect();
        format!(
            "nodes: {:.1} µs an operation in all; memory {}\n{own}",
            micros_each(nodes, operations),
            resident.join(", ")
        )
    }
}

#[allow(clippy::cast_precision_loss)]
fn micros_each(spent: Duration, operations: u64) -> f64 {
    spent.as_secs_f64() * 1e6 / (operations.max(1) as f64)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rounded(rate: f64) -> String {
    human::grouped(rate.round() as u64)
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
