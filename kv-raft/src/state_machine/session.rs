//! What a shard remembers of its clients, so that a write is applied once however often it is sent.
//!
//! A session keeps the reply of every write that its client has not declared finished. Refusals are not remembered:
//! they changed nothing, and are decided again.
//!
//! Invariants: what a session holds depends only on the commands applied, never on when or in which chunks; at most
//! [`CLIENTS_MAX`] sessions, of at most [`REPLIES_MAX`] replies; a client that was active within [`ACTIVE`] is never
//! forgotten to make room.
//!
//! Not here: what a command does otherwise (decide).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bincode::{Decode, Encode};
use kv_proto::ids::ClientId;
use kv_proto::limits::TIMEOUT_MS_MAX;
use kv_proto::timestamp::Timestamp;

use crate::command::{Reply, SessionTag};
use crate::data_engine::DataError;
use crate::data_engine::rows::{self, millis};

/// Sessions of one shard: some 10 MiB of memory.
pub(crate) const CLIENTS_MAX: usize = 32_768;

/// Replies of one session: more writes than a client has in flight to one shard. Beyond it the oldest are given up.
pub(crate) const REPLIES_MAX: usize = 8192;

/// A session unused for so long is forgotten, by commit timestamps.
pub(crate) const IDLE: Duration = Duration::from_secs(3600);

/// A client that wrote within this time may still send the same write again: twice the longest a request may wait.
pub(crate) const ACTIVE: Duration = Duration::from_millis(2 * TIMEOUT_MS_MAX as u64);

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

/// What a session says to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Not seen before, or refused then.
    Fresh,
    /// Applied before, with this reply.
    Repeated(Remembered),
    /// Below what its client declared finished.
    Stale,
    /// No room for a new client.
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    /// Replies below this sequence are forgotten.
    floor: u64,
    /// Commit timestamp of the last command.
    last_use: Timestamp,
    replies: BTreeMap<u64, Remembered>,
}

/// All sessions of a shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    by_client: BTreeMap<ClientId, Session>,
    /// Invariant: one entry per session.
    by_use: BTreeSet<(Timestamp, ClientId)>,
    /// Clients whose row is not what is stored.
    changed: BTreeSet<ClientId>,
}

impl Sessions {
    /// What becomes of a write committed at `commit`.
    pub(crate) fn admit(&self, tag: &SessionTag, commit: Timestamp) -> Admission {
        let sequence = tag.sequence.0;
        let Some(session) = self.by_client.get(&tag.client) else {
            let stale = sequence < tag.lowest_unfinished.0;
            return if stale {
                Admission::Stale
            } else if self.has_room(commit) {
                Admission::Fresh
            } else {
                Admission::Full
            };
        };
        if sequence < session.floor.max(tag.lowest_unfinished.0) {
            return Admission::Stale;
        }
        session.replies.get(&sequence).map_or(Admission::Fresh, |reply| Admission::Repeated(*reply))
    }

    fn has_room(&self, commit: Timestamp) -> bool {
        self.by_client.len() < CLIENTS_MAX
            || self.by_use.first().is_some_and(|(last_use, _)| is_older(*last_use, commit, ACTIVE))
    }

    /// Records that a write was decided; `written` is its reply if it changed anything.
    pub(crate) fn settle(&mut self, tag: &SessionTag, commit: Timestamp, written: Option<Remembered>) {
        let floor = tag.lowest_unfinished.0;
        let new = Session { floor, last_use: commit, replies: BTreeMap::new() };
        let session = self.by_client.entry(tag.client).or_insert(new);
        self.by_use.remove(&(session.last_use, tag.client));
        self.by_use.insert((commit, tag.client));
        session.last_use = commit;
        if let Some(reply) = written {
            session.replies.insert(tag.sequence.0, reply);
        }
        session.raise(floor);
        while session.replies.len() > REPLIES_MAX
            && let Some((oldest, _)) = session.replies.pop_first()
        {
            session.floor = oldest + 1;
        }
        self.changed.insert(tag.client);
        self.forget_idle(commit);
    }

    fn forget_idle(&mut self, commit: Timestamp) {
        for _ in 0..EXPIRED_AT_ONCE {
            let Some((last_use, client)) = self.by_use.first().copied() else { return };
            let crowded = self.by_client.len() > CLIENTS_MAX;
            if !is_older(last_use, commit, if crowded { ACTIVE } else { IDLE }) {
                return;
            }
            self.by_use.remove(&(last_use, client));
            self.by_client.remove(&client);
            self.changed.insert(client);
        }
    }

    /// The rows to write since the last call: None for sessions that are forgotten.
    pub(crate) fn take_changed(&mut self) -> Vec<(ClientId, Option<Vec<u8>>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|client| (client, self.by_client.get(&client).map(Session::encode))).collect()
    }

    /// Adds a session from its row.
    pub(crate) fn load(&mut self, client: ClientId, row: &[u8]) -> Result<(), DataError> {
        let session = Session::decode(row)?;
        self.by_use.insert((session.last_use, client));
        self.by_client.insert(client, session);
        Ok(())
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_client.len()
    }
}

fn is_older(last_use: Timestamp, commit: Timestamp, than: Duration) -> bool {
    commit.millis().saturating_sub(last_use.millis()) > millis(than)
}

/// A session as it is stored: replies by distance from the one before and from the last use, which are short.
#[derive(Encode, Decode)]
struct SessionRow {
    floor: u64,
    last_use: u64,
    replies: Vec<(u64, u64, u32)>,
}

impl Session {
    fn raise(&mut self, floor: u64) {
        if floor > self.floor {
            self.floor = floor;
            self.replies = self.replies.split_off(&floor);
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut before = self.floor;
        let reply = |(sequence, reply): (&u64, &Remembered)| {
            let distance = sequence - before;
            before = *sequence;
            (distance, self.last_use.0 - reply.commit.0, reply.deleted)
        };
        let replies = self.replies.iter().map(reply).collect();
        rows::encode(&SessionRow { floor: self.floor, last_use: self.last_use.0, replies })
    }

    fn decode(row: &[u8]) -> Result<Self, DataError> {
        let row: SessionRow = rows::decode(row, "session")?;
        let mut replies = BTreeMap::new();
        let mut sequence = row.floor;
        for (distance, age, deleted) in row.replies {
            sequence = sequence.checked_add(distance).ok_or_else(|| rows::damaged("session"))?;
            let commit = row.last_use.checked_sub(age).ok_or_else(|| rows::damaged("session"))?;
            replies.insert(sequence, Remembered { commit: Timestamp(commit), deleted });
        }
        Ok(Self { floor: row.floor, last_use: Timestamp(row.last_use), replies })
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

    fn written(commit: Timestamp) -> Option<Remembered> {
        Some(Remembered { commit, deleted: 0 })
    }

    #[test]
    fn a_session_is_forgotten_after_an_hour_without_use_and_not_before() {
        let mut sessions = Sessions::default();
        sessions.settle(&tag(1, 1, 1), at(0), written(at(0)));
        sessions.settle(&tag(2, 1, 1), at(3600), written(at(3600)));
        assert_eq!(sessions.len(), 2);
        sessions.settle(&tag(2, 2, 1), at(3601), written(at(3601)));
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions.admit(&tag(1, 1, 1), at(3601)), Admission::Fresh);
        let removed = sessions.take_changed();
        assert!(removed.contains(&(ClientId(1), None)));
    }

    #[test]
    fn a_new_client_never_displaces_one_that_may_still_retry() {
        let mut sessions = Sessions::default();
        for client in 0..CLIENTS_MAX as u128 {
            sessions.settle(&tag(client, 1, 1), Timestamp(at(10).0 + client as u64), None);
        }
        assert_eq!(sessions.admit(&tag(u128::MAX, 1, 1), at(130)), Admission::Full);
        assert_eq!(sessions.admit(&tag(7, 2, 1), at(130)), Admission::Fresh, "known clients go on");
        assert_eq!(
            sessions.admit(&tag(u128::MAX, 1, 1), at(131)),
            Admission::Fresh,
            "the first has been idle too long"
        );
        sessions.settle(&tag(u128::MAX, 1, 1), at(131), None);
        assert_eq!(sessions.len(), CLIENTS_MAX);
        assert!(!sessions.by_client.contains_key(&ClientId(0)));
    }

    #[test]
    fn the_oldest_replies_beyond_the_limit_become_stale_instead_of_being_applied_again() {
        let mut sessions = Sessions::default();
        for sequence in 1..=REPLIES_MAX as u64 + 1 {
            sessions.settle(&tag(1, sequence, 1), at(1), written(at(1)));
        }
        assert_eq!(sessions.admit(&tag(1, 1, 1), at(1)), Admission::Stale);
        assert!(matches!(sessions.admit(&tag(1, 2, 1), at(1)), Admission::Repeated(_)));
    }

    proptest! {
        #[test]
        fn stored_sessions_are_loaded_as_they_were(
            uses in proptest::collection::vec((0u128..4, 1u64..50, 0u64..40, any::<bool>()), 1..60),
        ) {
            let mut sessions = Sessions::default();
            let mut stored = BTreeMap::new();
            for (step, (client, sequence, lowest, is_written)) in (1u64..).zip(uses) {
                let commit = Timestamp(at(step * 100).0 + step);
                let tag = tag(client, sequence.max(lowest), lowest);
                if sessions.admit(&tag, commit) != Admission::Stale {
                    sessions.settle(&tag, commit, written(commit).filter(|_| is_written));
                }
                for (client, row) in sessions.take_changed() {
                    match row {
                        Some(row) => stored.insert(client, row),
                        None => stored.remove(&client),
                    };
                }
            }
            let mut loaded = Sessions::default();
            for (client, row) in &stored {
                loaded.load(*client, row).unwrap();
            }
            prop_assert_eq!(loaded.by_client, sessions.by_client);
            prop_assert_eq!(loaded.by_use, sessions.by_use);
        }
    }
}
