//! Watches the free space under the data folder, so that the node stops filling it before the engines fail.
//!
//! Invariants: each level is left at a higher threshold than it is entered at, so that it does not flap.
//!
//! Not here: what a level means for a request (admission, local), for leadership (host, leading) and for entries from
//! other nodes (kv-raft, replica).

use std::path::Path;
use std::sync::Arc;

use kv_raft::replica::Room;
use tokio_util::sync::CancellationToken;

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

/// How much the disk takes: below the minimum it is low, below half of it there is no room. A level is left only once
/// there is an eighth more.
#[must_use]
fn level(was: Room, free: u64, free_min: u64) -> Room {
    let is_below = |min: u64, was_below: bool| free < if was_below { min.saturating_add(min / 8) } else { min };
    if is_below(free_min / 2, was == Room::None) {
        Room::None
    } else if is_below(free_min, was != Room::Plenty) {
        Room::Low
    } else {
        Room::Plenty
    }
}

/// Watches until cancelled; `tell` is told at every look, with the reason unless there is plenty of room.
pub async fn watch(
    config: Arc<Config>,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
    tell: impl Fn(Room, Option<String>),
) {
    let mut ticks = tokio::time::interval(config.disk_check_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut room = Room::Plenty;
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
        let was = room;
        room = level(was, free, config.disk_free_min);
        let (free_mib, needed_mib) = (free >> 20, config.disk_free_min >> 20);
        let folder = config.data_dir.display();
        let why = format!("{free_mib} MiB of disk are free under {folder}, {needed_mib} MiB are needed");
        if room != was {
            match room {
                Room::Plenty => tracing::info!(free_mib, "the disk has room again: the node takes writes"),
                Room::Low => tracing::error!(free_mib, needed_mib, "the disk is nearly full: the node takes no writes"),
                Room::None => {
                    tracing::error!(free_mib, needed_mib, "the disk is full: the node takes no entries either")
                }
            }
            readiness.set("disk", if room == Room::Plenty { Check::Passed } else { Check::Warned(why.clone()) });
        }
        tell(room, (room != Room::Plenty).then_some(why));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_level_is_left_only_once_there_is_an_eighth_more() {
        assert_eq!(level(Room::Plenty, 800, 800), Room::Plenty);
        assert_eq!(level(Room::Plenty, 799, 800), Room::Low);
        assert_eq!(level(Room::Low, 899, 800), Room::Low);
        assert_eq!(level(Room::Low, 900, 800), Room::Plenty);
        assert_eq!(level(Room::Low, 399, 800), Room::None);
        assert_eq!(level(Room::None, 449, 800), Room::None);
        assert_eq!(level(Room::None, 450, 800), Room::Low);
        assert_eq!(level(Room::None, 900, 800), Room::Plenty);
        assert_eq!(level(Room::Plenty, 0, 0), Room::Plenty, "a threshold of 0 switches it off");
    }

    #[tokio::test]
    async fn a_nearly_full_disk_is_told_with_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: folder.path().to_owned(),
            disk_free_min: u64::MAX / 2,
            disk_check_interval: Duration::from_millis(1),
            ..Config::default()
        };
        let (stop, told) = (CancellationToken::new(), parking_lot::Mutex::new(None));
        let watching = watch(Arc::new(config), Arc::default(), stop.clone(), |room, why| {
            *told.lock() = Some((room, why));
            stop.cancel();
        });
        tokio::time::timeout(Duration::from_secs(10), watching).await.unwrap();
        let (room, why) = told.into_inner().unwrap();
        assert_eq!(room, Room::None);
        assert!(why.unwrap().contains("MiB are needed"));
    }
}
