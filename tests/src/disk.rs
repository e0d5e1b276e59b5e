//! A small filesystem for one node, where mounting is allowed.
//!
//! Invariants: it is unmounted when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

/// Left when it is filled; below every `disk_free_min` that tests set, above what engines need to end in order.
const LEFT: u64 = 60 << 20;

/// A mounted filesystem.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where mounting is not allowed.
    pub fn mount(at: &Path, mebibytes: u64) -> Result<Option<Self>> {
        fs::create_dir_all(at)?;
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        Ok(mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned())))
    }

    /// Fills it but for a rest.
    pub fn fill(&self) -> Result<()> {
        let facts = rustix::fs::statvfs(&self.0)?;
        let free = facts.f_bavail.saturating_mul(facts.f_frsize).saturating_sub(LEFT);
        let filler = fs::File::create(self.filler())?;
        Ok(rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, free.max(1))?)
    }

    /// Makes room again.
    pub fn free(&self) -> Result<()> {
        let filler = self.filler();
        if filler.exists() {
            fs::remove_file(filler)?;
        }
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
