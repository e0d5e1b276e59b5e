//! Runs the scripts in `tests/scripts/retry`.

use std::error::Error;
use std::sync::Arc;

use goldenscript::{Command, Context};
use kv_proto::ids::ShardId;
use kv_proto::pb::v1::{RouteHint, ShardRoute};

use super::*;

/// Runs `fail WHAT [key=value ..]`: one failed attempt and what is decided about it.
struct Runner;

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let number = |text: Option<&str>, otherwise: u64| text.map_or(Ok(otherwise), str::parse);
        let attempt = Attempt {
            number: u32::try_from(number(args.take_key("attempt"), 1)?)?,
            repeatable: args.take_key("repeatable") != Some("false"),
            remaining: Duration::from_millis(number(args.take_key("remaining"), 5000)?),
            budget: args.take_key("budget") != Some("spent"),
        };
        let after = Duration::from_millis(number(args.take_key("after"), 0)?);
        let leader = number(args.take_key("leader"), 0)?;
        let sent = args.take_key("sent") == Some("true");
        let what = args.next_pos().ok_or("what failed?")?;
        args.reject_next()?;
        Ok(describe(decide(&error(what, after, leader, sent)?, attempt)))
    }
}

fn describe(decision: Decision) -> String {
    match decision {
        Decision::Fail => "fail".to_owned(),
        Decision::Retry { step, least, window } if least.is_zero() && window.is_zero() => format!("{step:?} at once"),
        Decision::Retry { step, least, window } => {
            format!("{step:?} after {} ms + up to {} ms", least.as_millis(), window.as_millis())
        }
    }
}

fn error(what: &str, retry_after: Duration, leader: u64, sent: bool) -> Result<CallError, Box<dyn Error>> {
    let address: Arc<str> = Arc::from("n1:1");
    let shard = ShardId(7);
    let route = ShardRoute { shard_id: 7, leader_node_id: leader, ..ShardRoute::default() };
    let (why, name) = (String::new(), String::new());
    let outcome = if sent { Outcome::Unknown } else { Outcome::NotApplied };
    let service = match what {
        "circuit_open" => return Ok(ConnectionError::CircuitOpen { address, retry_after }.into()),
        "unreachable" => return Ok(ConnectionError::Unreachable { address, why }.into()),
        "lost" => return Ok(ConnectionError::Lost { address, why, sent }.into()),
        "timed_out" => return Ok(ConnectionError::TimedOut { address, sent }.into()),
        "closed" => return Ok(ConnectionError::Closed.into()),
        "not_leader" => ServiceError::NotLeader { hint: Box::new(RouteHint { shard: Some(route), current: vec![] }) },
        "stale_route" => {
            let current = if leader == 0 { vec![] } else { vec![route] };
            ServiceError::StaleRoute { hint: Box::new(RouteHint { shard: None, current }) }
        }
        "no_leader" => ServiceError::NoLeader { shard, retry_after },
        "outcome_unknown" => ServiceError::OutcomeUnknown { shard, retry_after },
        "overloaded" => ServiceError::Overloaded { queue: name, retry_after },
        "read_only" => ServiceError::ReadOnly { why, retry_after },
        "not_ready" => ServiceError::NotReady { why, retry_after },
        "shard_not_found" => ServiceError::ShardNotFound { shard },
        "deadline_exceeded" => ServiceError::DeadlineExceeded { stage: name, outcome },
        "unavailable" => ServiceError::Foreign { code: Code::Unavailable, message: why },
        "invalid" => ServiceError::invalid("key", "empty"),
        "keyspace_not_found" => ServiceError::KeyspaceNotFound { name },
        "session_stale" => ServiceError::SessionStale { sequence: 3 },
        "internal" => ServiceError::Internal { why, outcome },
        "cluster_mismatch" => ServiceError::ClusterMismatch { ours: name, theirs: why },
        "cross_shard" => ServiceError::CrossShard { first: shard, second: ShardId(8) },
        other => return Err(format!("{other:?} is no failure").into()),
    };
    Ok(service.into())
}

fn script(name: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/retry").join(name);
    goldenscript::run(&mut Runner, path).unwrap();
}

#[test]
fn a_hint_is_followed_at_once_and_a_circle_of_hints_slows_down() {
    script("redirects");
}

#[test]
fn an_election_is_polled_with_growing_jittered_waits() {
    script("elections");
}

#[test]
fn a_silent_node_sends_the_request_elsewhere() {
    script("silence");
}

#[test]
fn what_may_have_been_applied_is_repeated_only_under_a_session() {
    script("unknown_outcomes");
}

#[test]
fn what_a_node_asks_to_wait_is_waited_within_the_deadline() {
    script("waits");
}

#[test]
fn what_would_not_change_is_told_at_once() {
    script("final_answers");
}
