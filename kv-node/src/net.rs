//! The sockets the node listens on: the system's, or simulated ones in the simulation (`cfg(kv_sim)`).
//!
//! Not here: how a node connects to others (kv-client, kv-raft).

#[cfg(not(kv_sim))]
pub(crate) use tokio::net::{TcpListener, TcpStream};
#[cfg(kv_sim)]
pub(crate) use turmoil::net::{TcpListener, TcpStream};

/// A second handle of a listening socket.
#[cfg(not(kv_sim))]
pub(crate) fn share(listener: TcpListener) -> std::io::Result<(TcpListener, TcpListener)> {
    let one = listener.into_std()?;
    let other = one.try_clone()?;
    Ok((TcpListener::from_std(one)?, TcpListener::from_std(other)?))
}

/// Simulated sockets have one handle; simulated nodes answer nobody while they wait for a cluster.
#[cfg(kv_sim)]
pub(crate) fn share(_: TcpListener) -> std::io::Result<(TcpListener, TcpListener)> {
    Err(std::io::ErrorKind::Unsupported.into())
}
