//! The text of `/metrics`: what was counted, and gauges of the node and its replicas as they are now.
//!
//! Not here: counting (metrics; kv-raft, metrics).

use std::fmt;

use kv_raft::types::{ReplicaState, Role};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::disk;
use crate::node::NodeShared;

type ShardLabel = [(&'static str, String); 1];
type RoleLabels = [(&'static str, String); 2];
type ByShard = Family<ShardLabel, Gauge>;

/// All metrics in the OpenMetrics text form.
pub(super) fn text(counted: &Registry, node: Option<&NodeShared>) -> String {
    let mut text = String::new();
    if let Err(error) = write(&mut text, counted, node) {
        tracing::warn!(%error, "the metrics were not written");
    }
    text
}

fn write(text: &mut String, counted: &Registry, node: Option<&NodeShared>) -> fmt::Result {
    encode_registry(text, counted)?;
    if let Some(node) = node {
        let mut now = Registry::default();
        of_node(&mut now, node);
        let states: Vec<ReplicaState> = node.host.replicas().iter().map(|replica| replica.status()).collect();
        of_replicas(&mut now, &states);
        encode_registry(text, &now)?;
    }
    encode_eof(text)
}

fn of_node(now: &mut Registry, node: &NodeShared) {
    let (requests, bytes) = node.admission.held();
    gauge(now, "kv_requests_in_flight", "Requests this node works on", requests);
    gauge(now, "kv_request_in_flight_bytes", "Bytes of those requests", bytes);
    let help = "Bytes of answers that their readers have not taken";
    gauge(now, "kv_unread_answer_bytes", help, node.admission.held_answers());
    gauge(now, "kv_read_only", "1 while the node takes no writes", node.admission.read_only().is_some().into());
    gauge(now, "kv_ready", "1 while the node is ready", node.readiness.is_ready().into());
    gauge(now, "kv_may_lead", "0 while the node refuses to lead", node.host.may_not_lead().is_none().into());
    gauge(now, "kv_catalog_version", "Version of the catalog this node knows", node.view.load().version());
    let help = "Free space below which the node takes no writes";
    gauge(now, "kv_disk_free_min_bytes", help, node.config.disk_free_min);
    if let Ok(space) = disk::space(&node.config.data_dir) {
        gauge(now, "kv_disk_free_bytes", "Free space under the data folder", space.free);
        gauge(now, "kv_disk_total_bytes", "All space under the data folder", space.total);
    }
}

fn of_replicas(now: &mut Registry, states: &[ReplicaState]) {
    let role = Family::<RoleLabels, Gauge>::default();
    now.register("kv_shard_role", "1 for the role of this node's replica of a shard", role.clone());
    let lag = Family::<RoleLabels, Gauge>::default();
    now.register("kv_shard_lag_entries", "Entries that a follower is behind this leader", lag.clone());
    let mut family = |name: &str, help: &str| {
        let family = ByShard::default();
        now.register(name, help, family.clone());
        family
    };
    let leader = family("kv_shard_leader", "1 if this node's replica leads the shard");
    let no_quorum = family("kv_shard_no_quorum", "1 while this node's replica leads and no majority answers it");
    let term = family("kv_shard_term", "Term of this node's replica");
    let last = family("kv_shard_last_index", "Last index in the log");
    let committed = family("kv_shard_committed_index", "Committed index");
    let applied = family("kv_shard_applied_index", "Applied index");
    let durable = family("kv_shard_durable_index", "Applied index that survives without the log");
    let purged = family("kv_shard_purged_index", "Index up to which the log was dropped");
    let bytes = family("kv_shard_data_bytes", "Bytes of data, estimated");
    let hibernated = family("kv_shard_hibernated", "1 while the replica sleeps");
    let quarantined = family("kv_shard_quarantined", "1 if this node's replica differs from the majority");
    let checked = family("kv_shard_checked_index", "Index at which the content was last compared");
    for state in states {
        let shard = state.shard.to_string();
        let set =
            |family: &ByShard, value: u64| _ = family.get_or_create(&[("shard", shard.clone())]).set(signed(value));
        set(&leader, (state.role == Role::Leader).into());
        set(&no_quorum, state.no_quorum.into());
        set(&term, state.term);
        set(&last, state.last);
        set(&committed, state.committed);
        set(&applied, state.applied);
        set(&durable, state.durable);
        set(&purged, state.purged);
        set(&bytes, state.data_bytes);
        set(&hibernated, state.hibernated.into());
        set(&quarantined, state.quarantined.into());
        set(&checked, state.checked);
        role.get_or_create(&[("shard", shard.clone()), ("role", state.role.as_str().to_owned())]).set(1);
        for follower in &state.followers {
            let labels = [("shard", shard.clone()), ("node", follower.node.to_string())];
            lag.get_or_create(&labels).set(signed(follower.lag));
        }
    }
}

fn gauge(now: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(signed(value));
    now.register(name, help, gauge);
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
