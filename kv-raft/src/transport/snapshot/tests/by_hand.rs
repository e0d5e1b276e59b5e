//! A receiver, driven message by message.

use futures::StreamExt as _;
use kv_proto::pb::raft::v1::send_snapshot_request::Part;
use kv_proto::pb::raft::v1::send_snapshot_response::Part as Answer;
use kv_proto::pb::raft::v1::{
    SendSnapshotRequest, SendSnapshotResponse, SnapshotChunk, SnapshotFile, SnapshotHeader, SnapshotProgress,
    SnapshotReady,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::*;
use crate::codec;
use crate::transport::messages;

/// What is sent as the first file.
const DATA: [u8; 1000] = [7; 1000];

/// A sender's end of a stream.
pub(super) struct Hand {
    parts: mpsc::Sender<Result<SendSnapshotRequest, Status>>,
    answers: ReceiverStream<Result<SendSnapshotResponse, Status>>,
}

fn header(shard: ShardId, sending: u64) -> SnapshotHeader {
    let mut meta = bytes::BytesMut::new();
    codec::encode_optional_log_id(Some(&log_id(9)), &mut meta);
    codec::encode_stored_membership(&SnapshotMeta::default().last_membership, &mut meta);
    SnapshotHeader {
        cluster_id: "test".to_owned(),
        from_node_id: 3,
        to_node_id: 2,
        shard_id: shard.0,
        from_replica_id: 3,
        to_replica_id: 2,
        meta: meta.freeze(),
        format: SNAPSHOT_FORMAT,
        vote: messages::encode_vote_alone(&vote(2)),
        incarnation: 1,
        sending,
    }
}

impl Hand {
    pub(super) async fn open(to: &Node, shard: ShardId, sending: u64) -> Result<Self, Status> {
        Self::open_as(to, header(shard, sending)).await
    }

    async fn open_as(to: &Node, header: SnapshotHeader) -> Result<Self, Status> {
        let (parts, stream) = mpsc::channel(4);
        parts.send(Ok(SendSnapshotRequest { part: Some(Part::Header(header)) })).await.unwrap();
        let answers = serve(Arc::clone(&to.inner), ReceiverStream::new(stream).boxed()).await?;
        Ok(Self { parts, answers })
    }

    async fn put(&self, part: Part) {
        self.parts.send(Ok(SendSnapshotRequest { part: Some(part) })).await.unwrap();
    }

    async fn answer(&mut self) -> Result<Answer, Status> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.next()).await.unwrap();
        answer.expect("an answer").map(|answer| answer.part.expect("a part"))
    }

    pub(super) async fn ready(&mut self) -> SnapshotReady {
        match self.answer().await {
            Ok(Answer::Ready(ready)) => ready,
            other => panic!("{other:?}"),
        }
    }

    async fn file(&self) {
        let checksum = crc32c::crc32c(&DATA);
        self.put(Part::File(SnapshotFile { file: 0, table: "latest".to_owned(), bytes: 1000, checksum })).await;
    }

    async fn chunk(&self, bytes: std::ops::Range<usize>) {
        let (offset, data) = (bytes.start as u64, Bytes::copy_from_slice(&DATA[bytes]));
        let checksum = crc32c::crc32c(&data);
        self.put(Part::Chunk(SnapshotChunk { file: 0, offset, data, checksum })).await;
    }

    /// A file and its first 300 bytes.
    async fn begin(&mut self) -> SnapshotReady {
        let ready = self.ready().await;
        assert_eq!(ready.have, None);
        self.file().await;
        self.chunk(0..300).await;
        assert_eq!(self.answer().await.unwrap(), Answer::Progress(came(300)));
        ready
    }

    async fn break_off(self) {
        self.parts.send(Err(Status::unavailable("the connection was lost"))).await.unwrap();
    }
}

fn came(offset: u64) -> SnapshotProgress {
    SnapshotProgress { file: 0, offset }
}

pub(super) fn kept(node: &Node) -> usize {
    KEPT_AT_ONCE - node.inner.snapshots.kept.available_permits()
}

async fn interrupted(to: &Node, shard: ShardId, sending: u64) -> SnapshotReady {
    let before = kept(to);
    let mut first = Hand::open(to, shard, sending).await.unwrap();
    let ready = first.begin().await;
    first.break_off().await;
    eventually("it is kept", || kept(to) > before).await;
    ready
}

#[tokio::test]
async fn the_same_header_goes_on_where_its_last_stream_broke_and_any_other_begins_anew() {
    let to = Node::start(2, LONG).await;
    let first = interrupted(&to, SHARD, 5).await;
    let mut again = Hand::open(&to, SHARD, 5).await.unwrap();
    assert_eq!(again.ready().await, SnapshotReady { have: Some(came(300)), ..first });
    again.file().await;
    again.chunk(300..1000).await;
    assert_eq!(again.answer().await.unwrap(), Answer::Progress(came(1000)));
    again.break_off().await;
    eventually("it is kept again", || kept(&to) == 1).await;

    let others = [
        SnapshotHeader { sending: 6, ..header(SHARD, 5) },
        SnapshotHeader { incarnation: 2, ..header(SHARD, 5) },
        SnapshotHeader { from_node_id: 4, ..header(SHARD, 5) },
        SnapshotHeader { from_replica_id: 4, ..header(SHARD, 5) },
        SnapshotHeader { vote: messages::encode_vote_alone(&vote(1)), ..header(SHARD, 5) },
        SnapshotHeader { vote: messages::encode_vote_alone(&vote(4)), ..header(SHARD, 5) },
        SnapshotHeader { meta: header_of_entry(10), ..header(SHARD, 5) },
    ];
    for other in others {
        let mut stream = Hand::open_as(&to, other.clone()).await.unwrap();
        let ready = stream.ready().await;
        assert!(ready.have.is_none() && ready.extent_id != first.extent_id, "{other:?}: {ready:?}");
        drop(stream);
        eventually("nothing is left", || to.lying() == 0).await;
        interrupted(&to, SHARD, 5).await;
    }
    to.stop().await;
}

fn header_of_entry(index: u64) -> Bytes {
    let mut meta = bytes::BytesMut::new();
    codec::encode_optional_log_id(Some(&log_id(index)), &mut meta);
    codec::encode_stored_membership(&SnapshotMeta::default().last_membership, &mut meta);
    meta.freeze()
}

#[tokio::test]
async fn what_is_kept_goes_when_its_time_is_over() {
    let to = Node::start(2, Waits { keep_for: Duration::from_millis(50), ..LONG }).await;
    let first = interrupted(&to, SHARD, 5).await;
    eventually("nothing is left", || to.lying() == 0 && kept(&to) == 0).await;
    let ready = Hand::open(&to, SHARD, 5).await.unwrap().ready().await;
    assert!(ready.have.is_none() && ready.extent_id != first.extent_id);
    to.stop().await;
}

#[tokio::test]
async fn what_is_kept_goes_when_another_snapshot_of_the_shard_begins_and_does_not_come_back() {
    let to = Node::start(2, LONG).await;
    interrupted(&to, SHARD, 5).await;
    interrupted(&to, ShardId(2), 5).await;
    assert_eq!(to.lying(), 2);
    let mut other = Hand::open(&to, SHARD, 6).await.unwrap();
    other.begin().await;
    eventually("one is left of each shard", || to.lying() == 2 && kept(&to) == 1).await;
    // The older one comes again, and the newer one breaks after it.
    let mut again = Hand::open(&to, SHARD, 5).await.unwrap();
    assert_eq!(again.ready().await.have, None);
    other.break_off().await;
    eventually("it is not kept", || to.lying() == 2).await;
    assert_eq!(kept(&to), 1);
    to.stop().await;
}

#[tokio::test]
async fn what_is_kept_and_what_comes_goes_when_the_replica_stops() {
    let to = Node::start(2, LONG).await;
    interrupted(&to, SHARD, 5).await;
    let mut coming = Hand::open(&to, ShardId(2), 6).await.unwrap();
    coming.begin().await;
    assert_eq!(to.lying(), 2);
    for shard in [SHARD, ShardId(2)] {
        to.held[&shard].stopping.cancel();
    }
    eventually("nothing is left", || to.lying() == 0 && kept(&to) == 0).await;
    assert_eq!(coming.answer().await.unwrap_err().code(), Code::Unavailable);
    to.stop().await;
}

#[tokio::test]
async fn no_more_is_kept_than_the_limit() {
    let to = Node::start(2, LONG).await;
    for shard in 1..=KEPT_AT_ONCE as u64 {
        interrupted(&to, ShardId(shard), 5).await;
    }
    let mut last = Hand::open(&to, ShardId(SHARDS), 5).await.unwrap();
    last.begin().await;
    assert_eq!(to.lying(), KEPT_AT_ONCE + 1);
    last.break_off().await;
    eventually("it is not kept", || to.lying() == KEPT_AT_ONCE).await;
    // None of them takes a place of those that come.
    assert_eq!(to.inner.snapshots.receiving.available_permits(), RECEIVED_AT_ONCE);
    to.stop().await;
}

#[tokio::test]
async fn an_altered_chunk_is_refused_and_nothing_is_kept() {
    let to = Node::start(2, LONG).await;
    let first = interrupted(&to, SHARD, 5).await;
    let mut again = Hand::open(&to, SHARD, 5).await.unwrap();
    assert_eq!(again.ready().await.have, Some(came(300)));
    again.file().await;
    let data = Bytes::copy_from_slice(&DATA[300..400]);
    again.put(Part::Chunk(SnapshotChunk { file: 0, offset: 300, data, checksum: 1 })).await;
    assert_eq!(again.answer().await.unwrap_err().code(), Code::DataLoss);
    eventually("nothing is left", || to.lying() == 0 && kept(&to) == 0).await;
    let ready = Hand::open(&to, SHARD, 5).await.unwrap().ready().await;
    assert!(ready.have.is_none() && ready.extent_id != first.extent_id);
    to.stop().await;
}

#[tokio::test]
async fn a_file_that_is_announced_otherwise_after_a_break_is_refused() {
    let to = Node::start(2, LONG).await;
    interrupted(&to, SHARD, 5).await;
    let mut again = Hand::open(&to, SHARD, 5).await.unwrap();
    again.ready().await;
    again.put(Part::File(SnapshotFile { file: 0, table: "latest".to_owned(), bytes: 1000, checksum: 1 })).await;
    assert_eq!(again.answer().await.unwrap_err().code(), Code::DataLoss);
    eventually("nothing is left", || to.lying() == 0).await;
    to.stop().await;
}

#[tokio::test]
async fn a_later_stream_takes_the_place_of_one_that_only_seems_to_live() {
    let to = Node::start(2, LONG).await;
    let mut first = Hand::open(&to, SHARD, 5).await.unwrap();
    let ready = first.begin().await;
    let mut again = Hand::open(&to, SHARD, 5).await.unwrap();
    assert_eq!(again.ready().await, SnapshotReady { have: Some(came(300)), ..ready });
    assert_eq!(to.inner.snapshots.receiving.available_permits(), RECEIVED_AT_ONCE - 1);
    assert!(first.parts.send(Ok(SendSnapshotRequest { part: None })).await.is_err(), "nothing of it is read any more");
    again.file().await;
    again.chunk(300..1000).await;
    assert_eq!(again.answer().await.unwrap(), Answer::Progress(came(1000)));
    to.stop().await;
}

#[tokio::test]
async fn a_sender_that_gives_up_or_does_not_number_what_it_sends_leaves_nothing_behind() {
    let to = Node::start(2, LONG).await;
    let mut given_up = Hand::open(&to, SHARD, 5).await.unwrap();
    given_up.begin().await;
    drop(given_up);
    eventually("nothing is left", || to.lying() == 0).await;
    let mut older = Hand::open(&to, SHARD, 0).await.unwrap();
    older.begin().await;
    older.break_off().await;
    eventually("nothing is left", || to.lying() == 0).await;
    assert_eq!(kept(&to), 0);
    to.stop().await;
}
