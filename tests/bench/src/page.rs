//! docs/performance.md and its plot, from the kept figures.
//!
//! Invariants: only what stands between the two marks is written; the rest of the page belongs to people.
//!
//! Not here: the drawing (plot).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::goals::goals;
use crate::limits::LIMITS;
use crate::plot;
use crate::record::{Limit, Record, Run, Sample, median};
use crate::shapes::SHAPES;

const BEGIN: &str = "<!-- figures: written by scripts/bench -->";
const END: &str = "<!-- end of figures -->";

/// Writes the page and the plot below `docs`.
pub(crate) fn publish(record: &Record, docs: &Path) -> Result<()> {
    fs::write(docs.join("images/performance.svg"), plot::svg(record))?;
    let page = docs.join("performance.md");
    let text = fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))?;
    let text = replaced(&text, &figures(record)).with_context(|| format!("{} has lost its marks", page.display()))?;
    Ok(fs::write(page, text)?)
}

/// The page with other figures; None without the marks.
fn replaced(text: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", figures.trim()))
}

fn figures(record: &Record) -> String {
    let sections = [runs(record), goal_table(record), shape_table(record), limit_table(record)];
    sections.each_ref().map(|section| section.trim_end()).join("\n\n")
}

/// The last run first; an earlier one with what of it still stands.
fn runs(record: &Record) -> String {
    let mut text = String::new();
    for Run { machine, parts } in record.runs.iter().rev() {
        let what = if record.runs.len() == 1 { "All".to_owned() } else { parts.join(", ") };
        let rounds = parts.iter().filter_map(|part| record.shapes.get(part)).map(|versus| versus.kv.len()).max();
        let rounds = rounds.filter(|rounds| *rounds > 1);
        let rounds =
            rounds.map_or(String::new(), |rounds| format!("; loads and limits are medians of {rounds} rounds"));
        let etcd = if machine.etcd.is_empty() { String::new() } else { format!("; etcd {}", machine.etcd) };
        let _ = writeln!(
            text,
            "- {what}: measured {} at commit `{}` on {} cores of {}, {:.0} GiB of memory, Linux {}, {}{etcd}{rounds}.",
            machine.date,
            machine.commit,
            machine.cores,
            machine.processor,
            machine.memory_gib,
            machine.kernel,
            machine.file_system,
        );
    }
    text
}

fn goal_table(record: &Record) -> String {
    let mut text = "### Goals\n\n| measure | goal | measured | met |\n|---|---|---|---|\n".to_owned();
    for goal in goals(record) {
        let met = match goal.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        line(&mut text, &[goal.what, goal.goal, &goal.measured, met]);
    }
    text
}

fn shape_table(record: &Record) -> String {
    let mut text = "### Beside etcd\n\n![Throughput of kv and etcd under the same loads](images/performance.svg)\n\n\
        Latencies in microseconds; processor time in microseconds an operation, of all three nodes and of the load \
        generator. kv's nodes are compiled with profile-guided optimisation, by runs of these loads among others; etcd is as \
        Debian builds it ([what that makes](adr/0022-production-builds-are-guided-by-a-profile.md)).\n\n\
        | load | kv /s | etcd /s | ratio | kv p50 | etcd p50 | kv p99 | etcd p99 | kv nodes | etcd nodes | kv client | etcd client |\n\
        |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for shape in SHAPES {
        let Some(versus) = record.shapes.get(shape.name) else { continue };
        let both =
            |figure: fn(&Sample) -> f64| (median(versus.kv.iter().map(figure)), median(versus.etcd.iter().map(figure)));
        let mut cells = vec![shape.title.to_owned()];
        let (kv, etcd) = both(|sample| sample.keys_per_second);
        cells.extend([whole(kv), whole(etcd)]);
        cells.push(if etcd > 0.0 { format!("{:.1} x", kv / etcd) } else { String::new() });
        for (kv, etcd) in [both(|sample| sample.p50_us), both(|sample| sample.p99_us)] {
            cells.extend([whole(kv), whole(etcd)]);
        }
        for (kv, etcd) in [both(|sample| sample.nodes_us), both(|sample| sample.own_us)] {
            cells.extend([tenth(kv), tenth(etcd)]);
        }
        line(&mut text, &cells);
    }
    text
}

fn limit_table(record: &Record) -> String {
    let mut text =
        "### What the machine could do at most\n\n| limit | /s | p50 us | p99 us |\n|---|--:|--:|--:|\n".to_owned();
    for (name, title) in LIMITS {
        let Some(limits) = record.limits.get(name) else { continue };
        let of = |figure: fn(&Limit) -> f64| whole(median(limits.iter().map(figure)));
        line(&mut text, &[title, &of(|limit| limit.per_second), &of(|limit| limit.p50_us), &of(|limit| limit.p99_us)]);
    }
    text
}

fn line<T: AsRef<str>>(text: &mut String, cells: &[T]) {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// `12,345`; empty for nothing.
pub(crate) fn whole(figure: f64) -> String {
    if figure <= 0.0 {
        return String::new();
    }
    let digits = format!("{figure:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn tenth(figure: f64) -> String {
    if figure > 0.0 { format!("{figure:.1}") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::record::Versus;

    fn record() -> Record {
        let mut record = Record::default();
        let sample = |per_second| Sample { per_second, keys_per_second: per_second, ..Sample::default() };
        record.shapes.insert("put-256".to_owned(), Versus { kv: vec![sample(90_000.0)], etcd: vec![sample(10_000.0)] });
        record
    }

    #[test]
    fn what_people_wrote_stays_and_the_figures_are_replaced() {
        let page = format!("# Title\n\n{BEGIN}\nold\n{END}\n\n## Where the time goes\n\nwords\n");
        let page = replaced(&page, &figures(&record())).unwrap();
        assert!(page.starts_with("# Title\n") && page.ends_with("words\n"), "{page}");
        assert!(page.contains("| put, 256 clients | 90,000 | 10,000 | 9.0 x |") && !page.contains("old"), "{page}");
        assert_eq!(replaced(&page, &figures(&record())).unwrap(), page, "writing twice changes nothing");
        assert_eq!(replaced("no marks", ""), None);
    }

    #[test]
    fn rounds_are_told_of_what_had_several() {
        let run = |part: &str| Run { machine: Machine::default(), parts: vec![part.to_owned()] };
        let mut record = Record { runs: vec![run("put-256"), run("idle")], ..record() };
        assert!(!runs(&record).contains("medians"), "of one round");
        let versus = record.shapes.get_mut("put-256").unwrap();
        versus.kv = vec![versus.kv[0].clone(); 3];
        let text = runs(&record);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("- put-256") && lines[1].contains("medians of 3 rounds"), "{text}");
        assert!(lines[0].starts_with("- idle") && !lines[0].contains("medians"), "{text}");
    }

    #[test]
    fn the_plot_has_a_bar_for_each_system_of_each_shape() {
        let svg = plot::svg(&record());
        assert_eq!(svg.matches("class=\"kv\"").count(), 2, "one of the load, one of the legend: {svg}");
        assert_eq!(svg.matches("class=\"etcd\"").count(), 2);
        assert!(svg.contains("9.0 x"), "{svg}");
    }
}
