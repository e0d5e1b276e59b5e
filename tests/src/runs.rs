//! The figures of proofs, one line of JSON a run, for the page of the last campaign.
//!
//! Invariants: without the folder nothing is written, so that a test does the same whether a campaign runs it or not.
//!
//! Not here: what the page makes of them (report).

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Names the folder; `scripts/proof` sets it.
const FOLDER: &str = "KV_PROOF_RUNS";

/// Adds a run of this kind to `KIND.jsonl`; its further fields are those of tests/README.md.
pub fn record(kind: &str, mut run: Value) -> Result<()> {
    let Some(folder) = std::env::var_os(FOLDER) else { return Ok(()) };
    run.as_object_mut().context("a run is an object")?.insert("kind".to_owned(), kind.into());
    let path = PathBuf::from(folder).join(format!("{kind}.jsonl"));
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let mut file = file.with_context(|| format!("opening {}", path.display()))?;
    Ok(writeln!(file, "{run}")?)
}
