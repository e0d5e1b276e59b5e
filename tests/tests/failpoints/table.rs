//! The table of docs/failpoints.md: each place, and what makes a node come to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kv_tests::campaign::setting;

/// What makes a node come to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Provoked {
    Start,
    Lead,
    Vote,
    Send,
    Group,
    Stop,
    Truncate,
    Bootstrap,
    Join,
}

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The table of docs/failpoints.md.
pub(crate) fn table() -> Result<BTreeMap<String, Provoked>> {
    let text = fs::read_to_string(workspace().join("docs/failpoints.md"))?;
    let mut found = BTreeMap::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, rest) = row.split_once("` | ").context("a name")?;
        let provoked = match rest.split_once(" | ").context("what provokes it")?.0 {
            "start" => Provoked::Start,
            "lead" => Provoked::Lead,
            "vote" => Provoked::Vote,
            "send" => Provoked::Send,
            "group" => Provoked::Group,
            "stop" => Provoked::Stop,
            "bootstrap" => Provoked::Bootstrap,
            "join" => Provoked::Join,
            "truncate" => Provoked::Truncate,
            other => anyhow::bail!("{name} is provoked by {other:?}"),
        };
        ensure!(found.insert(name.to_owned(), provoked).is_none(), "{name} stands there twice");
    }
    Ok(found)
}

/// Those of these kinds; `FAILPOINT_ONLY=log.write,data.` takes what begins so, `FAILPOINT_SHARE=3` a third, another one
/// each time.
pub(crate) fn chosen(of: &[Provoked]) -> Result<Vec<(String, Provoked)>> {
    let only = std::env::var("FAILPOINT_ONLY").ok();
    let is_chosen = |name: &str| only.as_deref().is_none_or(|only| only.split(',').any(|only| name.starts_with(only)));
    let all = table()?.into_iter().filter(|(name, provoked)| of.contains(provoked) && is_chosen(name));
    let share = usize::try_from(setting("FAILPOINT_SHARE", 1, 1))?.max(1);
    let from = rand::random_range(0..share);
    Ok(all.skip(from).step_by(share).collect())
}
