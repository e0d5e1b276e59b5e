//! The goals, and whether the figures of a record meet them.
//!
//! Not here: how figures are measured.

use crate::record::{Record, Sample, Versus, median, most};

/// What a node may use by default.
const BUDGET_MIB: f64 = 512.0;

/// One row of the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Goal {
    pub(crate) what: &'static str,
    pub(crate) goal: &'static str,
    /// In words; "not measured".
    pub(crate) measured: String,
    /// None if not measured.
    pub(crate) met: Option<bool>,
}

/// All goals, in their order.
pub(crate) fn goals(record: &Record) -> Vec<Goal> {
    vec![
        throughput(record, "put-256", "durable put, 256 clients, 128 B: throughput", 8.0, "at least 8 x etcd"),
        latency(record, "put-256", "the same: p99", |sample| sample.p99_us, 1.0 / 3.0, "at most a third of etcd's"),
        latency(record, "put-1", "durable put, 1 client: median", |sample| sample.p50_us, 0.6, "at most 0.6 x etcd's"),
        throughput(record, "get-256", "linearizable get, 256 clients", 6.0, "at least 6 x etcd"),
        throughput(record, "mixed-256", "90/10 mixed, zipfian, 256 clients", 6.0, "at least 6 x etcd"),
        latency(
            record,
            "put-256",
            "processor time of all three nodes per put, 256 clients",
            |sample| sample.nodes_us,
            1.0 / 6.0,
            "at most a sixth of etcd's",
        ),
        group_commit(record),
        batches(record),
        gaps(record),
        idle(record),
        empty(record),
        million(record),
        large(record),
    ]
}

fn row(what: &'static str, goal: &'static str, measured: Option<(String, bool)>) -> Goal {
    let met = measured.as_ref().map(|(_, met)| *met);
    Goal { what, goal, measured: measured.map_or_else(|| "not measured".to_owned(), |(text, _)| text), met }
}

/// Ratio of medians of both systems, where both were measured.
fn ratio(record: &Record, shape: &str, figure: impl Fn(&Sample) -> f64) -> Option<(f64, f64, f64)> {
    let Versus { kv, etcd } = record.shapes.get(shape)?;
    let (ours, theirs) = (median(kv.iter().map(&figure)), median(etcd.iter().map(&figure)));
    (ours > 0.0 && theirs > 0.0).then(|| (ours / theirs, ours, theirs))
}

fn throughput(record: &Record, shape: &str, what: &'static str, least: f64, goal: &'static str) -> Goal {
    let found = ratio(record, shape, |sample| sample.per_second);
    let text = |(ratio, ours, theirs): (f64, f64, f64)| {
        (format!("{ratio:.2} x ({ours:.0}/s, etcd {theirs:.0}/s)"), ratio >= least)
    };
    row(what, goal, found.map(text))
}

fn latency(
    record: &Record,
    shape: &str,
    what: &'static str,
    figure: impl Fn(&Sample) -> f64,
    most: f64,
    goal: &'static str,
) -> Goal {
    let text = |(ratio, ours, theirs): (f64, f64, f64)| {
        (format!("{ratio:.2} x ({ours:.0} us, etcd {theirs:.0} us)"), ratio <= most)
    };
    row(what, goal, ratio(record, shape, figure).map(text))
}

fn group_commit(record: &Record) -> Goal {
    let limit = median(record.limits.get("rocksdb-64").into_iter().flatten().map(|limit| limit.per_second));
    let ours = record.shapes.get("put-256").map(|versus| median(versus.kv.iter().map(|sample| sample.per_second)));
    let measured = ours
        .filter(|_| limit > 0.0)
        .map(|ours| (format!("{:.2} x ({ours:.0}/s, RocksDB {limit:.0}/s)", ours / limit), ours / limit >= 1.0 / 3.0));
    row("put, 256 clients, against RocksDB's synced group commit, 64 threads", "at least a third", measured)
}

fn batches(record: &Record) -> Goal {
    let measured = record.shapes.get("batch-1").filter(|versus| !versus.kv.is_empty()).map(|versus| {
        let keys = median(versus.kv.iter().map(|sample| sample.keys_per_second));
        (format!("{keys:.0} keys/s"), keys >= 150_000.0)
    });
    row("one client with batches of 100", "at least 150,000 keys/s", measured)
}

fn gaps(record: &Record) -> Goal {
    let gaps: Vec<f64> = record.failover.iter().map(|gap| gap.ms).collect();
    let (middle, worst) = (median(gaps.iter().copied()), most(&gaps));
    let measured = (!gaps.is_empty()).then(|| {
        let text = format!("median {middle:.0} ms, worst {worst:.0} ms ({} shards lost their leader)", gaps.len());
        (text, middle < 1000.0 && worst < 2000.0)
    });
    let what = "leader killed under load: longest gap of acknowledged writes per shard";
    row(what, "median below 1 s, worst of 20 kills below 2 s", measured)
}

fn idle(record: &Record) -> Goal {
    let measured = record.idle.as_ref().map(|idle| {
        let (percent, kib) = (most(&idle.node_percent), most(&idle.replica_kib));
        (format!("{percent:.2}% of a core, {kib:.0} KiB per replica (the worst node)"), percent < 2.0 && kib < 200.0)
    });
    let goal = "below 2% of one core per node, below 200 KiB per replica";
    row("1,000 idle shards on each of three nodes", goal, measured)
}

fn empty(record: &Record) -> Goal {
    let measured = record.memory.as_ref().map(|memory| {
        let mib = most(&memory.empty_mib);
        (format!("{mib:.0} MiB (the largest node)"), mib < 100.0)
    });
    row("idle node without data: resident memory", "below 100 MiB", measured)
}

fn million(record: &Record) -> Goal {
    let measured = record.memory.as_ref().map(|memory| {
        let (mib, peak) = (most(&memory.million_mib), most(&memory.million_peak_mib));
        (format!("{mib:.0} MiB, {peak:.0} MiB at most (the largest node)"), peak <= BUDGET_MIB)
    });
    row("one million keys of 128 B: resident memory of a node", "within the budget of 512 MiB", measured)
}

fn large(record: &Record) -> Goal {
    let measured = record.large.as_ref().map(|large| {
        let (peak, after) = (most(&large.peak_mib), &large.afterwards);
        let text = format!(
            "{peak:.0} MiB at most, {:.0} puts and gets/s afterwards, {} failed ({} GiB)",
            after.per_second, after.failed, large.gib
        );
        let goes_on = after.per_second > 0.0 && after.failed == 0;
        (text, goes_on && large.gib >= 10 && peak <= BUDGET_MIB * 1.25)
    });
    let goal = "puts and gets keep going, memory within the budget plus 25%";
    row("10 GiB of data with a budget of 512 MiB", goal, measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(per_second: f64, p99_us: f64) -> Sample {
        Sample { per_second, p99_us, ..Sample::default() }
    }

    #[test]
    fn a_goal_is_met_by_medians_and_open_while_a_system_is_missing() {
        let mut record = Record::default();
        assert!(goals(&record).iter().all(|goal| goal.met.is_none() && goal.measured == "not measured"));
        let etcd = vec![sample(1000.0, 900.0), sample(1.0, 900.0), sample(1000.0, 900.0)];
        let kv = vec![sample(8000.0, 301.0), sample(8000.0, 301.0), sample(90_000.0, 1.0)];
        record.shapes.insert("put-256".to_owned(), Versus { kv, etcd });
        let found = goals(&record);
        assert_eq!(found[0].met, Some(true), "{found:?}");
        assert_eq!(found[0].measured, "8.00 x (8000/s, etcd 1000/s)");
        assert_eq!(found[1].met, Some(false), "{found:?}");
        assert_eq!(found[3].met, None);
        record.shapes.get_mut("put-256").unwrap().etcd.clear();
        assert_eq!(goals(&record)[0].met, None);
    }
}
