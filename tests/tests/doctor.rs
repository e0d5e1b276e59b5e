//! What doctor says of a cluster in which several things are wrong at once.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_proto::pb::admin::v1::{CreateKeyspaceRequest, KeyspaceKind, ShardListing};
use kv_tests::cluster::Cluster;
use kv_tests::disk::SmallDisk;
use kv_tests::files::copy_folder;
use kv_tests::kvctl::expect;
use kv_tests::settings::Settings;
use kv_tests::wait;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
/// Entries of one shard; more than a follower under load may be behind, and than the log keeps.
const WRITES: usize = 1500;

/// `problem subject`, to the commands that are to help; without notes, such as one on the disk of whoever runs this.
type Findings = BTreeMap<String, Vec<String>>;

async fn doctor(endpoints: &[String], code: i32) -> Result<Findings> {
    let json: Value = serde_json::from_str(&expect(endpoints, &["-o", "json", "doctor"], code).await?.stdout)?;
    let findings = json.get("findings").and_then(Value::as_array).context("no findings in the answer")?;
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let of = |finding: &Value| {
        let help = finding.get("help").and_then(Value::as_array).into_iter().flatten();
        let name = format!("{} {}", text(finding, "problem"), text(finding, "subject"));
        (name, help.map(|help| text(help, "command")).collect())
    };
    Ok(findings.iter().filter(|finding| text(finding, "severity") != "note").map(of).collect())
}

/// How far each follower of the leader is behind, by node.
fn lag(listing: &ShardListing) -> BTreeMap<u64, u64> {
    let followers = listing.replicas.iter().filter(|replica| replica.role == "leader").flat_map(|l| &l.followers);
    let node = |id: u64| listing.replicas.iter().find(|replica| replica.replica_id == id).map(|r| r.node_id);
    followers.filter_map(|follower| Some((node(follower.replica_id)?, follower.lag))).collect()
}

/// One shard with a replica on each of the five nodes.
async fn wide_keyspace(cluster: &Cluster) -> Result<u64> {
    let mut admin = cluster.admin().await?;
    let kind = KeyspaceKind::Hash.into();
    let request = CreateKeyspaceRequest {
        name: "wide".to_owned(),
        kind,
        shards: 1,
        replicas: 5,
        ..CreateKeyspaceRequest::default()
    };
    admin.create_keyspace(request).await?;
    let shards = admin.shards("wide").await?;
    Ok(shards.first().and_then(|listing| listing.shard.as_ref()).context("it has one shard")?.shard_id)
}

/// Node 3 is away until the log it needs is gone, and comes back over a link that takes minutes for the snapshot.
async fn leave_behind(cluster: &mut Cluster, shard: u64) -> Result<()> {
    cluster.node_mut(3).kill().await?;
    let keyspace = cluster.client().await?.keyspace("wide");
    for round in 0..WRITES {
        // Does not compress, so that the snapshot has a size.
        let noise: String = (0..64).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        keyspace.put(format!("key{round}"), noise).await?;
    }
    wait::until("the log that node 3 needs to be purged", WITHIN, || async {
        let listing = cluster.admin().await?.shard(shard).await?;
        let leader = listing.replicas.iter().find(|replica| replica.role == "leader").context("no leader")?;
        ensure!(leader.purged_index > 500, "purged through {}", leader.purged_index);
        Ok(())
    })
    .await?;
    cluster.node_mut(3).start().await?;
    wait::until("node 3 to be seen lagging", WITHIN, || async {
        let lag = lag(&cluster.admin().await?.shard(shard).await?);
        ensure!(lag.get(&3).is_some_and(|entries| *entries > 1000), "{lag:?}");
        Ok(())
    })
    .await
}

/// Node 4 moves onto a disk of its own, which is then filled; where that is not allowed, it asks for more than there is.
async fn fill_disk(cluster: &mut Cluster) -> Result<Option<SmallDisk>> {
    cluster.node_mut(4).stop().await?;
    let (data, kept) = (cluster.node(4).data_dir(), cluster.node(4).data_dir().with_extension("kept"));
    fs::rename(&data, &kept)?;
    let disk = SmallDisk::mount(&data, 200)?;
    if disk.is_some() {
        copy_folder(&kept, &data)?;
    } else {
        eprintln!("no filesystem may be mounted: node 4 demands more space than there is");
        fs::remove_dir(&data)?;
        fs::rename(&kept, &data)?;
    }
    // Too little to take writes, enough to follow: half of it is free.
    let needed = if disk.is_some() { "60MiB" } else { "1000TiB" };
    let lines = [settings().lines, vec![format!("disk_free_min = {needed:?}")]].concat();
    cluster.node(4).configure(&lines)?;
    cluster.node_mut(4).start().await?;
    if let Some(disk) = &disk {
        disk.leave(45)?;
    }
    Ok(disk)
}

fn settings() -> Settings {
    Settings::default()
        .nodes(5)
        .expect("the disk is nearly full")
        .expect("the disk is full")
        .expect("this node refuses to lead")
        .line("flush_interval = \"200ms\"")
        .line("disk_check_interval = \"100ms\"")
        .line("log_entries_kept = 100")
        .line("snapshot_bytes_per_second = \"1KiB\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_a_lagging_replica_and_a_full_disk_are_each_named_with_the_command_that_helps() -> Result<()> {
    let mut cluster = Cluster::start(settings()).await?;
    let endpoints = cluster.endpoints();
    let shard = wide_keyspace(&cluster).await?;
    leave_behind(&mut cluster, shard).await?;
    let disk = fill_disk(&mut cluster).await?;
    cluster.node_mut(5).kill().await?;

    let all = ["node-down node 5", "replica-lagging node 3", "disk-full node 4"];
    let found = wait::until("doctor to see what is wrong", WITHIN, || async {
        let found = doctor(&endpoints, 5).await?;
        ensure!(all.iter().all(|problem| found.contains_key(*problem)), "{found:#?}");
        ensure!(!found.keys().any(|name| name.starts_with("no-leader")), "elections go on: {found:#?}");
        Ok(found)
    })
    .await?;
    println!("{}", expect(&endpoints, &["doctor"], 5).await?.stdout);
    let helps = |problem: &str, command: &str| {
        let commands = found.get(problem).context("just seen")?;
        ensure!(commands.iter().any(|shown| shown == command), "{problem}: {commands:?} lack {command}");
        anyhow::Ok(())
    };
    helps(all[0], "scripts/cluster start 5")?;
    helps(all[1], &format!("kvctl shard describe {shard}"))?;
    helps(all[2], &format!("df -h {}", cluster.node(4).data_dir().display()))?;
    let others: Vec<&String> = found.keys().filter(|name| !all.contains(&name.as_str())).collect();
    ensure!(others.is_empty(), "doctor names what is not wrong: {others:?}");

    // What was repaired is not named any more; the rest still is.
    cluster.node_mut(5).start().await?;
    if disk.is_some() {
        fs::remove_file(cluster.node(4).data_dir().join("filler"))?;
    }
    wait::until("doctor to name only what is left", WITHIN, || async {
        let found = doctor(&endpoints, 5).await?;
        ensure!(found.contains_key(all[1]) && !found.contains_key(all[0]), "{found:#?}");
        ensure!(disk.is_none() || !found.contains_key(all[2]), "{found:#?}");
        Ok(())
    })
    .await?;
    cluster.node_mut(4).stop().await?;
    drop(disk);
    cluster.finish().await
}
