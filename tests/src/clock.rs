//! Wrong clocks for one process: a small library that is loaded before the C library and changes what it says.
//!
//! Invariants: a jump is one of the wall clock only, so that timeouts and intervals are as ever; drift is one of both
//! clocks, from the first look of the process on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const SOURCE: &str = r"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long long first[2]; /* of CLOCK_REALTIME and CLOCK_MONOTONIC, 0 and 1 */

int clock_gettime(clockid_t id, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, id, now);
    if (failed || (id != CLOCK_REALTIME && id != CLOCK_MONOTONIC)) return (int)failed;
    if (RATE_PERCENT != 100) {
        long long time = now->tv_sec * 1000000000LL + now->tv_nsec, begin = 0;
        if (__atomic_compare_exchange_n(&first[id], &begin, time, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) begin = time;
        time = begin + (time - begin) * RATE_PERCENT / 100;
        now->tv_sec = time / 1000000000;
        now->tv_nsec = time % 1000000000;
    }
    if (id == CLOCK_REALTIME) now->tv_sec += SHIFT_SECONDS;
    return 0;
}
";

/// What is wrong with a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is off by so many seconds.
    By(i64),
    /// It runs at so many percent of its speed.
    Rate(u32),
}

/// Compiles the library into a folder; for `LD_PRELOAD`. The compiler is there: it has built the storage engine.
pub fn library(wrong: Wrong, folder: &Path) -> Result<PathBuf> {
    let (shift, rate) = match wrong {
        Wrong::By(seconds) => (seconds, 100),
        Wrong::Rate(percent) => (0, percent),
    };
    let (source, library) = (folder.join("clock.c"), folder.join(format!("clock{shift}at{rate}.so")));
    fs::write(&source, SOURCE)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", &format!("-DSHIFT_SECONDS={shift}"), &format!("-DRATE_PERCENT={rate}")]);
    let ran = compiler.arg("-o").arg(&library).arg(&source).output().context("starting cc")?;
    ensure!(ran.status.success(), "cc: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(library)
}
