//! `kv-node unsafe-recover-shard`: two of three nodes are gone for good, and the third goes on with what it has.
//!
//! Not here: what is written into the log (kv-raft, recovery).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_proto::pb::admin::v1::{NodeState, ReplicaRole};
use kv_tests::cluster::Cluster;
use kv_tests::files::files_below;
use kv_tests::kvctl::expect;
use kv_tests::ran::Ran;
use kv_tests::wait;

const WITHIN: Duration = Duration::from_secs(90);
const KEYS: usize = 200;
/// The node whose disk is left.
const LEFT: usize = 3;

/// The command, as doctor names it but for the shard, on the data folder of a node.
async fn recover(cluster: &Cluster, arguments: &[&str]) -> Result<Ran> {
    let folder = cluster.node(LEFT).data_dir();
    recover_in(cluster, arguments, &folder).await
}

async fn recover_in(cluster: &Cluster, arguments: &[&str], folder: &Path) -> Result<Ran> {
    let folder = folder.to_str().context("a folder of a test has a name in letters")?;
    cluster.node(LEFT).run(&[&["unsafe-recover-shard"], arguments, &["--data-dir", folder]].concat()).await
}

/// Every shard of the catalog, that of the catalog first.
async fn shards(cluster: &Cluster) -> Result<Vec<u64>> {
    let listings = cluster.admin().await?.shards("").await?;
    let mut shards: Vec<u64> = listings.iter().filter_map(|listing| Some(listing.shard.as_ref()?.shard_id)).collect();
    shards.sort_unstable();
    Ok(shards)
}

/// Writes keys and waits until the node that is to be left has applied them all.
async fn write_and_settle(cluster: &Cluster) -> Result<()> {
    cluster.voters(3).await?;
    let client = cluster.client().await?;
    for n in 0..KEYS {
        client.put(format!("key{n}"), format!("value{n}")).await?;
    }
    wait::until("the node to have everything", WITHIN, || async {
        for listing in cluster.admin().await?.shards("").await? {
            let last = listing.replicas.iter().map(|replica| replica.last_index).max();
            let left =
                listing.replicas.iter().find(|replica| replica.node_id == LEFT as u64).context("it holds all")?;
            ensure!(Some(left.applied_index) == last, "{left:?} is behind {last:?}");
        }
        Ok(())
    })
    .await
}

async fn everything_is_there(cluster: &Cluster) -> Result<()> {
    let client = cluster.client().await?;
    for n in 0..KEYS {
        let entry = client.get(format!("key{n}")).await?.with_context(|| format!("key{n} is gone"))?;
        ensure!(entry.value == format!("value{n}"), "key{n} is {:?}", entry.value);
    }
    Ok(())
}

/// The files of a folder with what is in them.
fn content(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    files_below(folder)?.into_iter().map(|file| Ok((file.clone(), fs::read(&file)?))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_whose_majority_is_gone_for_good_goes_on_from_the_node_that_is_left() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let endpoints = cluster.endpoints();
    let all = shards(&cluster).await?;
    write_and_settle(&cluster).await?;
    for lost in [1, 2] {
        cluster.node_mut(lost).kill().await?;
        cluster.node(lost).wipe()?;
    }

    // Doctor names the command; it is followed to the letter.
    let left = [cluster.node(LEFT).address()];
    let said = expect(&left, &["-o", "json", "doctor", "--quick"], 5).await?.stdout;
    ensure!(said.contains("kv-node unsafe-recover-shard --shard 1 --accept-data-loss --data-dir FOLDER"), "{said}");
    ensure!(cluster.node_mut(LEFT).stop().await?.success());
    for shard in &all {
        let ran = recover(&cluster, &["--shard", &shard.to_string(), "--accept-data-loss"]).await?;
        ensure!(ran.code == Some(0), "{ran:?}");
        let says = |part: &str| ran.stdout.contains(part);
        ensure!(says(&format!("shard {shard}: replica")) && says("only voter") && says("Start this node"), "{ran:?}");
    }
    cluster.node_mut(LEFT).start().await?;
    wait::until("the shards to be served again", WITHIN, || async {
        expect(&endpoints, &["put", "after", "x"], 0).await?;
        everything_is_there(&cluster).await
    })
    .await?;

    // The lost are replaced: their ids never come back, and every shard has three voters again.
    for lost in ["1", "2"] {
        wait::until(&format!("node {lost} to be given up"), WITHIN, || async {
            expect(&left, &["node", "remove", lost, "--force", "not-drained", "--no-wait"], 0).await
        })
        .await?;
    }
    let (fourth, fifth) = (cluster.join_node().await?, cluster.join_node().await?);
    let wanted = [LEFT as u64, fourth as u64, fifth as u64];
    wait::until("every shard to have three voters", WITHIN, || async {
        for listing in cluster.admin().await?.shards("").await? {
            let shard = listing.shard.context("a listing is of a shard")?;
            let mut voters: Vec<u64> =
                shard.replicas.iter().filter(|r| r.role() == ReplicaRole::Voter).map(|r| r.node_id).collect();
            voters.sort_unstable();
            ensure!(voters == wanted, "shard {} has voters on {voters:?}", shard.shard_id);
        }
        for lost in [1, 2] {
            let state = cluster.admin().await?.node(lost).await?.state();
            ensure!(matches!(state, NodeState::Lost | NodeState::Removed), "node {lost} is {state:?}");
        }
        Ok(())
    })
    .await?;
    cluster.node_mut(LEFT).kill().await?;
    everything_is_there(&cluster).await?;
    let client = cluster.client().await?;
    ensure!(client.get("after").await?.is_some(), "what was written after the recovery is gone");
    cluster.restart(LEFT).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_is_refused_says_what_to_do_and_changes_nothing() -> Result<()> {
    let mut cluster = Cluster::of_three().await?;
    let endpoints = cluster.endpoints();
    write_and_settle(&cluster).await?;

    // The node runs.
    let ran = recover(&cluster, &["--shard", "2", "--accept-data-loss"]).await?;
    ensure!(ran.code == Some(1) && ran.stdout.is_empty(), "{ran:?}");
    ensure!(ran.stderr.contains("LOCK is locked") && ran.stderr.contains("stop the node first"), "{}", ran.stderr);
    ensure!(ran.stderr.contains("nothing was changed"), "{}", ran.stderr);

    // Nobody said that the loss is accepted, or which shard is meant.
    ensure!(cluster.node_mut(LEFT).stop().await?.success());
    let before = content(&cluster.node(LEFT).data_dir())?;
    for (arguments, missing) in [(vec!["--shard", "2"], "--accept-data-loss"), (vec!["--accept-data-loss"], "--shard")]
    {
        let ran = recover(&cluster, &arguments).await?;
        ensure!(ran.code == Some(2) && ran.stderr.contains(missing), "{ran:?}");
    }
    ensure!(content(&cluster.node(LEFT).data_dir())? == before, "the data folder was touched");

    // A folder of no node, there or not.
    let empty = cluster.node(LEFT).data_dir().with_extension("empty");
    for there in [false, true] {
        if there {
            fs::create_dir(&empty)?;
        }
        let ran = recover_in(&cluster, &["--shard", "2", "--accept-data-loss"], &empty).await?;
        ensure!(ran.code == Some(1) && ran.stderr.contains("holds no member of a cluster"), "{ran:?}");
        ensure!(ran.stderr.contains("--data-dir") && ran.stderr.contains("nothing was changed"), "{ran:?}");
        ensure!(empty.exists() == there, "the folder was made");
        ensure!(!there || fs::read_dir(&empty)?.next().is_none(), "something was left in the folder");
    }

    // A shard that the node does not hold: it names those it does.
    let ran = recover(&cluster, &["--shard", "99", "--accept-data-loss"]).await?;
    ensure!(ran.code == Some(1) && ran.stderr.contains("no replica of shard 99"), "{ran:?}");
    let held = human_list(&shards(&cluster).await?);
    ensure!(ran.stderr.contains(&format!("of shards {held}")) && ran.stderr.contains("nothing was changed"), "{ran:?}");

    // All three voters are there as before, and the node is one of them.
    cluster.restart(LEFT).await?;
    everything_is_there(&cluster).await?;
    cluster.voters(3).await?;
    wait::until("all shards to be led", WITHIN, || expect(&endpoints, &["health"], 0)).await?;
    cluster.finish().await
}

/// As in "1, 2 and 3".
fn human_list(ids: &[u64]) -> String {
    let words: Vec<String> = ids.iter().map(u64::to_string).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => words.concat(),
    }
}
