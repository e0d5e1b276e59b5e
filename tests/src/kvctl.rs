//! The command line tool as a process.

use std::process::Stdio;

use anyhow::{Result, ensure};
use tokio::process::Command;

use crate::node::binary;
use crate::ran::Ran;

/// Runs it to its end.
pub async fn kvctl(endpoints: &[String], arguments: &[&str]) -> Result<Ran> {
    let mut command = Command::new(binary("kvctl")?);
    command.env_remove("KV_ENDPOINTS").env_remove("KV_KEYSPACE").stdin(Stdio::null()).kill_on_drop(true);
    Ran::of(command.arg("--endpoints").arg(endpoints.join(",")).args(arguments)).await
}

/// The same, which must end with this code.
pub async fn expect(endpoints: &[String], arguments: &[&str], code: i32) -> Result<Ran> {
    let ran = kvctl(endpoints, arguments).await?;
    let Ran { code: ended, stdout, stderr } = &ran;
    ensure!(*ended == Some(code), "kvctl {arguments:?} ended with {ended:?}, not {code}:\n{stdout}\n{stderr}");
    Ok(ran)
}
