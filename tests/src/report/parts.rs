//! The parts of a campaign: of which commit and day each is, and how it ended.
//!
//! Invariants: a part that began and did not end stands there as such.
//!
//! Not here: what the runs of a part reached (sums, goals).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One run of one part, as `scripts/proof` told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    name: String,
    /// Of its runs.
    kind: String,
    /// What was asked for.
    settings: String,
    pub(super) commit: String,
    pub(super) date: String,
    seconds: u64,
    /// `passed`, `failed`; empty: it did not end.
    ended: String,
}

impl Part {
    fn parse(line: &str) -> Result<Self> {
        let told: Value = serde_json::from_str(line).with_context(|| format!("a part that says {line}"))?;
        let text = |name: &str| told.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Self {
            name: text("part"),
            kind: text("kind"),
            settings: text("settings"),
            commit: text("commit"),
            date: text("date"),
            seconds: told.get("seconds").and_then(Value::as_u64).unwrap_or_default(),
            ended: text("ended"),
        })
    }

    fn how(&self) -> &str {
        match self.ended.as_str() {
            "passed" => "passed",
            "" => "**cut short**",
            _ => "**failed**",
        }
    }
}

/// All `.part` files of the folder, a line a run, by day.
pub(super) fn read(folder: &Path) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for file in fs::read_dir(folder)?.flatten().map(|entry| entry.path()) {
        if file.extension().is_some_and(|kind| kind == "part") {
            let text = fs::read_to_string(&file)?;
            parts.extend(text.lines().map(Part::parse).collect::<Result<Vec<_>>>()?);
        }
    }
    parts.sort_by(|one, other| (&one.date, &one.name).cmp(&(&other.date, &other.name)));
    Ok(parts)
}

/// The kinds of runs of which a part failed: no figure of theirs reaches a goal.
pub(super) fn failed(parts: &[Part]) -> BTreeSet<&str> {
    parts
        .iter()
        .filter(|part| !part.ended.is_empty() && part.ended != "passed")
        .map(|part| part.kind.as_str())
        .collect()
}

/// A row a part; nothing if nobody told of any.
pub(super) fn table(parts: &[Part]) -> String {
    if parts.is_empty() {
        return String::new();
    }
    let mut table = "\n## Parts\n\nEach may have run by itself, of another commit and on another day.\n\n\
                     | part | asked for | commit | day | took | ended |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for part in parts {
        let (minutes, how) = (part.seconds as f64 / 60.0, part.how());
        let Part { name, settings, commit, date, .. } = part;
        let _ = writeln!(table, "| {name} | {settings} | {commit} | {date} | {minutes:.1} min | {how} |");
    }
    table
}
