//! Who begins a cluster when several nodes are started with one list of addresses: the first of the list, once every
//! other one has said that it is empty too.
//!
//! Invariants:
//! - of one list at most one node begins, and none while a node of the list belongs to a cluster or does not answer: a
//!   silent one may hold the data of a cluster, and a second cluster beside it would look like one that lost everything;
//! - the verdict is pure and is made from answers of one round.
//!
//! Not here: being let in (join); the first records (bootstrap).

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use kv_proto::pb::raft::v1::IntroduceResponse;
use tokio_util::sync::CancellationToken;

use super::{JoinError, PAUSE};
use crate::config::Config;
use crate::identity::Identity;
use crate::peers::Peers;

/// One node's time to say who it is.
const ASK: Duration = Duration::from_secs(2);

/// How a new node gets into a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It begins the cluster.
    Begin,
    /// There is one: it asks to be let in.
    Join,
}

/// The node that looks, and what it was told.
#[derive(Clone, Copy, Debug)]
struct Own<'a> {
    instance_id: &'a [u8],
    address: &'a str,
    seeds: &'a [String],
}

/// What each seed answered, in the order of the list.
type Answers = [Result<IntroduceResponse, String>];

/// Asks all seeds again and again until one round tells the way; `waits` is told why not yet.
pub async fn meet(
    peers: &Peers,
    identity: &Identity,
    config: &Config,
    waits: impl Fn(&str),
    cancel: &CancellationToken,
) -> Result<Way, JoinError> {
    let instance_id = identity.instance_bytes();
    let own = Own { instance_id: &instance_id, address: &config.advertise, seeds: &config.join };
    let mut said = String::new();
    loop {
        let ask = |seed| async move { peers.introduce(seed, ASK).await.map_err(|error| error.to_string()) };
        let asked = join_all(config.join.iter().map(|seed| ask(seed)));
        let answers = cancel.run_until_cancelled(asked).await.ok_or(JoinError::Stopped)?;
        match decide(own, &answers) {
            Ok(way) => return Ok(way),
            Err(why) if why != said => {
                tracing::info!(why, "waiting for the other nodes of the list");
                waits(&why);
                said = why;
            }
            Err(_) => {}
        }
        cancel.run_until_cancelled(tokio::time::sleep(PAUSE)).await.ok_or(JoinError::Stopped)?;
    }
}

/// The way in, or why it is not known yet.
fn decide(own: Own<'_>, answers: &Answers) -> Result<Way, String> {
    let clusters: BTreeSet<&str> = answers.iter().flatten().map(|answer| answer.cluster_id.as_str()).collect();
    let clusters: Vec<&str> = clusters.into_iter().filter(|cluster| !cluster.is_empty()).collect();
    match clusters.as_slice() {
        [] => {}
        [_] => return Ok(Way::Join),
        [one, other, ..] => return Err(format!("the list names nodes of two clusters, {one} and {other}")),
    }
    // A name that reaches several nodes would make each of them the first of the list.
    if !own.seeds.iter().any(|seed| seed == own.address) {
        return Err(format!("{}, the address of this node, is not in the list", own.address));
    }
    let mut seeds = own.seeds.iter().zip(answers);
    match seeds.next() {
        Some((first, answer)) if !is_own(own, first, answer) => {
            return Err(format!("{first}, the first of the list, has not begun the cluster"));
        }
        Some(_) | None => {}
    }
    for (seed, answer) in seeds.filter(|(seed, answer)| !is_own(own, seed, answer)) {
        match answer {
            Err(why) => return Err(format!("{seed} does not answer and may hold the data of a cluster: {why}")),
            Ok(answer) if !answer.seeds.is_empty() && answer.seeds != own.seeds => {
                return Err(format!("{seed} was given another list: {}", answer.seeds.join(",")));
            }
            Ok(_) => {}
        }
    }
    Ok(Way::Begin)
}

/// Whether the seed is this node, under whatever name; by its address only while it cannot reach itself.
fn is_own(own: Own<'_>, seed: &str, answer: &Result<IntroduceResponse, String>) -> bool {
    match answer {
        Ok(answer) => answer.instance_id == own.instance_id,
        Err(_) => seed == own.address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "a:1,b:1,c:1";

    fn list(seeds: &str) -> Vec<String> {
        seeds.split(',').filter(|seed| !seed.is_empty()).map(str::to_owned).collect()
    }

    /// `way(node, answers)`: an answer is "-" for silence, "instance", "instance cluster" or "instance /list".
    fn way(node: &str, answers: [&str; 3]) -> Result<Way, String> {
        let answer = |text: &str| {
            let mut words = text.split(' ');
            let instance_id = words.next().filter(|word| *word != "-").ok_or("no route")?;
            let (mut cluster_id, mut seeds) = (String::new(), list(LIST));
            for word in words {
                match word.strip_prefix('/') {
                    Some(given) => seeds = list(given),
                    None => word.clone_into(&mut cluster_id),
                }
            }
            Ok(IntroduceResponse { instance_id: instance_id.to_owned().into(), cluster_id, seeds })
        };
        let seeds = list(LIST);
        let address = format!("{node}:1");
        let own = Own { instance_id: node.as_bytes(), address: &address, seeds: &seeds };
        decide(own, &answers.map(answer))
    }

    #[test]
    fn only_the_first_of_the_list_begins_and_only_once_all_others_are_known_to_be_empty() {
        assert_eq!(way("a", ["a", "b", "c"]), Ok(Way::Begin));
        assert_eq!(way("a", ["-", "b", "c"]), Ok(Way::Begin), "a node that cannot reach itself knows its address");
        assert_eq!(way("a", ["a", "b", "c /"]), Ok(Way::Begin), "one that only joins may have any list");
        for node in ["b", "c"] {
            assert!(way(node, ["a", "b", "c"]).unwrap_err().contains("a:1, the first of the list"));
            assert!(way(node, ["-", "b", "c"]).unwrap_err().contains("a:1, the first of the list"));
        }
        assert!(way("a", ["a", "b", "-"]).unwrap_err().contains("c:1 does not answer"));
        assert!(way("a", ["a", "-", "-"]).unwrap_err().contains("b:1 does not answer"));
    }

    #[test]
    fn nobody_begins_beside_a_node_that_holds_the_data_of_a_cluster() {
        assert_eq!(way("a", ["a", "b x", "-"]), Ok(Way::Join));
        assert_eq!(way("a", ["a", "b", "c x"]), Ok(Way::Join));
        assert_eq!(way("b", ["a x", "b", "c"]), Ok(Way::Join));
        assert!(way("a", ["a", "b x", "c y"]).unwrap_err().contains("two clusters, x and y"));
    }

    #[test]
    fn a_node_that_the_list_does_not_name_never_begins() {
        assert!(way("d", ["d", "b", "c"]).unwrap_err().contains("d:1, the address of this node, is not in the list"));
    }

    #[test]
    fn nodes_with_different_lists_do_not_both_begin() {
        assert!(
            way("a", ["a", "b /b:1,a:1,c:1", "c"]).unwrap_err().contains("b:1 was given another list: b:1,a:1,c:1")
        );
        assert!(
            way("a", ["d", "b", "c"]).unwrap_err().contains("a:1, the first"),
            "another node answers at its address"
        );
    }
}
