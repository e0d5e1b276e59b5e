//! Which node's process opened a connection, as /proc tells.
//!
//! Invariants: a socket no node's process holds belongs to a client.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use super::rules::Party;

/// Who holds the far end of a loopback connection from `from` to `to`. Reads files: not for async threads.
pub(super) fn owner(from: SocketAddr, to: SocketAddr, folder: &Path) -> Party {
    let Some(inode) = inode(from, to) else { return Party::Clients };
    let socket = format!("socket:[{inode}]");
    let held = |pid: &str| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == &*socket))
    };
    nodes(folder).into_iter().find(|(pid, _)| held(pid)).map_or(Party::Clients, |(_, number)| Party::Node(number))
}

/// The inode of the socket at `from` of this connection.
fn inode(from: SocketAddr, to: SocketAddr) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let (from, to) = (format!(":{:04X}", from.port()), format!(":{:04X}", to.port()));
    let socket = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|fields| {
        let ends = |place: usize, with: &str| fields.get(place).is_some_and(|address| address.ends_with(with));
        ends(1, &from) && ends(2, &to)
    })?;
    socket.get(9).map(|inode| (*inode).to_owned()).filter(|inode| inode != "0")
}

/// Process ids and numbers of the nodes whose folders lie in `folder`.
fn nodes(folder: &Path) -> Vec<(String, usize)> {
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
        assert!(inode(from, listener.local_addr().unwrap()).is_some());
        assert_eq!(owner(from, listener.local_addr().unwrap(), Path::new("/nowhere")), Party::Clients);
    }
}
