//! Where and with what a run was made.
//!
//! Not here: figures (record).

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The facts a reader needs to judge figures by.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    pub(crate) file_system: String,
    pub(crate) etcd: String,
    /// What the run was asked for.
    pub(crate) arguments: String,
}

impl Machine {
    /// As it is now.
    pub(crate) fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes: f64 = field(&meminfo, "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
        let folder = std::env::temp_dir();
        Self {
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            commit: output("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            processor: field(&cpuinfo, "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: (kibibytes / f64::from(1 << 20)).round(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            file_system: output("findmnt", &["--noheadings", "--output=FSTYPE", "--target", &folder.to_string_lossy()]),
            etcd: String::new(),
            arguments: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        }
    }
}

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// What a command prints; empty if it fails.
fn output(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
