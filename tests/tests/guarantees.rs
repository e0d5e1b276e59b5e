//! docs/guarantees.md names, for every promise, tests that exist.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kv_tests::files::files_below;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files of the workspace, in one text, and the names of the checkers.
fn sources() -> Result<(String, Vec<String>)> {
    let mut text = String::new();
    for krate in ["kv-proto", "kv-raft", "kv-node", "kv-client", "tests"] {
        for file in files_below(&workspace().join(krate))? {
            if file.extension().is_some_and(|kind| kind == "rs") {
                text.push_str(&fs::read_to_string(&file)?);
            }
        }
    }
    let checkers = fs::read_dir(workspace().join("tests/checkers/src"))?;
    let checkers = checkers.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    Ok((text, checkers))
}

#[test]
fn every_promise_names_tests_that_exist() -> Result<()> {
    let page = fs::read_to_string(workspace().join("docs/guarantees.md"))?;
    let (sources, checkers) = sources()?;
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.contains("| test |"));
    let mut named = 0;
    for row in rows {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().context("a row has columns")?;
        let tests: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        ensure!(!tests.is_empty(), "no test is named for: {row}");
        for test in tests {
            let exists = checkers.iter().any(|name| name == test) || sources.contains(&format!("fn {test}("));
            ensure!(exists, "there is no test {test}, named for: {row}");
            named += 1;
        }
    }
    ensure!(named > 40, "only {named} tests were found on the page");
    Ok(())
}
