//! The page that a campaign leaves: what was demanded, what was tried, what was judged, what was found.
//!
//! Every proof writes its runs as lines of JSON into one folder, in the format of tests/README.md; the page adds them up
//! by kind.
//!
//! Not here: running anything.

mod goals;
mod parts;
mod sums;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use self::parts::Part;
use self::sums::{Sum, Sums};

/// Where the README shows the last campaign.
const MARKS: (&str, &str) = ("<!-- proof -->\n", "<!-- /proof -->");

/// Seeds shown of one kind; more are only counted.
const SEEDS_SHOWN: usize = 40;

/// Writes `docs/proof.md` and the block of the README, from the runs in the folder.
pub fn write(folder: &Path, workspace: &Path) -> Result<()> {
    let sums = sums::read(folder)?;
    let parts = parts::read(folder)?;
    ensure!(!sums.is_empty() || !parts.is_empty(), "no runs in {}", folder.display());
    let at = format!("{}, on {}", when(&parts, workspace), machine());
    fs::write(workspace.join("docs/proof.md"), page(&sums, &parts, &at))?;
    let readme = workspace.join("README.md");
    let text = fs::read_to_string(&readme)?;
    fs::write(readme, with_line(&text, &line(&sums, &at))?)?;
    Ok(())
}

fn page(sums: &Sums, parts: &[Part], at: &str) -> String {
    let mut page = format!(
        "# The last campaign\n\nWritten by `just proof`: {at}. What each property means is in \
         [guarantees.md](guarantees.md).\n\n## Goals per commit\n\n{}\nWhat does not run on every commit runs in `just \
         proof`.\n{}\n## Runs\n\n\
         | | runs | hours | operations judged | writes acknowledged | faults | violations |\n|---|---|---|---|---|---|---|\n",
        goals::table(sums, &parts::failed(parts)),
        parts::table(parts)
    );
    for (kind, sum) in sums {
        let hours = sum.total("seconds") as f64 / 3600.0;
        let _ = writeln!(
            page,
            "| {kind} | {} | {hours:.2} | {} | {} | {} | {} |",
            sum.runs,
            sum.total("operations"),
            sum.total("acknowledged"),
            sum.faults(),
            sum.total("violations")
        );
    }
    for (kind, sum) in sums {
        about(&mut page, kind, sum);
    }
    page
}

fn about(page: &mut String, kind: &str, sum: &Sum) {
    let _ = write!(page, "\n### {kind}\n\n");
    for (name, most) in sum.longest() {
        let _ = writeln!(page, "- Longest {}: {most} ms.", name.replace('_', " "));
    }
    if sum.bounds("unknown").is_some() {
        let _ = writeln!(page, "- Requests of unknown outcome, each followed up: {}.", sum.total("unknown"));
    }
    if !sum.seeds.is_empty() {
        let seeds: Vec<String> = sum.seeds.iter().take(SEEDS_SHOWN).map(u64::to_string).collect();
        let more = if sum.seeds.len() > SEEDS_SHOWN { ", ..." } else { "" };
        let _ = writeln!(page, "- Seeds: {}{more}.", seeds.join(", "));
    }
    table(page, "fault", "times", &sum.faults);
    table(page, "property", "things judged", &sum.judged);
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

/// What the README says: in bold what a reader looks for first.
fn line(sums: &Sums, at: &str) -> String {
    let total = |name: &str| sums.values().map(|sum| sum.total(name)).sum::<u64>();
    let minutes = |kind: &str| sums.get(kind).map_or(0, |sum| sum.total("seconds") / 60);
    let faults: u64 = sums.values().map(Sum::faults).sum();
    format!(
        "The last campaign of `just proof`: **{} operations checked** under {faults} faults, {} minutes of storms on real \
         processes and {} minutes simulated, **{} violations**; {at}. Goal by goal: [docs/proof.md](docs/proof.md).\n",
        total("operations"),
        minutes("cluster"),
        minutes("simulation"),
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

/// The days and commits of what ran, which need not be those of the page.
fn when(parts: &[Part], workspace: &Path) -> String {
    if parts.is_empty() {
        let mut describe = Command::new("git");
        describe.arg("-C").arg(workspace).args(["describe", "--always", "--dirty", "--abbrev=10"]);
        return format!("{}, commit {}", said(Command::new("date").arg("+%Y-%m-%d")), said(&mut describe));
    }
    let days: BTreeSet<&str> = parts.iter().map(|part| part.date.as_str()).collect();
    let commits: BTreeSet<&str> = parts.iter().map(|part| part.commit.as_str()).collect();
    let days = match (days.first(), days.last()) {
        (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
        _ => days.into_iter().collect(),
    };
    let several = if commits.len() > 1 { "s" } else { "" };
    format!("{days}, commit{several} {}", commits.into_iter().collect::<Vec<_>>().join(" and "))
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

    fn sums_of(runs: &[&str]) -> Sums {
        let folder = tempfile::tempdir().unwrap();
        for (number, run) in runs.iter().enumerate() {
            fs::write(folder.path().join(format!("{number}.jsonl")), run).unwrap();
        }
        fs::write(folder.path().join("notes.txt"), "not a run").unwrap();
        sums::read(folder.path()).unwrap()
    }

    /// Of a campaign that told nothing of its parts.
    fn page(sums: &Sums, at: &str) -> String {
        super::page(sums, &[], at)
    }

    fn parts_of(lines: &[&str]) -> Vec<Part> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("some.part"), lines.join("\n")).unwrap();
        parts::read(folder.path()).unwrap()
    }

    #[test]
    fn runs_are_added_up_by_kind() {
        let runs = [
            r#"{"kind":"cluster","seed":1,"seconds":1800,"operations":10,"faults":{"kill":2},"violations":0,"served_after_ms":5}
            {"kind":"cluster","seed":2,"seconds":1800,"operations":20,"faults":{"kill":1,"pause":1},"violations":1,"served_after_ms":3}"#,
            r#"{"kind":"simulation","seed":3,"seconds":360,"operations":5,"violations":0}"#,
        ];
        let sums = sums_of(&runs);
        let page = page(&sums, "today");
        assert!(page.contains("| cluster | 2 | 1.00 | 30 | 0 | 4 | 1 |"), "{page}");
        assert!(page.contains("| simulation | 1 | 0.10 | 5 | 0 | 0 | 0 |"), "{page}");
        assert!(page.contains("| kill | 3 |") && page.contains("Seeds: 1, 2."), "{page}");
        assert!(page.contains("Longest served after: 5 ms."), "{page}");
        let line = line(&sums, "today");
        assert!(line.contains("**35 operations checked** under 4 faults, 60 minutes of storms"), "{line}");
        assert!(line.contains("6 minutes simulated, **1 violations**; today."), "{line}");
    }

    fn row<'p>(page: &'p str, goal: &str) -> &'p str {
        page.lines().find(|line| line.starts_with(&format!("| {goal} |"))).unwrap()
    }

    #[test]
    fn a_goal_that_nothing_ran_for_is_not_run_and_never_met() {
        let page = page(&sums_of(&[r#"{"kind":"simulation","seed":3}"#]), "today");
        assert!(row(&page, "saturation").contains("| not run |  |"), "{page}");
        assert!(row(&page, "real cluster").contains("| not run |  |"), "{page}");
        assert!(
            row(&page, "simulation").contains("| 1 seeds, 0.00 hours simulated, 0 violations | **no** |"),
            "{page}"
        );
    }

    #[test]
    fn a_goal_is_met_by_its_figures_and_by_no_less() {
        let storm = |per_second: u64, violations: u64| {
            format!(
                r#"{{"kind":"cluster","seconds":600,"under_faults":{},"per_second":{per_second},"operations":1000000,"undecided":0,"violations":{violations},"leader_kills":2,"leader_kill_ms":2900,"served_after_ms":10001}}"#,
                per_second * 600
            )
        };
        let reached = page(&sums_of(&[&storm(2000, 0), &storm(2001, 0)]), "today");
        let load = "| 2000/s (slowest storm 2000/s), 2000000 judged, 0 left undecided | yes |";
        assert!(row(&reached, "load during faults").contains(load), "{reached}");
        assert!(row(&reached, "recovery from a leader kill").contains("| worst of 4: 2.9 s | yes |"), "{reached}");
        assert!(row(&reached, "recovery from a storm").contains("| worst of 2: 10.0 s | **no** |"), "{reached}");
        let missed = page(&sums_of(&[&storm(2000, 0), &storm(1999, 1)]), "today");
        assert!(row(&missed, "load during faults").contains("**no**"), "{missed}");
        assert!(row(&missed, "clock").contains("**no**"), "{missed}");
    }

    const CUTS: &str = r#"{"kind":"power-cut","faults":{"power of all disks":20},"acknowledged":9,"violations":0}"#;

    #[test]
    fn no_figure_reaches_a_goal_whose_part_failed() {
        let told = |ended: &str| {
            let part =
                r#"{"part":"power-cut","kind":"power-cut","settings":"20 cuts","commit":"c1","date":"2026-01-02","#;
            format!(r#"{part}"seconds":90,"ended":"{ended}"}}"#)
        };
        for (ended, met, how) in
            [("passed", "yes", "passed"), ("failed", "**no**", "**failed**"), ("", "yes", "**cut short**")]
        {
            let page = super::page(&sums_of(&[CUTS]), &parts_of(&[&told(ended)]), "today");
            assert!(row(&page, "nothing lost").contains(&format!("0 lost | {met} |")), "{ended}: {page}");
            assert!(page.contains(&format!("| power-cut | 20 cuts | c1 | 2026-01-02 | 1.5 min | {how} |")), "{page}");
            let empty = super::page(&sums_of(&[r#"{"kind":"disk"}"#]), &parts_of(&[&told(ended)]), "today");
            let not_run = if ended == "failed" { "| failed | **no** |" } else { "| not run |  |" };
            assert!(row(&empty, "nothing lost").contains(not_run), "{empty}");
        }
    }

    #[test]
    fn parts_of_several_commits_and_days_are_said_to_be_so() {
        let part = |commit: &str, date: &str| format!(r#"{{"part":"p","commit":"{commit}","date":"{date}"}}"#);
        let one = parts_of(&[&part("a", "2026-01-02"), &part("a", "2026-01-02")]);
        assert_eq!(when(&one, Path::new(".")), "2026-01-02, commit a");
        let several = parts_of(&[&part("b", "2026-01-03"), &part("a", "2026-01-02")]);
        assert_eq!(when(&several, Path::new(".")), "2026-01-02 to 2026-01-03, commits a and b");
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
