//! Whether this replica stands for election.
//!
//! A replica that may not lead (its clock is off, its disk is full) does not stand. But one with a full disk may be the
//! only one alive that has every acknowledged entry: when nobody else was elected for long it stands after all, brings
//! the others up to date, and hands leadership over to one that has room.
//!
//! Invariants: a quarantined or sleeping replica never stands, nor one whose process only just began.
//!
//! Not here: handing leadership over (membership); what makes a node unfit to lead (kv-node, host).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Replica;

/// Longest election timeouts without a living leader after which an unfit replica stands: a fit one would have been
/// elected several times over.
const PATIENCE_TIMEOUTS: u32 = 5;

impl Replica {
    /// Elections are on unless this replica may not lead, sleeps, or its process only just began.
    pub(super) fn set_elections(&self) {
        self.raft.runtime_config().elect(self.leads_if_elected() && self.is_able_to_stand());
    }

    fn is_able_to_stand(&self) -> bool {
        !self.is_hibernated() && self.votes_from.is_none_or(|from| from <= Instant::now())
    }

    pub(super) async fn stand_from(self: Arc<Self>, from: Instant) {
        let passed = self.stopping.run_until_cancelled(tokio::time::sleep_until(from)).await;
        if passed.is_some() {
            self.set_elections();
        }
    }

    /// A leader sent something just now.
    pub(super) fn heard_leader(&self) {
        self.heard.store(self.context.now_ms(), Ordering::Relaxed);
    }

    /// Whether there is a leader: this replica, or one that sends. That its node lives, or that a vote names it, is not
    /// enough: it may have restarted as a follower.
    fn is_led(&self) -> bool {
        let silence = self.context.now_ms().saturating_sub(self.heard.load(Ordering::Relaxed));
        self.is_leader() || u128::from(silence) < (self.context.timing.election_max * 2).as_millis()
    }

    /// Called again and again: lets a replica whose disk is full stand while the shard has had no leader for long.
    pub(super) fn consider_standing(&self) {
        let transport = &self.context.transport;
        let may = !transport.has_room(transport.node()) && !self.is_quarantined() && self.is_able_to_stand();
        if !may || self.leads_if_elected() || self.is_led() {
            if self.leaderless.swap(0, Ordering::AcqRel) != 0 {
                self.set_elections();
            }
            return;
        }
        let now = self.context.now_ms().max(1);
        let since =
            self.leaderless.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|at| at);
        let patience = self.context.timing.election_max * PATIENCE_TIMEOUTS;
        if since != 0 && u128::from(now.saturating_sub(since)) >= patience.as_millis() {
            self.raft.runtime_config().elect(true);
        }
    }
}
