//! The rules of the code's shape that a test can check.
//!
//! Not here: what rustfmt and clippy check.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kv_tests::files::files_below;

/// The folders with code of ours.
const CRATES: [&str; 10] = [
    "kv-proto",
    "kv-raft",
    "kv-node",
    "kv-client",
    "kv-client/load",
    "kv-client/kvctl",
    "tests",
    "tests/bench",
    "tests/checkers",
    "tests/sim",
];

/// Lines of code in one file, without comments, blank lines and tests: around 400. More is a second noun in the file.
const PRODUCTION_LINES_MAX: usize = 430;

#[test]
fn every_file_says_what_lives_in_it() -> Result<()> {
    refuse("files that do not begin with `//!`", |file, text| {
        // A file of unit tests is described by the file it tests.
        let silent = !text.starts_with("//!") && file.file_name().is_some_and(|name| name != "tests.rs");
        silent.then(|| file.display().to_string()).into_iter().collect()
    })
}

#[test]
fn no_file_outgrows_its_noun() -> Result<()> {
    refuse(&format!("files of more than {PRODUCTION_LINES_MAX} lines of code"), |file, text| {
        let lines = production(text).filter(is_code).count();
        (lines > PRODUCTION_LINES_MAX).then(|| format!("{}: {lines}", file.display())).into_iter().collect()
    })
}

#[test]
fn a_module_imports_only_modules_declared_after_it() -> Result<()> {
    let mut cycles = Vec::new();
    for krate in CRATES {
        let src = workspace().join(krate).join("src");
        let root = src.join("lib.rs");
        if root.is_file() {
            cycles.extend(backward_imports(&root)?);
        }
    }
    ensure!(cycles.is_empty(), "imports of modules declared before:\n{}", cycles.join("\n"));
    Ok(())
}

#[test]
fn a_backward_import_is_found() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("lib.rs"), "pub mod wiring;\nmod work;\nmod words;\n")?;
    fs::write(folder.path().join("wiring.rs"), "use crate::work::Work;\nuse crate::words;\n")?;
    fs::write(folder.path().join("work.rs"), "use crate::{words::Word, wiring};\n#[cfg(test)]\nmod tests {}\n")?;
    fs::write(
        folder.path().join("words.rs"),
        "fn f() { crate::work::go() }\n#[cfg(test)]\nmod tests {\nuse crate::wiring; }",
    )?;
    let found = backward_imports(&folder.path().join("lib.rs"))?;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|fault| fault.ends_with("work.rs imports wiring")), "{found:?}");
    assert!(found.iter().any(|fault| fault.ends_with("words.rs imports work")), "{found:?}");
    Ok(())
}

/// Every import, below this crate root, of a module declared before the one that imports it.
fn backward_imports(root: &Path) -> Result<Vec<String>> {
    let order = declared_modules(&fs::read_to_string(root)?);
    let folder = root.parent().context("a crate root lies in a folder")?;
    let mut found = Vec::new();
    for (place, module) in order.iter().enumerate() {
        for file in module_files(folder, module)? {
            let text = fs::read_to_string(&file)?;
            let code: Vec<&str> = production(&text).filter(is_code).collect();
            let imports = crate_paths(&code.join("\n"));
            let before = order.iter().take(place).filter(|earlier| imports.contains(earlier));
            found.extend(before.map(|earlier| format!("{} imports {earlier}", file.display())));
        }
    }
    Ok(found)
}

/// Names of `mod x;` lines, in order; test modules left out.
fn declared_modules(root: &str) -> Vec<String> {
    let name = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub ")).unwrap_or(line);
        Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
    };
    production(root).filter_map(name).collect()
}

fn module_files(folder: &Path, module: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if folder.join(module).is_dir() {
        files = files_below(&folder.join(module))?;
        files.retain(|file| is_production_rust(file));
    }
    files.extend(Some(folder.join(format!("{module}.rs"))).filter(|file| file.is_file()));
    Ok(files)
}

/// The first segments of all paths that begin with `crate::`, in groups too.
fn crate_paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => found.push(first_segment(rest)),
            Some(group) => found.extend(top_level_items(group).into_iter().map(first_segment)),
        }
    }
    found
}

fn first_segment(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The items of a `{...}` group whose opening brace is already gone.
fn top_level_items(group: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut items) = (0_usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.extend(group.get(begin..at));
                return items;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.extend(group.get(begin..at));
                begin = at + 1;
            }
            _ => {}
        }
    }
    items
}

/// Lines up to the first module of tests.
fn production(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take_while(|line| line.trim() != "#[cfg(test)]")
}

fn is_code(line: &&str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

fn is_production_rust(file: &Path) -> bool {
    let is_tests = file.components().any(|part| part.as_os_str() == "tests")
        || file.file_name().is_some_and(|name| name == "tests.rs");
    file.extension().is_some_and(|kind| kind == "rs") && !is_tests
}

/// Fails with everything that `look` finds in the Rust files of the workspace.
fn refuse(what: &str, look: impl Fn(&Path, &str) -> Vec<String>) -> Result<()> {
    let mut found = Vec::new();
    for krate in CRATES {
        for folder in ["src", "tests"].map(|name| workspace().join(krate).join(name)) {
            let files = if folder.is_dir() { files_below(&folder)? } else { Vec::new() };
            for file in files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "rs")) {
                found.extend(look(file, &fs::read_to_string(file)?));
            }
        }
    }
    ensure!(found.is_empty(), "{what}:\n{}", found.join("\n"));
    Ok(())
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
