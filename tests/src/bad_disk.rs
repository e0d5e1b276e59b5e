//! A disk that fails one process on demand: a small library, loaded before the C library, that stands in its calls.
//!
//! Invariants: disarmed, every call does what it always does; the process that has it sees a fault at once when it is
//! armed, without a restart.
//!
//! Not here: whole disks that fill (disk) or lose their power (image).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const SOURCE: &str = include_str!("bad_disk.c");
/// Of the control file, as the library maps it: four numbers, a part of a path, an ending.
const NUMBERS_BYTES: usize = 16;
const PART_BYTES: usize = 32;
const SUFFIX_BYTES: usize = 16;

/// What a call does instead; the numbers are those of bad_disk.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// fsync and fdatasync fail with EIO, and nothing was synced.
    SyncFails = 1,
    /// fsync and fdatasync say that all is well, and nothing was synced.
    SyncLies = 2,
    /// A write fails with EIO.
    WriteFails = 3,
    /// A write fails with ENOSPC.
    DiskFull = 4,
    /// Half of a write is written, then the process dies.
    Torn = 5,
    /// A read gives one bit wrong.
    Rot = 6,
    /// A read ends before anything was read, as at the end of the file.
    ShortRead = 7,
    /// A read fails with EIO.
    ReadFails = 8,
    /// A sync takes 100 ms longer.
    Slow = 9,
}

/// Which calls meet a fault.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What happens.
    pub fault: Fault,
    /// To files with this in their path.
    pub part: &'static str,
    /// And whose path ends so.
    pub suffix: &'static str,
    /// After this many of them went well.
    pub skip: u32,
    /// To so many of them.
    pub times: u32,
}

/// The disk of one process.
#[derive(Debug)]
pub struct BadDisk {
    control: File,
    library: PathBuf,
}

impl BadDisk {
    /// Compiles the library and lays its control file into a folder. The compiler is there: it has built the storage engine.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let (source, library, path) = (folder.join("bad_disk.c"), folder.join("bad_disk.so"), folder.join("control"));
        fs::write(&source, SOURCE)?;
        fs::write(&path, [0; NUMBERS_BYTES + PART_BYTES + SUFFIX_BYTES])?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", &format!("-DCONTROL={path:?}"), "-o"]);
        let ran = compiler.arg(&library).arg(&source).output().context("starting cc")?;
        ensure!(ran.status.success(), "cc: {}", String::from_utf8_lossy(&ran.stderr));
        Ok(Self { control: OpenOptions::new().read(true).write(true).open(path)?, library })
    }

    /// For `LD_PRELOAD`.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.library.clone()
    }

    /// From here on, in the process that runs and in the next; the hits are counted anew.
    pub fn arm(&self, rule: Rule) -> Result<()> {
        self.disarm()?;
        let mut words = vec![0; PART_BYTES + SUFFIX_BYTES];
        for (text, from, length) in [(rule.part, 0, PART_BYTES), (rule.suffix, PART_BYTES, SUFFIX_BYTES)] {
            ensure!(text.len() < length, "{text} is too long");
            let place = words.get_mut(from..from + text.len()).context("it fits")?;
            place.copy_from_slice(text.as_bytes());
        }
        self.control.write_all_at(&words, NUMBERS_BYTES as u64)?;
        for (place, number) in [(4, rule.skip), (8, rule.times), (12, 0)] {
            self.control.write_all_at(&number.to_ne_bytes(), place)?;
        }
        Ok(self.control.write_all_at(&(rule.fault as u32).to_ne_bytes(), 0)?)
    }

    /// Nothing fails any more.
    pub fn disarm(&self) -> Result<()> {
        Ok(self.control.write_all_at(&0_u32.to_ne_bytes(), 0)?)
    }

    /// How often the rule was met since it was armed.
    pub fn hits(&self) -> Result<u32> {
        let mut hits = [0; 4];
        self.control.read_exact_at(&mut hits, 12)?;
        Ok(u32::from_ne_bytes(hits))
    }
}
