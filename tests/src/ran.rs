//! A command that was run to its end.

use anyhow::{Context as _, Result};
use tokio::process::Command;

/// What it did.
#[derive(Debug)]
pub struct Ran {
    /// None if a signal ended it.
    pub code: Option<i32>,
    /// Its whole output.
    pub stdout: String,
    /// Its errors and notes.
    pub stderr: String,
}

impl Ran {
    /// Runs it.
    pub async fn of(command: &mut Command) -> Result<Self> {
        let output = command.output().await.with_context(|| format!("running {command:?}"))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) })
    }
}
