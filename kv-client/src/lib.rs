//! The client of the key-value cluster.
//!
//! ```no_run
//! use futures::TryStreamExt as _;
//! use kv_client::{CasResult, Client};
//!
//! # async fn run() -> Result<(), kv_client::Error> {
//! let client = Client::connect(["127.0.0.1:7001"]).await?;
//!
//! client.put("user:1", "Ada").await?;
//! if let Some(entry) = client.get("user:1").await? {
//!     let renamed = client.compare_and_set("user:1").expect_version(entry.version).set("Ada Lovelace").await?;
//!     assert!(matches!(renamed, CasResult::Applied { .. } | CasResult::Refused { .. }));
//! }
//! let users: Vec<_> = client.scan().prefix("user:").stream().try_collect().await?;
//! println!("{} users", users.len());
//! # Ok(()) }
//! ```
//!
//! A request goes straight to the node that leads its shard, together with whatever else waits for that node. When the
//! leader changes, a node dies or a shard moves, it is sent again within its timeout. A write carries a session, so it
//! is applied once however often it is sent; when the time is up first, [`Error::outcome`] says whether it may have
//! been applied.
//!
//! Invariants:
//! - a request ends by its timeout;
//! - a write that failed with [`Outcome::NotApplied`] was not applied and never will be;
//! - tasks and connections end when the last clone of the client is dropped.
//!
//! Not here: the wire schema and limits (kv-proto), the server (kv-node).
//!
//! The modules in the order a request meets them:

mod client;
pub mod admin;
mod keyspace;
mod requests;
mod execute;
mod scope;
mod retry;
mod route_cache;
mod core;
mod budget;
mod routes;
mod session;
mod error;
mod data;
pub mod connection;

pub use bytes::Bytes;
pub use kv_proto::errors::{Outcome, ServiceError};
pub use kv_proto::ids::{Epoch, KeyspaceId, NodeId, ShardId};
pub use kv_proto::timestamp::Timestamp;

pub use crate::admin::Admin;
pub use crate::client::{Client, ClientBuilder};
pub use crate::data::{Consistency, Data, Entry};
pub use crate::error::{Error, Result};
pub use crate::keyspace::Keyspace;
pub use crate::requests::{
    Batch, BatchGet, BatchResult, CasResult, CompareAndSet, ConditionalWrite, Cursor, Delete, Deleted, Expecting, Get,
    Page, Put, Scan, ScanPageRequest, ScanStream, SpreadBatch, SpreadPart,
};
pub use crate::routes::{ReplicaRoute, Routes, ShardRoute};
