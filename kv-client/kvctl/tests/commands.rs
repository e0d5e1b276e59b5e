//! The program as others run it: what it prints, where, and how it ends.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod fake;

use std::io::Write as _;
use std::process::{Command, Stdio};

use fake::Fake;
use serde_json::Value;

/// What a command did.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

async fn run_with(fake: &Fake, arguments: &[&str], input: &[u8]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    command.env_remove("KV_ENDPOINTS").env_remove("KV_KEYSPACE").args(["--endpoints", fake.address()]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_vec();
    let wait = move || {
        let mut child = command.spawn().unwrap();
        // The command may end without reading it.
        drop(child.stdin.take().unwrap().write_all(&input));
        child.wait_with_output().unwrap()
    };
    let output = tokio::task::spawn_blocking(wait).await.unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    Ran { code: output.status.code().unwrap(), out: output.stdout, err }
}

async fn run(fake: &Fake, arguments: &[&str]) -> Ran {
    run_with(fake, arguments, b"").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_comes_back_byte_for_byte() {
    let fake = Fake::start().await;
    let bytes = [0, 1, 27, 255, 10, 13];
    let put = run_with(&fake, &["put", "bin", "-"], &bytes).await;
    assert_eq!((put.code, put.text()), (0, "bin written as version 111411200000000000\n"), "{put:?}");
    assert_eq!(run(&fake, &["get", "bin"]).await.out, bytes);
    assert_eq!(run(&fake, &["get", "bin", "--value-encoding", "hex"]).await.text(), "00011bff0a0d\n");
    let json = run(&fake, &["get", "bin", "-o", "json"]).await.json();
    let expected = serde_json::json!({
        "format": 1, "key": "bin", "value_base64": "AAEb/woN", "version": "111411200000000000", "written_ms": 1_700_000_000_000_u64
    });
    assert_eq!(json, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_no_ends_with_one_and_bad_input_with_two() {
    let fake = Fake::start().await;
    let absent = run(&fake, &["get", "nothing"]).await;
    assert_eq!((absent.code, absent.text(), absent.err.as_str()), (1, "", "error: key nothing not found\n"));
    assert_eq!(run(&fake, &["del", "nothing"]).await.code, 1);
    assert_eq!(run(&fake, &["put", "", "x"]).await.code, 2);
    assert_eq!(run(&fake, &["put", "zz", "x", "--key-encoding", "hex"]).await.code, 2);
    assert_eq!(run(&fake, &["put", "a", "b", "-o", "value"]).await.code, 2);
    assert_eq!(run(&fake, &["put", "a", "--value-file", "/nowhere"]).await.code, 6);
    assert_eq!(run(&fake, &["-k", "nowhere", "get", "a"]).await.code, 1);
    assert_eq!(run(&fake, &[]).await.code, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_json_where_the_result_would_have_been() {
    let fake = Fake::start().await;
    let failed = run(&fake, &["-o", "json", "-k", "nowhere", "put", "a", "b"]).await;
    let error: Value = serde_json::from_str(&failed.err).unwrap();
    assert_eq!((failed.code, failed.out.len()), (1, 0));
    assert_eq!(error["error"]["reason"], "KEYSPACE_NOT_FOUND");
    assert_eq!(error["error"]["outcome"], "NOT_APPLIED");
    let usage: Value = serde_json::from_str(&run(&fake, &["-o", "json", "put"]).await.err).unwrap();
    assert_eq!(usage["error"]["exit_code"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cas_changes_only_what_is_as_expected() {
    let fake = Fake::start().await;
    assert_eq!(run(&fake, &["cas", "a", "--absent", "--set", "-1"]).await.code, 0);
    let refused = run(&fake, &["cas", "a", "--expect", "2", "--set", "3"]).await;
    assert_eq!(refused.code, 1);
    assert_eq!(refused.text(), "refused: a is not as expected: version 111411200000000000 holds: -1\n");
    let json = run(&fake, &["cas", "a", "--expect", "2", "--delete", "-o", "json"]).await.json();
    assert_eq!((&json["succeeded"], &json["current"]["value"]), (&false.into(), &"-1".into()));
    assert_eq!(run(&fake, &["cas", "a", "--version", "111411200000000000", "--delete"]).await.code, 0);
    assert_eq!(run(&fake, &["get", "a"]).await.code, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_read_from_standard_input_and_a_scan_is_a_batch() {
    let fake = Fake::start().await;
    let lines = b"# users\nput user:1 Ada\nput \"user 2\" \"\\xff\"\n{\"key\":\"x\",\"value\":\"y\"}\ndel x\n";
    let done = run_with(&fake, &["batch", "-"], lines).await;
    assert_eq!((done.code, done.text()), (0, "4 writes applied\n"), "{done:?}");
    let scan = run(&fake, &["scan"]).await;
    let expected = "\
KEY     VALUE              VERSION  WRITTEN
user 2  hex:ff  111411200000000000  2023-11-14T22:13:20.000Z
user:1  Ada     111411200000000000  2023-11-14T22:13:20.000Z
";
    assert_eq!(scan.text(), expected);
    let scanned = run(&fake, &["scan", "-o", "json"]).await.json();
    let copy: Vec<String> = scanned["entries"].as_array().unwrap().iter().map(ToString::to_string).collect();
    let atomic = run_with(&fake, &["batch", "-", "--atomic", "-o", "json"], copy.join("\n").as_bytes()).await;
    assert_eq!(atomic.json()["applied"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_names_the_line_that_is_wrong() {
    let fake = Fake::start().await;
    let wrong = run_with(&fake, &["batch", "-"], b"put a b\nput c\n").await;
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("standard input line 2: put takes a key and a value"), "{}", wrong.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_goes_on_from_its_cursor() {
    let fake = Fake::start().await;
    let lines: String = (0..2500).map(|n| format!("put k{n:04} v\n")).collect();
    assert_eq!(run_with(&fake, &["batch", "-"], lines.as_bytes()).await.text(), "2,500 writes applied\n");
    let first = run(&fake, &["scan", "--prefix", "k", "--limit", "1200", "-o", "json"]).await.json();
    assert_eq!(first["entries"].as_array().unwrap().len(), 1200);
    let cursor = first["cursor"].as_str().unwrap();
    let rest = run(&fake, &["scan", "--prefix", "k", "--cursor", cursor, "--keys-only", "-o", "json"]).await.json();
    assert_eq!(rest["entries"].as_array().unwrap().len(), 1300);
    assert_eq!((&rest["entries"][0]["key"], &rest["cursor"]), (&"k1200".into(), &Value::Null));
    let table = run(&fake, &["scan", "--keys-only"]).await;
    assert_eq!(table.text().lines().filter(|line| line.starts_with("KEY")).count(), 1);
    assert_eq!(table.text().lines().count(), 2501);
    assert_eq!(run(&fake, &["scan", "--cursor", "!"]).await.code, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_action_is_waited_for_and_its_end_decides() {
    let fake = Fake::start().await;
    let moved = run(&fake, &["shard", "move", "4", "--from", "2", "--to", "1"]).await;
    assert_eq!(moved.text(), "action 7 (move replica of shard 4) is done, after 2.5s\n", "{moved:?}");
    let failed = run(&fake, &["shard", "promote", "4", "--node", "1"]).await;
    assert_eq!(failed.code, 1);
    assert!(failed.err.contains("action 7 (promote of shard 4) failed: node 9 is gone"), "{}", failed.err);
    let begun = run(&fake, &["shard", "add-learner", "4", "--node", "1", "--no-wait", "-o", "json"]).await;
    assert_eq!(begun.json()["action"]["state"], "running");
    assert_eq!(run(&fake, &["action", "wait", "7"]).await.code, 0);
    assert_eq!(run(&fake, &["action", "wait", "8"]).await.code, 1);
    assert_eq!(run(&fake, &["action", "cancel", "8"]).await.code, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_what_forces_it() {
    let fake = Fake::start().await;
    for arguments in [vec!["node", "drain", "1"], vec!["shard", "remove-replica", "4", "--node", "1"]] {
        let refused = run(&fake, &arguments).await;
        assert_eq!(refused.code, 1);
        assert!(
            refused.err.contains("one voter would be left (to do it all the same: --force quorum)"),
            "{}",
            refused.err
        );
    }
    let asked = run(&fake, &["keyspace", "delete", "default"]).await;
    assert_eq!(asked.code, 2);
    assert!(asked.err.contains("--yes"), "{}", asked.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nouns_are_listed_for_people_and_for_programs() {
    let fake = Fake::start().await;
    let commands: [&[&str]; 9] = [
        &["node", "list"],
        &["node", "status", "1"],
        &["shard", "list"],
        &["shard", "describe", "4"],
        &["keyspace", "list"],
        &["action", "list"],
        &["status"],
        &["status", "--cost", "--interval", "50ms"],
        &["health"],
    ];
    for arguments in commands {
        let table = run(&fake, arguments).await;
        assert_eq!(table.code, 0, "{arguments:?}: {table:?}");
        assert!(!table.text().contains('\x1b'), "{arguments:?}: colour in a pipe");
        let json = run(&fake, &[arguments, &["-o", "json"]].concat()).await;
        assert_eq!(json.json()["format"], 1, "{arguments:?}");
    }
    let shards = run(&fake, &["shard", "list"]).await;
    let expected = "\
SHARD  KEYSPACE  RANGE     LEADER  NODES  STATE    LAG     SIZE  TERM  APPLIED  EPOCH
    4  default   all keys       1  1*     serving    0  3.0 MiB     2    1,234      1
";
    assert_eq!(shards.text(), expected);
    assert_eq!(run(&fake, &["shard", "transfer-leader", "4"]).await.text(), "node 1 leads shard 4, as before\n");
    assert_eq!(run(&fake, &["node", "status", "9"]).await.code, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_finds_nothing_wrong_with_a_healthy_node() {
    let fake = Fake::start().await;
    let well = run(&fake, &["doctor"]).await;
    assert_eq!((well.code, well.text()), (0, "nothing is wrong (1 node, 1 shard)\n"), "{well:?}");
    let unreachable = run(&fake, &["doctor", "--endpoints", "127.0.0.1:1", "-o", "json"]).await;
    assert_eq!(unreachable.code, 5);
    assert_eq!(unreachable.json()["findings"][0]["problem"], "cluster-unreachable");
    let nobody = run(&fake, &["get", "a", "--endpoints", "127.0.0.1:1", "--timeout", "300ms"]).await;
    assert_eq!(nobody.code, 3, "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_are_printed_for_each_shell() {
    let fake = Fake::start().await;
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&fake, &["completions", shell]).await.text().contains("transfer-leader"), "{shell}");
    }
}
