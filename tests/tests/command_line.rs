//! The command line tool against a real cluster: answers, exit codes, and what doctor names.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_tests::cluster::Cluster;
use kv_tests::kvctl::expect;
use kv_tests::wait;
use serde_json::Value;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn data_is_written_and_read_from_any_endpoint() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    for (n, node) in cluster.nodes().enumerate() {
        let (only, key) = ([node.address()], format!("key{n}"));
        expect(&only, &["put", &key, "one"], 0).await?;
        ensure!(expect(&only, &["get", &key], 0).await?.stdout.contains("one"));
        expect(&only, &["cas", &key, "--expect", "one", "--set", "two"], 0).await?;
        expect(&only, &["cas", &key, "--expect", "one", "--set", "three"], 1).await?;
        ensure!(expect(&only, &["get", &key], 0).await?.stdout.contains("two"));
        ensure!(expect(&only, &["scan", "--prefix", &key], 0).await?.stdout.contains(&key));
        expect(&only, &["del", &key], 0).await?;
        expect(&only, &["get", &key], 1).await?;
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_what_went_wrong() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let endpoints = cluster.endpoints();
    expect(&endpoints, &["put", "only-a-key"], 2).await?;
    expect(&endpoints, &["put", "", "empty key"], 2).await?;
    expect(&endpoints, &["-k", "nowhere", "get", "a"], 1).await?;
    expect(&["127.0.0.1:1".to_owned()], &["--timeout", "1s", "get", "a"], 3).await?;
    // The HTTP port of a node.
    let ran = expect(&[cluster.node(1).http_address()], &["put", "a", "b"], 2).await?;
    ensure!(ran.stderr.contains("does not speak gRPC") && ran.stderr.contains("nothing was applied"), "{}", ran.stderr);
    expect(&endpoints, &["put", "a", "--value-file", "/no/such/file"], 6).await?;
    cluster.finish().await
}

/// Nobody runs `scripts/dist` on a change.
#[tokio::test(flavor = "multi_thread")]
async fn kvctl_knows_the_loads_that_production_builds_are_guided_by() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/dist");
    let script = fs::read_to_string(script)?;
    let (_, loads) = script.split_once("LOADS=(\n").context("there are loads")?;
    let (loads, _) = loads.split_once("\n)").context("the loads end")?;
    for load in loads.lines() {
        let words: Vec<_> = load.trim().trim_matches('"').split(' ').collect();
        let bench = words.get(2..).context("shards, seconds, load")?;
        // It helps once it has understood what comes before.
        expect(&[], &[&["bench"], bench, &["--help"]].concat(), 0).await.context(load.to_owned())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_and_shards_are_listed_for_people_and_for_programs() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let endpoints = cluster.endpoints();
    for arguments in [["node", "list"], ["shard", "list"], ["keyspace", "list"]] {
        let table = expect(&endpoints, &arguments, 0).await?.stdout;
        ensure!(table.lines().count() > 1, "{arguments:?} prints {table}");
        let json = expect(&endpoints, &[&["-o", "json"], &arguments[..]].concat(), 0).await?.stdout;
        serde_json::from_str::<Value>(&json).with_context(|| format!("{arguments:?} prints no JSON: {json}"))?;
    }
    expect(&endpoints, &["status"], 0).await?;
    expect(&endpoints, &["health"], 0).await?;
    expect(&endpoints, &["doctor"], 0).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_a_dead_node_and_the_command_that_helps() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let endpoints = cluster.endpoints();
    cluster.node_mut(3).kill().await?;
    let found = expect(&endpoints, &["doctor"], 5).await?.stdout;
    ensure!(found.contains("node 3"), "{found}");
    ensure!(found.contains("kvctl") || found.contains("scripts/cluster"), "no command that helps: {found}");
    cluster.restart(3).await?;
    expect(&endpoints, &["doctor"], 0).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_no_node_knows_is_said_so_once_all_were_asked() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let endpoints = cluster.endpoints();
    // Longer than this test waits: an answer comes because of what the nodes say.
    let patient = ["--timeout", "1m", "shard", "describe", "999999"];
    let ran = timeout(Duration::from_secs(40), expect(&endpoints, &patient, 1)).await??;
    ensure!(ran.stderr.contains("999999"), "{}", ran.stderr);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyspace_is_created_used_and_deleted() -> Result<()> {
    let cluster = Cluster::of_three().await?;
    let endpoints = cluster.endpoints();
    expect(&endpoints, &["keyspace", "create", "users", "--shards", "2"], 0).await?;
    expect(&endpoints, &["keyspace", "create", "users", "--shards", "2"], 1).await?;
    expect(&endpoints, &["-k", "users", "put", "a", "b"], 0).await?;
    expect(&endpoints, &["get", "a"], 1).await?;
    expect(&endpoints, &["keyspace", "delete", "users", "--yes"], 0).await?;
    // Nodes learn of it one after the other.
    wait::until("every node to know", Duration::from_secs(10), || async {
        expect(&endpoints, &["-k", "users", "get", "a"], 1).await
    })
    .await?;
    cluster.finish().await
}
