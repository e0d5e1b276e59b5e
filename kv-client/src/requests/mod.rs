//! The requests: builders that are awaited.
//!
//! Invariants: a builder does nothing before it is awaited; dropping its future gives the request up, which leaves a
//! write with unknown outcome.
//!
//! Not here: how one is carried out (execute).

mod batch;
mod batch_get;
mod by_shard;
mod compare_and_set;
mod delete;
mod get;
mod put;
mod scan;
mod scan_plan;

pub use batch::{Batch, BatchResult, SpreadBatch, SpreadPart};
pub use batch_get::BatchGet;
pub use compare_and_set::{CasResult, CompareAndSet, ConditionalWrite, Expecting};
pub use delete::{Delete, Deleted};
pub use get::Get;
pub use put::Put;
pub use scan::{Cursor, Page, Scan, ScanPageRequest, ScanStream};

use kv_proto::errors::{Outcome, ServiceError};

use crate::connection::pipeline_reply::Response;
use crate::error::Error;

/// Requests that answer one call go over this many streams at once when they fan out to many shards.
const FAN_OUT_MAX: usize = 16;

/// A node answered another question than it was asked.
fn unexpected(response: &Response) -> Error {
    let kind = match response {
        Response::Get(_) => "get",
        Response::Put(_) => "put",
        Response::Delete(_) => "delete",
        Response::CompareAndSet(_) => "compare_and_set",
        Response::BatchGet(_) => "batch_get",
        Response::BatchWrite(_) => "batch_write",
        Response::Scan(_) => "scan",
        Response::Failure(_) => "failure",
    };
    let error =
        ServiceError::Foreign { code: tonic::Code::Internal, message: format!("a {kind} reply to another request") };
    Error::Service { error, outcome: Outcome::Unknown, attempts: 1 }
}

/// `response!(answer, Put)`: the response of that kind, or an error.
macro_rules! response {
    ($response:expr, $kind:ident) => {
        match $response {
            $crate::connection::pipeline_reply::Response::$kind(response) => Ok(response),
            other => Err($crate::requests::unexpected(&other)),
        }
    };
}

/// `request!(Put -> Timestamp)`: a timeout, and awaiting runs `Put::run`.
macro_rules! request {
    ($builder:ident -> $output:ty) => {
        impl $builder {
            /// Time this request gets, retries included, instead of the client's.
            pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
                self.timeout = Some(timeout);
                self
            }
        }

        impl std::future::IntoFuture for $builder {
            type Output = $crate::error::Result<$output>;
            type IntoFuture = futures::future::BoxFuture<'static, Self::Output>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(self.run())
            }
        }
    };
}

use request;
use response;
