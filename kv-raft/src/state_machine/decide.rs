//! What a command does: a pure function of the state, the commit timestamp and the command.
//!
//! Invariants: nothing but its arguments decides; a refusal changes no key; the first condition that does not hold is
//! the one reported; a write that was refused once is never applied later; within a command a later operation sees an
//! earlier one.
//!
//! Not here: where the state is read from (overlay); how edits are written (apply).

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use kv_proto::timestamp::Timestamp;

use super::session::{Admission, Outcome, Remembered, Sessions};
use crate::command::{Command, Condition, Expected, Operation, Reply, SessionTag, Versioned};

/// A key's latest version.
pub(crate) struct Version<'a> {
    pub(crate) commit: Timestamp,
    pub(crate) value: Cow<'a, [u8]>,
}

/// The state a command finds. Reading may fail: that is no reply but the end of the replica.
pub(crate) trait View {
    /// Why reading failed.
    type Error;
    /// When a key was written; None if it does not exist.
    fn written_at(&self, key: &[u8]) -> Result<Option<Timestamp>, Self::Error>;
    /// A key's latest version.
    fn version(&self, key: &[u8]) -> Result<Option<Version<'_>>, Self::Error>;
    /// What is remembered of clients.
    fn sessions(&self) -> &Sessions;
    /// Whether overwritten versions are kept.
    fn keeps_history(&self) -> bool;
}

/// One change of the state.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Edit<'a> {
    /// Keeps a version that ends with this commit.
    Keep { key: &'a [u8], start: Timestamp, value: Vec<u8> },
    /// Writes a key.
    Put { key: &'a [u8], value: &'a [u8] },
    /// Deletes a key that exists.
    Delete { key: &'a [u8] },
    /// Records the write in its session: what became of it, or that it came again.
    Settle { tag: SessionTag, outcome: Option<Outcome> },
}

/// The reply and what changes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decision<'a> {
    pub(crate) reply: Reply,
    pub(crate) edits: Vec<Edit<'a>>,
}

/// Decides one command that commits at `commit`.
pub(crate) fn decide<'a, V: View>(
    view: &V,
    commit: Timestamp,
    command: &Command<'a>,
) -> Result<Decision<'a>, V::Error> {
    let settle = |outcome| command.session.map(|tag| Edit::Settle { tag, outcome });
    let unchanged = |reply, outcome| Decision { reply, edits: settle(outcome).into_iter().collect() };
    let was_refused = match command.session.map(|tag| view.sessions().admit(&tag)) {
        Some(Admission::Stale) => return Ok(Decision { reply: Reply::SessionStale, edits: Vec::new() }),
        Some(Admission::Full) => return Ok(Decision { reply: Reply::SessionsFull, edits: Vec::new() }),
        Some(Admission::Repeated(Outcome::Written(first))) => return Ok(unchanged(first.into(), None)),
        Some(Admission::Repeated(Outcome::Refused)) => true,
        Some(Admission::Fresh) | None => false,
    };
    for (condition, position) in command.conditions.iter().zip(0..) {
        if !holds(view, condition)? {
            let current = view
                .version(condition.key)?
                .map(|version| Versioned { commit: version.commit, value: Bytes::from(version.value.into_owned()) });
            return Ok(unchanged(Reply::Refused { condition: position, current }, Some(Outcome::Refused)));
        }
    }
    if was_refused {
        // Its caller may have been told so: it must not be applied, though it would be now.
        return Ok(unchanged(Reply::SessionStale, None));
    }
    let deletes = |operation: &Operation<'_>| matches!(operation, Operation::Delete { .. });
    let asks = view.keeps_history() || command.operations.iter().any(deletes);
    let edits = Vec::with_capacity(command.operations.len() + 1);
    let mut changes = Changes { view, edits, touched: asks.then(BTreeMap::new) };
    let mut deleted = 0;
    for operation in &command.operations {
        match *operation {
            Operation::Put { key, value } => changes.put(key, value)?,
            Operation::Delete { key } => deleted += u32::from(changes.delete(key)?),
        }
    }
    let written = Remembered { commit, deleted };
    let mut edits = changes.edits;
    edits.extend(settle(Some(Outcome::Written(written))));
    Ok(Decision { reply: written.into(), edits })
}

fn holds<V: View>(view: &V, condition: &Condition<'_>) -> Result<bool, V::Error> {
    Ok(match condition.expected {
        Expected::Value(value) => view.version(condition.key)?.is_some_and(|version| version.value == value),
        Expected::WrittenAt(commit) => view.written_at(condition.key)? == Some(commit),
        Expected::Exists(exists) => view.written_at(condition.key)?.is_some() == exists,
    })
}

/// The edits of one command so far.
struct Changes<'a, 'v, V> {
    view: &'v V,
    edits: Vec<Edit<'a>>,
    /// Whether keys this command changed exist now; None if nothing of it asks.
    touched: Option<BTreeMap<&'a [u8], bool>>,
}

impl<'a, V: View> Changes<'a, '_, V> {
    fn touch(&mut self, key: &'a [u8], exists: bool) {
        if let Some(touched) = &mut self.touched {
            touched.insert(key, exists);
        }
    }

    fn touched(&self, key: &[u8]) -> Option<bool> {
        self.touched.as_ref()?.get(key).copied()
    }

    fn put(&mut self, key: &'a [u8], value: &'a [u8]) -> Result<(), V::Error> {
        self.keep(key)?;
        self.touch(key, true);
        self.edits.push(Edit::Put { key, value });
        Ok(())
    }

    fn delete(&mut self, key: &'a [u8]) -> Result<bool, V::Error> {
        let exists = match self.touched(key) {
            Some(exists) => exists,
            None => self.view.written_at(key)?.is_some(),
        };
        if exists {
            self.keep(key)?;
            self.touch(key, false);
            self.edits.push(Edit::Delete { key });
        }
        Ok(exists)
    }

    /// What the command itself wrote before never was a version of its own.
    fn keep(&mut self, key: &'a [u8]) -> Result<(), V::Error> {
        if self.view.keeps_history()
            && self.touched(key).is_none()
            && let Some(Version { commit: start, value }) = self.view.version(key)?
        {
            self.edits.push(Edit::Keep { key, start, value: value.into_owned() });
        }
        Ok(())
    }
}
