//! Clusters with something wrong, and what must be said about them.

use kv_proto::pb::admin::v1::{PeerStatus, Replica, ReplicaLag, ReplicaRole, Shard};

use super::*;

const NOW: u64 = 1_800_000_000_000;
const GIB: u64 = 1 << 30;

/// Three nodes; six shards with a replica on each, led in turn; nothing wrong.
fn healthy() -> Facts {
    Facts {
        endpoints: (1..=3).map(|id| Endpoint { address: address(id), answer: Ok("c1".into()) }).collect(),
        nodes: (1..=3).map(node).collect(),
        keyspaces: vec![Keyspace {
            keyspace_id: 2,
            name: "default".into(),
            replicas: 3,
            state: 2,
            ..Keyspace::default()
        }],
        shards: (2..=7).map(|id| shard(id, 1 + id % 3)).collect(),
        earlier: Vec::new(),
        unanswered: Vec::new(),
        actions: Vec::new(),
        now_ms: NOW,
    }
}

fn address(id: u64) -> String {
    format!("127.0.0.1:700{id}")
}

fn node(id: u64) -> NodeListing {
    let node = Node { node_id: id, address: address(id), state: NodeState::Active.into(), ..Node::default() };
    let status = NodeStatus {
        node_id: id,
        may_lead: true,
        disk_total_bytes: 100 * GIB,
        disk_free_bytes: 60 * GIB,
        disk_free_min_bytes: GIB / 4,
        data_dir: format!("/data/{id}"),
        version: "0.1.0".into(),
        uptime_seconds: 3600,
        peers: (1..=3)
            .filter(|peer| *peer != id)
            .map(|node_id| PeerStatus { node_id, connected: true, last_heard_ms: NOW })
            .collect(),
        ..NodeStatus::default()
    };
    NodeListing { node: Some(node), status: Some(status), unreachable_reason: String::new() }
}

fn shard(id: u64, leader: u64) -> ShardListing {
    let replica = |n| Replica { replica_id: n, node_id: n, role: ReplicaRole::Voter.into() };
    let record = Shard { shard_id: id, keyspace_id: 2, replicas: (1..=3).map(replica).collect(), ..Shard::default() };
    let status = |n| ReplicaStatus {
        shard_id: id,
        replica_id: n,
        node_id: n,
        role: if n == leader { "leader" } else { "follower" }.into(),
        term: 4,
        leader_replica_id: leader,
        last_index: 50_000,
        committed_index: 50_000,
        applied_index: 50_000,
        followers: if n == leader { followers(leader) } else { Vec::new() },
        ..ReplicaStatus::default()
    };
    ShardListing { shard: Some(record), keyspace: "default".into(), replicas: (1..=3).map(status).collect() }
}

fn followers(leader: u64) -> Vec<ReplicaLag> {
    let lag = |replica_id| ReplicaLag { replica_id, matched_index: 50_000, lag: 0 };
    (1..=3).filter(|id| *id != leader).map(lag).collect()
}

fn status(facts: &mut Facts, node: usize) -> &mut NodeStatus {
    facts.nodes[node - 1].status.as_mut().unwrap()
}

/// The node stops answering; its leaders move to the next node.
fn kill(facts: &mut Facts, node: u64) {
    let listing = &mut facts.nodes[node as usize - 1];
    listing.status = None;
    listing.unreachable_reason = "connection refused".into();
    facts.endpoints[node as usize - 1].answer = Err("connection refused".into());
    for shard in &mut facts.shards {
        let mut led = false;
        for replica in shard.replicas.iter_mut().filter(|replica| replica.node_id == node) {
            led |= replica.role == "leader";
            replica.role = "down".into();
        }
        let heir = if node == 1 { 2 } else { 1 };
        for replica in shard.replicas.iter_mut().filter(|replica| led && replica.node_id == heir) {
            replica.role = "leader".into();
            replica.followers = followers(heir);
        }
    }
}

fn lag(facts: &mut Facts, shard: usize, replica: u64, entries: u64) {
    let leader = facts.shards[shard - 2].replicas.iter_mut().find(|replica| replica.role == "leader").unwrap();
    let follower = leader.followers.iter_mut().find(|follower| follower.replica_id == replica).unwrap();
    follower.lag = entries;
    follower.matched_index -= entries;
}

/// `severity problem subject` of each finding.
fn names(facts: &Facts) -> Vec<String> {
    let line = |finding: &Finding| format!("{} {} {}", finding.severity.name(), finding.problem, finding.subject);
    diagnose(facts).iter().map(line).collect()
}

fn text(facts: &Facts, problem: &str) -> (String, Vec<String>) {
    let finding = diagnose(facts).into_iter().find(|finding| finding.problem == problem).expect(problem);
    (finding.what, finding.help.into_iter().map(|help| help.command).collect())
}

#[test]
fn a_healthy_cluster_has_no_findings() {
    assert_eq!(diagnose(&healthy()), []);
}

#[test]
fn a_dead_node_and_a_lagging_replica_and_a_full_disk_are_each_named_with_a_command() {
    let mut facts = healthy();
    kill(&mut facts, 3);
    status(&mut facts, 2).read_only = true;
    status(&mut facts, 2).disk_free_bytes = GIB / 10;
    lag(&mut facts, 4, 1, 12_345);
    assert_eq!(
        names(&facts),
        ["critical disk-full node 2", "critical node-down node 3", "warning replica-lagging node 1"]
    );
    let (what, commands) = text(&facts, "node-down");
    assert_eq!(
        what,
        "node 3 (127.0.0.1:7003) does not answer (connection refused): 6 shards have one replica fewer than wanted"
    );
    assert_eq!(
        commands,
        ["scripts/cluster start 3", "scripts/cluster add-node", "kvctl node remove 3 --force not-drained"]
    );
    let (what, commands) = text(&facts, "disk-full");
    assert_eq!(
        what,
        "node 2 (127.0.0.1:7002) refuses writes, because its disk is full: 102.4 MiB of 100.0 GiB free in /data/2; it \
         takes writes while 256.0 MiB are"
    );
    assert_eq!(commands, ["df -h /data/2", "kvctl node drain 2"]);
    let (what, commands) = text(&facts, "replica-lagging");
    assert_eq!(what, "a replica on node 1 (127.0.0.1:7001) lags behind the leader: shard 4 by 12,345 entries");
    assert_eq!(commands, ["kvctl shard describe 4", "kvctl node status 1"]);
}

#[test]
fn every_finding_names_a_command_that_helps() {
    let mut facts = healthy();
    kill(&mut facts, 3);
    kill(&mut facts, 2);
    status(&mut facts, 1).read_only = true;
    facts.keyspaces[0].replicas = 5;
    facts.actions = vec![action(7, 60_000)];
    let findings = diagnose(&facts);
    assert!(findings.len() > 4, "{findings:#?}");
    for finding in findings {
        assert!(!finding.help.is_empty(), "{finding:?}");
    }
}

#[test]
fn shards_that_lost_their_quorum_for_the_same_cause_are_one_finding_that_names_shards_and_nodes() {
    let mut facts = healthy();
    kill(&mut facts, 3);
    kill(&mut facts, 2);
    assert_eq!(
        names(&facts),
        ["critical node-down node 2", "critical node-down node 3", "critical no-quorum shards 2 to 7"]
    );
    let (what, commands) = text(&facts, "no-quorum");
    assert_eq!(
        what,
        "shards 2 to 7 of keyspace default have lost their quorum, because node 2 (127.0.0.1:7002) and node 3 \
         (127.0.0.1:7003) do not answer. They serve neither writes nor linearizable reads"
    );
    assert_eq!(
        commands,
        ["scripts/cluster start 2", "kv-node unsafe-recover-shard --shard 2 --accept-data-loss --data-dir FOLDER"]
    );
    let when = |facts: &Facts| diagnose(facts).into_iter().find(|found| found.problem == "no-quorum").unwrap().help;
    assert_eq!(when(&facts)[0].when, "bring 1 of them back; on a local cluster");
    facts.shards.truncate(1);
    assert!(text(&facts, "no-quorum").0.starts_with("shard 2 of keyspace default has lost its quorum, because"));
}

#[test]
fn shards_that_miss_different_nodes_are_findings_of_their_own() {
    let mut facts = healthy();
    kill(&mut facts, 3);
    kill(&mut facts, 2);
    let shard = facts.shards[1].shard.as_mut().unwrap();
    shard.replicas.retain(|replica| replica.node_id != 2);
    let found: Vec<String> = names(&facts).into_iter().filter(|name| name.contains("no-quorum")).collect();
    assert_eq!(found, ["critical no-quorum shards 2, 4, 5, 6 and 7", "critical no-quorum shard 3"]);
}

#[test]
fn a_node_that_a_quorum_needs_is_never_to_be_removed() {
    let removes = |facts: &Facts| {
        let help = diagnose(facts).into_iter().flat_map(|finding| finding.help);
        help.filter(|help| help.command.contains("node remove")).count()
    };
    let mut facts = healthy();
    kill(&mut facts, 3);
    assert_eq!(removes(&facts), 1);
    kill(&mut facts, 2);
    assert_eq!(removes(&facts), 0);
    facts.nodes[1].node.as_mut().unwrap().state = NodeState::Lost.into();
    assert_eq!(text(&facts, "node-lost").1, ["kvctl node list"]);
    assert_eq!(removes(&facts), 0);
}

#[test]
fn a_dead_node_is_replaced_at_once_where_another_node_can_take_its_replicas() {
    let mut facts = healthy();
    facts.nodes.push(node(4));
    kill(&mut facts, 3);
    assert_eq!(text(&facts, "node-down").1, ["scripts/cluster start 3", "kvctl node remove 3 --force not-drained"]);
}

#[test]
fn a_shard_without_a_leader_is_told_from_one_without_a_quorum() {
    let mut facts = healthy();
    for replica in &mut facts.shards[0].replicas {
        replica.role = "candidate".into();
    }
    assert_eq!(names(&facts), ["critical no-leader shard 2"]);
    for replica in &mut facts.shards[2].replicas {
        replica.role = "candidate".into();
    }
    assert_eq!(names(&facts), ["critical no-leader shards 2 and 4"]);
    let what = "shards 2 and 4 of keyspace default have no leader, though 3 of 3 voters answer";
    assert_eq!(text(&facts, "no-leader").0, what);
}

#[test]
fn a_leader_that_no_majority_answers_is_told_though_all_voters_answer_here() {
    let mut facts = healthy();
    for shard in [0, 3] {
        let leader = facts.shards[shard].replicas.iter_mut().find(|replica| replica.role == "leader").unwrap();
        leader.no_quorum = true;
    }
    assert_eq!(names(&facts), ["critical no-quorum shards 2 and 5"]);
    let (what, commands) = text(&facts, "no-quorum");
    assert_eq!(
        what,
        "shards 2 and 5 of keyspace default have no quorum: no majority answers the leader on node 3 (127.0.0.1:7003), \
         though 3 of 3 voters answer here"
    );
    assert_eq!(commands, ["kvctl doctor", "kvctl node status 3"]);
}

#[test]
fn a_replica_that_is_slightly_behind_is_a_problem_only_if_it_stands_still() {
    let mut facts = healthy();
    lag(&mut facts, 3, 2, 40);
    assert_eq!(names(&facts), [""; 0]);
    facts.earlier = facts.shards.clone();
    assert_eq!(names(&facts), ["warning replica-lagging node 2"]);
    lag(&mut facts, 3, 2, 0);
    let moved = facts.shards[1].replicas.iter_mut().find(|replica| replica.role == "leader").unwrap();
    moved.followers.iter_mut().for_each(|follower| follower.matched_index += 10);
    assert_eq!(names(&facts), [""; 0]);
}

#[test]
fn lag_on_a_dead_node_is_part_of_the_dead_node() {
    let mut facts = healthy();
    kill(&mut facts, 3);
    lag(&mut facts, 2, 3, 40_000);
    assert_eq!(names(&facts), ["critical node-down node 3"]);
}

#[test]
fn an_under_replicated_shard_gets_the_emptiest_node_or_the_advice_to_add_one() {
    let mut facts = healthy();
    facts.shards[1].shard.as_mut().unwrap().replicas.pop();
    facts.shards[1].replicas.pop();
    let (what, commands) = text(&facts, "under-replicated");
    assert_eq!(what, "shard 3 of keyspace default has 2 voters of the 3 its keyspace asks for");
    assert_eq!(commands, ["kvctl shard add-learner 3 --node 3", "kvctl shard promote 3 --node 3"]);
    facts.nodes[2].node.as_mut().unwrap().state = NodeState::Draining.into();
    assert_eq!(text(&facts, "under-replicated").1, ["scripts/cluster add-node"]);
    facts.keyspaces[0].replicas = 5;
    facts.shards[1] = shard(3, 1);
    assert_eq!(
        names(&facts),
        ["warning under-replicated shards 2 to 7", "note node-draining node 3"],
        "one finding for all shards"
    );
}

#[test]
fn a_learner_that_waits_is_promoted_rather_than_added_again() {
    let mut facts = healthy();
    facts.shards[0].shard.as_mut().unwrap().replicas[2].role = ReplicaRole::Learner.into();
    assert_eq!(text(&facts, "under-replicated").1, ["kvctl shard promote 2 --node 3"]);
}

fn action(id: u64, age_ms: u64) -> Action {
    Action {
        action_id: id,
        kind: kv_proto::pb::admin::v1::ActionKind::MoveReplica.into(),
        shard_id: 2,
        from_node_id: 1,
        to_node_id: 3,
        state: ActionState::Running.into(),
        progress: "catching up".into(),
        percent: 40,
        started_ms: NOW - age_ms,
        ..Action::default()
    }
}

#[test]
fn an_action_is_stuck_when_it_waits_for_a_dead_node_or_takes_too_long() {
    let mut facts = healthy();
    facts.actions = vec![action(7, 60_000)];
    assert_eq!(names(&facts), [""; 0]);
    facts.actions = vec![action(7, 11 * 60_000)];
    let (what, commands) = text(&facts, "action-stuck");
    assert_eq!(what, "action 7 (move replica of shard 2) has been running for 11m 0s; it stands at 40 % (catching up)");
    assert_eq!(commands, ["kvctl action wait 7", "kvctl action cancel 7"]);
    facts.actions = vec![action(7, 60_000)];
    kill(&mut facts, 3);
    assert!(text(&facts, "action-stuck").0.contains("waits for node 3 (127.0.0.1:7003), which does not answer"));
}

#[test]
fn a_clock_that_is_off_is_blamed_on_the_node_that_refuses_to_lead() {
    let mut facts = healthy();
    for node in 1..=3 {
        status(&mut facts, node).clock_offset_ms = 900;
    }
    assert_eq!(names(&facts), ["warning clock-off cluster"]);
    status(&mut facts, 2).may_lead = false;
    assert_eq!(names(&facts), ["warning clock-off node 2"]);
}

#[test]
fn a_node_that_may_not_lead_for_another_reason_says_which() {
    let mut facts = healthy();
    status(&mut facts, 2).may_lead = false;
    status(&mut facts, 2).may_not_lead_reason = "it is shutting down".into();
    assert_eq!(text(&facts, "may-not-lead").0, "node 2 (127.0.0.1:7002) refuses to lead shards: it is shutting down");
}

#[test]
fn leaders_that_stay_on_one_node_are_handed_over_one_by_one() {
    let mut facts = healthy();
    facts.shards = (2..=7).map(|id| shard(id, 1)).collect();
    assert_eq!(names(&facts), [""; 0], "one look does not tell what passes from what stays");
    facts.earlier = facts.shards.clone();
    let (what, commands) = text(&facts, "leaders-uneven");
    assert_eq!(what, "leaders are spread unevenly: node 1 leads 6, node 2 leads 0 and node 3 leads 0");
    assert_eq!(commands, ["kvctl shard transfer-leader 2 --to 2"]);
    status(&mut facts, 3).uptime_seconds = 20;
    assert_eq!(names(&facts), [""; 0], "a node that has just started gets its share by itself");
    status(&mut facts, 3).uptime_seconds = 3600;
    facts.earlier = healthy().shards;
    assert_eq!(names(&facts), [""; 0], "they have moved just now");
}

#[test]
fn a_link_that_is_down_between_two_living_nodes_is_named() {
    let mut facts = healthy();
    status(&mut facts, 1).peers[0].connected = false;
    assert_eq!(names(&facts), ["warning link-down node 1"]);
}

#[test]
fn a_replica_that_does_not_run_on_a_living_node_is_named() {
    let mut facts = healthy();
    facts.shards[0].replicas[0].role = "down".into();
    assert_eq!(names(&facts), ["warning replica-down shard 2"]);
    facts.shards[2].replicas[0].role = "down".into();
    assert_eq!(names(&facts), ["warning replica-down shards 2 and 4"]);
    let what = "replicas of shards 2 and 4 of keyspace default do not run on node 1 (127.0.0.1:7001), though that node \
                answers";
    assert_eq!(text(&facts, "replica-down").0, what);
}

#[test]
fn a_disk_is_a_problem_only_once_its_node_is_about_to_act() {
    let mut facts = healthy();
    status(&mut facts, 1).disk_free_bytes = 9 * GIB;
    assert_eq!(names(&facts), ["note disk-low node 1"]);
    assert!(!has_problems(&diagnose(&facts)), "36 times what the node needs is free");
    status(&mut facts, 1).disk_free_bytes = GIB / 2;
    assert_eq!(names(&facts), ["note disk-low node 1"]);
    status(&mut facts, 1).disk_free_bytes = GIB / 2 - 1;
    assert_eq!(names(&facts), ["warning disk-low node 1"]);
    let (what, commands) = text(&facts, "disk-low");
    assert_eq!(
        what,
        "node 1 (127.0.0.1:7001) will soon refuse writes for lack of disk space: 512.0 MiB of 100.0 GiB free in \
         /data/1; it takes writes while 256.0 MiB are"
    );
    assert_eq!(commands, ["df -h /data/1", "kvctl node drain 1"]);
}

#[test]
fn a_small_disk_is_judged_by_what_its_node_needs_not_by_its_share() {
    let mut facts = healthy();
    status(&mut facts, 1).disk_total_bytes = GIB;
    status(&mut facts, 1).disk_free_bytes = GIB / 3;
    assert_eq!(
        names(&facts),
        ["warning disk-low node 1"],
        "a third of it is free, and the node stops at a quarter GiB"
    );
    status(&mut facts, 1).disk_free_min_bytes = 0;
    assert_eq!(names(&facts), [""; 0], "a node without a limit refuses nothing");
}

#[test]
fn a_cluster_that_does_not_answer_at_all_is_one_finding() {
    let endpoint = |id| Endpoint { address: address(id), answer: Err("connection refused".into()) };
    let facts = Facts { endpoints: (1..=2).map(endpoint).collect(), ..Facts::default() };
    assert_eq!(names(&facts), ["critical cluster-unreachable cluster"]);
    assert!(text(&facts, "cluster-unreachable").1.contains(&"scripts/cluster up".to_owned()));
}

#[test]
fn an_endpoint_of_no_node_is_only_a_note() {
    let mut facts = healthy();
    facts.endpoints.push(Endpoint { address: "127.0.0.1:7009".into(), answer: Err("connection refused".into()) });
    assert_eq!(names(&facts), ["note endpoint-unknown endpoint 127.0.0.1:7009"]);
    assert!(!has_problems(&diagnose(&facts)));
}

#[test]
fn notes_alone_are_no_problem_and_a_warning_is_one() {
    let mut facts = healthy();
    facts.nodes[1].node.as_mut().unwrap().state = NodeState::Draining.into();
    assert_eq!(names(&facts), ["note node-draining node 2"]);
    assert!(!has_problems(&diagnose(&facts)));
    kill(&mut facts, 3);
    assert!(has_problems(&diagnose(&facts)));
}

#[test]
fn a_cluster_that_cannot_say_how_it_is_is_never_called_healthy() {
    let facts = Facts {
        endpoints: vec![Endpoint { address: address(1), answer: Ok("c1".into()) }],
        unanswered: vec!["list nodes failed: no answer within 5s".into()],
        ..Facts::default()
    };
    assert_eq!(names(&facts), ["critical catalog-unreadable cluster"]);
}

#[test]
fn a_cluster_that_waits_for_its_first_nodes_says_so() {
    let mut facts = healthy();
    facts.keyspaces.clear();
    facts.shards.clear();
    facts.nodes.truncate(1);
    facts.endpoints.truncate(1);
    assert!(text(&facts, "no-keyspace").0.ends_with("and 1 node has"), "{:?}", text(&facts, "no-keyspace"));
}
