//! The report of a run as a table and as JSON.
//!
//! Not here: what is measured and how (kv-load).

use std::time::Duration;

use kv_load::{Report, Stats};
use serde_json::{Value, json};

use crate::human;
use crate::output::{Grid, Look, Text, Tone, toned};

use super::BenchArgs;

/// Percentiles that are shown.
const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// What was asked for and what came of it.
pub(super) struct View<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) report: &'a Report,
}

impl View<'_> {
    pub(super) fn json(&self) -> Value {
        let mut json = self.report.json();
        if let Some(object) = json.as_object_mut() {
            object.insert("workload".to_owned(), json!(format!("{:?}", self.args.workload).to_lowercase()));
            object.insert("clients".to_owned(), json!(self.args.clients));
            object.insert("connections".to_owned(), json!(self.args.connections));
            object.insert("rate".to_owned(), json!(self.args.rate));
        }
        json
    }

    pub(super) fn text(&self, look: Look) -> String {
        let mut names = vec!["OPERATION", ">OPS/S", ">KEYS/S"];
        names.extend([">P50", ">P90", ">P99", ">P99.9", ">MAX", ">REFUSED?", ">FAILED"]);
        let mut grid = Grid::new(&names);
        for (kind, stats) in &self.report.results {
            grid.row(self.row(kind.name(), stats));
        }
        if self.report.results.len() > 1 {
            grid.row(self.row("all", &self.report.all()));
        }
        let mut lines = vec![grid.render(look), String::new(), self.cost_line()];
        if self.report.unsent > 0 {
            let text = format!("{} operations were due and never sent", human::grouped(self.report.unsent));
            lines.push(look.paint(&format!("{text}: give it more --clients or a lower --rate"), Tone::Bad));
        }
        if let Some(failure) = self.report.all().failure {
            lines.push(look.paint(&format!("first failure: {failure}"), Tone::Bad));
        }
        lines.join("\n")
    }

    fn row(&self, name: &str, stats: &Stats) -> Vec<Text> {
        let mut row: Vec<Text> = vec![name.into(), rounded(self.report.per_second(stats.done)).into()];
        row.push(rounded(self.report.per_second(stats.keys)).into());
        let micros = |micros: u64| Text::from(human::duration(Duration::from_micros(micros)));
        row.extend(PERCENTILES.iter().map(|percentile| micros(stats.latency.value_at_percentile(*percentile))));
        row.push(micros(stats.latency.max()));
        row.push(human::grouped(stats.refused).into());
        row.push(if stats.failed == 0 { "0".into() } else { toned(human::grouped(stats.failed), Tone::Bad) });
        row
    }

    fn cost_line(&self) -> String {
        let own = format!("this process: {:.1} µs of processor time an operation", self.report.own_micros());
        let Some(nodes) = self.report.nodes_micros() else {
            return own;
        };
        let resident: Vec<String> = self.report.cost.resident.iter().map(|bytes| human::size(*bytes)).collect();
        format!("nodes: {nodes:.1} µs an operation in all; memory {}\n{own}", resident.join(", "))
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rounded(rate: f64) -> String {
    human::grouped(rate.round() as u64)
}
