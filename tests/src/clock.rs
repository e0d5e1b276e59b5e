//! A wrong wall clock for one process: a small library that is loaded before the C library and shifts what it says.
//!
//! Invariants: only the wall clock is shifted, so timeouts and intervals are as ever.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const SOURCE: &str = r"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && id == CLOCK_REALTIME) now->tv_sec += SHIFT_SECONDS;
    return (int)failed;
}
";

/// Compiles the library into a folder; for `LD_PRELOAD`. The compiler is there: it has built the storage engine.
pub fn shifted_by(seconds: i64, folder: &Path) -> Result<PathBuf> {
    let (source, library) = (folder.join("clock.c"), folder.join(format!("clock{seconds}.so")));
    fs::write(&source, SOURCE)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", &format!("-DSHIFT_SECONDS={seconds}"), "-o"]).arg(&library).arg(&source);
    let ran = compiler.output().context("starting cc")?;
    ensure!(ran.status.success(), "cc: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(library)
}
