//! What a product build must not have.
//!
//! Not here: what the failpoints are for (failpoints).

use std::path::Path;

use anyhow::{Result, ensure};

#[test]
fn a_product_build_has_no_failpoints() -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let tree = std::process::Command::new(cargo)
        .args(["tree", "--locked", "--offline", "--package", "kv-node", "--edges", "normal", "--prefix", "none"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()?;
    let tree = String::from_utf8(tree.stdout)?;
    ensure!(tree.contains("kv-raft"), "cargo tree says nothing");
    ensure!(!tree.lines().any(|line| line.starts_with("fail ")), "kv-node depends on the crate fail");
    Ok(())
}
