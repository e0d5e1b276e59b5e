//! Gives what the decoder refuses (malformed protobuf, text that is not UTF-8, a message over the limit) the code and
//! the reason of the error contract; the decoder itself answers INTERNAL or OUT_OF_RANGE without a reason.
//!
//! Not here: what is wrong with a request that decodes (validate).

use axum::response::Response;
use kv_proto::errors::ServiceError;
use tonic::{Code, Status};

/// How the decoder's own messages begin (tonic 0.14, prost 0.14); a test sees each of them.
const DECODER_SAYS: [(Code, &str); 2] = [
    (Code::Internal, "failed to decode Protobuf message"),
    (Code::OutOfRange, "Error, decoded message length too large"),
];

/// Looks at each response on its way out.
pub async fn respond(response: Response) -> Response {
    // Only an error that comes before any message has its status among the headers.
    if !response.headers().contains_key("grpc-status") {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(status) if is_of_decoder(&status) => described(&status).into_http(),
        Some(_) | None => response,
    }
}

fn is_of_decoder(status: &Status) -> bool {
    let begins = |(code, says): &(Code, &str)| status.code() == *code && status.message().starts_with(says);
    status.details().is_empty() && DECODER_SAYS.iter().any(begins)
}

/// The decoder's status in the form of the contract; any other status as it is.
#[must_use]
pub fn described(status: &Status) -> Status {
    if is_of_decoder(status) { ServiceError::invalid("request", status.message()).into() } else { status.clone() }
}
