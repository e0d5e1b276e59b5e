//! What crosses the wire: each service decodes, calls, encodes.
//!
//! Not here: any decision; the listener (server).

pub mod kv;

pub mod pipeline;

pub mod admin;

pub mod peer;

use std::sync::Arc;

use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::pb::admin::v1::admin_service_server::AdminServiceServer;
use kv_proto::pb::raft::v1::peer_service_server::PeerServiceServer;
use tonic::service::Routes;

use crate::node::Node;

/// Every service of a node besides the data interface: administration, other nodes' questions, Raft.
#[must_use]
pub fn node_routes(node: &Node) -> Routes {
    let admin = admin::AdminApi::new(Arc::clone(node.shared()));
    let peer = peer::PeerApi::new(Arc::clone(node.shared()));
    Routes::new(AdminServiceServer::new(admin).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(PeerServiceServer::new(peer).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(node.transport().service())
}
