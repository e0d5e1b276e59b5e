//! What a node does on a damaged, foreign or full disk: a clear word that names the file, no start, nothing deleted.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kv_proto::errors::ServiceError;
use kv_proto::pb::v1::{GetRequest, PutRequest, ScanRequest};
use kv_tests::admin::Admin;
use kv_tests::disk::SmallDisk;
use kv_tests::files::{copy_folder, files_below, flip_bit, keep_only, largest_file, truncate};
use kv_tests::node::NodeProcess;
use kv_tests::raw::{self, header};
use kv_tests::wait;

const WITHIN: Duration = Duration::from_secs(30);
/// Enough for a few SST files and a log of some length.
const KEYS: usize = 400;

/// The lines of a node that begins a cluster of its own and flushes soon.
fn alone() -> Vec<String> {
    ["bootstrap = true", "default_shards = 1", "flush_interval = \"200ms\""].map(str::to_owned).to_vec()
}

async fn started_alone(number: usize, below: &Path) -> Result<NodeProcess> {
    let mut node = NodeProcess::new(number, below, &alone())?;
    node.start().await?;
    written(&node, "first").await?;
    Ok(node)
}

/// A put that is retried while the node's first shards elect their leaders.
async fn written(node: &NodeProcess, key: &str) -> Result<()> {
    wait::until("the first write", WITHIN, || async {
        let mut kv = raw::kv(&node.address()).await?;
        kv.put(put(key, 10)).await?;
        Ok(())
    })
    .await
}

fn put(key: &str, length: usize) -> PutRequest {
    PutRequest { header: header(), key: key.to_owned().into(), value: vec![b'v'; length].into() }
}

fn get(key: &str) -> GetRequest {
    GetRequest { header: header(), key: key.to_owned().into(), read: None }
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named_and_nothing_is_touched() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = NodeProcess::new(1, folder.path(), &alone())?;
    for address in [node.address(), node.http_address()] {
        let holder = TcpListener::bind(&address)?;
        let (status, said) = node.start_refused().await?;
        ensure!(!status.success(), "it started");
        ensure!(said.contains(&address), "{address} is not named in: {said}");
        drop(holder);
    }
    node.start().await?;
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_in_use_by_another_process_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut owner = started_alone(1, folder.path()).await?;
    let mut intruder = NodeProcess::new(2, folder.path(), &alone())?;
    symlink(owner.data_dir(), intruder.data_dir())?;
    let (status, said) = intruder.start_refused().await?;
    ensure!(!status.success() && said.contains("another process"), "{status}: {said}");
    written(&owner, "still served").await?;
    ensure!(owner.stop().await?.success(), "the owner was disturbed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_another_node_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut one = started_alone(1, folder.path()).await?;
    let mut other = started_alone(2, folder.path()).await?;
    one.stop().await?;
    other.stop().await?;
    // Each engine of the other node in turn, under the identity of the first.
    let engines: Vec<PathBuf> = fs::read_dir(one.data_dir())?.flatten().map(|entry| entry.path()).collect();
    for engine in engines.into_iter().filter(|path| path.is_dir()) {
        let kept = folder.path().join("kept");
        fs::rename(&engine, &kept)?;
        copy_folder(&other.data_dir().join(file_name(&engine)), &engine)?;
        let before = files_below(&one.data_dir())?.len();
        let (status, said) = one.start_refused().await?;
        ensure!(!status.success(), "it started with the {} of another node", file_name(&engine));
        ensure!(said.contains(&file_name(&engine)), "{} is not named in: {said}", file_name(&engine));
        ensure!(files_below(&one.data_dir())?.len() >= before, "something was deleted");
        fs::remove_dir_all(&engine)?;
        fs::rename(&kept, &engine)?;
    }
    one.start().await?;
    written(&one, "as before").await?;
    one.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_at_fault_names_all_faults_at_once_and_exits_with_2() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let lines = ["bootstrap_nodes = 65", "no_such_key = 1", "heartbeat_interval = \"10s\""];
    let mut node = NodeProcess::new(1, folder.path(), &lines.map(str::to_owned))?;
    let (status, said) = node.start_refused().await?;
    ensure!(status.code() == Some(2), "{status}: {said}");
    for key in ["bootstrap_nodes", "no_such_key", "election_timeout_min"] {
        ensure!(said.contains(key), "{key} is not named in: {said}");
    }
    ensure!(!node.data_dir().exists(), "it began a data folder");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_folder_needs_to_know_whether_to_bootstrap_or_to_join() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = NodeProcess::new(1, folder.path(), &[])?;
    let (status, said) = node.start_refused().await?;
    ensure!(status.code() == Some(2), "{status}: {said}");
    ensure!(said.contains("bootstrap") && said.contains("join"), "{said}");
    Ok(())
}

/// One way to damage a data folder.
struct Damage {
    what: &'static str,
    /// Which file: the largest with this ending.
    ending: &'static str,
    below: Option<&'static str>,
    harm: fn(&Path) -> Result<()>,
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_named_and_nothing_starts_on_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = started_alone(1, folder.path()).await?;
    let pristine = folder.path().join("pristine");
    fill(&node).await?;
    node.kill().await?;
    copy_folder(&node.data_dir(), &pristine)?;

    let damages = [
        Damage { what: "a truncated table", ending: ".sst", below: None, harm: |file| truncate(file, 60) },
        // Where it is cut decides what is missing. Here it is tables, which are in the manifest before all data.
        Damage { what: "a truncated manifest", ending: "MANIFEST-", below: None, harm: |file| keep_only(file, 200) },
        Damage {
            what: "a flipped bit in a manifest",
            ending: "MANIFEST-",
            below: None,
            harm: |file| flip_bit(file, 30),
        },
        Damage {
            what: "a flipped bit inside a log",
            ending: ".log",
            below: Some("log"),
            harm: |file| flip_bit(file, 30),
        },
    ];
    for Damage { what, ending, below, harm } in damages {
        restore(&pristine, &node)?;
        let within = below.map_or(node.data_dir(), |part| node.data_dir().join(part));
        let file =
            if ending.starts_with('.') { largest_file(&within, ending)? } else { largest_named(&within, ending)? };
        harm(&file)?;
        // An engine that is sound may have been opened and closed again.
        let engine = file.parent().context("a file lies in a folder")?;
        let before: BTreeSet<PathBuf> = files_below(engine)?.into_iter().collect();
        let (status, said) = node.start_refused().await.with_context(|| format!("{what}: {}", file.display()))?;
        ensure!(!status.success(), "{what}: it started on {}", file.display());
        ensure!(said.contains(&file_name(&file)), "{what}: {} is not named in: {said}", file_name(&file));
        let after: BTreeSet<PathBuf> = files_below(engine)?.into_iter().collect();
        let deleted: Vec<&PathBuf> = before.difference(&after).collect();
        ensure!(deleted.is_empty(), "{what}: deleted were {deleted:?}");
    }

    restore(&pristine, &node)?;
    node.start().await?;
    let mut kv = raw::kv(&node.address()).await?;
    written(&node, "again").await?;
    for key in 0..KEYS {
        let found = kv.get(get(&format!("key{key}"))).await?.into_inner();
        ensure!(found.entry.is_some(), "key{key} is lost without any damage");
    }
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_table_is_never_served() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = started_alone(1, folder.path()).await?;
    fill(&node).await?;
    node.stop().await?;
    let file = largest_file(&node.data_dir(), ".sst")?;
    flip_bit(&file, 40)?;
    // The block is read at start or by the scan; either way the process ends and names the file.
    if node.start().await.is_ok() {
        let read = scan_all(&node).await;
        ensure!(read.is_err(), "a scan over a damaged table answered {read:?} keys");
        println!("the scan ended with: {:#}", read.err().context("just seen")?);
    }
    let named = || async {
        let log = fs::read_to_string(node.log())?;
        ensure!(log.contains(&file_name(&file)), "it is not there");
        Ok(())
    };
    wait::until(&format!("{} to be named in the log", file_name(&file)), WITHIN, named).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_full_disk_is_read_only_until_there_is_space_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut lines = alone();
    lines.extend(["disk_free_min = \"100MiB\"", "disk_check_interval = \"100ms\""].map(str::to_owned));
    let mut node = NodeProcess::new(1, folder.path(), &lines)?;
    let Some(disk) = SmallDisk::mount(&node.data_dir(), 200)? else {
        eprintln!("SKIPPED: a small filesystem can only be mounted by root with the right to");
        return Ok(());
    };
    node.start().await?;
    written(&node, "before").await?;

    disk.leave(40)?;
    let mut kv = raw::kv(&node.address()).await?;
    wait::until("writes to be refused", WITHIN, || {
        let mut kv = kv.clone();
        async move {
            let status = kv.put(put("during", 10)).await.err().context("still accepted")?;
            let error = ServiceError::from_status(&status);
            ensure!(error.reason() == "READ_ONLY" && error.retry_after().is_some(), "{error:?}");
            Ok(())
        }
    })
    .await?;
    ensure!(kv.get(get("before")).await?.into_inner().entry.is_some(), "reads must go on");
    let status = Admin::to(&node.address()).await?.node_status().await?;
    ensure!(status.read_only, "the status does not say it");

    disk.empty()?;
    wait::until("writes to be accepted again", WITHIN, || {
        let mut kv = kv.clone();
        async move { Ok(kv.put(put("after", 10)).await.map(|_| ())?) }
    })
    .await?;
    node.stop().await?;
    drop(disk);
    Ok(())
}

/// Writes enough for tables, a manifest and a log to be there.
async fn fill(node: &NodeProcess) -> Result<()> {
    let mut kv = raw::kv(&node.address()).await?;
    for key in 0..KEYS {
        kv.put(put(&format!("key{key}"), 2000)).await?;
    }
    wait::until("a table of the data engine", WITHIN, || async { largest_file(&node.data_dir(), ".sst") }).await?;
    for key in 0..KEYS / 4 {
        kv.put(put(&format!("late{key}"), 2000)).await?;
    }
    Ok(())
}

fn restore(pristine: &Path, node: &NodeProcess) -> Result<()> {
    node.wipe()?;
    copy_folder(pristine, &node.data_dir())
}

fn largest_named(below: &Path, beginning: &str) -> Result<PathBuf> {
    let named = files_below(below)?.into_iter().filter(|file| file_name(file).starts_with(beginning));
    let size = |file: &PathBuf| fs::metadata(file).map_or(0, |facts| facts.len());
    named.max_by_key(size).with_context(|| format!("no {beginning} file below {}", below.display()))
}

async fn scan_all(node: &NodeProcess) -> Result<usize> {
    let mut kv = raw::kv(&node.address()).await?;
    let (mut cursor, mut seen) = (bytes::Bytes::new(), 0);
    loop {
        let request = ScanRequest { header: header(), page_size: 1000, cursor, ..ScanRequest::default() };
        let page = match kv.scan(request.clone()).await {
            Ok(page) => page.into_inner(),
            Err(status) => match ServiceError::from_status(&status).reason() {
                // Not yet led after the start.
                "NO_LEADER" | "NOT_LEADER" | "NOT_READY" | "KEYSPACE_NOT_FOUND" => {
                    cursor = request.cursor;
                    continue;
                }
                _ => bail!("{status:?}"),
            },
        };
        seen += page.entries.len();
        cursor = page.cursor;
        if cursor.is_empty() {
            return Ok(seen);
        }
    }
}
