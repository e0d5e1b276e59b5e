//! The sockets the node listens on: the system's, or simulated ones in the simulation (`cfg(kv_sim)`).
//!
//! Not here: how a node connects to others (kv-client, kv-raft).

#[cfg(not(kv_sim))]
pub(crate) use tokio::net::{TcpListener, TcpStream};
#[cfg(kv_sim)]
pub(crate) use turmoil::net::{TcpListener, TcpStream};
