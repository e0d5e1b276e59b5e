//! `scripts/cluster`: the local cluster of the first five minutes, from `up` to `wipe`, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_tests::kvctl::expect;
use kv_tests::node::binary;
use kv_tests::ports::free_ports;
use kv_tests::ran::Ran;
use kv_tests::wait;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

const WITHIN: Duration = Duration::from_secs(30);
/// A command of the script; `up` looks through the workspace whether all is built.
const COMMAND_WITHIN: Duration = Duration::from_secs(180);
/// Three, one that joins, and node 0, which there is none of.
const PORTS: u16 = 5;

/// A cluster of the script's in a folder and on ports of its own; wiped with the value.
struct Local {
    folder: TempDir,
    base_port: u16,
    base_http_port: u16,
    /// Beside that of the tests.
    environment: Vec<(&'static str, PathBuf)>,
}

impl Local {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kv-test-local-").tempdir()?;
        let (base_port, base_http_port) = (free_ports(PORTS)?, free_ports(PORTS)?);
        Ok(Self { folder, base_port, base_http_port, environment: Vec::new() })
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn command(&self, arguments: &[&str]) -> Result<std::process::Command> {
        // Where the tests were built, so that nothing is built again.
        let built = binary("kv-node")?;
        let target = built.ancestors().nth(2).context("a binary lies in target/release")?;
        let mut command = std::process::Command::new(workspace().join("scripts/cluster"));
        // Of cargo's own variables for tests the build inside must not hear.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name.starts_with("KV_") {
                command.env_remove(name);
            }
        }
        command.args(arguments).env("CARGO_TARGET_DIR", target).env("KV_HOME", self.home()).stdin(Stdio::null());
        command.env("KV_BASE_PORT", self.base_port.to_string());
        command.env("KV_BASE_HTTP_PORT", self.base_http_port.to_string());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    async fn run(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::from(self.command(arguments)?);
        timeout(COMMAND_WITHIN, Ran::of(command.kill_on_drop(true))).await.with_context(|| format!("{arguments:?}"))?
    }

    /// The same, which must succeed.
    async fn done(&self, arguments: &[&str]) -> Result<Ran> {
        let ran = self.run(arguments).await?;
        ensure!(ran.code == Some(0), "scripts/cluster {arguments:?}: {ran:?}");
        Ok(ran)
    }

    /// The same, which must fail and say this.
    async fn refused(&self, arguments: &[&str], why: &str) -> Result<()> {
        let ran = self.run(arguments).await?;
        ensure!(ran.code.is_some_and(|code| code != 0), "scripts/cluster {arguments:?} succeeds: {ran:?}");
        ensure!(ran.stderr.contains(why), "scripts/cluster {arguments:?} does not say {why:?}: {ran:?}");
        Ok(())
    }

    fn endpoints(&self, nodes: u16) -> Vec<String> {
        (1..=nodes).map(|node| format!("127.0.0.1:{}", self.base_port + node)).collect()
    }

    fn pid(&self, node: usize) -> Result<u32> {
        Ok(fs::read_to_string(self.home().join(format!("node{node}/pid")))?.trim().parse()?)
    }

    /// What `status` says of a node: `running`, `paused`, `stopped`.
    async fn state(&self, node: usize) -> Result<String> {
        let said = self.done(&["status"]).await?.stdout;
        let line =
            said.lines().find(|line| line.starts_with(&format!("node {node} "))).context("no line of the node")?;
        Ok(line.split_whitespace().nth(2).unwrap_or_default().to_owned())
    }

    async fn is(&self, node: usize, state: &str) -> Result<()> {
        let now = self.state(node).await?;
        ensure!(now == state, "node {node} is {now}, not {state}");
        Ok(())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // Nothing is left after a test that passed.
        if self.home().exists()
            && let Ok(mut wipe) = self.command(&["wipe"])
        {
            let _ = wipe.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Whether the process is there and has not ended.
fn lives(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_five_minutes_go_as_the_readme_has_them() -> Result<()> {
    let local = Local::new()?;
    let endpoints = local.endpoints(3);
    let up = local.done(&["up", "--nodes", "3"]).await?;
    ensure!(up.stdout.contains("The cluster is up."), "{up:?}");
    ensure!(up.stdout.contains(&format!("export KV_ENDPOINTS={}", endpoints.join(","))), "{}", up.stdout);
    ensure!(!up.stderr.contains("Compiling librocksdb-sys"), "the storage engine was built again: {}", up.stderr);
    expect(&endpoints, &["put", "greeting", "hello"], 0).await?;
    for node in 1..=3 {
        local.is(node, "running").await?;
    }

    // Up again changes nothing.
    let pids: Vec<u32> = (1..=3).map(|node| local.pid(node)).collect::<Result<_>>()?;
    let again = local.done(&["up"]).await?;
    ensure!(again.stderr.matches("runs already").count() == 3, "{again:?}");
    ensure!((1..=3).map(|node| local.pid(node)).collect::<Result<Vec<_>>>()? == pids, "other processes run now");

    // One is killed; the others go on.
    local.done(&["kill", "1"]).await?;
    ensure!(pids.first().is_some_and(|pid| !lives(*pid)), "node 1 still runs");
    local.is(1, "stopped").await?;
    local.refused(&["kill", "1"], "node 1 is not running").await?;
    expect(&endpoints, &["put", "greeting", "still here"], 0).await?;
    local.done(&["start", "1"]).await?;
    local.is(1, "running").await?;
    ensure!(local.done(&["start", "1"]).await?.stderr.contains("runs already"));

    local.done(&["pause", "2"]).await?;
    local.is(2, "paused").await?;
    ensure!(local.done(&["start", "2"]).await?.stderr.contains("resume 2"), "a paused node is not started");
    expect(&endpoints, &["put", "greeting", "one is silent"], 0).await?;
    local.done(&["resume", "2"]).await?;
    local.is(2, "running").await?;

    let third = local.pid(3)?;
    local.done(&["stop", "3"]).await?;
    ensure!(!lives(third), "node 3 still runs");
    local.done(&["start", "3"]).await?;

    ensure!(
        local.done(&["logs", "3"]).await?.stdout.matches("node started").count() == 2,
        "both starts are in its log"
    );
    follows_its_log(&local).await?;

    let added = local.done(&["add-node"]).await?;
    ensure!(added.stdout.contains(&local.endpoints(4).join(",")), "{added:?}");
    wait::until("the others to know it", WITHIN, || async {
        let listed = expect(&endpoints, &["node", "list"], 0).await?.stdout;
        ensure!(listed.lines().count() == 5, "{listed}");
        Ok(())
    })
    .await?;

    // Down and up: everything is there.
    let pids: Vec<u32> = (1..=4).map(|node| local.pid(node)).collect::<Result<_>>()?;
    local.done(&["down"]).await?;
    ensure!(!pids.iter().any(|pid| lives(*pid)), "a node still runs");
    local.done(&["down"]).await?;
    local.done(&["up"]).await?;
    local.is(4, "running").await?;
    ensure!(expect(&endpoints, &["get", "greeting"], 0).await?.stdout.contains("one is silent"));

    let pids: Vec<u32> = (1..=4).map(|node| local.pid(node)).collect::<Result<_>>()?;
    local.done(&["wipe"]).await?;
    ensure!(!local.home().exists() && !pids.iter().any(|pid| lives(*pid)), "something is left");
    local.done(&["wipe"]).await?;
    Ok(())
}

/// `logs N -f` goes on with what is written later.
async fn follows_its_log(local: &Local) -> Result<()> {
    let mut command = Command::from(local.command(&["logs", "1", "-f"])?);
    let mut following = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(following.stdout.take().context("its output is ours")?).lines();
    local.done(&["stop", "1"]).await?;
    let stopping = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("stopped") || line.contains("stopping") {
                return Ok(());
            }
        }
        anyhow::bail!("it ended")
    };
    timeout(WITHIN, stopping).await.context("nothing of the stop was seen")??;
    following.kill().await?;
    local.done(&["start", "1"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn binaries_from_elsewhere_are_not_built_and_remembered() -> Result<()> {
    let mut local = Local::new()?;
    let built = binary("kv-node")?;
    let elsewhere = built.parent().context("a binary lies in a folder")?.to_owned();
    let nothing = local.folder.path().join("nothing");
    local.environment = vec![("CARGO_TARGET_DIR", nothing.clone()), ("KV_BINARIES", nothing.clone())];
    local.refused(&["up"], "which KV_BINARIES names").await?;
    local.environment = vec![("CARGO_TARGET_DIR", nothing.clone()), ("KV_BINARIES", elsewhere)];
    local.done(&["up", "--nodes", "1"]).await?;
    local.environment = vec![("CARGO_TARGET_DIR", nothing.clone())];
    local.done(&["stop", "1"]).await?;
    local.done(&["start", "1"]).await?;
    local.is(1, "running").await?;
    local.done(&["down"]).await?;
    ensure!(!nothing.exists(), "something was built");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_with_a_word_on_what_is_known() -> Result<()> {
    let local = Local::new()?;
    for arguments in [&["status"][..], &["down"], &["kill", "1"], &["start", "1"], &["add-node"]] {
        local.refused(arguments, "run  scripts/cluster up").await?;
    }
    local.refused(&["fly"], "unknown command 'fly'").await?;
    for nodes in ["0", "10", "three", ""] {
        local.refused(&["up", "--nodes", nodes], "a number from 1 to 9").await?;
    }
    local.refused(&["up", "--nodes"], "a number from 1 to 9").await?;
    local.refused(&["up", "3"], "unknown argument '3'").await?;
    for command in ["kill", "stop", "start", "pause", "resume", "logs"] {
        local.refused(&[command], "which node?").await?;
        local.refused(&[command, "one"], "which node?").await?;
    }
    // What is meant for one node must not befall all of them.
    for command in ["down", "wipe", "status", "add-node"] {
        local.refused(&[command, "1"], "unknown argument '1'").await?;
    }
    for command in ["kill", "stop", "start", "pause", "resume"] {
        local.refused(&[command, "1", "2"], "unknown argument '2'").await?;
    }
    ensure!(!local.home().exists(), "a refusal made a folder");
    ensure!(local.done(&["help"]).await?.stdout.contains("scripts/cluster up [--nodes 3]"));

    // A folder of someone else is neither used nor wiped.
    fs::create_dir(local.home())?;
    fs::write(local.home().join("thesis.tex"), "years")?;
    local.refused(&["up"], "holds something else").await?;
    local.refused(&["wipe"], "there is no cluster in").await?;
    ensure!(fs::read_to_string(local.home().join("thesis.tex"))? == "years");
    fs::remove_dir_all(local.home())?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_there_and_a_port_that_is_taken_are_named() -> Result<()> {
    let local = Local::new()?;
    local.done(&["up", "--nodes=1"]).await?;
    for command in ["kill", "stop", "start", "pause", "resume"] {
        local.refused(&[command, "2"], "there is no node 2").await?;
    }
    local.refused(&["logs", "2"], "there is no ").await?;
    local.refused(&["logs", "1", "-x"], "unknown argument '-x'").await?;
    local.done(&["stop", "1"]).await?;
    local.refused(&["resume", "1"], "node 1 is not running").await?;
    let taken = wait::until("the port to be free", WITHIN, || async {
        Ok(tokio::net::TcpListener::bind(("127.0.0.1", local.base_port + 1)).await?)
    })
    .await?;
    local.refused(&["start", "1"], &format!("port {} is taken", local.base_port + 1)).await?;
    drop(taken);
    local.done(&["start", "1"]).await?;
    let endpoints = local.endpoints(1);
    wait::until("its shards to be led", WITHIN, || expect(&endpoints, &["health"], 0)).await?;
    local.done(&["wipe"]).await?;
    Ok(())
}
