//! Judges every step of every replica: Raft's invariants (Ongaro, 2014, figure 3.2) and what follows from them.
//!
//! It keeps its own account of each disk from what was written there, and compares what a node finds after a crash.
//!
//! Invariants: only what has happened is judged, at the moment it happens; the first violation ends the run.
//!
//! Not here: what clients were promised (history).

mod committed_on_quorum;
mod disks;
mod election_safety;
mod leader_completeness;
mod log_matching;
mod reads;
mod state_machine_safety;

use kv_proto::ids::ShardId;
use kv_raft::simulated::{Event, Write};
use kv_raft::types::Entry;
use openraft::EntryPayload;

use self::committed_on_quorum::CommittedOnQuorum;
use self::disks::Disks;
use self::election_safety::ElectionSafety;
use self::log_matching::LogMatching;
use self::state_machine_safety::StateMachineSafety;

/// What of a step is broken.
type Verdict = Result<(), String>;

/// How much was judged.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Steps in all.
    pub(crate) steps: u64,
    /// Entries applied, on all replicas together.
    pub(crate) applied: u64,
    /// Terms with a leader.
    pub(crate) elections: u64,
    /// Snapshots installed.
    pub(crate) snapshots: u64,
    /// Linearizable reads.
    pub(crate) reads: u64,
    /// Logs found again after a crash.
    pub(crate) recoveries: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) counts: Counts,
    pub(crate) violations: Vec<String>,
    trace: Trace,
    disks: Disks,
    elections: ElectionSafety,
    logs: LogMatching,
    commits: CommittedOnQuorum,
    machines: StateMachineSafety,
}

impl Oracle {
    /// A node did something.
    pub(crate) fn saw(&mut self, node: usize, shard: ShardId, event: &Event<'_>) {
        self.counts.steps += 1;
        self.trace(node, shard, event);
        if let Err(what) = self.judge(node, shard, event) {
            self.violated(format!("{what} (shard {shard}, node n{}, {event:?})", node + 1));
        }
    }

    /// Something is broken.
    pub(crate) fn violated(&mut self, what: String) {
        self.violations.push(what);
    }

    /// The same for the same run.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.trace.0
    }

    /// Adds to the trace.
    pub(crate) fn mix(&mut self, bytes: &[u8]) {
        self.trace.mix(bytes);
    }

    /// The highest index of a shard that any replica has applied.
    pub(crate) fn applied_anywhere(&self, shard: ShardId) -> u64 {
        self.machines.highest(shard)
    }

    fn judge(&mut self, node: usize, shard: ShardId, event: &Event<'_>) -> Verdict {
        match event {
            Event::Found { replica, vote, purged, last } => {
                self.counts.recoveries += 1;
                self.disks.found(node, shard, *replica, (*vote, *purged, *last))
            }
            Event::Written { replica, write } => self.written(node, shard, replica.map(|replica| replica.0), write),
            Event::Committed(log_id) => self.commits.committed(shard, *log_id, &self.disks),
            Event::Loaded { applied, .. } => {
                self.machines.loaded(node, shard, *applied);
                self.disks.has_log(node, shard, *applied)
            }
            Event::Applied { entry, replies } => {
                self.counts.applied += 1;
                self.commits.committed(shard, entry.log_id, &self.disks)?;
                self.disks.holds(node, shard, entry.log_id)?;
                self.machines.applied(node, shard, entry, replies)
            }
            Event::Installed(meta) => {
                self.counts.snapshots += 1;
                self.disks.disk(node, shard).installed = meta.last_log_id;
                self.machines.installed(node, shard, meta.last_log_id)
            }
            Event::Served { floor, applied } => {
                self.counts.reads += 1;
                reads::fresh(*floor, *applied)
            }
        }
    }

    fn written(&mut self, node: usize, shard: ShardId, replica: Option<u64>, write: &Write<'_>) -> Verdict {
        self.disks.disk(node, shard).replica = replica;
        match write {
            Write::Entries(entries) => {
                for entry in *entries {
                    let before = self.disks.disk(node, shard).last();
                    self.logs.appended(shard, entry, before)?;
                    if let EntryPayload::Membership(membership) = &entry.payload {
                        self.commits.membership(shard, entry.log_id, membership.get_joint_config());
                    }
                    self.disks.disk(node, shard).append(entry.log_id)?;
                }
                Ok(())
            }
            Write::Truncated(from) => {
                self.commits.may_truncate(shard, *from, self.disks.disk(node, shard))?;
                self.disks.disk(node, shard).truncate(*from);
                Ok(())
            }
            Write::Purged(upto) => {
                self.disks.disk(node, shard).purge(**upto);
                Ok(())
            }
            Write::Vote(vote) => {
                self.disks.disk(node, shard).vote(**vote)?;
                self.elections.voted(shard, vote, &self.commits, &self.disks)?;
                self.counts.elections = self.elections.count() as u64;
                if vote.committed && replica == Some(vote.leader_id.node_id) {
                    leader_completeness::check(shard, self.disks.disk(node, shard), &self.commits)?;
                }
                Ok(())
            }
            Write::Destroyed => {
                self.disks.destroy(node, shard);
                self.machines.destroyed(node, shard);
                Ok(())
            }
        }
    }

    fn trace(&mut self, node: usize, shard: ShardId, event: &Event<'_>) {
        let line = match event {
            Event::Written { replica, write: Write::Entries(entries) } => {
                let ids: Vec<(String, u32)> =
                    entries.iter().map(|entry| (entry.log_id.to_string(), digest(entry))).collect();
                format!("{node} {shard} {replica:?} {ids:?}")
            }
            Event::Applied { entry, .. } => format!("{node} {shard} applied {}", entry.log_id),
            Event::Found { .. }
            | Event::Written { .. }
            | Event::Committed(_)
            | Event::Loaded { .. }
            | Event::Installed(_)
            | Event::Served { .. } => format!("{node} {shard} {event:?}"),
        };
        self.trace.mix(line.as_bytes());
    }
}

/// What an entry holds.
fn digest(entry: &Entry) -> u32 {
    match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(batch) => crc32c::crc32c(batch.as_bytes()),
        EntryPayload::Membership(membership) => crc32c::crc32c(format!("{membership:?}").as_bytes()),
    }
}

/// FNV-1a over everything that happened.
struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Trace {
    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
