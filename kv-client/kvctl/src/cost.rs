//! `status`: the cluster at a glance, and what a replica costs in memory and processor time.
//!
//! Invariants: a cost per replica is the node's whole process divided by its replicas, so it errs on the high side.
//!
//! Not here: what is wrong (checkup).

use std::fmt::Write as _;
use std::time::Duration;

use kv_proto::pb::admin::v1::{GetCatalogRequest, NodeListing, NodeState, ShardListing};
use serde_json::{Value, json};

use crate::context::Context;
use crate::doctor::{lacks_quorum, leader_of};
use crate::exit::{Exit, Explain as _, Failure};
use crate::human;
use crate::node::{id, leaders};
use crate::output::{Grid, Look, Text, Tone, toned};
use crate::progress::Progress;

/// `status`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Only what each node and replica costs in memory and processor time
    #[arg(long)]
    cost: bool,
    /// Measure processor time over this long instead of since start
    #[arg(long, value_name = "DURATION", requires = "cost", value_parser = humantime::parse_duration)]
    interval: Option<Duration>,
}

/// What a node's process uses, and what that is per replica.
#[derive(Clone, Debug, PartialEq)]
struct Cost {
    node: u64,
    replicas: usize,
    asleep: usize,
    leaders: usize,
    resident_bytes: u64,
    /// Over `seconds`.
    processor_seconds: f64,
    seconds: f64,
}

impl Cost {
    fn of(listing: &NodeListing) -> Option<Self> {
        let status = listing.status.as_ref()?;
        Some(Self {
            node: id(listing),
            replicas: status.replicas.len(),
            asleep: status.replicas.iter().filter(|replica| replica.hibernated).count(),
            leaders: leaders(&status.replicas),
            resident_bytes: status.resident_bytes,
            processor_seconds: status.processor_seconds,
            seconds: Duration::from_secs(status.uptime_seconds.max(1)).as_secs_f64(),
        })
    }

    /// What was used since an earlier look; None if the process was restarted between the two.
    fn since(&self, earlier: &Self, seconds: f64) -> Option<Self> {
        let processor_seconds = self.processor_seconds - earlier.processor_seconds;
        (processor_seconds >= 0.0).then(|| Self { processor_seconds, seconds, ..self.clone() })
    }

    fn sum(costs: &[Self]) -> Self {
        let processor_seconds: f64 = costs.iter().map(|cost| cost.processor_seconds).sum();
        let cores: f64 = costs.iter().map(|cost| cost.processor_seconds / cost.seconds).sum();
        // Nodes run for different times: so long that together they used as many cores as each of them.
        let seconds = if cores > 0.0 { processor_seconds / cores } else { 0.0 };
        Self {
            node: 0,
            replicas: costs.iter().map(|cost| cost.replicas).sum(),
            asleep: costs.iter().map(|cost| cost.asleep).sum(),
            leaders: costs.iter().map(|cost| cost.leaders).sum(),
            resident_bytes: costs.iter().map(|cost| cost.resident_bytes).sum(),
            processor_seconds,
            seconds,
        }
    }

    fn memory_per_replica(&self) -> Option<u64> {
        self.resident_bytes.checked_div(self.replicas as u64)
    }

    /// Percent of one core.
    fn load(&self) -> f64 {
        if self.seconds > 0.0 { 100.0 * self.processor_seconds / self.seconds } else { 0.0 }
    }

    /// Microseconds of processor time per second.
    #[allow(clippy::cast_precision_loss)]
    fn micros_per_replica(&self) -> Option<f64> {
        (self.replicas > 0 && self.seconds > 0.0)
            .then(|| 1e6 * self.processor_seconds / self.seconds / self.replicas as f64)
    }

    fn to_json(&self) -> Value {
        json!({
            "node": self.node,
            "replicas": self.replicas,
            "hibernated_replicas": self.asleep,
            "leaders": self.leaders,
            "resident_bytes": self.resident_bytes,
            "resident_bytes_per_replica": self.memory_per_replica(),
            "processor_seconds": self.processor_seconds,
            "over_seconds": self.seconds,
            "processor_percent": self.load(),
            "processor_micros_per_second_per_replica": self.micros_per_replica(),
        })
    }
}

impl Context {
    /// `status`.
    pub(crate) async fn status(&self, args: &StatusArgs) -> Result<Exit, Failure> {
        if args.cost { self.status_cost(args.interval).await } else { self.status_summary().await }
    }

    async fn status_cost(&self, interval: Option<Duration>) -> Result<Exit, Failure> {
        let mut costs: Vec<Cost> = self.nodes().await?.iter().filter_map(Cost::of).collect();
        if let Some(interval) = interval {
            let began = tokio::time::Instant::now();
            self.pass(interval).await;
            let later: Vec<Cost> = self.nodes().await?.iter().filter_map(Cost::of).collect();
            let seconds = began.elapsed().as_secs_f64();
            let used = |cost: &Cost| cost.since(costs.iter().find(|earlier| earlier.node == cost.node)?, seconds);
            costs = later.iter().filter_map(used).collect();
        }
        if costs.is_empty() {
            return Err(Failure::unavailable("no node said what it uses").advise("kvctl node list shows which answer"));
        }
        let all = Cost::sum(&costs);
        let json = json!({
            "interval_seconds": interval.map(|_| all.seconds),
            "nodes": costs.iter().map(Cost::to_json).collect::<Vec<_>>(),
            "all": all.to_json(),
        });
        self.output.show(json, |look| {
            let over = match interval {
                Some(_) => format!("over {}", human::seconds(all.seconds)),
                None => "since each node's start; --interval 10s measures the present".to_owned(),
            };
            let footer =
                format!("Processor time {over}.\nPer replica: a node's whole process divided by its replicas.");
            format!("{}\n\n{}", cost_table(&costs, &all).render(look), look.paint(&footer, Tone::Dim))
        })?;
        Ok(Exit::Ok)
    }

    async fn pass(&self, interval: Duration) {
        let progress = Progress::share(&self.output, u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
        let began = tokio::time::Instant::now();
        while began.elapsed() < interval {
            progress.set(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), "measuring processor time");
            tokio::time::sleep((interval - began.elapsed().min(interval)).min(Duration::from_millis(100))).await;
        }
    }

    async fn status_summary(&self) -> Result<Exit, Failure> {
        let catalog = async {
            let response = self.admin().get_catalog(GetCatalogRequest {}).await;
            Ok(response.map_err(|error| error.read("read the catalog"))?.catalog.unwrap_or_default())
        };
        let (catalog, nodes, shards, actions) =
            futures::try_join!(catalog, self.nodes(), self.shards("", 0), self.actions(true))?;
        let members: Vec<NodeListing> = nodes
            .into_iter()
            .filter(|listing| listing.node.as_ref().is_some_and(|node| node.state() != NodeState::Removed))
            .collect();
        let costs: Vec<Cost> = members.iter().filter_map(Cost::of).collect();
        let all = Cost::sum(&costs);
        let summary = Summary {
            cluster_id: catalog.cluster_id,
            nodes: members.len(),
            silent: members.iter().filter(|listing| listing.status.is_none()).map(id).collect(),
            keyspaces: catalog.keyspaces.len(),
            shards: shards.len(),
            leaderless: leaderless(&shards),
            no_quorum: without_quorum(&shards),
            data_bytes: shards.iter().filter_map(leader_of).map(|leader| leader.data_bytes).sum(),
            running_actions: actions.len(),
        };
        let json = json!({
            "cluster_id": summary.cluster_id,
            "nodes": summary.nodes,
            "silent_nodes": summary.silent,
            "keyspaces": summary.keyspaces,
            "shards": summary.shards,
            "leaderless_shards": summary.leaderless,
            "no_quorum_shards": summary.no_quorum,
            "data_bytes": summary.data_bytes,
            "running_actions": summary.running_actions,
            "cost": { "nodes": costs.iter().map(Cost::to_json).collect::<Vec<_>>(), "all": all.to_json() },
        });
        self.output
            .show(json, |look| format!("{}\n{}", summary.render(look), cost_table(&costs, &all).render(look)))?;
        Ok(Exit::Ok)
    }
}

/// Shards that no living replica leads.
pub(crate) fn leaderless(shards: &[ShardListing]) -> Vec<u64> {
    ids(shards.iter().filter(|listing| leader_of(listing).is_none()))
}

/// Shards whose leader no majority answers.
pub(crate) fn without_quorum(shards: &[ShardListing]) -> Vec<u64> {
    ids(shards.iter().filter(|listing| lacks_quorum(listing)))
}

fn ids<'a>(shards: impl Iterator<Item = &'a ShardListing>) -> Vec<u64> {
    shards.filter_map(|listing| Some(listing.shard.as_ref()?.shard_id)).collect()
}

struct Summary {
    cluster_id: String,
    nodes: usize,
    silent: Vec<u64>,
    keyspaces: usize,
    shards: usize,
    leaderless: Vec<u64>,
    no_quorum: Vec<u64>,
    data_bytes: u64,
    running_actions: usize,
}

impl Summary {
    fn render(&self, look: Look) -> String {
        let nodes = match self.silent.as_slice() {
            [] => (format!("{}, all answer", self.nodes), Tone::Good),
            silent => (format!("{}; not answering: {}", self.nodes, human::list(silent)), Tone::Bad),
        };
        let mut shards = (format!("{}, all with a leader", self.shards), Tone::Good);
        let troubles = [("without a leader", &self.leaderless), ("without a quorum", &self.no_quorum)];
        let troubles = troubles.iter().filter(|(_, shards)| !shards.is_empty());
        let troubles: Vec<String> =
            troubles.map(|(what, shards)| format!("; {what}: {}", human::list(shards))).collect();
        if !troubles.is_empty() {
            shards = (format!("{}{}", self.shards, troubles.concat()), Tone::Bad);
        }
        let data = match self.data_bytes {
            0 => "in memory so far, or too little to estimate".to_owned(),
            bytes => human::size(bytes),
        };
        let facts = [
            ("Cluster", (self.cluster_id.clone(), Tone::Plain)),
            ("Nodes", nodes),
            ("Keyspaces", (self.keyspaces.to_string(), Tone::Plain)),
            ("Shards", shards),
            ("Data", (data, Tone::Plain)),
            ("Actions", (format!("{} running", self.running_actions), Tone::Plain)),
        ];
        let mut text = String::new();
        for (name, (value, tone)) in facts {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}  {}", look.paint(&format!("{name:<9}"), Tone::Strong), look.paint(&value, tone));
        }
        text
    }
}

fn cost_table(costs: &[Cost], all: &Cost) -> Grid {
    let mut grid = Grid::new(&[
        ">NODE",
        ">REPLICAS",
        ">ASLEEP",
        ">LEADERS",
        ">MEMORY",
        ">MEM/REPLICA",
        ">CPU TIME?",
        ">CPU",
        ">CPU/REPLICA",
    ]);
    for (name, cost) in costs.iter().map(|cost| (cost.node.to_string(), cost)).chain([("all".to_owned(), all)]) {
        let nothing = || human::NOTHING.to_owned();
        let row: [String; 9] = [
            name,
            cost.replicas.to_string(),
            cost.asleep.to_string(),
            cost.leaders.to_string(),
            human::size(cost.resident_bytes),
            cost.memory_per_replica().map_or_else(nothing, human::size),
            human::seconds(cost.processor_seconds),
            format!("{:.1} %", cost.load()),
            cost.micros_per_replica().map_or_else(nothing, |micros| format!("{micros:.0} µs/s")),
        ];
        grid.row(row.into_iter().map(Text::from).collect());
    }
    if costs.is_empty() {
        grid = Grid::new(&["NODES"]);
        grid.row(vec![toned("none answers", Tone::Bad)]);
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(node: u64, processor_seconds: f64) -> Cost {
        Cost {
            node,
            replicas: 100,
            asleep: 90,
            leaders: 33,
            resident_bytes: 100 << 20,
            processor_seconds,
            seconds: 10.0,
        }
    }

    #[test]
    fn the_summary_tells_shards_without_a_leader_from_those_without_a_quorum() {
        let mut summary = Summary {
            cluster_id: "c".into(),
            nodes: 3,
            silent: vec![2, 3],
            keyspaces: 2,
            shards: 7,
            leaderless: Vec::new(),
            no_quorum: vec![2, 3],
            data_bytes: 0,
            running_actions: 0,
        };
        let text = summary.render(Look::default());
        assert!(text.contains("Shards     7; without a quorum: 2 and 3\n"), "{text}");
        summary.leaderless = vec![5];
        let text = summary.render(Look::default());
        assert!(text.contains("Shards     7; without a leader: 5; without a quorum: 2 and 3\n"), "{text}");
        (summary.leaderless, summary.no_quorum) = (Vec::new(), Vec::new());
        assert!(summary.render(Look::default()).contains("Shards     7, all with a leader\n"));
    }

    #[test]
    fn a_replica_costs_its_share_of_the_process() {
        let later = cost(1, 20.5);
        let used = later.since(&cost(1, 20.0), 10.0).unwrap();
        assert_eq!(used.memory_per_replica(), Some(1 << 20));
        assert!((used.micros_per_replica().unwrap() - 500.0).abs() < 1e-6);
        assert!((used.load() - 5.0).abs() < 1e-9);
    }

    #[test]
    fn a_node_that_was_restarted_in_between_has_no_figure() {
        assert_eq!(cost(1, 0.5).since(&cost(1, 20.0), 10.0), None);
    }

    #[test]
    fn a_node_without_replicas_has_no_cost_per_replica() {
        let empty = Cost { replicas: 0, ..cost(1, 1.0) };
        assert_eq!((empty.memory_per_replica(), empty.micros_per_replica()), (None, None));
    }

    #[test]
    fn the_table_ends_with_the_whole_cluster() {
        let costs = [cost(1, 0.5), cost(2, 0.3)];
        let expected = "\
NODE  REPLICAS  ASLEEP  LEADERS     MEMORY  MEM/REPLICA  CPU TIME    CPU  CPU/REPLICA
   1       100      90       33  100.0 MiB      1.0 MiB     500ms  5.0 %     500 µs/s
   2       100      90       33  100.0 MiB      1.0 MiB     300ms  3.0 %     300 µs/s
 all       200     180       66  200.0 MiB      1.0 MiB     800ms  8.0 %     400 µs/s";
        assert_eq!(cost_table(&costs, &Cost::sum(&costs)).render(Look::default()), expected);
        let narrow = cost_table(&costs, &Cost::sum(&costs)).render(Look { width: Some(80), colour: false });
        assert_eq!(narrow.lines().count(), 4, "{narrow}");
    }
}
