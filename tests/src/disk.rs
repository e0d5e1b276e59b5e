//! A small file system of its own for a node's data folder.
//!
//! Invariants: it is unmounted when dropped, whatever the test did.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

/// A mounted file system.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Over this folder, which is made; None where mounting is not allowed.
    pub fn mount(at: &Path, mebibytes: u64) -> Result<Option<Self>> {
        fs::create_dir_all(at)?;
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        Ok(mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned())))
    }

    /// Takes so much of it that this many MiB are free.
    pub fn leave(&self, free_mib: u64) -> Result<()> {
        self.empty()?;
        let stats = rustix::fs::statvfs(&self.0)?;
        let surplus = (stats.f_bavail * stats.f_frsize).saturating_sub(free_mib << 20);
        let filler = fs::File::create(self.filler())?;
        Ok(rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, surplus.max(1))?)
    }

    /// Gives back what was taken.
    pub fn empty(&self) -> Result<()> {
        if self.filler().exists() {
            fs::remove_file(self.filler())?;
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
