//! What is demanded of every commit, beside what the runs of a campaign reached.
//!
//! Invariants: a figure comes from runs only; what no run produced is "not run"; a part that failed reaches nothing.
//!
//! Not here: the figures (sums), the page (report).

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::sums::{Sum, Sums};

/// One goal, and whether it was reached.
struct Goal {
    name: &'static str,
    wanted: &'static str,
    /// The kind of run that shows it.
    kind: &'static str,
    /// The figure, and whether it is good enough.
    reached: fn(&Sum) -> (String, bool),
    /// What of it runs on every commit.
    each: &'static str,
}

const GOALS: [Goal; 14] = [
    Goal {
        name: "simulation",
        wanted: "200 fresh seeds x 30,000 ticks, 0 violations",
        kind: "simulation",
        reached: |sum| {
            let hours = sum.total("seconds") as f64 / 3600.0;
            let figure = format!("{} seeds, {hours:.2} hours simulated, {} violations", sum.runs, violations(sum));
            (figure, sum.runs >= 200 && violations(sum) == 0)
        },
        each: "200 fresh seeds, or as many as five minutes allow",
    },
    Goal {
        name: "real cluster",
        wanted: "10 runs of 2 minutes, 3 to 5 nodes, 200 faults of 16 kinds, overlapping, 0 violations",
        kind: "cluster",
        reached: |sum| {
            let (few, many) = sum.bounds("nodes").unwrap_or_default();
            let figure = format!(
                "{} runs, {} s in all, {few} to {many} nodes, {} faults of {} kinds, {} overlapping, {} violations",
                sum.runs,
                sum.total("seconds"),
                sum.faults(),
                sum.faults.len(),
                sum.total("overlapping"),
                violations(sum)
            );
            let enough =
                sum.runs >= 10 && sum.total("seconds") >= 1200 && sum.faults() >= 200 && sum.faults.len() >= 16;
            (figure, enough && few <= 3 && many >= 5 && violations(sum) == 0)
        },
        each: "a drawn storm of 60 s and a written one of 40 s, 4 nodes each",
    },
    Goal {
        name: "load during faults",
        wanted: "2,000 operations/s, a million judged, none left undecided",
        kind: "cluster",
        reached: |sum| {
            let mean = sum.total("under_faults") / sum.total("seconds").max(1);
            let (slowest, _) = sum.bounds("per_second").unwrap_or_default();
            let (operations, undecided) = (sum.total("operations"), sum.total("undecided"));
            let figure =
                format!("{mean}/s (slowest storm {slowest}/s), {operations} judged, {undecided} left undecided");
            (figure, mean >= 2000 && operations >= 1_000_000 && undecided == 0)
        },
        each: "the same load in both storms",
    },
    Goal {
        name: "nothing lost",
        wanted: "20 power cuts of the whole cluster, 0 acknowledged writes lost",
        kind: "power-cut",
        reached: |sum| {
            let (cuts, lost) = (sum.faults(), violations(sum));
            (
                format!("{cuts} cuts, {} writes acknowledged, {lost} lost", sum.total("acknowledged")),
                cuts >= 20 && lost == 0,
            )
        },
        each: "4 cuts, where the tests run as root",
    },
    Goal {
        name: "disk",
        wanted: "EIO, ENOSPC, torn, rot, slow: ten each, 0 wrong values",
        kind: "disk",
        reached: |sum| {
            let ten = ["eio", "enospc", "torn", "rot", "slow"]
                .iter()
                .all(|kind| sum.faults.get(*kind).is_some_and(|times| *times >= 10));
            (format!("{}, {} violations", counts(sum), violations(sum)), ten && violations(sum) == 0)
        },
        each: "each once under load; full, torn and flipped files between two starts",
    },
    Goal {
        name: "clock",
        wanted: "plus and minus 600 s, 5% drift, 0 stale reads, equal state",
        kind: "cluster",
        reached: |sum| {
            let times = |fault: &str| sum.faults.get(fault).copied().unwrap_or_default();
            let (jumps, drifts) = (times("clock-jump"), times("clock-drift"));
            let compared = sum.judged.get("equal_replicas").copied().unwrap_or_default();
            let figure = format!(
                "{jumps} jumps, {drifts} times of drift, {compared} pairs of replicas compared, {} violations",
                violations(sum)
            );
            (figure, jumps > 0 && drifts > 0 && compared > 0 && violations(sum) == 0)
        },
        each: "jumps in both storms, drift in one; a clock an hour off",
    },
    Goal {
        name: "failpoints",
        wanted: "70 named ones, each hit as crash and as sleep",
        kind: "failpoints",
        reached: |sum| {
            let hit =
                |how: &str| sum.faults.iter().filter(|(name, times)| name.starts_with(how) && **times > 0).count();
            let (crash, sleep) = (hit("crash "), hit("sleep "));
            let figure = format!("{crash} hit as crash, {sleep} as sleep, {} violations", violations(sum));
            (figure, crash >= 70 && sleep >= 70 && violations(sum) == 0)
        },
        each: "nothing: a stage by hand",
    },
    Goal {
        name: "recovery from a leader kill",
        wanted: "served within 3 s",
        kind: "cluster",
        reached: |sum| {
            let (_, worst) = sum.bounds("leader_kill_ms").unwrap_or_default();
            (format!("worst of {}: {}", sum.total("leader_kills"), seconds(worst)), worst > 0 && worst <= 3000)
        },
        each: "two after each storm",
    },
    Goal {
        name: "recovery from a storm",
        wanted: "served within 10 s of the heal",
        kind: "cluster",
        reached: |sum| {
            let (_, worst) = sum.bounds("served_after_ms").unwrap_or_default();
            (format!("worst of {}: {}", sum.runs, seconds(worst)), worst > 0 && worst <= 10_000)
        },
        each: "after each storm; more than 10 s fails",
    },
    Goal {
        name: "saturation",
        wanted: "10 minutes at full load, a snapshot every 5,000 entries, 0 panics",
        kind: "saturation",
        reached: |sum| {
            let (length, found) = (sum.total("seconds"), violations(sum));
            let figure =
                format!("{length} s, {} operations, {found} panics or other violations", sum.total("operations"));
            (figure, length >= 600 && found == 0)
        },
        each: "a minute",
    },
    Goal {
        name: "tests tested",
        wanted: "12 known bugs put back, all caught",
        kind: "mutants",
        reached: |sum| {
            let (bugs, tried, caught) = (sum.judged.len(), sum.total("mutants"), sum.total("caught"));
            (format!("{caught} of {tried} caught, {bugs} different ones"), bugs >= 12 && caught == tried)
        },
        each: "that each patch still applies and its test exists",
    },
    Goal {
        name: "negative control",
        wanted: "a server that loses writes is found within a minute",
        kind: "negative-control",
        reached: |sum| {
            let (_, worst) = sum.bounds("found_ms").unwrap_or_default();
            let figure = format!("{} lies of {}, worst {}", sum.total("found"), sum.runs, seconds(worst));
            (figure, sum.total("found") == sum.runs && worst <= 60_000)
        },
        each: "the same",
    },
    Goal {
        name: "bad input",
        wanted: "100 million fuzz inputs over 6 targets, 0 panics",
        kind: "fuzz",
        reached: |sum| {
            let (inputs, targets) = (sum.total("inputs"), sum.judged.len());
            let figure = format!("{inputs} inputs over {targets} targets, {} panics", violations(sum));
            (figure, inputs >= 100_000_000 && targets >= 6 && violations(sum) == 0)
        },
        each: "property tests of all decoders",
    },
    Goal {
        name: "overload",
        wanted: "10,000 silent connections, 64 MiB messages: a good client served within 1 s, memory bounded",
        kind: "overload",
        reached: |sum| {
            let (silent, _) = sum.bounds("silent").unwrap_or_default();
            let (_, slowest) = sum.bounds("slowest_ms").unwrap_or_default();
            let (_, grown) = sum.bounds("grown_mebibytes").unwrap_or_default();
            let figure = format!("{silent} silent, slowest {slowest} ms, {grown} MiB more");
            (figure, silent >= 10_000 && slowest <= 1000)
        },
        each: "the same",
    },
];

fn violations(sum: &Sum) -> u64 {
    sum.total("violations")
}

fn seconds(milliseconds: u64) -> String {
    format!("{:.1} s", milliseconds as f64 / 1000.0)
}

fn counts(sum: &Sum) -> String {
    let counts: Vec<String> = sum.faults.iter().map(|(name, times)| format!("{name} {times}")).collect();
    counts.join(", ")
}

/// The table, a row a goal; of some kinds of runs a part failed.
pub(super) fn table(sums: &Sums, failed: &BTreeSet<&str>) -> String {
    let mut table = "| goal | figure | reached | met | on every commit |\n|---|---|---|---|---|\n".to_owned();
    for goal in &GOALS {
        let (figure, met) = match (sums.get(goal.kind).map(goal.reached), failed.contains(goal.kind)) {
            (None, false) => ("not run".to_owned(), ""),
            (None, true) => ("failed".to_owned(), "**no**"),
            (Some((figure, is_met)), has_failed) => (figure, if is_met && !has_failed { "yes" } else { "**no**" }),
        };
        let _ = writeln!(table, "| {} | {} | {figure} | {met} | {} |", goal.name, goal.wanted, goal.each);
    }
    table
}
