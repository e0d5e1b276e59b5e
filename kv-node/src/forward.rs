//! A request on its way to another node.
//!
//! Invariants: the session stays as it is, so that a write that is sent twice is applied once; the time left shrinks,
//! the hops grow.
//!
//! Not here: whether to forward, and to whom (router); the connection (kv-client).

use kv_proto::pb::v1::RequestHeader;
use kv_proto::pb::v1::pipeline_call::Request;
use tokio::time::Instant;

/// The request as the next node, of this `cluster`, is to see it.
#[must_use]
pub fn onward(mut request: Request, cluster: String, deadline: Instant) -> Request {
    let header = header_mut(&mut request).get_or_insert_default();
    header.cluster_id = cluster;
    header.hops += 1;
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    header.timeout_ms = u32::try_from(left).unwrap_or(u32::MAX).max(1);
    request
}

fn header_mut(request: &mut Request) -> &mut Option<RequestHeader> {
    match request {
        Request::Get(request) => &mut request.header,
        Request::Put(request) => &mut request.header,
        Request::Delete(request) => &mut request.header,
        Request::CompareAndSet(request) => &mut request.header,
        Request::BatchGet(request) => &mut request.header,
        Request::BatchWrite(request) => &mut request.header,
        Request::Scan(request) => &mut request.header,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kv_proto::pb::v1::{PutRequest, Session};

    use super::*;

    #[tokio::test]
    async fn a_forwarded_request_keeps_its_session_and_has_less_time() {
        let session = Session { client_id: vec![1; 16].into(), sequence: 9, lowest_unfinished: 8 };
        let header = RequestHeader { timeout_ms: 60_000, session: Some(session.clone()), ..Default::default() };
        let put = Request::Put(PutRequest { header: Some(header), ..Default::default() });
        let onward = onward(put, "ours".to_owned(), Instant::now() + Duration::from_secs(5));
        let Request::Put(PutRequest { header: Some(header), .. }) = onward else { panic!("it is a put") };
        assert_eq!((header.hops, header.session, &*header.cluster_id), (1, Some(session), "ours"));
        assert!((4000..=5000).contains(&header.timeout_ms));
    }
}
