//! The runs of a campaign, added up by kind.
//!
//! Invariants: what no run says stays unknown, and is not zero.
//!
//! Not here: what is made of the sums (report, goals).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// All runs of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sum {
    pub(super) runs: u64,
    pub(super) seeds: Vec<u64>,
    figures: BTreeMap<String, Figure>,
    pub(super) faults: BTreeMap<String, u64>,
    pub(super) judged: BTreeMap<String, u64>,
}

/// What runs said under one name.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figure {
    total: u64,
    least: u64,
    most: u64,
}

/// By kind.
pub(super) type Sums = BTreeMap<String, Sum>;

impl Sum {
    fn add(&mut self, run: &Value) {
        self.runs += 1;
        for (name, value) in run.as_object().into_iter().flatten() {
            match (name.as_str(), value.as_u64()) {
                ("seed", Some(seed)) => self.seeds.push(seed),
                (_, Some(value)) => self.note(name, value),
                ("faults", None) => add_all(&mut self.faults, value),
                ("judged", None) => add_all(&mut self.judged, value),
                (_, None) => {}
            }
        }
    }

    fn note(&mut self, name: &str, value: u64) {
        let figure = self.figures.entry(name.to_owned()).or_insert(Figure { total: 0, least: value, most: value });
        figure.total += value;
        figure.least = figure.least.min(value);
        figure.most = figure.most.max(value);
    }

    /// Over all runs; 0 if no run says.
    pub(super) fn total(&self, name: &str) -> u64 {
        self.figures.get(name).map_or(0, |figure| figure.total)
    }

    /// The least and the most that a run says.
    pub(super) fn bounds(&self, name: &str) -> Option<(u64, u64)> {
        self.figures.get(name).map(|figure| (figure.least, figure.most))
    }

    /// The largest of each time.
    pub(super) fn longest(&self) -> impl Iterator<Item = (&str, u64)> {
        let times = self.figures.iter().filter_map(|(name, figure)| Some((name.strip_suffix("_ms")?, figure.most)));
        times.filter(|(_, most)| *most > 0)
    }

    pub(super) fn faults(&self) -> u64 {
        self.faults.values().sum()
    }
}

fn add_all(to: &mut BTreeMap<String, u64>, counts: &Value) {
    for (name, count) in counts.as_object().into_iter().flatten() {
        *to.entry(name.clone()).or_default() += count.as_u64().unwrap_or_default();
    }
}

/// Adds up all `.jsonl` files of the folder.
pub(super) fn read(folder: &Path) -> Result<Sums> {
    let mut sums = Sums::new();
    let files = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for file in files.flatten().map(|entry| entry.path()) {
        if file.extension().is_none_or(|kind| kind != "jsonl") {
            continue;
        }
        for line in fs::read_to_string(&file)?.lines().filter(|line| !line.trim().is_empty()) {
            let run: Value = serde_json::from_str(line).with_context(|| format!("{}: {line}", file.display()))?;
            let kind = run.get("kind").and_then(Value::as_str).context("a run says of which kind it is")?;
            sums.entry(kind.to_owned()).or_default().add(&run);
        }
    }
    Ok(sums)
}
