//! What a shard remembers of its clients, so that a write is applied once however often it is sent.
//!
//! A session keeps what became of every write that its client has not declared finished: the reply of one that was
//! applied, and of one that was refused that it was, not what it saw. A refused write that comes again is decided again
//! to be refused with what is there by then, but is never applied: its caller may know of the refusal already.
//!
//! Room is made by giving up what is least likely to be asked for again: the older half of the replies of the session
//! used longest ago. A write whose reply was given up is stale, so it is not applied again.
//!
//! Invariants: what a session holds depends only on the entries applied, never on when or in which chunks; at most
//! [`CLIENTS_MAX`] sessions, of at most [`REPLIES_MAX`] replies each and [`TOTAL_MAX`] in all; a client that was active
//! within [`ACTIVE`] is never forgotten to make room; sessions age by the shard's session clock, never by wall clocks.
//!
//! Not here: what a command does otherwise (decide).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bincode::{Decode, Encode};
use kv_proto::ids::ClientId;
use kv_proto::limits::{SESSION_REPLIES_MAX, SHARD_CLIENTS_MAX, SHARD_REPLIES_MAX, TIMEOUT_MS_MAX};
use kv_proto::timestamp::Timestamp;

use crate::clock::millis;
use crate::command::{Reply, SessionTag};
use crate::data_engine::DataError;
use crate::data_engine::rows;
use crate::data_engine::session_clock::{SessionClock, SessionTime};

const CLIENTS_MAX: usize = SHARD_CLIENTS_MAX;
const REPLIES_MAX: usize = SESSION_REPLIES_MAX;
const TOTAL_MAX: usize = SHARD_REPLIES_MAX;

/// A session unused for so long is forgotten, by the session clock.
const IDLE: Duration = Duration::from_secs(3600);

/// A client that wrote within this time may still send the same write again: twice the longest a request may wait.
const ACTIVE: Duration = Duration::from_millis(2 * TIMEOUT_MS_MAX as u64);

/// Sessions forgotten per write at most: more than can come to be.
const EXPIRED_AT_ONCE: usize = 4;

const _: () = assert!(ACTIVE.as_secs() < IDLE.as_secs());

/// A reply as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) commit: Timestamp,
    pub(crate) deleted: u32,
}

impl From<Remembered> for Reply {
    fn from(Remembered { commit, deleted }: Remembered) -> Self {
        Self::Written { commit, deleted }
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Applied, with this reply.
    Written(Remembered),
    /// Refused by a condition.
    Refused,
}

/// What a session says to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Not seen before.
    Fresh,
    /// Decided before, with this outcome.
    Repeated(Outcome),
    /// Below what its client declared finished, or given up.
    Stale,
    /// No room for a new client.
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    /// Replies below this sequence are forgotten.
    floor: u64,
    /// When its last write was applied.
    last_use: SessionTime,
    outcomes: BTreeMap<u64, Outcome>,
}

/// All sessions of a shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    clock: SessionClock,
    by_client: BTreeMap<ClientId, Session>,
    /// Invariant: one entry per session.
    by_use: BTreeSet<(SessionTime, ClientId)>,
    /// Invariant: one entry per session that has outcomes.
    holding: BTreeSet<(SessionTime, ClientId)>,
    /// Invariant: the outcomes of all sessions.
    total: usize,
    /// Clients whose row is not what is stored.
    changed: BTreeSet<ClientId>,
}

impl Sessions {
    /// None yet, at this time.
    pub(crate) fn new(clock: SessionClock) -> Self {
        Self { clock, ..Self::default() }
    }

    pub(crate) fn clock(&self) -> SessionClock {
        self.clock
    }

    /// An entry stamped so is being applied.
    pub(crate) fn advance(&mut self, stamp: Timestamp) {
        self.clock.advance(stamp);
    }

    /// What becomes of a write.
    pub(crate) fn admit(&self, tag: &SessionTag) -> Admission {
        let sequence = tag.sequence.0;
        let Some(session) = self.by_client.get(&tag.client) else {
            let stale = sequence < tag.lowest_unfinished.0;
            return if stale {
                Admission::Stale
            } else if self.has_room() {
                Admission::Fresh
            } else {
                Admission::Full
            };
        };
        if sequence < session.floor.max(tag.lowest_unfinished.0) {
            return Admission::Stale;
        }
        session.outcomes.get(&sequence).map_or(Admission::Fresh, |outcome| Admission::Repeated(*outcome))
    }

    fn has_room(&self) -> bool {
        self.by_client.len() < CLIENTS_MAX
            || self.by_use.first().is_some_and(|(last_use, _)| self.is_older(*last_use, ACTIVE))
    }

    /// Records that a write was decided, or that it came again, which changes nothing but the time of use.
    pub(crate) fn settle(&mut self, tag: &SessionTag, outcome: Option<Outcome>) {
        let (client, floor, last_use) = (tag.client, tag.lowest_unfinished.0, self.clock.now());
        let mut is_new = false;
        let session = self.by_client.entry(client).or_insert_with(|| {
            is_new = true;
            Session { floor, last_use, outcomes: BTreeMap::new() }
        });
        let before = (session.last_use, session.outcomes.len());
        session.last_use = last_use;
        if let Some(outcome) = outcome {
            session.outcomes.insert(tag.sequence.0, outcome);
        }
        session.raise(floor);
        session.give_up(session.outcomes.len().saturating_sub(REPLIES_MAX));
        let held = session.outcomes.len();
        self.total = self.total + held - before.1;
        // Writes of one moment leave a session where it is.
        if (before.0, before.1 > 0) != (last_use, held > 0) || is_new {
            move_entry(&mut self.by_use, (before.0, client), Some((last_use, client)));
            move_entry(&mut self.holding, (before.0, client), (held > 0).then_some((last_use, client)));
        }
        self.changed.insert(client);
        self.forget_idle();
        self.make_room();
    }

    fn take(&mut self, client: ClientId) -> Option<Session> {
        let session = self.by_client.remove(&client)?;
        self.by_use.remove(&(session.last_use, client));
        self.holding.remove(&(session.last_use, client));
        self.total -= session.outcomes.len();
        Some(session)
    }

    fn put(&mut self, client: ClientId, session: Session) {
        self.by_use.insert((session.last_use, client));
        if !session.outcomes.is_empty() {
            self.holding.insert((session.last_use, client));
        }
        self.total += session.outcomes.len();
        self.by_client.insert(client, session);
    }

    fn forget_idle(&mut self) {
        for _ in 0..EXPIRED_AT_ONCE {
            let Some((last_use, client)) = self.by_use.first().copied() else { return };
            let crowded = self.by_client.len() > CLIENTS_MAX;
            if !self.is_older(last_use, if crowded { ACTIVE } else { IDLE }) {
                return;
            }
            self.take(client);
            self.changed.insert(client);
        }
    }

    /// Half at a time, so that rows are not written again for each reply given up.
    fn make_room(&mut self) {
        while self.total > TOTAL_MAX
            && let Some((_, client)) = self.holding.first().copied()
            && let Some(mut session) = self.take(client)
        {
            session.give_up(session.outcomes.len().div_ceil(2));
            self.put(client, session);
            self.changed.insert(client);
        }
    }

    fn is_older(&self, last_use: SessionTime, than: Duration) -> bool {
        self.clock.now().0.saturating_sub(last_use.0) > millis(than)
    }

    /// The rows to write since the last call: None for sessions that are forgotten.
    pub(crate) fn take_changed(&mut self) -> Vec<(ClientId, Option<Vec<u8>>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|client| (client, self.by_client.get(&client).map(Session::encode))).collect()
    }

    /// Adds a session from its row.
    pub(crate) fn load(&mut self, client: ClientId, row: &[u8]) -> Result<(), DataError> {
        self.put(client, Session::decode(row)?);
        Ok(())
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_client.len()
    }
}

/// Takes an entry out of an order, if it is there, and puts another in.
fn move_entry<T: Ord>(order: &mut BTreeSet<T>, from: T, to: Option<T>) {
    order.remove(&from);
    order.extend(to);
}

/// A session as it is stored: outcomes by distance from the one before, replies by age from the newest, which are short.
#[derive(Encode, Decode)]
struct SessionRow {
    floor: u64,
    last_use: SessionTime,
    /// The latest commit timestamp of a reply.
    newest: Timestamp,
    /// No reply for what was refused.
    outcomes: Vec<(u64, Option<ReplyRow>)>,
}

#[derive(Encode, Decode)]
struct ReplyRow {
    age: u64,
    deleted: u32,
}

impl Session {
    fn raise(&mut self, floor: u64) {
        if floor > self.floor {
            self.floor = floor;
            while let Some(oldest) = self.outcomes.first_entry().filter(|oldest| *oldest.key() < floor) {
                oldest.remove();
            }
        }
    }

    /// Gives up the oldest outcomes: those sequences are stale from now on.
    fn give_up(&mut self, count: usize) {
        for _ in 0..count {
            let Some((oldest, _)) = self.outcomes.pop_first() else { return };
            self.floor = oldest.saturating_add(1);
        }
    }

    fn encode(&self) -> Vec<u8> {
        let commits = self.outcomes.values().filter_map(|outcome| match outcome {
            Outcome::Written(reply) => Some(reply.commit),
            Outcome::Refused => None,
        });
        let newest = commits.max().unwrap_or_default();
        let mut before = self.floor;
        let outcome = |(sequence, outcome): (&u64, &Outcome)| {
            let distance = sequence - before;
            before = *sequence;
            let reply = match *outcome {
                Outcome::Written(Remembered { commit, deleted }) => {
                    Some(ReplyRow { age: newest.0 - commit.0, deleted })
                }
                Outcome::Refused => None,
            };
            (distance, reply)
        };
        let outcomes = self.outcomes.iter().map(outcome).collect();
        rows::encode(&SessionRow { floor: self.floor, last_use: self.last_use, newest, outcomes })
    }

    fn decode(row: &[u8]) -> Result<Self, DataError> {
        let SessionRow { floor, last_use, newest, outcomes: stored } = rows::decode(row, "session")?;
        let damaged = || rows::damaged("session");
        let mut outcomes = BTreeMap::new();
        let mut sequence = floor;
        for (distance, reply) in stored {
            sequence = sequence.checked_add(distance).ok_or_else(damaged)?;
            let outcome = match reply {
                Some(ReplyRow { age, deleted }) => {
                    let commit = Timestamp(newest.0.checked_sub(age).ok_or_else(damaged)?);
                    Outcome::Written(Remembered { commit, deleted })
                }
                None => Outcome::Refused,
            };
            outcomes.insert(sequence, outcome);
        }
        Ok(Self { floor, last_use, outcomes })
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::ids::Sequence;
    use proptest::prelude::*;

    use super::*;

    fn tag(client: u128, sequence: u64, lowest_unfinished: u64) -> SessionTag {
        SessionTag {
            client: ClientId(client),
            sequence: Sequence(sequence),
            lowest_unfinished: Sequence(lowest_unfinished),
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn written(commit: Timestamp) -> Option<Outcome> {
        Some(Outcome::Written(Remembered { commit, deleted: 0 }))
    }

    /// Somebody writes every second.
    fn pass(sessions: &mut Sessions, seconds: std::ops::RangeInclusive<u64>) {
        for second in seconds {
            sessions.advance(at(second));
        }
    }

    #[test]
    fn a_session_is_forgotten_after_an_hour_without_use_and_not_before() {
        let mut sessions = Sessions::default();
        sessions.settle(&tag(1, 1, 1), written(at(0)));
        pass(&mut sessions, 1..=3600);
        sessions.settle(&tag(2, 1, 1), written(at(3600)));
        assert_eq!(sessions.len(), 2);
        pass(&mut sessions, 3601..=3601);
        sessions.settle(&tag(2, 2, 1), written(at(3601)));
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions.admit(&tag(1, 1, 1)), Admission::Fresh);
        let removed = sessions.take_changed();
        assert!(removed.contains(&(ClientId(1), None)));
    }

    #[test]
    fn a_clock_that_leaps_ahead_makes_no_client_forgotten_and_does_not_stop_ageing() {
        let mut sessions = Sessions::default();
        sessions.settle(&tag(1, 1, 1), written(at(1)));
        pass(&mut sessions, 1_000_000..=1_000_001);
        sessions.settle(&tag(2, 1, 1), written(at(1_000_001)));
        assert!(matches!(sessions.admit(&tag(1, 1, 1)), Admission::Repeated(_)));
        pass(&mut sessions, 2..=3600);
        sessions.settle(&tag(2, 2, 1), written(at(1_000_001)));
        assert_eq!(sessions.len(), 1, "an hour later it is");
    }

    #[test]
    fn a_new_client_never_displaces_one_that_may_still_retry() {
        let mut sessions = Sessions::default();
        for client in 0..CLIENTS_MAX as u128 {
            sessions.settle(&tag(client, 1, 1), None);
        }
        pass(&mut sessions, 1..=120);
        assert_eq!(sessions.admit(&tag(u128::MAX, 1, 1)), Admission::Full);
        assert_eq!(sessions.admit(&tag(7, 2, 1)), Admission::Fresh, "known clients go on");
        pass(&mut sessions, 121..=121);
        assert_eq!(sessions.admit(&tag(u128::MAX, 1, 1)), Admission::Fresh, "the first has been idle too long");
        sessions.settle(&tag(u128::MAX, 1, 1), None);
        assert_eq!(sessions.len(), CLIENTS_MAX);
        assert!(!sessions.by_client.contains_key(&ClientId(0)));
    }

    #[test]
    fn the_oldest_replies_beyond_the_limit_become_stale_instead_of_being_applied_again() {
        let mut sessions = Sessions::default();
        for sequence in 1..=REPLIES_MAX as u64 + 1 {
            sessions.settle(&tag(1, sequence, 1), written(at(1)));
        }
        assert_eq!(sessions.admit(&tag(1, 1, 1)), Admission::Stale);
        assert!(matches!(sessions.admit(&tag(1, 2, 1)), Admission::Repeated(_)));
    }

    #[test]
    fn beyond_the_limit_of_the_shard_the_client_used_longest_ago_gives_up_its_older_replies() {
        let mut sessions = Sessions::default();
        let clients = (TOTAL_MAX / REPLIES_MAX) as u128;
        for client in 0..clients {
            pass(&mut sessions, client as u64..=client as u64);
            for sequence in 1..=REPLIES_MAX as u64 {
                sessions.settle(&tag(client, sequence, 1), written(at(1)));
            }
        }
        assert!(matches!(sessions.admit(&tag(0, 1, 1)), Admission::Repeated(_)), "all have room");
        sessions.take_changed();
        sessions.settle(&tag(clients, 1, 1), written(at(1)));
        let half = REPLIES_MAX as u64 / 2;
        assert_eq!(sessions.admit(&tag(0, half, 1)), Admission::Stale);
        assert!(matches!(sessions.admit(&tag(0, half + 1, 1)), Admission::Repeated(_)));
        assert!(matches!(sessions.admit(&tag(1, 1, 1)), Admission::Repeated(_)), "no other client does");
        assert_eq!(sessions.total, TOTAL_MAX + 1 - REPLIES_MAX / 2);
        let changed: Vec<_> = sessions.take_changed().into_iter().map(|(client, _)| client.0).collect();
        assert_eq!(changed, [0, clients]);
    }

    proptest! {
        #[test]
        fn stored_sessions_are_loaded_as_they_were(
            uses in proptest::collection::vec((0u128..4, 1u64..50, 0u64..40, 0u8..3), 1..60),
        ) {
            let mut sessions = Sessions::default();
            let mut stored = BTreeMap::new();
            for (step, (client, sequence, lowest, kind)) in (1u64..).zip(uses) {
                let commit = Timestamp(at(step * 100).0 + step);
                let tag = tag(client, sequence.max(lowest), lowest);
                sessions.advance(commit);
                if sessions.admit(&tag) != Admission::Stale {
                    let outcome = [written(commit), Some(Outcome::Refused), None];
                    sessions.settle(&tag, outcome[usize::from(kind)]);
                }
                for (client, row) in sessions.take_changed() {
                    match row {
                        Some(row) => stored.insert(client, row),
                        None => stored.remove(&client),
                    };
                }
            }
            let mut loaded = Sessions::new(sessions.clock());
            for (client, row) in &stored {
                loaded.load(*client, row).unwrap();
            }
            prop_assert_eq!(loaded.total, loaded.by_client.values().map(|session| session.outcomes.len()).sum::<usize>());
            prop_assert_eq!(loaded.total, sessions.total);
            prop_assert_eq!(loaded.by_client, sessions.by_client);
            prop_assert_eq!(loaded.by_use, sessions.by_use);
            prop_assert_eq!(loaded.holding, sessions.holding);
        }
    }
}
