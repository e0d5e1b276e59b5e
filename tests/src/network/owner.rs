//! Which node's process opened a connection, as /proc tells.
//!
//! Invariants: a socket no node's process holds belongs to a client; a look at /proc begins after the connection was
//! made, and serves all that were made before it, since one costs milliseconds and connections come in hundreds.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::rules::Party;

/// Least time between two looks.
const BETWEEN: Duration = Duration::from_millis(25);

/// The owners of connections to the proxies of one network.
#[derive(Debug)]
pub(super) struct Owners {
    folder: PathBuf,
    last: Mutex<Option<Look>>,
}

#[derive(Debug)]
struct Look {
    began: Instant,
    /// Inodes by the ports of both ends.
    sockets: HashMap<(u16, u16), u64>,
    /// Nodes by the inodes of their sockets.
    nodes: HashMap<u64, usize>,
}

impl Owners {
    /// Of nodes whose folders lie in `folder`.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, last: Mutex::default() }
    }

    /// Who holds the far end of a loopback connection from `from` to `to`. Reads files: not for async threads.
    pub(super) fn of(&self, from: SocketAddr, to: SocketAddr) -> Party {
        let made = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = last.as_ref().filter(|look| look.began >= made) {
            return look.owner(from, to);
        }
        if let Some(look) = last.as_ref() {
            std::thread::sleep(BETWEEN.saturating_sub(look.began.elapsed()));
        }
        last.insert(Look::now(&self.folder)).owner(from, to)
    }
}

impl Look {
    fn now(folder: &Path) -> Self {
        let began = Instant::now();
        let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let mut nodes = HashMap::new();
        for (pid, number) in processes(folder) {
            nodes.extend(held(&pid).into_iter().map(|inode| (inode, number)));
        }
        Self { began, sockets: table.lines().skip(1).filter_map(socket).collect(), nodes }
    }

    fn owner(&self, from: SocketAddr, to: SocketAddr) -> Party {
        let inode = self.sockets.get(&(from.port(), to.port()));
        inode.and_then(|inode| self.nodes.get(inode)).map_or(Party::Clients, |number| Party::Node(*number))
    }
}

/// Ports and inode of a line of the kernel's table.
fn socket(line: &str) -> Option<((u16, u16), u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = |place: usize| u16::from_str_radix(fields.get(place)?.rsplit(':').next()?, 16).ok();
    let inode = fields.get(9)?.parse().ok().filter(|inode| *inode > 0)?;
    Some(((port(1)?, port(2)?), inode))
}

/// Inodes of the sockets of a process.
fn held(pid: &str) -> Vec<u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok());
    links.filter_map(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

/// Process ids and numbers of the nodes whose folders lie in `folder`.
fn processes(folder: &Path) -> Vec<(String, usize)> {
    let begin = format!("{}/node", folder.display());
    let number = |pid: &str| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).into_owned();
        let (number, _) = command.split_once(&begin)?.1.split_once('/')?;
        number.parse::<usize>().ok()
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
    let pids = pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    pids.filter_map(|pid| number(&pid).map(|number| (pid, number))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_of_this_process_has_an_inode_and_is_a_client_s() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_served, from) = listener.accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        let (to, owners) = (listener.local_addr().unwrap(), Owners::new("/nowhere".into()));
        assert_eq!(owners.of(from, to), Party::Clients);
        let look = owners.last.lock().unwrap();
        let inode = look.as_ref().unwrap().sockets.get(&(from.port(), to.port())).copied().unwrap();
        assert!(held(&std::process::id().to_string()).contains(&inode));
    }
}
