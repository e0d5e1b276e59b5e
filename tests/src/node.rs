//! One real kv-node process on loopback.
//!
//! Invariants: the process dies with the value; its data, log and address stay the same from start to start.
//!
//! Not here: how nodes form a cluster (cluster).

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::http;
use crate::ports::free_port;
use crate::ran::Ran;
use crate::wait;

/// A graceful stop hands leadership over and flushes; longer is a fault.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// From the start of the process until it answers at all.
const ALIVE_WITHIN: Duration = Duration::from_secs(30);

/// A kv-node process and all it needs to be started again.
#[derive(Debug)]
pub struct NodeProcess {
    number: usize,
    folder: PathBuf,
    grpc_port: u16,
    http_port: u16,
    preload: Option<PathBuf>,
    advertised: Option<String>,
    child: Option<Child>,
    failpoints: Option<String>,
}

impl NodeProcess {
    /// A node with a folder of its own and ports that are free; not started. `settings` are lines of its file.
    pub fn new(number: usize, below: &Path, settings: &[String]) -> Result<Self> {
        let folder = below.join(format!("node{number}"));
        fs::create_dir_all(&folder)?;
        let node = Self {
            number,
            folder,
            grpc_port: free_port()?,
            http_port: free_port()?,
            preload: None,
            advertised: None,
            failpoints: None,
            child: None,
        };
        node.configure(settings)?;
        Ok(node)
    }

    /// Writes its file anew; counts from the next start.
    pub fn configure(&self, settings: &[String]) -> Result<()> {
        let mut lines = vec![
            format!("data_dir = {:?}", self.data_dir()),
            format!("listen = {:?}", self.address()),
            format!("http_listen = {:?}", self.http_address()),
            "log_format = \"json\"".to_owned(),
        ];
        lines.extend(self.advertised.iter().map(|address| format!("advertise = {address:?}")));
        lines.extend_from_slice(settings);
        Ok(fs::write(self.folder.join("node.toml"), lines.join("\n") + "\n")?)
    }

    /// A library to load before all others; counts from the next start.
    pub fn preload(&mut self, library: Option<PathBuf>) {
        self.preload = library;
    }

    /// From the next start on it is the build with failpoints, with these set (docs/failpoints.md); None: the product.
    pub fn set_failpoints(&mut self, failpoints: Option<String>) {
        self.failpoints = failpoints;
    }

    /// The failpoints it came to, over all starts.
    pub fn failpoints_seen(&self) -> Result<BTreeSet<String>> {
        match fs::read_to_string(self.seen()) {
            Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// As if it had never come to a failpoint.
    pub fn forget_failpoints_seen(&self) -> Result<()> {
        Ok(fs::write(self.seen(), "")?)
    }

    fn seen(&self) -> PathBuf {
        self.folder.join("failpoints-seen")
    }

    /// Starts the process, which may end at any time.
    pub fn start_to_crash(&mut self) -> Result<()> {
        self.spawn()
    }

    /// How the process ended, once it has within this time; None if it still runs.
    pub async fn end_within(&mut self, within: Duration) -> Result<Option<ExitStatus>> {
        let child = self.child.as_mut().with_context(|| format!("node {} is not started", self.number))?;
        let Ok(status) = timeout(within, child.wait()).await else { return Ok(None) };
        self.child = None;
        Ok(Some(status?))
    }

    /// SIGTERM, without waiting for the end.
    pub fn ask_to_stop(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Its place in the cluster, from 1; also its node id unless it was wiped.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Has others reach it by another address than its own; counts from the next [`NodeProcess::configure`].
    pub fn advertise(&mut self, address: String) {
        self.advertised = Some(address);
    }

    /// The gRPC address others reach it by.
    #[must_use]
    pub fn advertised(&self) -> String {
        self.advertised.clone().unwrap_or_else(|| self.address())
    }

    /// Its own gRPC address.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.grpc_port)
    }

    /// HTTP address.
    #[must_use]
    pub fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.http_port)
    }

    /// Its data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// All it wrote to its outputs, over all starts.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Whether a process was started and not yet ended by this value.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Starts the process and waits until it answers.
    pub async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        let address = self.http_address();
        let what = format!("node {} to answer", self.number);
        let alive = wait::until(&what, ALIVE_WITHIN, || async {
            let (status, _) = http::get(&address, "/livez").await?;
            ensure!(status == 200, "/livez answers {status}");
            Ok(())
        });
        tokio::select! {
            alive = alive => alive,
            ended = self.ended() => Err(ended),
        }
    }

    /// Starts a process that is meant to refuse; its exit status and what it wrote.
    pub async fn start_refused(&mut self) -> Result<(ExitStatus, String)> {
        let before = fs::metadata(self.log()).map_or(0, |facts| facts.len());
        self.spawn()?;
        let child = self.child.as_mut().context("just spawned")?;
        let status = timeout(ALIVE_WITHIN, child.wait()).await;
        let status = status.with_context(|| format!("node {} still runs after {ALIVE_WITHIN:?}", self.number))??;
        self.child = None;
        let log = fs::read(self.log())?;
        let said = log.get(usize::try_from(before)?..).unwrap_or_default();
        Ok((status, String::from_utf8_lossy(said).into_owned()))
    }

    /// Runs another command of the program to its end, with its file; the node itself may run or not.
    pub async fn run(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::new(binary("kv-node")?);
        without_settings(&mut command);
        command.args(arguments).arg("--config").arg(self.folder.join("node.toml"));
        Ran::of(command.stdin(Stdio::null()).kill_on_drop(true)).await
    }

    /// Whether the process ended although nobody stopped it.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(match self.child.as_mut() {
            Some(child) => child.try_wait()?.is_some(),
            None => false,
        })
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().with_context(|| format!("node {} is not started", self.number))?;
        child.kill().await?;
        Ok(())
    }

    /// SIGTERM; waits for the end.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.tell_to_stop()?;
        self.stopped().await
    }

    /// SIGTERM; once only, since a second one ends it at once.
    pub fn tell_to_stop(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Waits for the end of a process that was told to stop.
    pub async fn stopped(&mut self) -> Result<ExitStatus> {
        // It stays ours until it has ended, also if whoever waits here gives up before: its port is taken until then.
        let child = self.child.as_mut().with_context(|| format!("node {} is not started", self.number))?;
        let status = timeout(STOP_WITHIN, child.wait()).await;
        let status = status.with_context(|| format!("node {} did not stop within {STOP_WITHIN:?}", self.number))??;
        self.child = None;
        Ok(status)
    }

    /// SIGSTOP: alive to the kernel, silent to everyone.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Removes all its data; it must not run.
    pub fn wipe(&self) -> Result<()> {
        ensure!(self.child.is_none(), "node {} still runs", self.number);
        Ok(fs::remove_dir_all(self.data_dir())?)
    }

    /// The whole memory the process holds, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let pid = self.pid().with_context(|| format!("node {} is not started", self.number))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "node {} is started already", self.number);
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let program = if self.failpoints.is_some() { "kv-node-failpoints" } else { "kv-node" };
        let mut command = Command::new(binary(program)?);
        if let Some(failpoints) = &self.failpoints {
            command.env("FAILPOINTS", failpoints).env("FAILPOINTS_SEEN", self.seen());
        }
        without_settings(&mut command);
        if let Some(library) = &self.preload {
            command.env("LD_PRELOAD", library);
        }
        command.arg("--config").arg(self.folder.join("node.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().context("starting kv-node")?);
        Ok(())
    }

    /// Ends when the process does, with its last words.
    async fn ended(&mut self) -> anyhow::Error {
        let Some(child) = self.child.as_mut() else {
            return anyhow::anyhow!("node {} was not started", self.number);
        };
        let status = child.wait().await;
        self.child = None;
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        anyhow::anyhow!(
            "node {} ended instead of answering ({status:?}); its log ends:\n{}",
            self.number,
            last.join("\n")
        )
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("node {} is not started", self.number))?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("a process id is not 0")?;
        Ok(kill_process(pid, signal)?)
    }
}

/// The settings of whoever runs the tests are not theirs.
fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KV_")) {
        command.env_remove(name);
    }
}

/// A binary of the workspace: beside this one, or one folder above if this is a test, where cargo puts both.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.parent().context("a binary lies in a folder")?;
    let folder = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{} is not built: run scripts/test, scripts/dist, scripts/bench, or cargo build with the same profile",
        path.display()
    );
    Ok(path)
}
