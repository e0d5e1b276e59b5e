//! The known bugs of tests/mutants still fit the code, and the tests that must notice them exist.
//!
//! Not here: putting them in and watching the tests fail, which takes minutes (scripts/mutants).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use kv_tests::files::files_below;

/// The bugs a harness must catch; there may be more.
const MUTANTS: [&str; 12] = [
    "acknowledge-before-fsync",
    "skip-the-session-check",
    "read-without-readindex",
    "forget-the-applied-id",
    "purge-past-the-flushed-index",
    "snapshot-over-the-old-range",
    "apply-reads-the-wall-clock",
    "accept-a-stale-epoch",
    "vote-after-a-fast-restart",
    "not-applied-for-a-truncated-entry",
    "vote-in-memory-only",
    "snapshot-without-sessions",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_mutant_applies_and_its_test_exists() -> Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(workspace().join("tests/mutants"))? {
        let patch = entry?.path().canonicalize()?;
        let name = patch.file_stem().and_then(|name| name.to_str()).context("a name")?.to_owned();
        let mut check = Command::new("git");
        check.args(["apply", "--check", "-C1", "--recount"]).arg(&patch).current_dir(workspace());
        let output = check.output()?;
        ensure!(output.status.success(), "{name} does not apply: {}", String::from_utf8_lossy(&output.stderr));
        let text = fs::read_to_string(&patch)?;
        let test = text.lines().find_map(|line| line.strip_prefix("Test: ")).context("it names a test")?;
        let (package, function) = (test.split(' ').next(), test.rsplit([' ', ':']).next());
        let (package, function) = (package.context("a package")?, function.context("a function")?);
        let defined = format!("fn {function}()");
        let mut sources = files_below(&workspace().join(package))?;
        sources.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
        let exists = sources.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(&defined)));
        ensure!(exists, "{name}: {package} has no test {function}");
        found.push(name);
    }
    for name in MUTANTS {
        ensure!(found.iter().any(|found| found == name), "mutant {name} is missing");
    }
    Ok(())
}
