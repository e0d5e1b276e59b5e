//! The promises of the log engine.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

/// Holds up or fails the writer.
#[derive(Debug, Default)]
pub(super) struct Fault {
    gate: Mutex<()>,
    fails: AtomicBool,
}

impl Fault {
    /// The writer stops before its next write until the guard is dropped.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.gate.lock()
    }

    /// The next write fails as a disk would, and only that one.
    pub(super) fn fail_next(&self) {
        self.fails.store(true, Ordering::Release);
    }

    pub(super) fn before_write(&self) -> Result<(), String> {
        drop(self.gate.lock());
        if self.fails.swap(false, Ordering::AcqRel) { Err("injected: the disk is gone".to_owned()) } else { Ok(()) }
    }
}
