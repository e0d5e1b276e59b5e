//! Numbers for writes, so that one sent again is applied once.
//!
//! A [`Lane`] is a client id with its sequence. Each route has a lane of its own: a write that waits long for one shard
//! then does not make the other shards remember replies for it. A write keeps the lane it began in, also when its key
//! has moved to another shard meanwhile, because the session moves with the key.
//!
//! Invariants: a sequence is given once; the lowest unfinished sequence never passes a write that is still awaited.
//!
//! Not here: when a write is sent again (retry).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::ids::{ClientId, Sequence};
use kv_proto::pb::v1::Session;
use parking_lot::Mutex;

/// A client id and its sequence.
#[derive(Debug)]
pub(crate) struct Lane {
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
        let window = Mutex::new(Window { lowest: 1, finished: VecDeque::new() });
        Arc::new(Self { client: ClientId(rand::random()), window })
    }

    /// The next write.
    pub(crate) fn begin(self: &Arc<Self>) -> Write {
        let mut window = self.window.lock();
        let sequence = window.lowest + u64::try_from(window.finished.len()).expect("a length fits 64 bits");
        window.finished.push_back(false);
        Write { lane: self.clone(), sequence: Sequence(sequence) }
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
    lane: Arc<Lane>,
    sequence: Sequence,
}

impl Write {
    /// For one attempt.
    pub(crate) fn session(&self) -> Session {
        Session {
            client_id: Bytes::copy_from_slice(&self.lane.client.to_bytes()),
            sequence: self.sequence.0,
            lowest_unfinished: self.lane.window.lock().lowest,
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.lane.finish(self.sequence);
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
}
