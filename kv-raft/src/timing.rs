//! The times and sizes a node's replicas share.
//!
//! Invariants: three heartbeats fit into the shortest election timeout; see [`Timing::check`].
//!
//! Not here: limits of single queues, which stand beside them.

use std::time::Duration;

/// Times and sizes, the same for all replicas of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader and a node say that they are alive.
    pub heartbeat: Duration,
    /// Shortest silence after which a follower stands for election.
    pub election_min: Duration,
    /// Longest; also the leader's lease, and how long after its start a process grants no vote.
    pub election_max: Duration,
    /// How long a shard must be idle to hibernate; None never hibernates.
    pub hibernate_after: Option<Duration>,
    /// How often applied data is made durable, so that the log can be purged.
    pub flush_interval: Duration,
    /// The same, once this many bytes went into the log.
    pub flush_log_bytes: u64,
    /// Entries kept in the log although they are durably applied: a follower that is less than this behind is served
    /// from the log, not by a snapshot.
    pub log_entries_kept: u64,
    /// The same in bytes, about: whichever is reached first. A snapshot of a shard that writes this much is not dearer
    /// than its log, and the logs of a node's shards share its disk.
    pub log_bytes_kept: u64,
    /// Bytes per second of all snapshots a node sends together; 0 sets no limit.
    pub snapshot_bytes_per_second: u64,
    /// How often the replicas of a shard that was written to compare their content; None only on demand.
    pub check_interval: Option<Duration>,
    /// Bytes per second a node reads for it; 0 sets no limit.
    pub check_bytes_per_second: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(350),
            election_max: Duration::from_millis(450),
            hibernate_after: Some(Duration::from_secs(1)),
            flush_interval: Duration::from_secs(30),
            flush_log_bytes: 64 << 20,
            log_entries_kept: 10_000,
            log_bytes_kept: 64 << 20,
            snapshot_bytes_per_second: 64 << 20,
            check_interval: Some(Duration::from_secs(600)),
            check_bytes_per_second: 32 << 20,
        }
    }
}

impl Timing {
    /// What is wrong with the values, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.heartbeat.is_zero() {
            return Err("the heartbeat interval is zero".to_owned());
        }
        if self.flush_interval.is_zero() {
            return Err("the flush interval is zero".to_owned());
        }
        if self.check_interval.is_some_and(|interval| interval.is_zero()) {
            return Err("the check interval is zero".to_owned());
        }
        if self.heartbeat * 3 > self.election_min {
            return Err(format!(
                "three heartbeats of {:?} do not fit into the shortest election timeout of {:?}",
                self.heartbeat, self.election_min
            ));
        }
        if self.election_min >= self.election_max {
            return Err("the longest election timeout must exceed the shortest".to_owned());
        }
        if self.hibernate_after.is_some_and(|after| after < self.election_max) {
            return Err("a shard cannot hibernate within an election timeout".to_owned());
        }
        Ok(())
    }

    /// How long a replica waits for a peer to answer entries that were sent: a follower's fsync may be slow, and a
    /// peer that has gone is noticed earlier by its link.
    #[must_use]
    pub fn append_answer(&self) -> Duration {
        self.election_max * 3
    }

    /// A peer that was silent for this long is taken for dead.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.election_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_and_contradictions_are_named() {
        assert_eq!(Timing::default().check(), Ok(()));
        let slow = Timing { heartbeat: Duration::from_millis(200), ..Timing::default() };
        assert!(slow.check().unwrap_err().contains("heartbeat"));
        let swapped = Timing { election_max: Duration::from_millis(350), ..Timing::default() };
        assert!(swapped.check().unwrap_err().contains("longest"));
    }
}
