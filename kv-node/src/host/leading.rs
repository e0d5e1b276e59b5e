//! Whether the replicas of this node may lead. Pure.
//!
//! Invariants: a clock that is off always refuses; a full disk only while another voter of the shard is on a living node
//! with room, since a shard that nobody leads could not even be read.
//!
//! Not here: handing leadership over (kv-raft, membership); measuring (clocks; disk).

/// Why this node should not lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Its clock is far off.
    pub clock: Option<String>,
    /// Its disk is nearly full.
    pub disk: Option<String>,
}

impl Refusals {
    /// The reason, for people.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.clock.clone().or_else(|| self.disk.clone())
    }

    /// Whether a replica may lead; `has_heir` tells whether another voter of its shard has room.
    #[must_use]
    pub fn allow(&self, has_heir: impl FnOnce() -> bool) -> bool {
        self.clock.is_none() && (self.disk.is_none() || !has_heir())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_gives_leadership_up_only_to_a_node_with_room_and_a_wrong_clock_to_anybody() {
        let why = || Some("why".to_owned());
        let full = Refusals { disk: why(), clock: None };
        assert!(!full.allow(|| true));
        assert!(full.allow(|| false), "all are full: somebody has to serve the reads");
        let off = Refusals { disk: None, clock: why() };
        assert!(!off.allow(|| true) && !off.allow(|| false));
        assert!(Refusals::default().allow(|| true) && Refusals::default().allow(|| false));
        assert_eq!((full.reason(), Refusals::default().reason()), (why(), None));
    }
}
