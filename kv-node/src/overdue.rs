//! Answers a call whose caller is about to give up and that is not answered yet: its message did not come in time, or what
//! serves it is late. At the caller's end the transport says CANCELLED, without a reason.
//!
//! Invariants: a call that is due when it comes is not begun; what serves another has until [`due`] to answer better.
//!
//! Not here: deadlines of calls that came whole (serve, services).

use std::future::Future;
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
    match grpc_timeout(header) {
        GrpcTimeout::Given(given) => in_time(given, next.run(request)).await,
        // What is wrong with it is for the service to say.
        GrpcTimeout::Absent | GrpcTimeout::Malformed => next.run(request).await,
    }
}

async fn in_time(given: Duration, serve: impl Future<Output = Response>) -> Response {
    let due = due(given);
    if due.is_zero() {
        return late(Outcome::NotApplied);
    }
    let last_moment = (due + given) / 2;
    // It may have been begun.
    tokio::time::timeout(last_moment, serve).await.unwrap_or_else(|_| late(Outcome::Unknown))
}

fn late(outcome: Outcome) -> Response {
    Status::from(errors::deadline("transport", outcome)).into_http()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use kv_proto::errors::ServiceError;
    use tokio::time::{Instant, sleep};

    use super::*;

    fn told(response: &Response) -> Option<ServiceError> {
        Status::from_header_map(response.headers()).map(|status| ServiceError::from_status(&status))
    }

    #[tokio::test]
    async fn a_call_that_nothing_answers_is_answered_before_its_caller_gives_up() {
        for millis in [3, 10, 100] {
            let (given, began) = (Duration::from_millis(millis), Instant::now());
            // Timers that are ready together fire in this order.
            let answer = told(&tokio::time::timeout(given, in_time(given, pending())).await.unwrap());
            assert_eq!(answer, Some(errors::deadline("transport", Outcome::Unknown)));
            assert!(began.elapsed() >= due(given), "{:?} of {given:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn what_is_answered_when_it_is_due_is_told() {
        let given = Duration::from_millis(100);
        let serve = async {
            sleep(due(given)).await;
            Response::default()
        };
        assert_eq!(told(&in_time(given, serve).await), None);
    }

    #[tokio::test]
    async fn a_call_that_is_due_when_it_comes_is_not_begun() {
        for given in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(2)] {
            let answer = told(&in_time(given, ready(Response::default())).await);
            assert_eq!(answer, Some(errors::deadline("transport", Outcome::NotApplied)));
        }
    }
}
