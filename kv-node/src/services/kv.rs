//! `kv.v1.KvService`: decode, call, encode.
//!
//! Not here: any decision (serve and below).

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt as _};
use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::pb::v1::kv_service_server::KvService;
use kv_proto::pb::v1::pipeline_call::Request as Call;
use kv_proto::pb::v1::pipeline_reply::Response as Answer;
use kv_proto::pb::v1::{
    BatchGetRequest, BatchGetResponse, BatchWriteRequest, BatchWriteResponse, CompareAndSetRequest,
    CompareAndSetResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse, ListRoutesRequest,
    ListRoutesResponse, PipelineRequest, PipelineResponse, PutRequest, PutResponse, ScanRequest, ScanResponse,
    ScanStreamRequest, ScanStreamResponse,
};
use kv_raft::replica::{self as raft, Answers};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::pipeline::{self, MESSAGES_UNSENT, Serve, StreamLimits, Unread};
use crate::admission::Permit;
use crate::malformed::described;
use crate::serve::{Begun, Running, Served, Server, Write};
use crate::validate::{self, GrpcTimeout};

/// The service.
pub struct KvApi {
    server: Server,
    limits: StreamLimits,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl KvApi {
    /// Streams run on `tasks` and end soon after `stop`.
    #[must_use]
    pub fn new(server: Server, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let config = &server.shared().config;
        let limits = StreamLimits {
            calls: usize::try_from(config.stream_calls_max).unwrap_or(usize::MAX),
            bytes: config.stream_bytes_max,
        };
        Self { server, limits, tasks, stop }
    }
}

fn grpc_timeout<T>(request: &Request<T>) -> GrpcTimeout {
    validate::grpc_timeout(request.metadata().get("grpc-timeout").map(|value| value.as_encoded_bytes()))
}

/// An answer of another kind than its call.
fn mismatched() -> Status {
    ServiceError::Internal { why: "an answer of another kind".to_owned(), outcome: Outcome::Unknown }.into()
}

macro_rules! answer {
    ($api:ident, $request:ident, $kind:ident) => {{
        let grpc = grpc_timeout(&$request);
        match $api.server.call(Call::$kind($request.into_inner()), grpc).await? {
            (Answer::$kind(response), permit) => {
                let mut response = Response::new(response);
                // Given back once the response is sent (unsent).
                response.extensions_mut().insert(Arc::new(permit));
                Ok(response)
            }
            _ => Err(mismatched()),
        }
    }};
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl KvService for KvApi {
    type ScanStreamStream = Messages<ScanStreamResponse>;
    type PipelineStream = Messages<PipelineResponse>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        answer!(self, request, Get)
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        answer!(self, request, Put)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        answer!(self, request, Delete)
    }

    async fn compare_and_set(
        &self,
        request: Request<CompareAndSetRequest>,
    ) -> Result<Response<CompareAndSetResponse>, Status> {
        answer!(self, request, CompareAndSet)
    }

    async fn batch_get(&self, request: Request<BatchGetRequest>) -> Result<Response<BatchGetResponse>, Status> {
        answer!(self, request, BatchGet)
    }

    async fn batch_write(&self, request: Request<BatchWriteRequest>) -> Result<Response<BatchWriteResponse>, Status> {
        answer!(self, request, BatchWrite)
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanResponse>, Status> {
        answer!(self, request, Scan)
    }

    async fn scan_stream(
        &self,
        request: Request<ScanStreamRequest>,
    ) -> Result<Response<Self::ScanStreamStream>, Status> {
        let grpc = grpc_timeout(&request);
        let request = request.into_inner();
        validate::scan_stream(&request, self.server.shared().cluster_id(), grpc)?;
        let first = Pages {
            server: self.server.clone(),
            scan: request.scan.unwrap_or_default(),
            left: if request.limit == 0 { u64::MAX } else { request.limit },
            grpc,
        };
        // Each page is read when the transport asks for it, which is when it has taken the one before: the reader sets the
        // pace.
        let pages = futures::stream::try_unfold((Some(first), None), async |(pages, taken)| {
            drop::<Option<Permit>>(taken);
            match pages {
                Some(pages) => pages.next().await.map(Some),
                None => Ok(None),
            }
        });
        Ok(Response::new(Box::pin(pages.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn pipeline(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let inbound = request.into_inner().map(|message| message.map_err(|status| described(&status)));
        let (outbound, messages) = mpsc::channel(MESSAGES_UNSENT);
        let (server, limits, stop) = (self.server.clone(), self.limits, self.stop.clone());
        self.tasks.spawn(async move {
            let metrics = server.metrics();
            metrics.streams.inc();
            let calls = StreamCalls { server: &server, answers: Answers::default() };
            pipeline::run(inbound, outbound, calls, limits, (metrics, stop)).await;
            metrics.streams.dec();
        });
        Ok(Response::new(Box::pin(Unread::new(messages))))
    }

    async fn list_routes(&self, request: Request<ListRoutesRequest>) -> Result<Response<ListRoutesResponse>, Status> {
        let grpc = grpc_timeout(&request);
        Ok(Response::new(self.server.list_routes(request.get_ref(), grpc)?))
    }
}

/// The calls of one pipelined stream.
struct StreamCalls<'a> {
    server: &'a Server,
    answers: Answers,
}

impl<'a> Serve for StreamCalls<'a> {
    type Held = Permit;
    type Proposed = Write;
    type Running = Running<'a>;

    fn begin(&self, request: Call, number: usize) -> ControlFlow<Served, Begun<Write, Self::Running>> {
        self.server.begin(request, GrpcTimeout::Absent, (&self.answers, number))
    }

    fn poll_answers(&mut self, context: &mut Context<'_>) -> Poll<Vec<(usize, raft::Answer)>> {
        self.answers.poll_some(context)
    }

    fn answered(&self, call: Write, answer: raft::Answer) -> ControlFlow<Served, Self::Running> {
        self.server.answered(call, answer)
    }
}

/// A streamed scan between two pages.
struct Pages {
    server: Server,
    scan: ScanRequest,
    left: u64,
    grpc: GrpcTimeout,
}

impl Pages {
    /// A page, and what is left with the permit of the page.
    async fn next(mut self) -> Result<(ScanStreamResponse, (Option<Self>, Option<Permit>)), Status> {
        let left = i32::try_from(self.left).unwrap_or(i32::MAX);
        let mut request = self.scan.clone();
        request.page_size = request.page_size.min(left);
        let (Answer::Scan(page), permit) = self.server.call(Call::Scan(request), self.grpc).await? else {
            return Err(mismatched());
        };
        self.left = self.left.saturating_sub(u64::try_from(page.entries.len()).unwrap_or(0));
        self.scan.cursor = page.cursor.clone();
        let more = self.left > 0 && !page.cursor.is_empty();
        Ok((ScanStreamResponse { page: Some(page) }, (more.then_some(self), Some(permit))))
    }
}
