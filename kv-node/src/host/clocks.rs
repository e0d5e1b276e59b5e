//! Whether this node's clock is too far from the others' for it to lead. Pure.
//!
//! No safety property depends on clocks, but commit timestamps, leases and snapshots are only as good as they are.
//!
//! Not here: measuring offsets (kv-raft, transport).

use std::time::Duration;

/// A peer's clock as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerClock {
    /// How far it is ahead of ours, in milliseconds.
    pub offset_ms: i64,
    /// Whether it was heard of lately.
    pub is_current: bool,
}

/// The reason not to lead: this clock differs from a majority of the others' by more than the bound. With two nodes
/// nobody can tell whose clock is wrong; then both go on.
#[must_use]
pub fn refusal(peers: &[PeerClock], max_offset: Duration) -> Option<String> {
    let offsets: Vec<i64> = peers.iter().filter(|peer| peer.is_current).map(|peer| peer.offset_ms).collect();
    let max = i64::try_from(max_offset.as_millis()).unwrap_or(i64::MAX);
    let far = offsets.iter().filter(|offset| offset.saturating_abs() > max).count();
    if offsets.len() < 2 || far * 2 <= offsets.len() {
        return None;
    }
    let furthest = furthest(peers);
    Some(format!("its clock differs from {far} of {} nodes by more than {max} ms (up to {furthest} ms)", offsets.len()))
}

/// The largest offset of a peer that was heard of lately, in milliseconds.
#[must_use]
pub fn furthest(peers: &[PeerClock]) -> i64 {
    let offsets = peers.iter().filter(|peer| peer.is_current).map(|peer| peer.offset_ms);
    offsets.max_by_key(|offset| offset.saturating_abs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(offsets: &[i64]) -> bool {
        let peers: Vec<_> =
            offsets.iter().map(|offset_ms| PeerClock { offset_ms: *offset_ms, is_current: true }).collect();
        refusal(&peers, Duration::from_millis(500)).is_some()
    }

    #[test]
    fn a_node_far_from_the_majority_refuses_to_lead() {
        assert!(refuses(&[900, 950]));
        assert!(refuses(&[-900, 0, -700]));
        assert!(!refuses(&[900, 10]), "the other one is off");
        assert!(!refuses(&[10, -20]));
    }

    #[test]
    fn of_two_nodes_neither_refuses() {
        assert!(!refuses(&[100_000]));
        assert!(!refuses(&[]));
    }
}
