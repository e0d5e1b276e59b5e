//! The data engine and the state machine together, on a real disk.
//!
//! Not here: decisions alone (scripts); key encodings (data engine, keys).

mod conformance;
mod crash;
mod engine;
mod fire;
mod reads;
mod snapshots;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use kv_proto::ids::{ClientId, ReplicaId, Sequence, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::timestamp::Timestamp;
use openraft::EntryPayload;
use openraft::storage::RaftStateMachine as _;

use super::{LogWait, StateMachine};
use crate::command::{Command, CommandBatch, Condition, EncodedCommand, Expected, Operation, Replies, SessionTag};
use crate::data_engine::{DataEngine, DataOptions, NewReplica};
use crate::metrics::RaftMetrics;
use crate::types::{Entry, LeaderId, LogId, Member, Membership};

const SHARD: ShardId = ShardId(7);
const HOUR: Duration = Duration::from_secs(3600);

/// A log that is always durable.
struct Durable;

impl LogWait for Durable {
    fn wait_durable(&self, _index: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn metrics() -> Arc<RaftMetrics> {
    Arc::new(RaftMetrics::new(&mut prometheus_client::registry::Registry::default()))
}

fn options() -> DataOptions {
    DataOptions { cache_bytes: 12 << 20, write_buffer_bytes: 4 << 20, ..DataOptions::default() }
}

fn open(dir: &Path) -> DataEngine {
    DataEngine::open(dir, options()).unwrap()
}

fn new_replica(shard: ShardId, replica: u64, retention: Duration) -> NewReplica {
    NewReplica { shard, replica: ReplicaId(replica), range: KeyRange::all(), retention }
}

fn machine(engine: &DataEngine, shard: ShardId) -> StateMachine {
    engine.state_machine(shard, Arc::new(Durable), metrics()).unwrap()
}

/// An engine with one replica and its state machine.
fn replica(dir: &Path, retention: Duration) -> (DataEngine, StateMachine) {
    let engine = open(dir);
    engine.create(new_replica(SHARD, 1, retention)).unwrap();
    let machine = machine(&engine, SHARD);
    (engine, machine)
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }
}

async fn apply(machine: &mut StateMachine, entries: &[Entry]) {
    let items: Vec<_> = entries.iter().map(|entry| Ok((entry.clone(), None))).collect();
    machine.apply(futures::stream::iter(items)).await.unwrap();
}

/// Applies one entry and returns its replies.
fn reply_to(machine: &StateMachine, entry: &Entry) -> Replies {
    let chunk = super::Chunk::decode(SHARD, [entry].into_iter()).unwrap();
    machine.core.lock().apply(&chunk).unwrap().pop().unwrap()
}

fn batch(index: u64, stamp: Timestamp, commands: &[Command<'_>]) -> Entry {
    let commands: Vec<_> = commands.iter().map(EncodedCommand::new).collect();
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(CommandBatch::new(stamp, &commands)) }
}

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Command<'a> {
    Command { session: None, conditions: Vec::new(), operations: vec![Operation::Put { key, value }] }
}

fn membership(index: u64, voters: &[u64]) -> Entry {
    let nodes = voters.iter().map(|id| (*id, Member { node: id + 100 })).collect::<std::collections::BTreeMap<_, _>>();
    let membership = Membership::new(vec![voters.iter().copied().collect()], nodes).unwrap();
    Entry { log_id: log_id(index), payload: EntryPayload::Membership(membership) }
}

/// Small numbers from a seed, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Entries with puts, deletes, compare-and-sets, sessions with repeated writes, blanks and memberships.
fn recorded(seed: u64, count: u64) -> Vec<Entry> {
    let mut dice = Dice(seed);
    (1..=count).map(|index| random_entry(&mut dice, index)).collect()
}

fn random_entry(dice: &mut Dice, index: u64) -> Entry {
    match dice.roll(20) {
        0 => return Entry { log_id: log_id(index), payload: EntryPayload::Blank },
        1 => return membership(index, &[1, 2, 3 + dice.roll(3)]),
        _ => {}
    }
    let keys: Vec<Vec<u8>> = (0..6).map(|_| random_key(dice)).collect();
    let value = format!("{index}:{}", "x".repeat(usize::try_from(dice.roll(200)).unwrap())).into_bytes();
    let count = 1 + dice.roll(4);
    let commands: Vec<Command<'_>> = (0..count).map(|_| random_command(dice, index, &keys, &value)).collect();
    batch(index, Timestamp::from_millis(1_000_000 + index * 50 + dice.roll(100)), &commands)
}

/// Few keys, so that they are overwritten; some with zero bytes, some prefixes of others.
fn random_key(dice: &mut Dice) -> Vec<u8> {
    key_of(dice.roll(KEYS))
}

const KEYS: u64 = 40;

fn key_of(number: u64) -> Vec<u8> {
    match number % 3 {
        0 => format!("k{number}").into_bytes(),
        1 => vec![b'k', 0, u8::try_from(number).unwrap()],
        _ => vec![b'k'; usize::try_from(number / 4).unwrap() + 1],
    }
}

fn random_command<'a>(dice: &mut Dice, index: u64, keys: &'a [Vec<u8>], value: &'a [u8]) -> Command<'a> {
    let any = |dice: &mut Dice| keys[usize::try_from(dice.roll(6)).unwrap()].as_slice();
    let operations = (0..1 + dice.roll(3))
        .map(|_| match dice.roll(3) {
            0 => Operation::Delete { key: any(dice) },
            _ => Operation::Put { key: any(dice), value },
        })
        .collect();
    let exists = dice.roll(2) == 0;
    let conditions = match dice.roll(4) {
        0 => vec![Condition { key: any(dice), expected: Expected::Exists(exists) }],
        _ => Vec::new(),
    };
    let sequence = (index / 2).saturating_sub(dice.roll(4)).max(1);
    let tag = SessionTag {
        client: ClientId(u128::from(dice.roll(5))),
        sequence: Sequence(sequence),
        lowest_unfinished: Sequence(sequence.saturating_sub(3).max(1)),
    };
    Command { session: (dice.roll(2) == 0).then_some(tag), conditions, operations }
}
