//! Runs the scripts in `scripts/course`: what nodes answer, and which attempts the client makes.

mod fake;

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use fake::{Act, Fake, Sent};
use goldenscript::{Command, Context};
use kv_client::{Client, ServiceError};
use kv_proto::ids::ShardId;

/// `nodes N` begins, `reply nN WHAT [hint=nN]` scripts the next call that node receives, `lead nN` moves the leader,
/// `put k=v` and `get k` run a request and print what was sent where; the same node several times in a row is one line.
struct Runner {
    runtime: tokio::runtime::Runtime,
    cluster: Option<(Fake, Client)>,
    /// Clients as they appear, since their ids are random.
    seen: Vec<bytes::Bytes>,
}

impl Runner {
    fn cluster(&self) -> Result<&(Fake, Client), Box<dyn Error>> {
        Ok(self.cluster.as_ref().ok_or("begin with nodes")?)
    }

    fn describe(&mut self, sent: &Sent) -> String {
        let mut line = format!("send n{} {} shard={} epoch={}", sent.node, sent.kind, sent.shard, sent.epoch);
        if let Some((client, sequence)) = &sent.session {
            if !self.seen.contains(client) {
                self.seen.push(client.clone());
            }
            let client = self.seen.iter().position(|seen| seen == client).expect("just noted");
            write!(line, " client={client} seq={sequence}").expect("writing to text");
        }
        line
    }

    fn request(
        &mut self,
        run: impl AsyncFnOnce(&Client) -> Result<String, kv_client::Error>,
    ) -> Result<String, Box<dyn Error>> {
        let (cluster, client) = self.cluster()?;
        let before = cluster.sent().len();
        let result = self.runtime.block_on(run(client));
        let sent: Vec<Sent> = cluster.sent().into_iter().skip(before).collect();
        let mut lines: Vec<String> = sent.iter().map(|sent| self.describe(sent)).collect();
        // How often a node is polled until another one is found alive again depends on time.
        lines.dedup();
        lines.push(match result {
            Ok(text) => text,
            Err(error) => format!("error {}: {error}", error.outcome()),
        });
        Ok(lines.join("\n"))
    }
}

fn node(text: Option<&str>) -> Result<u64, Box<dyn Error>> {
    Ok(text.and_then(|text| text.strip_prefix('n')).ok_or("a node is n1, n2, ..")?.parse()?)
}

fn act(what: &str, hint: u64) -> Result<Act, Box<dyn Error>> {
    let (shard, retry_after) = (ShardId(10), Duration::from_millis(1));
    Ok(match what {
        "not_leader" => Act::NotLeader(hint),
        "no_leader" => Act::Fail(ServiceError::NoLeader { shard, retry_after }),
        "outcome_unknown" => Act::Fail(ServiceError::OutcomeUnknown { shard, retry_after }),
        "overloaded" => Act::Fail(ServiceError::Overloaded { queue: "proposals".to_owned(), retry_after }),
        "session_stale" => Act::Fail(ServiceError::SessionStale { sequence: 1 }),
        "invalid" => Act::Fail(ServiceError::invalid("key", "is empty")),
        "drop_before" => Act::DropBefore,
        "drop_after" => Act::DropAfter,
        other => return Err(format!("{other:?} is nothing a node does").into()),
    })
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        match command.name.as_str() {
            "nodes" => {
                let cluster = Fake::hashed(args.next_pos().ok_or("how many?")?.parse()?, 1);
                let timeout = Duration::from_secs(20);
                let client = Client::builder().endpoints(cluster.addresses()).timeout(timeout).build();
                let client = self.runtime.block_on(client)?;
                self.cluster = Some((cluster, client));
                Ok(String::new())
            }
            "lead" => {
                let leader = node(args.next_pos())?;
                self.cluster()?.0.lead(leader, leader);
                Ok(String::new())
            }
            "reply" => {
                let at = node(args.next_pos())?;
                let what = args.next_pos().ok_or("what does it reply?")?;
                let hint = args.take_key("hint").map_or(Ok(0), |hint| node(Some(hint)))?;
                self.cluster()?.0.script(at, [act(what, hint)?]);
                Ok(String::new())
            }
            "put" => {
                let (key, value) = args.next_key().ok_or("put what?")?;
                self.request(async |client| client.put(key, value).await.map(|_| "written".to_owned()))
            }
            "get" => {
                let key = args.next_pos().ok_or("get what?")?;
                self.request(async |client| {
                    let entry = client.get(key).await?;
                    Ok(entry.map_or("absent".to_owned(), |entry| format!("value {}", entry.value.escape_ascii())))
                })
            }
            other => Err(format!("{other:?} is no command").into()),
        }
    }
}

fn script(name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/course").join(name);
    goldenscript::run(&mut Runner { runtime, cluster: None, seen: vec![] }, path).expect("the script passes");
}

#[test]
fn every_attempt_of_a_write_carries_the_same_sequence() {
    script("sequence");
}

#[test]
fn a_leader_once_learned_is_asked_first() {
    script("leader");
}

#[test]
fn a_final_answer_ends_the_request() {
    script("final");
}
