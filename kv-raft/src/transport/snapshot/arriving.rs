//! Which snapshots are on their way in, so that a stream that brings the rest of one finds it.
//!
//! Invariants: of each shard only the snapshot that began last can be gone on with, and only under its very header;
//! once another has begun, the one before hears that no stream will come any more.
//!
//! Not here: what is received (receive).

use std::collections::HashMap;

use kv_proto::ids::ShardId;
use kv_proto::pb::raft::v1::SnapshotHeader;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::receive::Incoming;

/// Streams that wait to be taken by one that is at work on its disk; a second one means that the first is dead.
const STREAMS_WAITING: usize = 1;

/// The snapshot of each shard that began last, while it is received, kept or installed.
#[derive(Default)]
pub(super) struct Arriving(Mutex<Begun>);

#[derive(Default)]
struct Begun {
    count: u64,
    newest: HashMap<ShardId, Entry>,
}

struct Entry {
    number: u64,
    header: SnapshotHeader,
    streams: mpsc::Sender<Incoming>,
}

/// A snapshot that has begun; it is over when this is dropped.
pub(super) struct Arrival<'a> {
    all: &'a Arriving,
    shard: ShardId,
    number: u64,
    /// Streams that bring the rest; none will come once another snapshot of the shard has begun.
    pub(super) streams: mpsc::Receiver<Incoming>,
}

impl Arriving {
    /// Where the rest of the snapshot with this header goes, if a part of it came.
    pub(super) fn find(&self, header: &SnapshotHeader) -> Option<mpsc::Sender<Incoming>> {
        let begun = self.0.lock();
        let entry = begun.newest.get(&ShardId(header.shard_id))?;
        (is_resumable(header) && entry.header == *header).then(|| entry.streams.clone())
    }

    /// From now on no older snapshot of the shard is gone on with.
    pub(super) fn begin(&self, header: SnapshotHeader) -> Arrival<'_> {
        let (streams, waiting) = mpsc::channel(STREAMS_WAITING);
        let shard = ShardId(header.shard_id);
        let mut begun = self.0.lock();
        begun.count += 1;
        let number = begun.count;
        begun.newest.insert(shard, Entry { number, header, streams });
        Arrival { all: self, shard, number, streams: waiting }
    }
}

/// Senders of older builds do not number what they send, so that nothing tells one sending from another.
fn is_resumable(header: &SnapshotHeader) -> bool {
    header.sending != 0
}

impl Arrival<'_> {
    /// Whether a stream with the rest may still come.
    pub(super) fn may_go_on(&self) -> bool {
        let begun = self.all.0.lock();
        let entry = begun.newest.get(&self.shard).filter(|entry| entry.number == self.number);
        entry.is_some_and(|entry| is_resumable(&entry.header))
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        let mut begun = self.all.0.lock();
        if begun.newest.get(&self.shard).is_some_and(|entry| entry.number == self.number) {
            begun.newest.remove(&self.shard);
        }
    }
}
