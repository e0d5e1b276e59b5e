//! How shards are shown: range, leader, replicas, lag.
//!
//! Not here: which shards and what is done to them (shard).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use kv_proto::keys::{self, Layout};
use kv_proto::pb::admin::v1::{KeyspaceKind, Replica, ReplicaRole, ReplicaStatus, Shard, ShardListing};
use kv_proto::slot::SLOTS;
use serde_json::{Map, Value, json};

use crate::doctor::{lacks_quorum, leader_of};
use crate::human;
use crate::output::{Grid, Look, Text, Tone, toned};
use crate::values;

/// Kind of each keyspace by id.
pub(crate) type Kinds = BTreeMap<u32, KeyspaceKind>;

/// Characters of a key in a range.
const KEY_SHOWN: usize = 24;

fn layout(shard: &Shard, kinds: &Kinds) -> Layout {
    match kinds.get(&shard.keyspace_id) {
        Some(KeyspaceKind::Hash) => Layout::Hash,
        Some(KeyspaceKind::Range | KeyspaceKind::Unspecified) | None => Layout::Range,
    }
}

/// First and last slot of a shard of a hash keyspace.
fn slots(shard: &Shard) -> (u16, u16) {
    let first = keys::slot_of(&shard.start).map_or(0, |slot| slot.get());
    let last = keys::slot_of(&shard.end).map_or(SLOTS - 1, |slot| slot.get().saturating_sub(1));
    (first, last)
}

/// The user key of a bound; None where the keyspace begins or ends.
fn bound(encoded: &Bytes, keyspace: u32) -> Option<Bytes> {
    let inside = encoded.starts_with(&keyspace.to_be_bytes());
    keys::decode(Layout::Range, encoded).filter(|key| inside && !key.is_empty())
}

fn range(shard: &Shard, kinds: &Kinds) -> String {
    match layout(shard, kinds) {
        Layout::Hash => {
            let (first, last) = slots(shard);
            format!("slots {first}-{last}")
        }
        Layout::Range => {
            let (start, end) = (bound(&shard.start, shard.keyspace_id), bound(&shard.end, shard.keyspace_id));
            let shown = |key: &Bytes| values::shorten(&values::show(key), KEY_SHOWN);
            match (start.as_ref().map(shown), end.as_ref().map(shown)) {
                (None, None) => "all keys".to_owned(),
                (Some(start), None) => format!("from {start}"),
                (None, Some(end)) => format!("below {end}"),
                (Some(start), Some(end)) => format!("{start} to below {end}"),
            }
        }
    }
}

fn status_of<'a>(listing: &'a ShardListing, replica: &Replica) -> Option<&'a ReplicaStatus> {
    listing.replicas.iter().find(|status| status.replica_id == replica.replica_id && status.role != "down")
}

/// The role a replica has, or is to have: `leader`, `follower`, `candidate`, `learner`, `down`.
fn role<'a>(listing: &'a ShardListing, replica: &Replica) -> &'a str {
    let leads = leader_of(listing).is_some_and(|leader| leader.replica_id == replica.replica_id);
    match status_of(listing, replica) {
        _ if leads => "leader",
        Some(status) if status.role == "leader" => "follower",
        Some(status) => &status.role,
        None => "down",
    }
}

/// The role as people read it: a leader that no majority answers leads nobody.
fn role_text(listing: &ShardListing, role: &str) -> Text {
    if role == "leader" && lacks_quorum(listing) {
        return toned("leader, no quorum", Tone::Bad);
    }
    toned(role, role_tone(role))
}

fn role_tone(role: &str) -> Tone {
    match role {
        "leader" => Tone::Good,
        "down" => Tone::Bad,
        "candidate" => Tone::Warn,
        _ => Tone::Plain,
    }
}

/// How the leader is marked: `?` if no majority answers it.
fn leader_mark(listing: &ShardListing) -> &'static str {
    if lacks_quorum(listing) { "?" } else { "*" }
}

/// Nodes of the replicas: `1* 2 3`, with `*` the leader, `?` one that no majority answers, `+` a learner, `!` down.
fn replicas(listing: &ShardListing, shard: &Shard) -> Text {
    let mut sorted: Vec<&Replica> = shard.replicas.iter().collect();
    sorted.sort_by_key(|replica| replica.node_id);
    let mut any_down = false;
    let words: Vec<String> = sorted
        .into_iter()
        .map(|replica| {
            let role = role(listing, replica);
            any_down |= role == "down";
            let mark = match role {
                "leader" => leader_mark(listing),
                "down" => "!",
                _ if replica.role() == ReplicaRole::Learner => "+",
                _ => "",
            };
            format!("{}{mark}", replica.node_id)
        })
        .collect();
    toned(words.join(" "), if any_down { Tone::Bad } else { Tone::Plain })
}

/// Entries the replica that is furthest behind lacks, also one that is down; None without a leader.
fn worst_lag(listing: &ShardListing) -> Option<u64> {
    let leader = leader_of(listing)?;
    Some(leader.followers.iter().map(|lag| lag.lag).max().unwrap_or(0))
}

/// Whether it serves, in words that `-o json` prints too.
fn state(listing: &ShardListing, shard: &Shard) -> Text {
    match leader_of(listing) {
        Some(leader) if leader.no_quorum => toned("no quorum", Tone::Bad),
        Some(leader) if leader.hibernated => toned("asleep", Tone::Dim),
        Some(_) => toned("serving", Tone::Good),
        None if shard.creating => toned("creating", Tone::Warn),
        None => toned("no leader", Tone::Bad),
    }
}

/// `shard list`.
pub(crate) fn table(shards: &[ShardListing], kinds: &Kinds) -> Grid {
    let mut grid = Grid::new(&[
        ">SHARD",
        "KEYSPACE",
        "RANGE",
        ">LEADER",
        "NODES",
        "STATE",
        ">LAG",
        ">SIZE",
        ">TERM?",
        ">APPLIED?",
        ">EPOCH?",
    ]);
    for listing in shards {
        let shard = listing.shard.clone().unwrap_or_default();
        let leader = leader_of(listing);
        let told = |value: Option<String>| value.unwrap_or_else(|| human::NOTHING.to_owned());
        grid.row(vec![
            shard.shard_id.into(),
            values::show(listing.keyspace.as_bytes()).into(),
            range(&shard, kinds).into(),
            told(leader.map(|leader| format!("{}{}", leader.node_id, if leader.no_quorum { "?" } else { "" }))).into(),
            replicas(listing, &shard),
            state(listing, &shard),
            told(worst_lag(listing).map(human::grouped)).into(),
            told(leader.map(|leader| human::size_on_disk(leader.data_bytes))).into(),
            told(leader.map(|leader| leader.term.to_string())).into(),
            told(leader.map(|leader| human::grouped(leader.applied_index))).into(),
            shard.epoch.into(),
        ]);
    }
    grid
}

/// `shard describe`.
pub(crate) fn describe(listing: &ShardListing, kinds: &Kinds, look: Look) -> String {
    let shard = listing.shard.clone().unwrap_or_default();
    let mut text = String::new();
    let preferred = shard.replicas.iter().find(|replica| replica.replica_id == shard.preferred_leader_replica_id);
    let facts = [
        ("Shard", shard.shard_id.to_string()),
        ("Keyspace", values::show(listing.keyspace.as_bytes())),
        ("Range", range(&shard, kinds)),
        ("Epoch", shard.epoch.to_string()),
        (
            "Leader",
            leader_of(listing).map_or_else(
                || "none".to_owned(),
                |leader| {
                    let unheard = if leader.no_quorum { ", which no majority answers" } else { "" };
                    format!("node {} in term {}{unheard}", leader.node_id, leader.term)
                },
            ),
        ),
        ("State", state(listing, &shard).text().to_owned()),
        ("Prefers", preferred.map_or_else(|| human::NOTHING.to_owned(), |replica| format!("node {}", replica.node_id))),
    ];
    for (name, value) in facts {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}  {value}", look.paint(&format!("{name:<8}"), Tone::Strong));
    }
    text.push('\n');
    text.push_str(&replica_table(listing, &shard).render(look));
    text
}

fn replica_table(listing: &ShardListing, shard: &Shard) -> Grid {
    let mut grid = Grid::new(&[
        ">NODE",
        ">REPLICA",
        "VOTES",
        "ROLE",
        ">TERM",
        ">LAST",
        ">COMMITTED?",
        ">APPLIED",
        ">FLUSHED?",
        ">PURGED?",
        ">LAG",
        ">SIZE",
        "ASLEEP?",
    ]);
    let leader = leader_of(listing);
    for replica in &shard.replicas {
        let status = status_of(listing, replica);
        let role = role(listing, replica);
        let lag = leader.and_then(|leader| leader.followers.iter().find(|lag| lag.replica_id == replica.replica_id));
        let number = |read: fn(&ReplicaStatus) -> u64| {
            Text::from(status.map_or_else(|| human::NOTHING.to_owned(), |status| human::grouped(read(status))))
        };
        grid.row(vec![
            replica.node_id.into(),
            replica.replica_id.into(),
            if replica.role() == ReplicaRole::Voter { "yes" } else { "no" }.into(),
            role_text(listing, role),
            number(|status| status.term),
            number(|status| status.last_index),
            number(|status| status.committed_index),
            number(|status| status.applied_index),
            number(|status| status.durable_index),
            number(|status| status.purged_index),
            lag.map_or_else(|| human::NOTHING.to_owned(), |lag| human::grouped(lag.lag)).into(),
            status.map_or_else(|| human::NOTHING.to_owned(), |status| human::size_on_disk(status.data_bytes)).into(),
            status.map_or(human::NOTHING, |status| if status.hibernated { "yes" } else { "no" }).into(),
        ]);
    }
    grid
}

/// As documented in docs/kvctl.md.
pub(crate) fn to_json(listing: &ShardListing, kinds: &Kinds) -> Value {
    let shard = listing.shard.clone().unwrap_or_default();
    let leader = leader_of(listing);
    let replicas: Vec<Value> = shard.replicas.iter().map(|replica| replica_json(listing, replica)).collect();
    json!({
        "shard": shard.shard_id,
        "keyspace": listing.keyspace,
        "keyspace_id": shard.keyspace_id,
        "epoch": shard.epoch,
        "range": range_json(&shard, kinds),
        "leader_node": leader.map(|leader| leader.node_id),
        "no_quorum": lacks_quorum(listing),
        "state": state(listing, &shard).text(),
        "term": leader.map(|leader| leader.term),
        "hibernated": leader.is_some_and(|leader| leader.hibernated),
        "creating": shard.creating,
        "lag": worst_lag(listing),
        "data_bytes": leader.map(|leader| leader.data_bytes),
        "replicas": replicas,
    })
}

fn range_json(shard: &Shard, kinds: &Kinds) -> Value {
    let mut range = Map::new();
    match layout(shard, kinds) {
        Layout::Hash => {
            let (first, last) = slots(shard);
            range.insert("first_slot".into(), first.into());
            range.insert("last_slot".into(), last.into());
        }
        Layout::Range => {
            values::put_json(&mut range, "start", &bound(&shard.start, shard.keyspace_id).unwrap_or_default());
            values::put_json(&mut range, "end", &bound(&shard.end, shard.keyspace_id).unwrap_or_default());
        }
    }
    Value::Object(range)
}

fn replica_json(listing: &ShardListing, replica: &Replica) -> Value {
    let status = status_of(listing, replica);
    let lag = leader_of(listing)
        .and_then(|leader| leader.followers.iter().find(|lag| lag.replica_id == replica.replica_id))
        .map(|lag| lag.lag);
    json!({
        "node": replica.node_id,
        "replica": replica.replica_id,
        "voter": replica.role() == ReplicaRole::Voter,
        "role": role(listing, replica),
        "no_quorum": status.map(|status| status.no_quorum),
        "term": status.map(|status| status.term),
        "last_index": status.map(|status| status.last_index),
        "committed_index": status.map(|status| status.committed_index),
        "applied_index": status.map(|status| status.applied_index),
        "durable_index": status.map(|status| status.durable_index),
        "purged_index": status.map(|status| status.purged_index),
        "lag": lag,
        "data_bytes": status.map(|status| status.data_bytes),
        "hibernated": status.map(|status| status.hibernated),
        "quarantined": status.map(|status| status.quarantined),
        "checked": status.map(|status| status.checked_index),
    })
}

#[cfg(test)]
mod tests {
    use kv_proto::ids::KeyspaceId;
    use kv_proto::pb::admin::v1::ReplicaLag;

    use super::*;

    fn listing() -> ShardListing {
        let ranges = keys::split_by_slots(KeyspaceId(2), 2);
        let record = |id, role: ReplicaRole| Replica { replica_id: id, node_id: id, role: role.into() };
        let shard = Shard {
            shard_id: 4,
            keyspace_id: 2,
            start: ranges[0].start().clone(),
            end: ranges[0].end().clone(),
            epoch: 3,
            replicas: vec![
                record(1, ReplicaRole::Voter),
                record(2, ReplicaRole::Voter),
                record(3, ReplicaRole::Voter),
                record(4, ReplicaRole::Learner),
            ],
            preferred_leader_replica_id: 2,
            ..Shard::default()
        };
        let status = |id: u64, role: &str| ReplicaStatus {
            replica_id: id,
            node_id: id,
            role: role.into(),
            term: 7,
            last_index: 1200,
            committed_index: 1200,
            applied_index: 1200,
            data_bytes: 5 << 20,
            ..ReplicaStatus::default()
        };
        let mut leader = status(1, "leader");
        leader.followers = [(2, 0), (3, 900), (4, 12)]
            .map(|(replica_id, lag)| ReplicaLag { replica_id, matched_index: 1200 - lag, lag })
            .into();
        let replicas = vec![leader, status(2, "follower"), status(3, "down"), status(4, "learner")];
        ShardListing { shard: Some(shard), keyspace: "default".into(), replicas }
    }

    fn kinds() -> Kinds {
        Kinds::from([(2, KeyspaceKind::Hash), (3, KeyspaceKind::Range)])
    }

    #[test]
    fn the_list_marks_leader_learner_and_what_is_down() {
        let expected = "\
SHARD  KEYSPACE  RANGE         LEADER  NODES       STATE    LAG     SIZE  TERM  APPLIED  EPOCH
    4  default   slots 0-8191       1  1* 2 3! 4+  serving  900  5.0 MiB     7    1,200      3";
        assert_eq!(table(&[listing()], &kinds()).render(Look::default()), expected);
    }

    #[test]
    fn the_description_shows_each_replica() {
        let text = describe(&listing(), &kinds(), Look { width: Some(80), colour: false });
        let expected = "\
Shard     4
Keyspace  default
Range     slots 0-8191
Epoch     3
Leader    node 1 in term 7
State     serving
Prefers   node 2

NODE  REPLICA  VOTES  ROLE      TERM   LAST  APPLIED  LAG     SIZE
   1        1  yes    leader       7  1,200    1,200    -  5.0 MiB
   2        2  yes    follower     7  1,200    1,200    0  5.0 MiB
   3        3  yes    down         -      -        -  900        -
   4        4  no     learner      7  1,200    1,200   12  5.0 MiB";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_leader_that_no_majority_answers_is_not_shown_as_serving() {
        let mut listing = listing();
        listing.replicas[0].no_quorum = true;
        listing.replicas[0].hibernated = true;
        listing.replicas[1].role = "down".into();
        let expected = "\
SHARD  KEYSPACE  RANGE         LEADER  NODES        STATE      LAG     SIZE  TERM  APPLIED  EPOCH
    4  default   slots 0-8191      1?  1? 2! 3! 4+  no quorum  900  5.0 MiB     7    1,200      3";
        assert_eq!(table(&[listing.clone()], &kinds()).render(Look::default()), expected);
        let text = describe(&listing, &kinds(), Look::default());
        assert!(
            text.contains("Leader    node 1 in term 7, which no majority answers\nState     no quorum\n"),
            "{text}"
        );
        assert!(text.contains("leader, no quorum"), "{text}");
        let json = to_json(&listing, &kinds());
        assert_eq!(
            (&json["no_quorum"], &json["state"], &json["leader_node"]),
            (&json!(true), &json!("no quorum"), &json!(1))
        );
        let roles: Vec<_> =
            (0..2).map(|at| (&json["replicas"][at]["role"], &json["replicas"][at]["no_quorum"])).collect();
        assert_eq!(roles, [(&json!("leader"), &json!(true)), (&json!("down"), &Value::Null)]);
    }

    #[test]
    fn a_leader_cut_off_does_not_hide_the_one_that_serves() {
        let mut listing = listing();
        listing.replicas[0].no_quorum = true;
        listing.replicas[1].role = "leader".into();
        listing.replicas[1].term = 8;
        assert!(table(&[listing.clone()], &kinds()).render(Look::default()).contains(" 1 2* 3! 4+  serving"));
        assert_eq!(to_json(&listing, &kinds())["no_quorum"], false);
    }

    #[test]
    fn bounds_of_a_range_keyspace_are_shown_as_keys() {
        let cut = keys::split_by_keys(KeyspaceId(3), &[Bytes::from("m")]).unwrap();
        let shard = |index: usize| Shard {
            keyspace_id: 3,
            start: cut[index].start().clone(),
            end: cut[index].end().clone(),
            ..Shard::default()
        };
        assert_eq!(range(&shard(0), &kinds()), "below m");
        assert_eq!(range(&shard(1), &kinds()), "from m");
        assert_eq!(range_json(&shard(1), &kinds()), json!({ "start": "m", "end": "" }));
    }

    #[test]
    fn two_replicas_that_both_claim_to_lead_are_told_apart_by_term() {
        let mut listing = listing();
        listing.replicas[1].role = "leader".into();
        listing.replicas[1].term = 8;
        let json = to_json(&listing, &kinds());
        assert_eq!(json["leader_node"], 2);
        assert_eq!(json["replicas"][0]["role"], "follower");
    }
}
