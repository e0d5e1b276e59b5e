//! Reads: which state of the shard a reader may see, and the wait until this replica has it.
//!
//! A quorum round is shared: every reader that waits when one begins is served by it, and those that come meanwhile
//! wait for the next. Clocks are trusted only where the caller asked for a lease.
//!
//! A snapshot read at T must see every commit at or before T, now and for ever. Commit timestamps rise in log order,
//! so it suffices that some applied commit is at or after T; if none is, a command that does nothing makes one.
//!
//! A follower tells how old its state is at most by asking: what it has applied up to the index that the leader
//! confirmed is no older than the moment at which it asked. The answer serves every read whose bound reaches back to
//! that moment.
//!
//! Invariants: a linearizable read sees every write acknowledged before it began; one of bounded staleness every write
//! acknowledged by its bound before it began, while this node's monotonic clock runs at nearly the true speed.
//!
//! Not here: reading keys (data_engine).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use kv_proto::ids::ReplicaId;
use kv_proto::pb::raft::v1::FrameKind;
use kv_proto::timestamp::Timestamp;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::linearizable_read::LinearizerOption;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::confirm::Witnesses;
use super::{ReadError, Replica};
use crate::command::{Command, EncodedCommand};
use crate::data_engine::{DataError, ReadView};
use crate::failpoint;
use crate::metrics::Stage;
use crate::transport;
use crate::types::ShardRaft;

/// Readers that may wait for a quorum round: they hold a few words each; beyond this the shard is overloaded.
const READERS_MAX: usize = 65_536;

/// How much of the leader's lease, or of a bound on staleness, is used: the rest is for clocks that run at different
/// speeds.
const LEASE_USED: f64 = 0.9;

/// Heartbeats a follower may take to apply what its leader told, before the leader itself is asked: it may be far behind,
/// have no room, or have left the group without knowing.
const CATCH_UP_HEARTBEATS: u32 = 2;

/// Which state a reader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// Every write acknowledged before the read began; asks a majority.
    Linearizable,
    /// The same, if clocks run at nearly the same speed; asks nobody while the leader's lease holds.
    Lease,
    /// What this replica has, leader or not, however old. With a bound: every write acknowledged so long before the read
    /// began; asks the leader unless it was asked within the bound.
    Stale {
        /// How old it may be.
        max_staleness: Option<Duration>,
    },
    /// The state at a timestamp: the same whenever it is read.
    Snapshot {
        /// A commit timestamp.
        at: Timestamp,
    },
}

type Reader = oneshot::Sender<Result<u64, ReadError>>;

#[derive(Default)]
struct Round {
    waiting: Vec<Reader>,
    running: bool,
    /// Readers that the one under way serves.
    served: usize,
}

/// Who says up to which index everything acknowledged reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Witness {
    /// A majority that still follows this leader.
    Quorum,
    /// The leader, which asks a majority.
    Leader,
}

/// The rounds of one replica: readers of each kind that wait at the same moment share one.
#[derive(Default)]
pub(super) struct Reads {
    quorum: Mutex<Round>,
    leader: Mutex<Round>,
    /// When the leader was asked last that answered, and its answer.
    told: Mutex<Option<(Instant, u64)>>,
    /// Who confirms quorum rounds.
    witnesses: Mutex<Witnesses>,
}

impl Reads {
    pub(super) fn is_idle(&self) -> bool {
        !self.quorum.lock().running && !self.leader.lock().running
    }

    /// Readers that wait for a majority's word.
    pub(super) fn readers(&self) -> usize {
        let round = self.quorum.lock();
        round.waiting.len() + round.served
    }

    fn round(&self, witness: Witness) -> &Mutex<Round> {
        match witness {
            Witness::Quorum => &self.quorum,
            Witness::Leader => &self.leader,
        }
    }

    pub(super) fn witnesses(&self) -> MutexGuard<'_, Witnesses> {
        self.witnesses.lock()
    }

    /// An index with everything acknowledged up to the bound before `begun`, if the leader told one.
    fn within(&self, bound: Duration, begun: Instant) -> Option<u64> {
        let (asked, index) = (*self.told.lock())?;
        (begun.saturating_duration_since(asked) <= bound.mul_f64(LEASE_USED)).then_some(index)
    }
}

impl Replica {
    /// A view of the state the mode asks for.
    pub async fn read(&self, mode: ReadMode) -> Result<ReadView, ReadError> {
        let begun = Instant::now();
        if self.is_quarantined() {
            return Err(ReadError::NotLeader { leader: self.leader().filter(|leader| leader.replica != self.replica) });
        }
        #[cfg(kv_sim)]
        let floor = crate::simulated::read_begins(self.shard);
        let view = match mode {
            ReadMode::Linearizable => {
                self.check_reads_here()?;
                self.used();
                let index = self.read_index().await?;
                self.view_at(index).await
            }
            ReadMode::Lease => {
                self.check_reads_here()?;
                self.used();
                let index = self.lease_index().await?;
                self.view_at(index).await
            }
            ReadMode::Stale { max_staleness: Some(bound) } => {
                let index = self.recent_index(bound, begun).await?;
                self.recent_view(index).await
            }
            ReadMode::Stale { max_staleness: None } => self.view(),
            ReadMode::Snapshot { at } => {
                self.check_reads_here()?;
                self.used();
                Box::pin(self.snapshot_view(at)).await
            }
        }?;
        // The verdict may have come while the read waited.
        if self.is_quarantined() {
            return Err(ReadError::NotLeader { leader: self.leader().filter(|leader| leader.replica != self.replica) });
        }
        #[cfg(kv_sim)]
        if matches!(mode, ReadMode::Linearizable | ReadMode::Lease) {
            let applied = view.applied().map_or(0, |applied| applied.index);
            crate::simulated::saw(self.shard, crate::simulated::Event::Served { floor, applied });
        }
        self.context.metrics.observe(Stage::Read, begun);
        Ok(view)
    }

    fn check_reads_here(&self) -> Result<(), ReadError> {
        self.check_runs()?;
        if self.is_leader() { Ok(()) } else { Err(ReadError::NotLeader { leader: self.leader() }) }
    }

    fn check_runs(&self) -> Result<(), ReadError> {
        if let Some(reason) = self.failure() {
            return Err(ReadError::Fatal(reason));
        }
        if self.stopping.is_cancelled() { Err(ReadError::Stopped) } else { Ok(()) }
    }

    /// An index this replica was the leader of when asked, with everything acknowledged before in it.
    pub(super) async fn read_index(&self) -> Result<u64, ReadError> {
        self.confirmed(Witness::Quorum).await
    }

    /// An index with everything acknowledged up to the bound before `begun` in it, on any replica.
    async fn recent_index(&self, bound: Duration, begun: Instant) -> Result<u64, ReadError> {
        self.check_runs()?;
        if self.is_leader() {
            self.used();
            return self.read_index().await;
        }
        match self.reads.within(bound, begun) {
            Some(index) => Ok(index),
            None => self.confirmed(Witness::Leader).await,
        }
    }

    /// A follower asks for [`Replica::read_index`].
    pub(super) async fn tell_index(&self, follower: ReplicaId) -> Result<Bytes, String> {
        self.check_reads_here().map_err(|e| e.to_string())?;
        self.used();
        let index = self.read_index().await.map_err(|e| e.to_string())?;
        self.outbound.hurry(follower);
        Ok(transport::encode_index(index))
    }

    async fn confirmed(&self, witness: Witness) -> Result<u64, ReadError> {
        let (reader, answered) = oneshot::channel();
        let start = {
            let mut round = self.reads.round(witness).lock();
            if round.waiting.len() >= READERS_MAX {
                return Err(ReadError::Overloaded { queue: "the shard's queue of reads" });
            }
            round.waiting.push(reader);
            !std::mem::replace(&mut round.running, true)
        };
        if start && let Some(replica) = self.arc() {
            self.tasks.spawn(replica.run_rounds(witness));
        }
        answered.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Round after round until nobody waits.
    async fn run_rounds(self: Arc<Self>, witness: Witness) {
        loop {
            // What is ready to run may bring more readers; it costs nothing if nothing is.
            tokio::task::yield_now().await;
            let readers = {
                let mut round = self.reads.round(witness).lock();
                round.waiting.retain(|reader| !reader.is_closed());
                round.served = round.waiting.len();
                if round.waiting.is_empty() {
                    round.running = false;
                    return;
                }
                std::mem::take(&mut round.waiting)
            };
            self.context.metrics.read_rounds.inc();
            failpoint!("replica.read_round");
            let confirmed = match witness {
                Witness::Quorum => self.ask_quorum().await,
                Witness::Leader => self.ask_leader().await,
            };
            for reader in readers {
                let _ = reader.send(confirmed.clone());
            }
        }
    }

    /// Asks a majority whether this replica still leads.
    async fn ask_quorum(&self) -> Result<u64, ReadError> {
        match self.stopping.run_until_cancelled(self.confirmed_index()).await.flatten() {
            Some(index) => Ok(index),
            None => {
                self.context.metrics.consensus_read_rounds.inc();
                self.quorum_round().await
            }
        }
    }

    /// The same by consensus, which renews the leader's lease and makes followers of voters that did not know of it.
    pub(super) async fn quorum_round(&self) -> Result<u64, ReadError> {
        self.end_silence();
        self.linearizer(ReadPolicy::ReadIndex.into()).await
    }

    /// Asks the leader for an index; `NotLeader` if it does not answer, for whoever knows it better.
    async fn ask_leader(&self) -> Result<u64, ReadError> {
        let leader = self.leader().filter(|leader| leader.replica != self.replica);
        let Some(at) = leader else { return Err(ReadError::NotLeader { leader: None }) };
        let asked = Instant::now();
        // Time for the round the leader is in and for the next, each first by votes and then by consensus.
        let within = (self.context.timing.election_max + self.votes_within()) * 2;
        let answer = self.send(at.node, at.replica.0, FrameKind::ReadIndex, Bytes::new(), within);
        let Some(answer) = self.stopping.run_until_cancelled(answer).await else { return Err(ReadError::Stopped) };
        let index = match answer.map(|body| transport::decode_index(&body)) {
            Ok(Ok(index)) => index,
            Ok(Err(error)) => {
                tracing::warn!(shard = %self.shard, %error, "the leader's answer to a read");
                return Err(ReadError::NotLeader { leader });
            }
            Err(error) => {
                tracing::debug!(shard = %self.shard, %error, "the leader does not say how far reads may go");
                return Err(ReadError::NotLeader { leader });
            }
        };
        *self.reads.told.lock() = Some((asked, index));
        Ok(index)
    }

    async fn lease_index(&self) -> Result<u64, ReadError> {
        let lease = self.context.timing.election_max.mul_f64(LEASE_USED);
        let option = LinearizerOption::new(Some(lease), false).with_wait_timeout(Duration::ZERO);
        match self.linearizer(option).await {
            Err(ReadError::NoQuorum) => self.read_index().await,
            index => index,
        }
    }

    /// Boxed: every call that may come here would carry its two kilobytes, whatever it asks for.
    fn linearizer(&self, option: LinearizerOption) -> BoxFuture<'_, Result<u64, ReadError>> {
        Box::pin(async move {
            match self.raft.get_read_linearizer(option).await {
                Ok(linearizer) => Ok(linearizer.read_log_id().index()),
                Err(error) => Err(self.not_linear(error)),
            }
        })
    }

    fn not_linear(&self, error: RaftError<ShardRaft, LinearizableReadError<ShardRaft>>) -> ReadError {
        match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                ReadError::NotLeader { leader: self.forwarded(&forward) }
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => ReadError::NoQuorum,
            RaftError::Fatal(_) if self.stopping.is_cancelled() => ReadError::Stopped,
            RaftError::Fatal(fatal) => ReadError::Fatal(fatal.to_string()),
        }
    }

    /// A view once this index is applied.
    async fn view_at(&self, index: u64) -> Result<ReadView, ReadError> {
        let view = self.view()?;
        if view.applied().is_some_and(|applied| applied.index >= index) {
            return Ok(view);
        }
        self.wait_applied(index).await?;
        self.view()
    }

    /// The same on any replica, unless the leader would serve it sooner.
    async fn recent_view(&self, index: u64) -> Result<ReadView, ReadError> {
        if self.is_leader() {
            return self.view_at(index).await;
        }
        let patience = self.context.timing.heartbeat * CATCH_UP_HEARTBEATS;
        let view = tokio::time::timeout(patience, self.view_at(index)).await;
        view.unwrap_or_else(|_| Err(ReadError::NotLeader { leader: self.leader() }))
    }

    /// Waits until this index is applied here.
    pub(super) async fn wait_applied(&self, index: u64) -> Result<(), ReadError> {
        let mut progress = self.raft.watch_apply_progress();
        let applied = progress.wait_until(|applied| applied.is_some_and(|applied| applied.index >= index));
        match applied.await {
            Ok(_) => Ok(()),
            Err(_) if self.stopping.is_cancelled() => Err(ReadError::Stopped),
            Err(_) => Err(ReadError::Fatal("consensus has ended".to_owned())),
        }
    }

    pub(super) fn view(&self) -> Result<ReadView, ReadError> {
        self.context.data.view(self.shard).map_err(|error| match error {
            DataError::NotHeld(_) => ReadError::Stopped,
            DataError::Failed(_)
            | DataError::TooOld { .. }
            | DataError::BadSnapshot(_)
            | DataError::OutsideRange { .. } => ReadError::Fatal(error.to_string()),
        })
    }

    async fn snapshot_view(&self, at: Timestamp) -> Result<ReadView, ReadError> {
        let index = self.read_index().await?;
        let view = self.view_at(index).await?;
        // A timestamp the shard gave is readable also if it was stamped by a clock far ahead of this one.
        if view.last_commit() >= at {
            return Ok(view);
        }
        self.context.clock.observe(at)?;
        // Nothing was committed at or after it: a command that does nothing, stamped by a clock that is past it, is.
        let nothing = Command { session: None, conditions: Vec::new(), operations: Vec::new() };
        self.propose(EncodedCommand::new(&nothing)).await?;
        self.view()
    }
}
