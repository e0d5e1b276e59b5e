//! Watches the free space under the data folder and makes the node read-only before the engines fail.
//!
//! Invariants: the threshold to take writes again lies above the one to refuse them, so that it does not flap.
//!
//! Not here: what read-only means for a request (admission).

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::config::Config;
use crate::node::readiness::{Check, Readiness};

/// The space of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What unprivileged processes may still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// Asks the file system a folder lies on.
pub fn space(folder: &Path) -> std::io::Result<Space> {
    let stats = rustix::fs::statvfs(folder)?;
    Ok(Space {
        free: stats.f_bavail.saturating_mul(stats.f_frsize),
        total: stats.f_blocks.saturating_mul(stats.f_frsize),
    })
}

/// Whether the node should be read-only.
#[must_use]
fn is_low(was_low: bool, free: u64, free_min: u64) -> bool {
    let threshold = if was_low { free_min.saturating_add(free_min / 8) } else { free_min };
    free < threshold
}

/// Watches until cancelled.
pub async fn watch(config: Arc<Config>, admission: Arc<Admission>, readiness: Arc<Readiness>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(config.disk_check_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut low = false;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let folder = config.data_dir.clone();
        let asked = kv_raft::blocking::spawn_blocking(move || space(&folder)).await;
        let free = match asked {
            Ok(Ok(space)) => space.free,
            Ok(Err(error)) => {
                tracing::warn!(folder = %config.data_dir.display(), %error, "cannot tell the free disk space");
                continue;
            }
            Err(_) => continue,
        };
        let is = is_low(low, free, config.disk_free_min);
        if is == low {
            continue;
        }
        low = is;
        if low {
            let (free, min) = (free >> 20, config.disk_free_min >> 20);
            let why = format!("{free} MiB of disk are free under {}, {min} MiB are needed", config.data_dir.display());
            tracing::error!(free_mib = free, needed_mib = min, "the disk is nearly full: the node takes no writes");
            readiness.set("disk", Check::Warned(why.clone()));
            admission.set_read_only(Some(why));
        } else {
            tracing::info!(free_mib = free >> 20, "the disk has room again: the node takes writes");
            readiness.set("disk", Check::Passed);
            admission.set_read_only(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_node_that_ran_low_takes_writes_only_once_there_is_an_eighth_more() {
        assert!(!is_low(false, 800, 800));
        assert!(is_low(false, 799, 800));
        assert!(is_low(true, 899, 800));
        assert!(!is_low(true, 900, 800));
        assert!(!is_low(false, 0, 0), "a threshold of 0 switches it off");
    }

    #[tokio::test]
    async fn a_nearly_full_disk_makes_the_node_read_only() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: folder.path().to_owned(),
            disk_free_min: u64::MAX / 2,
            disk_check_interval: Duration::from_millis(1),
            ..Config::default()
        };
        let admission = Arc::new(Admission::new(1, 1));
        let stop = CancellationToken::new();
        let watching = watch(Arc::new(config), admission.clone(), Arc::default(), stop.clone());
        let seen = async {
            while admission.read_only().is_none() {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        let both = futures::future::join(watching, seen);
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
        assert!(admission.read_only().unwrap().contains("MiB are needed"));
    }
}
