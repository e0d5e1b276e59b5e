//! A file system of its own in a file, for a node's data folder, whose power can be cut: what was not synced is gone.
//!
//! Invariants: after a cut nothing reaches the file any more, the journal neither; it is unmounted when dropped.
//!
//! Not here: small disks that can be filled (disk), disks that fail now and then (bad_disk).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::wait;

/// More than a node wants free; sparse, it takes what is written.
const BYTES: u64 = 1 << 30;
/// Processes that were killed close their files within this.
const FREE_WITHIN: Duration = Duration::from_secs(20);
/// `FS_IOC_SHUTDOWN` with `FS_SHUTDOWN_FLAGS_NOLOGFLUSH` on every folder named. The call has no safe wrapper; perl is part of every Debian.
const CUT: &str = r#"
    my ($how, @disks) = (pack("L", 2), map { open(my $disk, "<", $_) or die "$_: $!"; $disk } @ARGV);
    for my $disk (@disks) { ioctl($disk, 0x8004587d, $how) or die "shutdown: $!" }
"#;

/// A mounted file system in a file.
#[derive(Debug)]
pub struct ImageDisk {
    image: PathBuf,
    at: PathBuf,
}

impl ImageDisk {
    /// Over this folder, which is made; the file lies beside it. None, said loudly, where that is not allowed.
    pub fn mount(at: &Path) -> Result<Option<Self>> {
        fs::create_dir_all(at)?;
        let disk = Self { image: at.with_extension("ext4"), at: at.to_owned() };
        File::create(&disk.image)?.set_len(BYTES)?;
        let made = ran(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image)).and_then(|()| disk.attach());
        match made {
            Ok(()) => Ok(Some(disk)),
            Err(reason) => {
                eprintln!("SKIPPED: no power can be cut without root, loop devices, mkfs.ext4 and perl: {reason:#}");
                Ok(None)
            }
        }
    }

    fn attach(&self) -> Result<()> {
        ran(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.image).arg(&self.at))
    }

    /// Cuts the power of all of them within microseconds; whoever uses them gets errors from here on.
    pub fn cut<'a>(disks: impl IntoIterator<Item = &'a Self>) -> Result<()> {
        ran(Command::new("perl").args(["-e", CUT]).args(disks.into_iter().map(|disk| &disk.at)))
    }

    /// After a cut and the death of whoever used it: what the disk itself holds. The kernel recovers the journal.
    pub async fn power_on(&self) -> Result<()> {
        wait::until(&format!("{} to be unused", self.at.display()), FREE_WITHIN, || async {
            ran(Command::new("umount").arg(&self.at))
        })
        .await?;
        // Another mount of it, in a namespace of another process, would keep what the cut should have taken.
        wait::until("the kernel to let the disk go", FREE_WITHIN, || async {
            let held = Command::new("losetup").arg("--associated").arg(&self.image).output()?.stdout;
            ensure!(held.is_empty(), "still in use: {}", String::from_utf8_lossy(&held));
            Ok(())
        })
        .await?;
        self.attach()
    }
}

impl Drop for ImageDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--quiet", "--lazy"]).arg(&self.at).status();
    }
}

fn ran(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}", command.get_program(), said.trim());
    Ok(())
}
