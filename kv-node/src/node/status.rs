//! The node's own account of itself.
//!
//! Not here: one replica's (host, report); the disk watch that makes a node read-only (disk).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::ids::Epoch;
use kv_proto::pb::admin::v1::{GetNodeStatusRequest, NodeStatus, PeerStatus, ReplicaStatus};
use kv_raft::transport::PeerState;

use super::shared::NodeShared;
use crate::host::clocks::{PeerClock, furthest};
use crate::host::report::replica_status;

/// A peer not heard of for this long tells nothing about clocks.
const CLOCK_AGE_MAX: Duration = Duration::from_secs(5);

/// Clock ticks per second in /proc, fixed on every Linux that matters.
const TICKS_PER_SECOND: f64 = 100.0;

const PAGE_BYTES: u64 = 4096;

/// What is asked for. Blocking: reads /proc and asks the engines for sizes.
#[must_use]
pub fn node_status(shared: &Arc<NodeShared>, asked: GetNodeStatusRequest) -> NodeStatus {
    let view = shared.view.load();
    let peers = shared.host.context().transport().peers();
    let clocks: Vec<PeerClock> = peers.iter().map(peer_clock).collect();
    let process = Process::read();
    let (disk_total_bytes, disk_free_bytes) = disk(&shared.config.data_dir);
    let may_not_lead = shared.host.may_not_lead();
    NodeStatus {
        node_id: shared.node().0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: shared.started.elapsed().as_secs(),
        resident_bytes: process.resident_bytes,
        processor_seconds: process.processor_seconds,
        disk_total_bytes,
        disk_free_bytes,
        read_only: shared.is_read_only(),
        clock_offset_ms: furthest(&clocks),
        may_lead: may_not_lead.is_none(),
        may_not_lead_reason: may_not_lead.unwrap_or_default(),
        catalog_version: view.version(),
        peers: peers.iter().map(peer_status).collect(),
        replicas: if asked.brief { Vec::new() } else { replica_statuses(shared, !asked.without_sizes) },
        pid: u64::from(std::process::id()),
        data_dir: shared.config.data_dir.display().to_string(),
        disk_free_min_bytes: shared.config.disk_free_min,
    }
}

/// What each replica here says of itself.
#[must_use]
pub fn replica_statuses(shared: &Arc<NodeShared>, sizes: bool) -> Vec<ReplicaStatus> {
    let view = shared.view.load();
    let epoch = |shard| view.shard(shard).map_or(Epoch(0), |info| info.epoch());
    let status = |replica: &Arc<kv_raft::replica::Replica>| {
        let state = if sizes { replica.status() } else { replica.standing() };
        replica_status(&state, shared.node().0, epoch(replica.shard()))
    };
    shared.host.replicas().iter().map(status).collect()
}

/// For the clock check.
#[must_use]
pub fn peer_clock(peer: &PeerState) -> PeerClock {
    let is_current = peer.last_heard.is_some_and(|heard| heard < CLOCK_AGE_MAX);
    PeerClock { offset_ms: peer.clock_offset_ms, is_current }
}

fn peer_status(peer: &PeerState) -> PeerStatus {
    let heard = peer.last_heard.map_or(u64::MAX, |heard| u64::try_from(heard.as_millis()).unwrap_or(u64::MAX));
    PeerStatus { node_id: peer.node.0, connected: peer.connected, last_heard_ms: heard }
}

fn disk(folder: &Path) -> (u64, u64) {
    match rustix::fs::statvfs(folder) {
        Ok(stats) => (stats.f_blocks.saturating_mul(stats.f_frsize), stats.f_bavail.saturating_mul(stats.f_frsize)),
        Err(_) => (0, 0),
    }
}

/// What the kernel says of this process; zeros where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Process {
    resident_bytes: u64,
    processor_seconds: f64,
}

impl Process {
    fn read() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/self/statm"), &read("/proc/self/stat"))
    }

    fn parse(statm: &str, stat: &str) -> Self {
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        // The name may hold anything, also brackets and blanks: fields are counted after its closing bracket.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = |at: usize| fields.split_whitespace().nth(at).and_then(|ticks| ticks.parse().ok()).unwrap_or(0_u32);
        let (user, system) = (ticks(11), ticks(12));
        Self {
            resident_bytes: pages * PAGE_BYTES,
            processor_seconds: (f64::from(user) + f64::from(system)) / TICKS_PER_SECOND,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_processor_time_are_read_whatever_the_process_is_called() {
        let stat = "7 (a b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 100 1000 20";
        let process = Process::parse("5000 1000 300 1 0 200 0\n", stat);
        assert_eq!(process, Process { resident_bytes: 4_096_000, processor_seconds: 3.0 });
        assert_eq!(Process::parse("", ""), Process::default());
    }
}
