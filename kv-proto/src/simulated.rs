//! Connections of the simulation (`cfg(kv_sim)`): nodes and clients reach each other over simulated sockets.
//!
//! Not here: the simulation itself (tests/sim); anything a normal build compiles.

use std::io;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use turmoil::net::TcpStream;

/// As [`Endpoint::connect`].
///
/// # Errors
/// As there.
pub async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    let connector = tower::service_fn(|uri: Uri| async move {
        let host = uri.host().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let port = uri.port_u16().ok_or(io::ErrorKind::InvalidInput)?;
        Ok::<_, io::Error>(TokioIo::new(TcpStream::connect((host, port)).await?))
    });
    endpoint.connect_with_connector(connector).await
}
