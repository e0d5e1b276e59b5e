//! Free ports on loopback that stay free across restarts of a node.
//!
//! Invariants: ports lie below the range the kernel gives to outgoing connections, so no connection takes one while
//! its node is down; no two nodes of this process get the same.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

const FIRST: u16 = 15_000;
const COUNT: u16 = 15_000;

static TAKEN: AtomicU16 = AtomicU16::new(0);

/// A port nobody listens on now.
pub fn free_port() -> Result<u16> {
    free_ports(1)
}

/// The first of so many ports in a row that nobody listens on now.
pub fn free_ports(count: u16) -> Result<u16> {
    // Test processes that run at once begin at different places.
    let begin = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(COUNT))?;
    for _ in 0..COUNT {
        let offset = (u32::from(begin) + u32::from(TAKEN.fetch_add(count, Ordering::Relaxed))) % u32::from(COUNT);
        let first = FIRST + u16::try_from(offset)?;
        let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (first..first + count).all(is_free) {
            return Ok(first);
        }
    }
    bail!("no {count} ports in a row between {FIRST} and {} are free", FIRST + COUNT)
}
