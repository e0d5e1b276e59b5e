//! Runs the scripts beside this file against a fixed catalog.
//!
//! Keyspaces: `default` (hash, shards 2 and 3), `ordered` (range, shard 4 up to key m, shard 5 from there), `fading`
//! (being deleted), `system` (shard 1). Nodes 1, 2 and 3; shard 4 prefers node 2 and lies on nodes 2 and 3 only; shard 5
//! is at epoch 3. This node is node 1.

use std::error::Error;
use std::path::Path;

use goldenscript::{Command, Context};
use kv_proto::pb::admin::v1::{Catalog, Keyspace, KeyspaceKind, KeyspaceState, Node, NodeState, Replica, Shard};

use super::*;
use crate::catalog::LeaderRecord;

#[derive(Default)]
struct Runner {
    leaders: Leaders,
}

fn keyspace(id: u32, name: &str, kind: KeyspaceKind, state: KeyspaceState) -> Keyspace {
    let (kind, state, name) = (kind.into(), state.into(), name.to_owned());
    Keyspace { keyspace_id: id, name, kind, state, replicas: 3, ..Default::default() }
}

fn shard(id: u64, keyspace: u32, range: &KeyRange, epoch: u64, nodes: &[u64]) -> Shard {
    let replica = |node: &u64| Replica { replica_id: node * 10, node_id: *node, role: 1 };
    Shard {
        shard_id: id,
        keyspace_id: keyspace,
        start: range.start().clone(),
        end: range.end().clone(),
        epoch,
        replicas: nodes.iter().map(replica).collect(),
        preferred_leader_replica_id: 20,
        ..Default::default()
    }
}

fn view() -> CatalogView {
    let node = |id: u64| Node {
        node_id: id,
        address: format!("n{id}:1"),
        state: NodeState::Active.into(),
        ..Default::default()
    };
    let slots = keys::split_by_slots(KeyspaceId(2), 2);
    let ordered = keys::split_by_keys(KeyspaceId(3), &["m".into()]).unwrap();
    let ready = KeyspaceState::Ready;
    CatalogView::new(Catalog {
        format: 1,
        version: 7,
        nodes: (1..=3).map(node).collect(),
        keyspaces: vec![
            keyspace(1, "system", KeyspaceKind::Range, ready),
            keyspace(2, "default", KeyspaceKind::Hash, ready),
            keyspace(3, "ordered", KeyspaceKind::Range, ready),
            keyspace(4, "fading", KeyspaceKind::Range, KeyspaceState::Deleting),
        ],
        shards: vec![
            shard(1, 1, &keys::keyspace_range(SYSTEM_KEYSPACE), 1, &[1, 2, 3]),
            shard(2, 2, &slots[0], 1, &[1, 2, 3]),
            shard(3, 2, &slots[1], 1, &[1, 2, 3]),
            shard(4, 3, &ordered[0], 1, &[3, 2]),
            shard(5, 3, &ordered[1], 3, &[1, 2, 3]),
        ],
        ..Default::default()
    })
    .unwrap()
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let number = |text: Option<&str>| text.map_or(Ok(0), str::parse::<u64>);
        let list = |text: Option<&str>| -> Vec<String> {
            text.map_or_else(Vec::new, |text| text.split(',').map(str::to_owned).collect())
        };
        match command.name.as_str() {
            "leader" => {
                let (shard, node) = (number(args.take_key("shard"))?, number(args.take_key("node"))?);
                self.leaders = Leaders::default();
                self.leaders.learn(ShardId(shard), LeaderRecord { term: 1, node: NodeId(node) });
                Ok(String::new())
            }
            "route" => {
                let header = RequestHeader {
                    keyspace: args.take_key("keyspace").unwrap_or_default().to_owned(),
                    shard_id: number(args.take_key("shard"))?,
                    epoch: number(args.take_key("epoch"))?,
                    hops: u32::try_from(number(args.take_key("hops"))?)?,
                    wrong_node: if args.take_key("wrong") == Some("redirect") { 2 } else { 0 },
                    ..Default::default()
                };
                let keys = list(args.take_key("keys"));
                let need = if args.take_key("need") == Some("any") { Need::Any } else { Need::Leader };
                let hosted = match args.take_key("here") {
                    Some("leads") => Some(Hosted { leads: true, leader: Some(NodeId(1)) }),
                    Some("lost") => Some(Hosted { leads: false, leader: None }),
                    Some(leader) => Some(Hosted { leads: false, leader: Some(NodeId(leader.parse()?)) }),
                    None => None,
                };
                let tried = list(args.take_key("tried"));
                let tried: Result<Vec<NodeId>, _> = tried.iter().map(|node| node.parse().map(NodeId)).collect();
                args.reject_next()?;
                let view = view();
                let situation = Situation { view: &view, leaders: &self.leaders, node: NodeId(1) };
                Ok(route(&situation, &header, &keys, (need, hosted, &tried?)).unwrap_or_else(|error| describe(&error)))
            }
            other => Err(format!("{other} is no command").into()),
        }
    }
}

fn route(
    situation: &Situation<'_>,
    header: &RequestHeader,
    keys: &[String],
    (need, hosted, tried): (Need, Option<Hosted>, &[NodeId]),
) -> Result<String, ServiceError> {
    let space = situation.space(header)?;
    let encoded: Vec<Bytes> = keys.iter().map(|key| space.encode(key.as_bytes())).collect();
    let shard = situation.shard_of_all(header, &encoded)?;
    let plan = match situation.plan(header, shard, need, hosted, tried) {
        Plan::Serve => "serve".to_owned(),
        Plan::Forward { address, .. } => format!("forward to {address}"),
        Plan::Refuse(error) => describe(&error),
    };
    Ok(format!("shard {}: {plan}", shard.id()))
}

fn describe(error: &ServiceError) -> String {
    let hint = error.route_hint().map(|hint| {
        let shard = hint.shard.as_ref().map_or(0, |route| route.leader_node_id);
        let current: Vec<String> =
            hint.current.iter().map(|route| format!("{}@{}", route.shard_id, route.epoch)).collect();
        format!(" leader={shard} current=[{}]", current.join(","))
    });
    format!("{}: {error}{}", error.reason(), hint.unwrap_or_default())
}

#[test]
fn scripts_of_the_router() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/router/scripts");
    for name in ["keyspaces", "routes", "wrong_node"] {
        goldenscript::run(&mut Runner::default(), folder.join(name)).unwrap();
    }
}

#[test]
fn a_node_without_a_catalog_is_not_ready_rather_than_ignorant_of_the_keyspace() {
    let (view, leaders) = (CatalogView::default(), Leaders::default());
    let situation = Situation { view: &view, leaders: &leaders, node: NodeId(1) };
    let error = situation.space(&RequestHeader::default()).unwrap_err();
    assert_eq!(error.reason(), "NOT_READY");
}
