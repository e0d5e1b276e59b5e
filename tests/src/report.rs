//! The page that a campaign leaves: what was tried, what was judged, what was found.
//!
//! A run is one line of JSON: `{"kind": "cluster" | "simulation" | ..., "seed", "seconds", "operations",
//! "acknowledged", "unknown", "faults": {kind: times}, "judged": {property: things}, "violations"}`; a storm adds
//! `served_after_ms` and `longest_gap_ms`. What a kind does not have it leaves out. Every proof writes such lines into
//! one folder; the page adds them up by kind.
//!
//! Not here: running anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Where the README shows the last campaign.
const MARKS: (&str, &str) = ("<!-- proof -->\n", "<!-- /proof -->");

/// Seeds shown of one kind; more are only counted.
const SEEDS_SHOWN: usize = 40;

/// All runs of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sum {
    runs: u64,
    seeds: Vec<u64>,
    figures: BTreeMap<&'static str, u64>,
    most: BTreeMap<&'static str, u64>,
    faults: BTreeMap<String, u64>,
    judged: BTreeMap<String, u64>,
}

/// What is added up.
const ADDED: [&str; 5] = ["seconds", "operations", "acknowledged", "unknown", "violations"];
/// What only the largest is shown of.
const LARGEST: [&str; 2] = ["served_after_ms", "longest_gap_ms"];

impl Sum {
    fn add(&mut self, run: &Value) {
        let number = |name: &str| run.get(name).and_then(Value::as_u64);
        self.runs += 1;
        self.seeds.extend(number("seed"));
        for name in ADDED {
            *self.figures.entry(name).or_default() += number(name).unwrap_or_default();
        }
        for name in LARGEST {
            let most = self.most.entry(name).or_default();
            *most = (*most).max(number(name).unwrap_or_default());
        }
        add_all(&mut self.faults, run.get("faults"));
        add_all(&mut self.judged, run.get("judged"));
    }

    fn figure(&self, name: &str) -> u64 {
        self.figures.get(name).copied().unwrap_or_default()
    }

    fn faults(&self) -> u64 {
        self.faults.values().sum()
    }
}

fn add_all(to: &mut BTreeMap<String, u64>, counts: Option<&Value>) {
    for (name, count) in counts.and_then(Value::as_object).into_iter().flatten() {
        *to.entry(name.clone()).or_default() += count.as_u64().unwrap_or_default();
    }
}

/// Adds up all `.jsonl` files of the folder, by kind of run.
fn sums(folder: &Path) -> Result<BTreeMap<String, Sum>> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
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

/// Writes `docs/proof.md` and the line of the README, from the runs in the folder.
pub fn write(folder: &Path, workspace: &Path) -> Result<()> {
    let sums = sums(folder)?;
    ensure!(!sums.is_empty(), "no runs in {}", folder.display());
    let at = format!("{}, commit {}, on {}", today(), commit(workspace), machine());
    fs::write(workspace.join("docs/proof.md"), page(&sums, &at))?;
    let readme = workspace.join("README.md");
    let text = fs::read_to_string(&readme)?;
    fs::write(readme, with_line(&text, &line(&sums, &at))?)?;
    Ok(())
}

fn page(sums: &BTreeMap<String, Sum>, at: &str) -> String {
    let mut page = format!(
        "# The last campaign\n\nWritten by `just proof`: {at}. What each property means is in \
         [guarantees.md](guarantees.md).\n\n| | runs | hours | operations judged | writes acknowledged | faults | violations |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for (kind, sum) in sums {
        let hours = sum.figure("seconds") as f64 / 3600.0;
        let _ = writeln!(
            page,
            "| {kind} | {} | {hours:.2} | {} | {} | {} | {} |",
            sum.runs,
            sum.figure("operations"),
            sum.figure("acknowledged"),
            sum.faults(),
            sum.figure("violations")
        );
    }
    for (kind, sum) in sums {
        let _ = write!(page, "\n## {kind}\n\n");
        for (name, most) in sum.most.iter().filter(|(_, most)| **most > 0) {
            let _ = writeln!(page, "- Largest {}: {most} ms.", name.trim_end_matches("_ms").replace('_', " "));
        }
        let _ = writeln!(page, "- Requests of unknown outcome, each followed up: {}.", sum.figure("unknown"));
        let seeds: Vec<String> = sum.seeds.iter().take(SEEDS_SHOWN).map(u64::to_string).collect();
        let more = if sum.seeds.len() > SEEDS_SHOWN { ", ..." } else { "" };
        let _ = writeln!(page, "- Seeds: {}{more}.", seeds.join(", "));
        table(&mut page, "fault", "times", &sum.faults);
        table(&mut page, "property", "things judged", &sum.judged);
    }
    page
}

fn table(page: &mut String, what: &str, count: &str, rows: &BTreeMap<String, u64>) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(page, "\n| {what} | {count} |\n|---|---|\n");
    for (name, times) in rows {
        let _ = writeln!(page, "| {name} | {times} |");
    }
}

fn line(sums: &BTreeMap<String, Sum>, at: &str) -> String {
    let total = |name: &str| sums.values().map(|sum| sum.figure(name)).sum::<u64>();
    let faults: u64 = sums.values().map(Sum::faults).sum();
    format!(
        "The last campaign: {} operations under {faults} faults, {} violations ({at}); see \
         [docs/proof.md](docs/proof.md).\n",
        total("operations"),
        total("violations")
    )
}

/// The README with this line between its marks.
fn with_line(readme: &str, line: &str) -> Result<String> {
    let (before, rest) = readme.split_once(MARKS.0).context("the README has no place for the proof")?;
    let (_, after) = rest.split_once(MARKS.1).context("the place for the proof has no end")?;
    Ok(format!("{before}{}{line}{}{after}", MARKS.0, MARKS.1))
}

fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

fn today() -> String {
    said(Command::new("date").arg("+%Y-%m-%d"))
}

fn commit(workspace: &Path) -> String {
    said(Command::new("git").arg("-C").arg(workspace).args(["describe", "--always", "--dirty", "--abbrev=10"]))
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let facts = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = facts.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([':', ' ', '\t']);
    format!("{cores} cores ({model}), Linux {}", said(Command::new("uname").arg("-r")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_added_up_by_kind() {
        let folder = tempfile::tempdir().unwrap();
        let runs = [
            r#"{"kind":"cluster","seed":1,"seconds":1800,"operations":10,"faults":{"kill":2},"violations":0,"served_after_ms":5}"#,
            r#"{"kind":"cluster","seed":2,"seconds":1800,"operations":20,"faults":{"kill":1,"pause":1},"violations":1,"served_after_ms":3}"#,
        ];
        fs::write(folder.path().join("cluster.jsonl"), runs.join("\n")).unwrap();
        fs::write(folder.path().join("sim.jsonl"), r#"{"kind":"simulation","seed":3,"operations":5,"violations":0}"#)
            .unwrap();
        let sums = sums(folder.path()).unwrap();
        let page = page(&sums, "today");
        assert!(page.contains("| cluster | 2 | 1.00 | 30 | 0 | 4 | 1 |"), "{page}");
        assert!(page.contains("| simulation | 1 | 0.00 | 5 | 0 | 0 | 0 |"), "{page}");
        assert!(page.contains("| kill | 3 |") && page.contains("Seeds: 1, 2."), "{page}");
        assert!(page.contains("Largest served after: 5 ms."), "{page}");
        assert!(line(&sums, "today").starts_with("The last campaign: 35 operations under 4 faults, 1 violations"));
    }

    #[test]
    fn the_readme_keeps_what_is_around_its_line() {
        let readme = format!("a\n{}old\n{}\nb", MARKS.0, MARKS.1);
        let once = with_line(&readme, "new\n").unwrap();
        assert_eq!(once, format!("a\n{}new\n{}\nb", MARKS.0, MARKS.1));
        assert_eq!(with_line(&once, "new\n").unwrap(), once);
        assert!(with_line("no marks", "x").is_err());
    }
}
