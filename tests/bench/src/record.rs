//! What runs measured, as it is kept in a file. Parts are measured and replaced one by one.
//!
//! Not here: what follows from the figures (goals).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use kv_load::Report;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// Everything measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Record {
    /// Who measured it, the last one last.
    pub(crate) runs: Vec<Run>,
    /// Load shapes on both systems, by the shape's name.
    pub(crate) shapes: BTreeMap<String, Versus>,
    /// What the machine could do at most, by the limit's name.
    pub(crate) limits: BTreeMap<String, Vec<Limit>>,
    /// One for each shard whose leader was killed.
    pub(crate) failover: Vec<Gap>,
    pub(crate) idle: Option<Idle>,
    pub(crate) memory: Option<Memory>,
    pub(crate) large: Option<Large>,
}

/// Where and with what some parts were measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    pub(crate) machine: Machine,
    /// Those of its parts that no later run measured.
    pub(crate) parts: Vec<String>,
}

/// One shape on both systems: one sample a round.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Versus {
    pub(crate) kv: Vec<Sample>,
    pub(crate) etcd: Vec<Sample>,
}

/// One short run of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) keys_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    /// Processor time of all three nodes per operation.
    pub(crate) nodes_us: f64,
    /// Processor time of the load generator per operation.
    pub(crate) own_us: f64,
    pub(crate) failed: u64,
}

/// One look at a limit of the machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// How long no write of a shard was acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gap {
    pub(crate) shard: u64,
    pub(crate) ms: f64,
}

/// Many shards with nothing to do; figures are by node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Idle {
    pub(crate) shards: u32,
    /// Of one core.
    pub(crate) node_percent: Vec<f64>,
    /// Memory that came with the shards, for each replica.
    pub(crate) replica_kib: Vec<f64>,
}

/// Resident memory by node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Memory {
    pub(crate) empty_mib: Vec<f64>,
    /// A while after a million keys were written.
    pub(crate) million_mib: Vec<f64>,
    /// The most at any time until then.
    pub(crate) million_peak_mib: Vec<f64>,
}

/// Much more data than memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Large {
    pub(crate) gib: u64,
    pub(crate) load_seconds: f64,
    /// Puts and gets, half and half, once all was written.
    pub(crate) afterwards: Sample,
    /// Resident memory by node, the most at any time.
    pub(crate) peak_mib: Vec<f64>,
}

impl Record {
    /// Takes over the parts that a later run measured.
    pub(crate) fn update(&mut self, measured: Self) {
        for later in measured.runs {
            for run in &mut self.runs {
                run.parts.retain(|part| !later.parts.contains(part));
            }
            self.runs.push(later);
        }
        self.runs.retain(|run| !run.parts.is_empty());
        self.shapes.extend(measured.shapes);
        self.limits.extend(measured.limits);
        if !measured.failover.is_empty() {
            self.failover = measured.failover;
        }
        self.idle = measured.idle.or(self.idle.take());
        self.memory = measured.memory.or(self.memory.take());
        self.large = measured.large.or(self.large.take());
    }

    /// Reads what was kept; nothing if there is no file.
    pub(crate) fn load(file: &Path) -> Result<Self> {
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(file)?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a record of ours", file.display()))
    }

    /// Writes it whole.
    pub(crate) fn save(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(file, serde_json::to_string_pretty(self)? + "\n").with_context(|| format!("{}", file.display()))
    }
}

impl From<&Report> for Sample {
    #[allow(clippy::cast_precision_loss)]
    fn from(report: &Report) -> Self {
        let all = report.all();
        let micros = |percentile| all.latency.value_at_percentile(percentile) as f64;
        Self {
            per_second: rounded(report.per_second(all.done)),
            keys_per_second: rounded(report.per_second(all.keys)),
            p50_us: micros(50.0),
            p99_us: micros(99.0),
            max_us: all.latency.max() as f64,
            nodes_us: rounded(report.nodes_micros().unwrap_or_default()),
            own_us: rounded(report.own_micros()),
            failed: all.failed,
        }
    }
}

/// The largest; 0 of none.
pub(crate) fn most(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(0.0, f64::max)
}

/// Two digits are more than the noise leaves.
pub(crate) fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// The middle one; 0 of none.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.get(middle) {
        None => 0.0,
        Some(upper) if figures.len() % 2 == 1 => *upper,
        Some(upper) => f64::midpoint(figures.get(middle - 1).copied().unwrap_or(*upper), *upper),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median([]), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_part_is_of_the_last_run_that_measured_it() {
        let run = |commit: &str, parts: &[&str]| {
            let machine = Machine { commit: commit.to_owned(), ..Machine::default() };
            Record {
                runs: vec![Run { machine, parts: parts.iter().map(|part| (*part).to_owned()).collect() }],
                ..Record::default()
            }
        };
        let mut kept = Record::default();
        for (commit, parts) in [("a", vec!["put-1", "idle"]), ("b", vec!["large"]), ("c", vec!["idle", "large"])] {
            kept.update(run(commit, &parts));
        }
        let stand: Vec<_> = kept.runs.iter().map(|run| (run.machine.commit.as_str(), run.parts.join(" "))).collect();
        assert_eq!(stand, [("a", "put-1".to_owned()), ("c", "idle large".to_owned())]);
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/record.json");
        assert!(Record::load(&file).unwrap().shapes.is_empty());
        let mut record = Record::default();
        record.shapes.insert("put-1".to_owned(), Versus { kv: vec![Sample::default()], etcd: vec![] });
        record.save(&file).unwrap();
        assert_eq!(Record::load(&file).unwrap().shapes.len(), 1);
    }
}
