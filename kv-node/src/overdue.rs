//! Answers a call whose caller is about to give up and that is not answered yet: its message did not come in time, or what
//! serves it is late. The transport itself says CANCELLED then, without a reason.
//!
//! Invariants: what serves the call has until [`due`] to answer better, and is asked first.
//!
//! Not here: deadlines of calls that came whole (serve, services).

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use kv_proto::errors::Outcome;
use tonic::Status;

use crate::errors;
use crate::validate::{GrpcTimeout, due, grpc_timeout};

/// Lets a call be served in its caller's time.
pub async fn answer(request: Request, next: Next) -> Response {
    let header = request.headers().get("grpc-timeout").map(|value| value.as_bytes());
    let GrpcTimeout::Given(given) = grpc_timeout(header) else { return next.run(request).await };
    match tokio::time::timeout(last_moment(given), next.run(request)).await {
        Ok(response) => response,
        // It may have been begun.
        Err(_) => Status::from(errors::deadline("transport", Outcome::Unknown)).into_http(),
    }
}

/// Between the time an answer is due and the caller's end.
fn last_moment(given: Duration) -> Duration {
    (due(given) + given) / 2
}
