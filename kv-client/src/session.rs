//! Numbers for writes, so that one sent again is applied once.
//!
//! A [`Lane`] is a client id with its sequence. Each route has a lane of its own: a write that waits long for one shard
//! then does not make the other shards remember replies for it. A write keeps the lane it began in, also when its key
//! has moved to another shard meanwhile, because the session moves with the key.
//!
//! A shard remembers a bounded number of replies for one client id. While one write waits for long, those begun after it
//! finish and must be remembered all the same; before they would push the waiting one out, the lane goes on under a new
//! client id.
//!
//! Invariants: a sequence is given once; the lowest unfinished sequence never passes a write that is still awaited; a
//! window is never longer than [`SESSION_WINDOW_MAX`].
//!
//! Not here: when a write is sent again (retry).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::ids::{ClientId, Sequence};
use kv_proto::limits::SESSION_WINDOW_MAX;
use kv_proto::pb::v1::Session;
use parking_lot::Mutex;

/// Numbers for the writes of one route.
#[derive(Debug)]
pub(crate) struct Lane {
    current: Mutex<Arc<Numbers>>,
}

/// A client id and its sequence.
#[derive(Debug)]
struct Numbers {
    client: ClientId,
    window: Mutex<Window>,
}

/// Invariant: `finished` begins with false, or is empty.
#[derive(Debug)]
struct Window {
    lowest: u64,
    finished: VecDeque<bool>,
}

impl Lane {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { current: Mutex::new(Numbers::new()) })
    }

    /// The next write.
    pub(crate) fn begin(&self) -> Write {
        let mut current = self.current.lock();
        let next = current.next().unwrap_or_else(|| {
            *current = Numbers::new();
            current.next().expect("new numbers have none in their window")
        });
        Write { numbers: current.clone(), sequence: next }
    }
}

impl Numbers {
    fn new() -> Arc<Self> {
        let window = Mutex::new(Window { lowest: 1, finished: VecDeque::new() });
        Arc::new(Self { client: ClientId(rand::random()), window })
    }

    /// The next sequence; None if the window is full.
    fn next(&self) -> Option<Sequence> {
        let mut window = self.window.lock();
        if window.finished.len() >= SESSION_WINDOW_MAX {
            return None;
        }
        let sequence = window.lowest + u64::try_from(window.finished.len()).expect("a length fits 64 bits");
        window.finished.push_back(false);
        Some(Sequence(sequence))
    }

    fn finish(&self, sequence: Sequence) {
        let mut window = self.window.lock();
        let offset = usize::try_from(sequence.0 - window.lowest).expect("a window fits memory");
        *window.finished.get_mut(offset).expect("an unfinished write lies in the window") = true;
        while window.finished.front() == Some(&true) {
            window.finished.pop_front();
            window.lowest += 1;
        }
    }
}

/// A write that is awaited. It is finished when this is dropped.
#[derive(Debug)]
pub(crate) struct Write {
    numbers: Arc<Numbers>,
    sequence: Sequence,
}

impl Write {
    /// For one attempt.
    pub(crate) fn session(&self) -> Session {
        Session {
            client_id: Bytes::copy_from_slice(&self.numbers.client.to_bytes()),
            sequence: self.sequence.0,
            lowest_unfinished: self.numbers.window.lock().lowest,
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.numbers.finish(self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_unfinished_sequence_waits_for_the_slowest_write() {
        let lane = Lane::new();
        let (first, second, third) = (lane.begin(), lane.begin(), lane.begin());
        assert_eq!([&first, &second, &third].map(|write| write.session().sequence), [1, 2, 3]);
        drop(second);
        assert_eq!(third.session().lowest_unfinished, 1);
        drop(first);
        assert_eq!(third.session().lowest_unfinished, 3);
        drop(third);
        let fourth = lane.begin().session();
        assert_eq!((fourth.sequence, fourth.lowest_unfinished), (4, 4));
    }

    #[test]
    fn a_write_that_waits_for_long_is_not_pushed_out_by_those_after_it() {
        let lane = Lane::new();
        let waiting = lane.begin();
        for _ in 1..SESSION_WINDOW_MAX {
            drop(lane.begin());
        }
        let (before, after) = (waiting.session(), lane.begin().session());
        assert_eq!((before.sequence, before.lowest_unfinished), (1, 1));
        assert_eq!((after.sequence, after.lowest_unfinished), (1, 1));
        assert_ne!(before.client_id, after.client_id);
        assert_eq!(waiting.session(), before, "a write keeps its number");
    }
}
