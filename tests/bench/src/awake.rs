//! Processors that do not sleep while something is measured.
//!
//! How long a processor takes to wake is the machine's, on a virtual one often longer than what it is woken for. While the
//! limit that is held here is zero, the kernel has processors spin that it would put to sleep, if it has a state for that
//! (Linux, `Documentation/power/pm_qos_interface.rst`).
//!
//! Not here: what is measured meanwhile (versus).

use std::fs::{File, OpenOptions};
use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};

/// Holds the limit for as long as it is open.
const DEVICE: &str = "/dev/cpu_dma_latency";

/// Names the lightest sleep there is.
const LIGHTEST: &str = "/sys/devices/system/cpu/cpu0/cpuidle/state0/name";

/// Processors are awake until this is dropped.
#[derive(Debug)]
pub(crate) struct Awake(#[expect(dead_code, reason = "it is open")] File);

impl Awake {
    /// Keeps them awake, for everybody on the machine. Needs the right to write the device.
    pub(crate) fn keep() -> Result<Self> {
        let lightest = std::fs::read_to_string(LIGHTEST).context(LIGHTEST)?;
        ensure!(lightest.trim() == "POLL", "{LIGHTEST}: {:?} is a sleep", lightest.trim());
        let mut device = OpenOptions::new().write(true).open(DEVICE).context(DEVICE)?;
        device.write_all(&0_i32.to_ne_bytes()).context(DEVICE)?;
        Ok(Self(device))
    }
}
