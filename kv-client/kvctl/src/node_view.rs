//! How nodes are shown.
//!
//! Not here: what is done to them (node).

use std::fmt::Write as _;
use std::time::Duration;

use kv_proto::pb::admin::v1::{NodeListing, NodeState, NodeStatus, ReplicaStatus};
use serde_json::{Value, json};

use crate::human;
use crate::node::{id, leaders};
use crate::output::{Grid, Look, Text, Tone, toned};

fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Drained => "drained",
        NodeState::Removed => "removed",
        NodeState::Lost => "lost",
        NodeState::Unspecified => "unknown",
    }
}

/// What the catalog says, and whether the node answers.
fn state(listing: &NodeListing) -> Text {
    let state = listing.node.as_ref().map_or(NodeState::Unspecified, |node| node.state());
    let word = state_word(state);
    match (&listing.status, state) {
        (_, NodeState::Removed) => toned(word, Tone::Dim),
        (None, NodeState::Active) => toned("down", Tone::Bad),
        (None, _) => toned(format!("{word}, down"), Tone::Bad),
        (Some(status), _) if status.read_only => toned(format!("{word}, read-only"), Tone::Bad),
        (Some(status), _) if !status.may_lead => toned(format!("{word}, may not lead"), Tone::Warn),
        (Some(_), NodeState::Active) => toned(word, Tone::Good),
        (Some(_), _) => toned(word, Tone::Warn),
    }
}

/// `node list`.
pub(crate) fn table(nodes: &[NodeListing]) -> Grid {
    let mut grid = Grid::new(&[
        ">NODE",
        "ADDRESS",
        "STATE",
        ">LEADERS",
        ">REPLICAS",
        ">MEMORY",
        ">DISK FREE",
        ">UP",
        "HTTP?",
        "VERSION?",
    ]);
    for listing in nodes {
        let node = listing.node.clone().unwrap_or_default();
        let told = |read: &dyn Fn(&NodeStatus) -> String| {
            Text::from(listing.status.as_ref().map_or_else(|| human::NOTHING.to_owned(), read))
        };
        grid.row(vec![
            node.node_id.into(),
            node.address.as_str().into(),
            state(listing),
            told(&|status| leaders(&status.replicas).to_string()),
            told(&|status| status.replicas.len().to_string()),
            told(&|status| human::size(status.resident_bytes)),
            told(&|status| human::size(status.disk_free_bytes)),
            told(&|status| human::duration(Duration::from_secs(status.uptime_seconds))),
            node.http_address.as_str().into(),
            node.version.as_str().into(),
        ]);
    }
    grid
}

/// `node status`, for one node.
pub(crate) fn describe(listing: &NodeListing, look: Look) -> String {
    let node = listing.node.clone().unwrap_or_default();
    let mut facts = vec![
        ("Node", node.node_id.to_string(), Tone::Plain),
        ("Address", format!("{}  (http {})", node.address, node.http_address), Tone::Plain),
        ("State", state(listing).text().to_owned(), state(listing).tone()),
        ("Joined", human::moment(node.joined_ms), Tone::Plain),
    ];
    match &listing.status {
        None => facts.push(("Silent", listing.unreachable_reason.clone(), Tone::Bad)),
        Some(status) => facts.extend(told(status)),
    }
    let mut text = String::new();
    for (name, value, tone) in facts {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}  {}", look.paint(&format!("{name:<9}"), Tone::Strong), look.paint(&value, tone));
    }
    if let Some(status) = listing.status.as_ref().filter(|status| !status.replicas.is_empty()) {
        text.push('\n');
        text.push_str(&replica_table(&status.replicas).render(look));
    }
    text.trim_end().to_owned()
}

fn told(status: &NodeStatus) -> Vec<(&'static str, String, Tone)> {
    let (free, total) = (human::size(status.disk_free_bytes), human::size(status.disk_total_bytes));
    let needed = match status.disk_free_min_bytes {
        0 => String::new(),
        bytes => format!("; writes take {}", human::size(bytes)),
    };
    let leads = if status.may_lead {
        ("yes".to_owned(), Tone::Plain)
    } else {
        (format!("no: {}", status.may_not_lead_reason), Tone::Warn)
    };
    let peers: Vec<String> = status
        .peers
        .iter()
        .map(|peer| format!("{}{}", peer.node_id, if peer.connected { "" } else { " (not connected)" }))
        .collect();
    vec![
        (
            "Process",
            format!("{}, up {}", status.pid, human::duration(Duration::from_secs(status.uptime_seconds))),
            Tone::Plain,
        ),
        ("Version", status.version.clone(), Tone::Plain),
        ("Memory", human::size(status.resident_bytes), Tone::Plain),
        ("Processor", format!("{} since start", human::seconds(status.processor_seconds)), Tone::Plain),
        ("Disk", format!("{free} of {total} free in {}{needed}", status.data_dir), Tone::Plain),
        (
            "Writes",
            if status.read_only { "refused: the disk is full" } else { "accepted" }.to_owned(),
            if status.read_only { Tone::Bad } else { Tone::Plain },
        ),
        ("May lead", leads.0, leads.1),
        ("Clock", format!("at most {} ms from its peers", status.clock_offset_ms.unsigned_abs()), Tone::Plain),
        ("Peers", if peers.is_empty() { "none".to_owned() } else { peers.join(", ") }, Tone::Plain),
        (
            "Holds",
            format!(
                "{}, {} of them leading",
                human::count(status.replicas.len(), "replica"),
                leaders(&status.replicas)
            ),
            Tone::Plain,
        ),
    ]
}

fn replica_table(replicas: &[ReplicaStatus]) -> Grid {
    let mut grid = Grid::new(&[
        ">SHARD",
        ">REPLICA",
        "ROLE",
        ">TERM",
        ">LAST",
        ">COMMITTED?",
        ">APPLIED",
        ">FLUSHED?",
        ">PURGED?",
        ">SIZE",
        "ASLEEP",
    ]);
    for replica in replicas {
        grid.row(vec![
            replica.shard_id.into(),
            replica.replica_id.into(),
            role(replica),
            replica.term.into(),
            human::grouped(replica.last_index).into(),
            human::grouped(replica.committed_index).into(),
            human::grouped(replica.applied_index).into(),
            human::grouped(replica.durable_index).into(),
            human::grouped(replica.purged_index).into(),
            human::size_on_disk(replica.data_bytes).into(),
            if replica.hibernated { "yes" } else { "no" }.into(),
        ]);
    }
    grid
}

fn role(replica: &ReplicaStatus) -> Text {
    match replica.role.as_str() {
        "leader" if replica.no_quorum => toned("leader, no quorum", Tone::Bad),
        "leader" => toned("leader", Tone::Good),
        other => toned(other, Tone::Plain),
    }
}

/// The catalog's part; as documented in docs/kvctl.md.
pub(crate) fn record_json(listing: &NodeListing) -> Value {
    let node = listing.node.clone().unwrap_or_default();
    json!({
        "node": id(listing),
        "address": node.address,
        "http_address": node.http_address,
        "state": state_word(node.state()),
        "joined_ms": node.joined_ms,
    })
}

/// With what the node says of itself, without its replicas.
pub(crate) fn to_json(listing: &NodeListing) -> Value {
    let mut json = record_json(listing);
    if let Value::Object(fields) = &mut json {
        fields.insert("answers".into(), listing.status.is_some().into());
        match &listing.status {
            Some(status) => fields.insert("status".into(), status_json(status)),
            None => fields.insert("unreachable_reason".into(), listing.unreachable_reason.clone().into()),
        };
    }
    json
}

/// With its replicas.
pub(crate) fn to_json_with_replicas(listing: &NodeListing) -> Value {
    let mut json = to_json(listing);
    if let (Value::Object(fields), Some(status)) = (&mut json, &listing.status) {
        fields.insert("replicas".into(), status.replicas.iter().map(replica_json).collect());
    }
    json
}

fn status_json(status: &NodeStatus) -> Value {
    json!({
        "version": status.version,
        "pid": status.pid,
        "data_dir": status.data_dir,
        "uptime_seconds": status.uptime_seconds,
        "resident_bytes": status.resident_bytes,
        "processor_seconds": status.processor_seconds,
        "disk_total_bytes": status.disk_total_bytes,
        "disk_free_bytes": status.disk_free_bytes,
        "disk_free_min_bytes": status.disk_free_min_bytes,
        "read_only": status.read_only,
        "clock_offset_ms": status.clock_offset_ms,
        "may_lead": status.may_lead,
        "may_not_lead_reason": status.may_not_lead_reason,
        "catalog_version": status.catalog_version.to_string(),
        "leaders": leaders(&status.replicas),
        "replica_count": status.replicas.len(),
        "peers": status.peers.iter().map(|peer| json!({
            "node": peer.node_id, "connected": peer.connected, "last_heard_ms": peer.last_heard_ms,
        })).collect::<Vec<_>>(),
    })
}

fn replica_json(replica: &ReplicaStatus) -> Value {
    json!({
        "shard": replica.shard_id,
        "replica": replica.replica_id,
        "role": replica.role,
        "no_quorum": replica.no_quorum,
        "term": replica.term,
        "last_index": replica.last_index,
        "committed_index": replica.committed_index,
        "applied_index": replica.applied_index,
        "durable_index": replica.durable_index,
        "purged_index": replica.purged_index,
        "data_bytes": replica.data_bytes,
        "hibernated": replica.hibernated,
    })
}

#[cfg(test)]
mod tests {
    use kv_proto::pb::admin::v1::Node;

    use super::*;

    fn listing(id: u64) -> NodeListing {
        let node = Node {
            node_id: id,
            address: format!("127.0.0.1:700{id}"),
            http_address: format!("127.0.0.1:710{id}"),
            state: NodeState::Active.into(),
            version: "0.1.0".into(),
            joined_ms: 1_700_000_000_000,
            ..Node::default()
        };
        let replica = |shard_id: u64, role: &str| ReplicaStatus {
            shard_id,
            replica_id: 1,
            role: role.into(),
            term: 2,
            last_index: 10_000,
            ..ReplicaStatus::default()
        };
        let status = NodeStatus {
            node_id: id,
            version: "0.1.0".into(),
            uptime_seconds: 3700,
            resident_bytes: 48 << 20,
            processor_seconds: 12.5,
            disk_total_bytes: 100 << 30,
            disk_free_bytes: 60 << 30,
            may_lead: true,
            replicas: vec![replica(1, "leader"), replica(2, "follower")],
            pid: 4711,
            data_dir: "/data".into(),
            ..NodeStatus::default()
        };
        NodeListing { node: Some(node), status: Some(status), unreachable_reason: String::new() }
    }

    #[test]
    fn the_list_tells_living_from_dead() {
        let mut dead = listing(2);
        dead.status = None;
        let expected = "\
NODE  ADDRESS         STATE   LEADERS  REPLICAS    MEMORY  DISK FREE     UP  HTTP            VERSION
   1  127.0.0.1:7001  active        1         2  48.0 MiB   60.0 GiB  1h 1m  127.0.0.1:7101  0.1.0
   2  127.0.0.1:7002  down          -         -         -          -      -  127.0.0.1:7102  0.1.0";
        assert_eq!(table(&[listing(1), dead]).render(Look::default()), expected);
    }

    #[test]
    fn the_list_fits_eighty_columns() {
        let text = table(&[listing(1)]).render(Look { width: Some(80), colour: false });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn the_description_of_a_silent_node_says_why() {
        let mut dead = listing(2);
        dead.status = None;
        dead.unreachable_reason = "connection refused".into();
        let text = describe(&dead, Look::default());
        assert!(text.ends_with("Silent     connection refused"), "{text}");
    }

    #[test]
    fn a_leader_that_no_majority_answers_is_marked_and_not_counted() {
        let mut cut_off = listing(1);
        cut_off.status.as_mut().unwrap().replicas[0].no_quorum = true;
        let text = describe(&cut_off, Look::default());
        assert!(text.contains("leader, no quorum") && text.contains("2 replicas, 0 of them leading"), "{text}");
        let json = to_json_with_replicas(&cut_off);
        assert_eq!((&json["replicas"][0]["role"], &json["replicas"][0]["no_quorum"]), (&json!("leader"), &json!(true)));
        assert_eq!(json["status"]["leaders"], 0);
    }

    #[test]
    fn json_holds_what_the_node_says() {
        let json = to_json_with_replicas(&listing(1));
        assert_eq!(json["status"]["resident_bytes"], 48 << 20);
        assert_eq!(json["replicas"][0]["role"], "leader");
    }
}
