//! Damage and copies of data folders.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Copies a folder with all in it.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// All files below a folder, in order of their paths.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The largest file below a folder whose name ends so.
pub fn largest_file(folder: &Path, suffix: &str) -> Result<PathBuf> {
    let size = |file: &PathBuf| fs::metadata(file).map(|facts| facts.len()).unwrap_or(0);
    let fits = |file: &PathBuf| file.to_string_lossy().ends_with(suffix) && size(file) > 0;
    let files = files_below(folder)?.into_iter().filter(fits);
    files.max_by_key(size).with_context(|| format!("no {suffix} file below {}", folder.display()))
}

/// Cuts the file to the given share of its length.
pub fn truncate(file: &Path, percent: u64) -> Result<()> {
    keep_only(file, fs::metadata(file)?.len() * percent / 100)
}

/// Cuts the file to its first bytes.
pub fn keep_only(file: &Path, bytes: u64) -> Result<()> {
    let length = fs::metadata(file)?.len();
    ensure!(bytes < length, "{} has only {length} bytes", file.display());
    fs::OpenOptions::new().write(true).open(file)?.set_len(bytes)?;
    Ok(())
}

/// Turns one bit around, at the given share of the bytes that are not zero: zeros may be what fills a file up.
pub fn flip_bit(file: &Path, percent: usize) -> Result<()> {
    let mut bytes = fs::read(file)?;
    let written = bytes.iter().filter(|byte| **byte != 0).count();
    let byte = bytes.iter_mut().filter(|byte| **byte != 0).nth(written * percent / 100);
    *byte.with_context(|| format!("{} is empty", file.display()))? ^= 0x10;
    fs::write(file, bytes)?;
    Ok(())
}
