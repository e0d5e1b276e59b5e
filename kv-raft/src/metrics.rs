//! What this crate counts and times, as Prometheus families.
//!
//! Invariants: no key, client or shard is a label of a histogram; handles are taken from their family once, so that
//! counting never takes the family's lock.
//!
//! Not here: per-shard gauges, which kv-node makes from [`ReplicaState`](crate::types::ReplicaState) when it is scraped.

use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// 50 us to 13 s: from a cached read to a write that waits out an election.
const STAGE_BUCKETS: u16 = 19;

type StageLabel = [(&'static str, &'static str); 1];

/// The stations of a request inside this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A command waits for a free proposal.
    Queue,
    /// From the hand-over of an entry to consensus until all its replies are there.
    Propose,
    /// One synced write of the log, whatever it gathered.
    Fsync,
    /// From sending entries to a follower until it has them on disk.
    Replicate,
    /// From the hand-over of an entry to consensus until a quorum has it.
    Commit,
    /// One chunk of entries through the state machine.
    Apply,
    /// From asking for a consistent read to having a view.
    Read,
}

/// The handles; registered once per process.
#[derive(Debug)]
pub struct RaftMetrics {
    queue: Histogram,
    propose: Histogram,
    fsync: Histogram,
    replicate: Histogram,
    commit: Histogram,
    apply: Histogram,
    read: Histogram,
    /// Entries handed to consensus.
    pub proposals: Counter,
    /// Commands in them.
    pub commands: Counter,
    /// Commands refused because a queue was full.
    pub overloaded: Counter,
    /// Quorum rounds run for reads; each serves every read that waited.
    pub read_rounds: Counter,
    /// Those of leaders that consensus ran, because the voters' votes alone did not confirm the leader.
    pub consensus_read_rounds: Counter,
    /// Links to other nodes that were set up.
    pub links_opened: Counter,
    /// Frames sent to other nodes.
    pub frames_sent: Counter,
    /// Messages they travelled in.
    pub messages_sent: Counter,
    /// Bytes of snapshots sent.
    pub snapshot_bytes_sent: Counter,
    /// Bytes of snapshots received.
    pub snapshot_bytes_received: Counter,
    /// Streams on which a snapshot that was interrupted went on here.
    pub snapshots_resumed: Counter,
    /// Snapshots installed here.
    pub snapshots_installed: Counter,
    /// Shards put to sleep by their leader here.
    pub hibernations: Counter,
    /// Replicas woken here.
    pub wakes: Counter,
    /// Elections this node's replicas won.
    pub elections_won: Counter,
    /// Checksums of replicas' content taken here.
    pub checks: Counter,
    /// Checks judged by leaders here at which all replicas were equal.
    pub checks_equal: Counter,
    /// Checks judged by leaders here at which replicas differed.
    pub checks_differing: Counter,
}

impl RaftMetrics {
    /// Registers all families.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let stages = Family::<StageLabel, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(50e-6, 2.0, STAGE_BUCKETS))
        });
        registry.register_with_unit("kv_stage", "Time spent in each stage of a request", Unit::Seconds, stages.clone());
        let stage = |name| stages.get_or_create(&[("stage", name)]).clone();
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Self {
            queue: stage("queue"),
            propose: stage("propose"),
            fsync: stage("fsync"),
            replicate: stage("replicate"),
            commit: stage("commit"),
            apply: stage("apply"),
            read: stage("read"),
            proposals: counter("kv_proposals", "Entries handed to consensus"),
            commands: counter("kv_commands", "Commands in proposed entries"),
            overloaded: counter("kv_proposals_overloaded", "Commands refused because a queue was full"),
            read_rounds: counter(
                "kv_read_rounds",
                "Rounds run for reads: a leader asks a quorum, a follower its leader",
            ),
            consensus_read_rounds: counter(
                "kv_read_rounds_by_consensus",
                "Rounds that consensus ran for reads, because a majority's votes alone did not confirm the leader",
            ),
            links_opened: counter("kv_links_opened", "Links to other nodes that were set up"),
            frames_sent: counter("kv_frames_sent", "Raft frames sent to other nodes"),
            messages_sent: counter("kv_messages_sent", "Messages the frames travelled in"),
            snapshot_bytes_sent: counter("kv_snapshot_sent_bytes", "Bytes of snapshots sent"),
            snapshot_bytes_received: counter("kv_snapshot_received_bytes", "Bytes of snapshots received"),
            snapshots_resumed: counter("kv_snapshots_resumed", "Streams on which an interrupted snapshot went on"),
            snapshots_installed: counter("kv_snapshots_installed", "Snapshots installed"),
            hibernations: counter("kv_hibernations", "Shards put to sleep by their leader on this node"),
            wakes: counter("kv_wakes", "Replicas woken on this node"),
            elections_won: counter("kv_elections_won", "Elections won by replicas of this node"),
            checks: counter("kv_replica_checks", "Checksums of replicas' content taken on this node"),
            checks_equal: counter("kv_replica_checks_equal", "Checks that found all replicas of a shard equal"),
            checks_differing: counter("kv_replica_checks_differing", "Checks that found replicas of a shard differing"),
        }
    }

    /// Counts one passage through a stage that began at `since`.
    pub fn observe(&self, stage: Stage, since: Instant) {
        self.observe_duration(stage, since.elapsed());
    }

    /// Counts one passage of this length.
    pub fn observe_duration(&self, stage: Stage, taken: Duration) {
        self.stage(stage).observe(taken.as_secs_f64());
    }

    /// The handle of a stage, for who counts on a thread of its own.
    pub(crate) fn stage(&self, stage: Stage) -> &Histogram {
        match stage {
            Stage::Queue => &self.queue,
            Stage::Propose => &self.propose,
            Stage::Fsync => &self.fsync,
            Stage::Replicate => &self.replicate,
            Stage::Commit => &self.commit,
            Stage::Apply => &self.apply,
            Stage::Read => &self.read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_and_counters_appear_under_their_published_names() {
        let mut registry = Registry::default();
        let metrics = RaftMetrics::new(&mut registry);
        metrics.observe_duration(Stage::Fsync, Duration::from_millis(1));
        metrics.proposals.inc();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for name in ["kv_stage_seconds_count{stage=\"fsync\"} 1", "kv_proposals_total 1", "stage=\"read\""] {
            assert!(text.contains(name), "{name} is missing from:\n{text}");
        }
    }
}
