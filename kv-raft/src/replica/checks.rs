//! Comparing the content of a shard's replicas, through its log.
//!
//! The leader proposes a check. Each replica takes a view of its content as of that entry, computes its checksum in the
//! background and tells the leader. What the majority of voters has is right, whoever leads; replicas that have something
//! else are named by a second entry, the verdict. A replica that finds itself named marks itself durably and is in
//! quarantine from then on: it neither serves nor leads nor gives snapshots away, until the placement controller has
//! replaced it by a new one. It goes on to vote and to acknowledge entries: its log and its votes are whole.
//!
//! Invariants: a verdict needs more than half of the voters to agree; a check never holds up apply; a node computes one
//! checksum at a time, within its rate; a shard that was not written to is woken for a check once a day at most.
//!
//! Not here: what the checksum covers (data engine, checksum); replacing the replica (kv-node, controller).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::ids::ReplicaId;
use kv_proto::pb::raft::v1::FrameKind;
use openraft::errors::ClientWriteError;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::proposals::not_confirmed;
use super::{ProposeError, Replica};
use crate::command::{CHECKSUM_ALGORITHM, CommandBatch, Order};
use crate::data_engine::DataError;
use crate::data_engine::checksum::NewestView;
use crate::failpoint;
use crate::transport::{self, Checked};
use crate::types::ReplicaState;

/// A shard nobody wrote to since its last check is checked again after this long: disks rot at rest, too.
const IDLE_CHECK: Duration = Duration::from_secs(24 * 3600);

/// A report that finds no leader is sent again this often.
const REPORT_ATTEMPTS: u32 = 10;

/// What a check found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOutcome {
    /// The entry whose state is compared.
    pub index: u64,
    /// Replicas that have what more than half of the voters have.
    pub equal: BTreeSet<ReplicaId>,
    /// Replicas that have something else; judged only once a majority agrees.
    pub wrong: BTreeSet<ReplicaId>,
    /// Members that have not reported.
    pub missing: BTreeSet<ReplicaId>,
    /// Replicas that reported different content, no majority of which agrees.
    pub undecided: BTreeSet<ReplicaId>,
    /// What each member reported.
    pub digests: BTreeMap<ReplicaId, u64>,
}

/// What replicas reported of the newest check, and when this replica came upon one last.
pub(super) struct Checks {
    tally: Mutex<Tally>,
    /// Raised with each report.
    reports: watch::Sender<u64>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Tally {
    index: u64,
    digests: BTreeMap<ReplicaId, u64>,
    accused: BTreeSet<ReplicaId>,
    counted: bool,
}

struct Last {
    at: Instant,
    /// None before the first check of this process.
    index: Option<u64>,
}

impl Checks {
    pub(super) fn new() -> Self {
        let last = Mutex::new(Last { at: Instant::now(), index: None });
        Self { tally: Mutex::default(), reports: watch::Sender::new(0), last }
    }

    /// Index of the last check this replica took part in since its process began; 0 if none.
    pub(super) fn last_index(&self) -> u64 {
        self.last.lock().index.unwrap_or(0)
    }

    fn saw(&self, index: u64) {
        *self.last.lock() = Last { at: Instant::now(), index: Some(index) };
    }
}

impl Tally {
    fn add(&mut self, from: ReplicaId, checked: Checked) {
        if checked.index > self.index {
            *self = Self { index: checked.index, ..Self::default() };
        }
        if checked.index == self.index {
            self.digests.insert(from, checked.digest);
        }
    }
}

/// What follows from the reports: pure.
fn judge(
    index: u64,
    voters: &BTreeSet<ReplicaId>,
    members: &BTreeSet<ReplicaId>,
    digests: &BTreeMap<ReplicaId, u64>,
) -> CheckOutcome {
    let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
    let reported = digests.iter().filter(|(replica, _)| members.contains(replica));
    let reported: BTreeMap<ReplicaId, u64> = reported.map(|(replica, digest)| (*replica, *digest)).collect();
    for (_, digest) in reported.iter().filter(|(replica, _)| voters.contains(replica)) {
        *votes.entry(*digest).or_default() += 1;
    }
    let missing = members.iter().filter(|member| !reported.contains_key(member)).copied().collect();
    let mut outcome = CheckOutcome { index, missing, digests: reported.clone(), ..CheckOutcome::default() };
    let right = votes.iter().find(|(_, count)| **count * 2 > voters.len()).map(|(digest, _)| *digest);
    match right {
        Some(right) => {
            for (replica, digest) in reported {
                let side = if digest == right { &mut outcome.equal } else { &mut outcome.wrong };
                side.insert(replica);
            }
        }
        None if votes.len() > 1 => outcome.undecided = reported.into_keys().collect(),
        None => {}
    }
    outcome
}

/// Holds reading back to a rate.
struct Pace {
    began: Instant,
    bytes: u64,
    rate: u64,
    stopping: CancellationToken,
}

impl Pace {
    /// False if the replica stops.
    fn read(&mut self, bytes: usize) -> bool {
        self.bytes += u64::try_from(bytes).unwrap_or(0);
        if let Some(due) = self.bytes.saturating_mul(1000).checked_div(self.rate).map(Duration::from_millis) {
            std::thread::sleep(due.saturating_sub(self.began.elapsed()).min(Duration::from_secs(1)));
        }
        !self.stopping.is_cancelled()
    }
}

impl Replica {
    /// Whether its content is known to differ from that of its peers.
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.borrow().is_some()
    }

    /// Proposes a check and waits until every member reported or the time is over; tells what is known then.
    pub async fn check(&self, within: Duration) -> Result<CheckOutcome, ProposeError> {
        let deadline = tokio::time::Instant::now() + within;
        let mut reports = self.checks.reports.subscribe();
        let index = self.propose_order(&Order::Check { algorithm: CHECKSUM_ALGORITHM }).await?;
        loop {
            reports.mark_unchanged();
            let outcome = self.check_outcome(index);
            if outcome.missing.is_empty() || self.stopping.is_cancelled() {
                return Ok(outcome);
            }
            if !matches!(tokio::time::timeout_at(deadline, reports.changed()).await, Ok(Ok(()))) {
                return Ok(self.check_outcome(index));
            }
        }
    }

    fn check_outcome(&self, index: u64) -> CheckOutcome {
        let (voters, members) = groups(&self.standing());
        let tally = self.checks.tally.lock();
        let none = BTreeMap::new();
        judge(index, &voters, &members, if tally.index == index { &tally.digests } else { &none })
    }

    /// Proposes a check if one is due.
    pub(super) fn consider_check(&self, interval: Duration) {
        if !self.is_leader() || self.is_quarantined() || self.stopping.is_cancelled() {
            return;
        }
        // Not the checks of all shards at once.
        let spread = interval.mul_f64(f64::from(u8::try_from(self.shard.0 * 37 % 256).unwrap_or(0)) / 1024.0);
        let due = {
            let mut last = self.checks.last.lock();
            let applied = self.context.data.holding(self.shard).ok().and_then(|held| held.progress().applied);
            let unchanged = last.index.is_some_and(|index| applied.is_some_and(|applied| applied.index <= index));
            let due = last.at.elapsed() >= if unchanged { IDLE_CHECK } else { interval + spread };
            if due {
                last.at = Instant::now();
            }
            due
        };
        if due && let Some(replica) = self.arc() {
            self.tasks.spawn(async move {
                let order = Order::Check { algorithm: CHECKSUM_ALGORITHM };
                let proposed = replica.stopping.run_until_cancelled(replica.propose_order(&order)).await;
                if let Some(Err(error)) = proposed {
                    tracing::info!(shard = %replica.shard, %error, "a check was not proposed; the next one comes");
                }
            });
        }
    }

    /// Computes the checksums that entries ask for, one after the other.
    pub(super) async fn take_checks(self: Arc<Self>, views: Arc<NewestView>) {
        while let Some(view) = self.stopping.run_until_cancelled(views.take()).await {
            let index = view.index();
            self.checks.saw(index);
            let Some(Ok(_turn)) = self.stopping.run_until_cancelled(self.context.checking.acquire()).await else {
                return;
            };
            let rate = self.context.timing.check_bytes_per_second;
            let mut pace = Pace { began: Instant::now(), bytes: 0, rate, stopping: self.stopping.clone() };
            let taken = crate::blocking::spawn_blocking(move || view.digest(&mut |bytes| pace.read(bytes))).await;
            match taken.map_err(|stopped| DataError::Failed(stopped.to_string())).and_then(|digest| digest) {
                Ok(Some(digest)) => {
                    self.context.metrics.checks.inc();
                    failpoint!("check.report");
                    self.report_check(Checked { index, digest }).await;
                }
                Ok(None) => return,
                // The engine has failed, and the process ends of it.
                Err(error) => tracing::warn!(shard = %self.shard, %error, "the content cannot be read for a check"),
            }
        }
    }

    /// Tells whoever leads; without an answer the next check comes.
    async fn report_check(&self, checked: Checked) {
        let pause = self.context.timing.election_max;
        for _ in 0..REPORT_ATTEMPTS {
            if self.is_leader() {
                return self.take_report(self.replica, checked);
            }
            if let Some(leader) = self.leader() {
                let body = transport::encode_checked(checked);
                let told = self.send(leader.node, leader.replica.0, FrameKind::Checked, body, pause);
                if let Some(Ok(_)) = self.stopping.run_until_cancelled(told).await {
                    return;
                }
            }
            if self.stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// Another replica's report.
    pub(super) fn checked(&self, from: ReplicaId, body: &[u8]) -> Result<Bytes, String> {
        let checked = transport::decode_checked(body).map_err(|e| e.to_string())?;
        if !self.is_leader() {
            return Err("this replica does not lead".to_owned());
        }
        self.take_report(from, checked);
        Ok(Bytes::new())
    }

    fn take_report(&self, from: ReplicaId, checked: Checked) {
        let status = self.standing();
        let (voters, members) = groups(&status);
        let newly = {
            let mut tally = self.checks.tally.lock();
            tally.add(from, checked);
            // Half a change of voters is no group to judge by.
            let outcome = judge(tally.index, &voters, &members, &tally.digests);
            let newly: Vec<u64> = outcome.wrong.difference(&tally.accused).map(|replica| replica.0).collect();
            let done = !status.joint && (outcome.missing.is_empty() || !newly.is_empty());
            if done {
                tally.accused.extend(outcome.wrong.iter().copied());
                self.count(&outcome, &mut tally.counted);
            }
            (done && !newly.is_empty()).then(|| Order::Verdict { checked: tally.index, wrong: newly })
        };
        self.checks.reports.send_modify(|reports| *reports += 1);
        if let Some(verdict) = newly
            && let Some(replica) = self.arc()
        {
            tracing::error!(shard = %self.shard, ?verdict, "replicas differ from the majority: they are quarantined");
            self.tasks.spawn(async move {
                if let Some(Err(error)) = replica.stopping.run_until_cancelled(replica.propose_order(&verdict)).await {
                    tracing::warn!(shard = %replica.shard, %error, "the verdict was not proposed; the next check repeats it");
                }
            });
        }
    }

    fn count(&self, outcome: &CheckOutcome, counted: &mut bool) {
        if std::mem::replace(counted, true) {
            return;
        }
        let differs = !outcome.wrong.is_empty() || !outcome.undecided.is_empty();
        let metrics = &self.context.metrics;
        if differs {
            metrics.checks_differing.inc()
        } else {
            metrics.checks_equal.inc()
        };
        if !outcome.undecided.is_empty() {
            tracing::error!(shard = %self.shard, ?outcome, "replicas differ, and no majority tells which is right");
        }
        tracing::debug!(shard = %self.shard, ?outcome, "replicas compared");
    }

    /// Proposes an order; tells its index. Wakes a sleeping shard.
    async fn propose_order(&self, order: &Order) -> Result<u64, ProposeError> {
        self.check_leads()?;
        self.used();
        self.quorum_round().await.map_err(not_confirmed)?;
        match self.write_batch(CommandBatch::order(self.context.clock.now(), order)).await? {
            Ok(response) => Ok(response.log_id.index),
            Err(ClientWriteError::ForwardToLeader(forward)) => {
                Err(ProposeError::NotLeader { leader: self.forwarded(&forward) })
            }
            Err(
                ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            ) => Err(ProposeError::OutcomeUnknown),
        }
    }

    /// Gives up leading once this replica is quarantined.
    pub(super) async fn follow_quarantine(self: Arc<Self>) {
        let mut mark = self.quarantined.clone();
        let marked = async { mark.wait_for(Option::is_some).await.is_ok_and(|checked| checked.is_some()) };
        if self.stopping.run_until_cancelled(marked).await == Some(true) {
            tracing::error!(shard = %self.shard, replica = %self.replica, "content differs from its peers': quarantined");
            self.set_elections();
            if self.is_leader() {
                self.step_aside().await;
            }
        }
    }

    /// Whether it may lead, for whatever reason it may not.
    pub(super) fn leads_if_elected(&self) -> bool {
        self.may_lead.load(Ordering::Acquire) && !self.is_quarantined()
    }
}

fn groups(status: &ReplicaState) -> (BTreeSet<ReplicaId>, BTreeSet<ReplicaId>) {
    let voters: BTreeSet<ReplicaId> = status.voters.iter().map(|(replica, _)| *replica).collect();
    let members = voters.iter().copied().chain(status.learners.iter().map(|(replica, _)| *replica)).collect();
    (voters, members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<ReplicaId> {
        ids.iter().copied().map(ReplicaId).collect()
    }

    fn judged(voters: &[u64], learners: &[u64], reports: &[(u64, u64)]) -> CheckOutcome {
        let voters = ids(voters);
        let members = voters.union(&ids(learners)).copied().collect();
        judge(9, &voters, &members, &reports.iter().map(|(replica, digest)| (ReplicaId(*replica), *digest)).collect())
    }

    #[test]
    fn the_majority_of_voters_is_right_whoever_differs() {
        let outcome = judged(&[1, 2, 3], &[], &[(1, 7), (2, 8), (3, 8)]);
        assert_eq!((outcome.equal, outcome.wrong), (ids(&[2, 3]), ids(&[1])));
        let outcome = judged(&[1, 2, 3], &[4], &[(1, 8), (2, 8), (4, 7)]);
        assert_eq!((outcome.equal, outcome.wrong, outcome.missing), (ids(&[1, 2]), ids(&[4]), ids(&[3])));
    }

    #[test]
    fn without_a_majority_nobody_is_accused() {
        let outcome = judged(&[1, 2, 3], &[], &[(1, 7), (2, 8)]);
        assert_eq!((outcome.wrong, outcome.undecided), (ids(&[]), ids(&[1, 2])));
        let outcome = judged(&[1, 2], &[], &[(1, 7), (2, 8)]);
        assert_eq!((outcome.wrong, outcome.undecided), (ids(&[]), ids(&[1, 2])));
        // Learners have no say, and one report of three is no majority.
        let outcome = judged(&[1, 2, 3], &[4, 5], &[(1, 8), (4, 7), (5, 7)]);
        assert_eq!((outcome.wrong, outcome.equal), (ids(&[]), ids(&[])));
        // Who is no member any more has none either.
        let outcome = judged(&[1, 2, 3], &[], &[(1, 8), (8, 7), (9, 7)]);
        assert_eq!((outcome.wrong, outcome.missing), (ids(&[]), ids(&[2, 3])));
    }

    #[test]
    fn only_reports_of_the_newest_check_count() {
        let mut tally = Tally::default();
        tally.add(ReplicaId(1), Checked { index: 5, digest: 1 });
        tally.add(ReplicaId(2), Checked { index: 9, digest: 2 });
        tally.add(ReplicaId(3), Checked { index: 5, digest: 1 });
        assert_eq!((tally.index, tally.digests), (9, BTreeMap::from([(ReplicaId(2), 2)])));
    }
}
