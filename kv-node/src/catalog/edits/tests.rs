use kv_proto::errors::ServiceError;
use kv_proto::pb::admin::v1::{CreateKeyspaceRequest, KeyspaceKind, MoveReplicaRequest, Node, NodeState};
use kv_proto::pb::raft::v1::JoinRequest;
use kv_proto::timestamp::Timestamp;

use super::{actions, bootstrap, keyspaces, nodes};
use crate::catalog::records::Records;

fn one_node() -> Records {
    let node = Node { node_id: 1, address: "a:1".into(), instance_id: vec![1; 16].into(), ..active() };
    bootstrap::first_records("c", node, 1, 2).applied_to(&Records::default(), Timestamp(1))
}

fn active() -> Node {
    Node { state: NodeState::Active.into(), ..Default::default() }
}

fn request(instance: u8, address: &str) -> JoinRequest {
    JoinRequest { instance_id: vec![instance; 16].into(), address: address.into(), ..Default::default() }
}

fn join(records: &Records, instance: u8, address: &str) -> (Records, Node) {
    let (change, node) = nodes::join(records, &request(instance, address), 7).unwrap();
    (change.applied_to(records, Timestamp(records.version + 1)), node)
}

#[test]
fn joining_twice_gives_the_same_node() {
    let (records, first) = join(&one_node(), 2, "a:2");
    let (change, second) = nodes::join(&records, &request(2, "a:2"), 9).unwrap();
    assert_eq!((first.node_id, change.is_empty()), (2, true));
    assert_eq!(first, second);
}

#[test]
fn a_node_that_comes_back_elsewhere_keeps_its_id() {
    let (records, node) = join(&one_node(), 1, "b:1");
    assert_eq!((node.node_id, node.address.as_str()), (1, "b:1"));
    assert_eq!(records.nodes.len(), 1);
}

#[test]
fn a_new_instance_at_the_address_of_another_marks_that_one_lost() {
    let (records, node) = join(&one_node(), 9, "a:1");
    assert_eq!(node.node_id, 2);
    assert_eq!(records.nodes[&1].state(), NodeState::Lost);
    assert_eq!(records.nodes[&2].state(), NodeState::Active);
}

#[test]
fn a_removed_node_and_a_node_of_another_cluster_are_not_let_in() {
    let mut records = one_node();
    records.nodes.get_mut(&1).unwrap().set_state(NodeState::Removed);
    assert!(matches!(nodes::join(&records, &request(1, "a:1"), 7), Err(ServiceError::Refused { .. })));
    let foreign = JoinRequest { cluster_id: "other".into(), ..request(3, "a:3") };
    assert!(matches!(nodes::join(&records, &foreign, 7), Err(ServiceError::ClusterMismatch { .. })));
    let nameless = JoinRequest { instance_id: vec![1].into(), ..request(3, "a:3") };
    assert!(matches!(nodes::join(&records, &nameless, 7), Err(ServiceError::Invalid { .. })));
}

#[test]
fn every_fault_of_a_new_keyspace_is_named() {
    let cases = [
        (CreateKeyspaceRequest { name: "No Such".into(), ..Default::default() }, "name"),
        (CreateKeyspaceRequest { name: String::new(), ..Default::default() }, "name"),
        (CreateKeyspaceRequest { name: "system".into(), ..Default::default() }, "name"),
        (CreateKeyspaceRequest { name: "a".into(), replicas: 2, ..Default::default() }, "replicas"),
        (CreateKeyspaceRequest { name: "a".into(), replicas: 3, ..Default::default() }, "replicas"),
        (CreateKeyspaceRequest { name: "a".into(), shards: 5000, ..Default::default() }, "shards"),
        (CreateKeyspaceRequest { name: "a".into(), split_keys: vec!["k".into()], ..Default::default() }, "split_keys"),
        (range(&["b", "a"], 0), "split_keys"),
        (range(&["", "a"], 0), "split_keys"),
        (range(&["a", "b"], 2), "shards"),
        (CreateKeyspaceRequest { name: "a".into(), kind: 77, ..Default::default() }, "kind"),
    ];
    for (request, field) in cases {
        match keyspaces::create(&one_node(), &request, |_| true) {
            Err(ServiceError::Invalid { violations }) => assert_eq!(violations[0].field, field, "{request:?}"),
            other => unreachable!("{request:?}: {other:?}"),
        }
    }
}

fn range(split_keys: &[&'static str], shards: u32) -> CreateKeyspaceRequest {
    let split_keys = split_keys.iter().map(|key| (*key).into()).collect();
    CreateKeyspaceRequest {
        name: "a".into(),
        kind: KeyspaceKind::Range.into(),
        split_keys,
        shards,
        ..Default::default()
    }
}

#[test]
fn a_name_is_taken_once_and_default_keeps_its_id() {
    let records = one_node();
    let other = CreateKeyspaceRequest { name: "other".into(), ..Default::default() };
    let (change, other) = keyspaces::create(&records, &other, |_| true).unwrap();
    assert_eq!(other.keyspace_id, 3);
    let records = change.applied_to(&records, Timestamp(2));
    let records = keyspaces::create_default(&records, |_| true).unwrap().applied_to(&records, Timestamp(3));
    assert_eq!(records.keyspaces[&2].name, "default");
    for keyspace in [2, 3] {
        let shards = records.shards.values().filter(|shard| shard.keyspace_id == keyspace).count();
        assert_eq!(shards, 2, "as many as the cluster has by default");
    }
    assert_eq!(records.cluster.as_ref().unwrap().bootstrap_nodes, 0, "it is created once");
    let again = CreateKeyspaceRequest { name: "default".into(), ..Default::default() };
    assert!(matches!(keyspaces::create(&records, &again, |_| true), Err(ServiceError::AlreadyExists { .. })));
    assert!(matches!(keyspaces::delete(&records, "system"), Err(ServiceError::Refused { .. })));
    assert!(matches!(keyspaces::delete(&records, "none"), Err(ServiceError::KeyspaceNotFound { .. })));
}

#[test]
fn a_keyspace_that_exists_is_told_apart_by_whether_it_is_what_was_asked_for() {
    let asked = range(&["g", "p"], 3);
    let (change, _) = keyspaces::create(&one_node(), &asked, |_| true).unwrap();
    let records = change.applied_to(&one_node(), Timestamp(2));
    let what = |request: &CreateKeyspaceRequest| match keyspaces::create(&records, request, |_| true) {
        Err(ServiceError::AlreadyExists { what, .. }) => what,
        other => unreachable!("{other:?}"),
    };
    assert_eq!(what(&asked), "keyspace with these settings");
    assert_eq!(what(&CreateKeyspaceRequest { replicas: 1, ..asked.clone() }), "keyspace with these settings");
    for other in [
        range(&["g"], 0),
        range(&["g", "q"], 0),
        CreateKeyspaceRequest { retention_seconds: 1, ..asked.clone() },
        CreateKeyspaceRequest { name: "a".into(), ..Default::default() },
    ] {
        assert_eq!(what(&other), "keyspace with other settings", "{other:?}");
    }
}

#[test]
fn a_check_that_does_not_exist_is_answered_with_those_that_do() {
    let error = nodes::drain(&one_node(), 1, &["everything".to_owned()], 7).unwrap_err().to_string();
    assert!(error.contains("no check is named \"everything\"; this call has quorum"), "{error}");
}

#[test]
fn a_move_does_not_begin_once_its_target_drains() {
    let (records, _) = join(&one_node(), 2, "a:2");
    let asked = CreateKeyspaceRequest { name: "a".into(), replicas: 1, shards: 1, ..Default::default() };
    let (change, _) = keyspaces::create(&records, &asked, |node| node == 1).unwrap();
    let mut records = change.applied_to(&records, Timestamp(3));
    records.shards.values_mut().for_each(|shard| shard.creating = false);
    let shard_id = *records.shards.keys().next_back().unwrap();
    let request = MoveReplicaRequest { shard_id, from_node_id: 1, to_node_id: 2, epoch: 0 };
    let (movement, _) = actions::move_replica(&records, &request, 7).unwrap();
    let (drain, ..) = nodes::drain(&records, 2, &[], 7).unwrap();
    let drained = drain.applied_to(&records, Timestamp(4));
    assert_ne!(movement.conditions(&records), movement.conditions(&drained), "it would be applied all the same");
}
