//! Whether a folder takes direct writes, which pass the page cache by.
//!
//! Not here: who makes them (log_store, data_engine).

use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// A file of this name is written and removed when a folder is opened.
const PROBE: &str = "direct.probe";

/// What one direct write needs on any disk: a page, aligned.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// Whether files of a folder can be written past the page cache. If it cannot be told, they are not.
pub(crate) fn takes_direct_writes(dir: &Path) -> bool {
    let probe = dir.join(PROBE);
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let written = rustix::fs::open(&probe, flags, Mode::RUSR | Mode::WUSR)
        .and_then(|file| rustix::io::write(file, &Page([0; 4096]).0));
    // It is only in the way of nobody; the next one writes it again.
    let _ = std::fs::remove_file(&probe);
    written.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_takes_no_direct_writes_is_noticed() {
        assert!(Path::new("/proc/self").is_dir() && !takes_direct_writes(Path::new("/proc/self")));
    }

    #[test]
    fn nothing_is_left_of_the_probe() {
        let dir = tempfile::tempdir().unwrap();
        takes_direct_writes(dir.path());
        assert!(!dir.path().join(PROBE).exists());
    }
}
