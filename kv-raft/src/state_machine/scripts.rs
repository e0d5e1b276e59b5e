//! Runs the decision scripts of `scripts/`: each line is a command, below it stand its reply and its edits.
//!
//! Arguments of `write`: `put.K=V`, `delete=K`, conditions `is.K=V`, `at.K=TIMESTAMP`, `exists=K`, `absent=K`, a session
//! `client=N seq=N low=N`, and the leader's stamp `time=MILLIS`. `pass seconds=N` has the leader write every second for so
//! long. Timestamps are shown as milliseconds and counter.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::fmt::Write as _;

use goldenscript::{Argument, Context};
use kv_proto::ids::{ClientId, Sequence};
use kv_proto::timestamp::Timestamp;

use super::decide::{Decision, Edit, Version, View, decide};
use super::session::{Outcome, Sessions};
use crate::command::{Command, Condition, Expected, Operation, Reply, SessionTag};

#[derive(Default)]
struct Model {
    keys: BTreeMap<Vec<u8>, (Timestamp, Vec<u8>)>,
    sessions: Sessions,
    keeps_history: bool,
    last_commit: Timestamp,
    time: Timestamp,
}

impl View for Model {
    type Error = Infallible;

    fn written_at(&self, key: &[u8]) -> Result<Option<Timestamp>, Infallible> {
        Ok(self.keys.get(key).map(|(commit, _)| *commit))
    }

    fn version(&self, key: &[u8]) -> Result<Option<Version<'_>>, Infallible> {
        let version = self.keys.get(key);
        Ok(version.map(|(commit, value)| Version { commit: *commit, value: Cow::Borrowed(value) }))
    }

    fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    fn keeps_history(&self) -> bool {
        self.keeps_history
    }
}

fn stamp(timestamp: Timestamp) -> String {
    format!("{}.{}", timestamp.millis(), timestamp.0 & 0xffff)
}

fn parse_stamp(text: &str) -> Result<Timestamp, Box<dyn Error>> {
    let (millis, counter) = text.split_once('.').ok_or("a timestamp is MILLIS.COUNTER")?;
    Ok(Timestamp(Timestamp::from_millis(millis.parse()?).0 + counter.parse::<u64>()?))
}

impl Model {
    fn write(&mut self, arguments: &[Argument]) -> Result<String, Box<dyn Error>> {
        let mut command = Command { session: None, conditions: Vec::new(), operations: Vec::new() };
        let (mut client, mut sequence, mut lowest) = (None, 1, 1);
        for argument in arguments {
            let Argument::KeyValue(name, value) = argument else { return Err("arguments are name=value".into()) };
            let (name, key) = name.split_once('.').unwrap_or((name, value));
            let (key, value) = (key.as_bytes(), value.as_str());
            let condition = |expected| Condition { key, expected };
            match name {
                "put" => command.operations.push(Operation::Put { key, value: value.as_bytes() }),
                "delete" => command.operations.push(Operation::Delete { key }),
                "is" => command.conditions.push(condition(Expected::Value(value.as_bytes()))),
                "at" => command.conditions.push(condition(Expected::WrittenAt(parse_stamp(value)?))),
                "exists" => command.conditions.push(condition(Expected::Exists(true))),
                "absent" => command.conditions.push(condition(Expected::Exists(false))),
                "client" => client = Some(ClientId(value.parse()?)),
                "seq" => sequence = value.parse()?,
                "low" => lowest = value.parse()?,
                "time" => self.time = Timestamp::from_millis(value.parse()?),
                _ => return Err(format!("unknown argument {name}").into()),
            }
        }
        let tag = |client| SessionTag { client, sequence: Sequence(sequence), lowest_unfinished: Sequence(lowest) };
        command.session = client.map(tag);
        Ok(self.apply(&command))
    }

    fn decide<'a>(&mut self, command: &Command<'a>) -> (Timestamp, Decision<'a>) {
        let commit = self.time.max(self.last_commit.next());
        self.sessions.advance(self.time);
        self.last_commit = commit;
        let Ok(decision) = decide(self, commit, command);
        (commit, decision)
    }

    fn apply(&mut self, command: &Command<'_>) -> String {
        let (commit, Decision { reply, edits }) = self.decide(command);
        let mut out = String::new();
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let _ = match reply {
            Reply::Written { commit, deleted } => writeln!(out, "{} written, {deleted} deleted", stamp(commit)),
            Reply::Refused { condition, current: None } => {
                writeln!(out, "refused by condition {condition}: no such key")
            }
            Reply::Refused { condition, current: Some(current) } => {
                let (value, written) = (text(&current.value), stamp(current.commit));
                writeln!(out, "refused by condition {condition}: it is {value}, written at {written}")
            }
            Reply::SessionStale => writeln!(out, "session is stale"),
            Reply::SessionsFull => writeln!(out, "sessions are full"),
        };
        for edit in edits {
            let _ = match edit {
                Edit::Keep { key, start, value } => {
                    writeln!(out, "  keep {}={} of [{}, {})", text(key), text(&value), stamp(start), stamp(commit))
                }
                Edit::Put { key, value } => {
                    self.keys.insert(key.to_vec(), (commit, value.to_vec()));
                    writeln!(out, "  put {}={}", text(key), text(value))
                }
                Edit::Delete { key } => {
                    self.keys.remove(key);
                    writeln!(out, "  delete {}", text(key))
                }
                Edit::Settle { tag, outcome } => {
                    self.sessions.settle(&tag, outcome);
                    let what = match outcome {
                        Some(Outcome::Written(_)) => "remember the reply to",
                        Some(Outcome::Refused) => "remember the refusal of",
                        None => "note the use of",
                    };
                    writeln!(out, "  {what} write {} of client {}", tag.sequence, tag.client)
                }
            };
        }
        out
    }
}

impl goldenscript::Runner for Model {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &Context) -> Result<String, Box<dyn Error>> {
        match command.name.as_str() {
            "write" => self.write(&command.args),
            "keep_history" => {
                self.keeps_history = true;
                Ok(String::new())
            }
            "keys" => Ok(self.keys.iter().fold(String::new(), |mut out, (key, (commit, value))| {
                let (key, value) = (key.escape_ascii(), value.escape_ascii());
                let _ = writeln!(out, "{key}={value} written at {}", stamp(*commit));
                out
            })),
            "pass" => self.pass(&command.args),
            "clients" => Ok(format!("{}\n", self.sessions.len())),
            other => Err(format!("unknown command {other}").into()),
        }
    }
}

impl Model {
    fn pass(&mut self, arguments: &[Argument]) -> Result<String, Box<dyn Error>> {
        let [Argument::KeyValue(name, value)] = arguments else { return Err("pass takes seconds=N".into()) };
        if name != "seconds" {
            return Err("pass takes seconds=N".into());
        }
        for _ in 0..value.parse()? {
            self.time = Timestamp::from_millis(self.time.millis() + 1000);
            self.apply(&Command { session: None, conditions: Vec::new(), operations: Vec::new() });
        }
        Ok(String::new())
    }
}

fn run(name: &str) {
    let path = format!("{}/src/state_machine/scripts/{name}", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(&mut Model::default(), path).unwrap();
}

#[test]
fn commit_timestamps_follow_the_log_whatever_leaders_clocks_say() {
    run("commit_timestamps_follow_the_log");
}

#[test]
fn a_condition_that_does_not_hold_changes_nothing_and_tells_what_is_there() {
    run("conditions");
}

#[test]
fn later_operations_of_a_command_see_earlier_ones() {
    run("operations_of_one_command");
}

#[test]
fn a_write_sent_again_is_not_applied_again() {
    run("sessions");
}

proptest::proptest! {
    /// Every write is "this key does not exist, so write it"; another client deletes keys now and then. Whatever the
    /// network delays and repeats, a write has one outcome.
    #[test]
    fn a_write_is_applied_at_most_once_and_never_after_it_was_refused(
        deliveries in proptest::collection::vec((1u64..9, 0u8..4, proptest::bool::ANY, 0u64..100_000_000), 1..80),
    ) {
        let mut model = Model::default();
        let mut answers: BTreeMap<u64, Vec<Reply>> = BTreeMap::new();
        for (sequence, key, is_deletion, stamp) in deliveries {
            // A stamp may lie anywhere within a day: leaders' clocks leap.
            model.time = Timestamp::from_millis(stamp);
            // The key goes with the sequence, as a write sent again says the same.
            let key = if is_deletion { [key] } else { [(sequence % 4) as u8] };
            let conditions = vec![Condition { key: &key, expected: Expected::Exists(false) }];
            let tag = SessionTag { client: ClientId(1), sequence: Sequence(sequence), lowest_unfinished: Sequence(1) };
            let command = if is_deletion {
                Command { session: None, conditions: Vec::new(), operations: vec![Operation::Delete { key: &key }] }
            } else {
                Command { session: Some(tag), conditions, operations: vec![Operation::Put { key: &key, value: b"v" }] }
            };
            let mut probe = Model { sessions: model.sessions.clone(), keys: model.keys.clone(), ..Model::default() };
            (probe.time, probe.last_commit) = (model.time, model.last_commit);
            let (_, Decision { reply, edits }) = probe.decide(&command);
            let puts = edits.iter().any(|edit| matches!(edit, Edit::Put { .. }));
            model.apply(&command);
            if is_deletion {
                continue;
            }
            let earlier = answers.entry(sequence).or_default();
            if puts {
                proptest::prop_assert!(earlier.is_empty(), "applied after {earlier:?}");
            }
            if let Reply::Written { .. } = &reply {
                proptest::prop_assert!(earlier.iter().all(|answer| *answer == reply), "{reply:?} after {earlier:?}");
            }
            earlier.push(reply);
        }
    }
}

#[test]
fn overwritten_versions_are_kept_if_the_keyspace_keeps_history() {
    run("history");
}
