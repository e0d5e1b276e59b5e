//! One fake node: a gRPC server on a runtime of its own, so that it can be killed.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use kv_client::ServiceError;
use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::pb::v1 as pb;
use kv_proto::pb::v1::kv_service_server::{KvService, KvServiceServer};
use kv_proto::pb::v1::pipeline_call::Request as Call;
use kv_proto::pb::v1::pipeline_reply::Response as Reply;
use tokio::runtime::Runtime;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::{Act, CLUSTER, KEYSPACE, Sent, State, not_leader, stale_route};

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A socket that can be bound again at once after its owner died.
pub fn bind(address: &str) -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

pub fn start(node: u64, address: &str, state: &Arc<State>) -> (String, Runtime) {
    let runtime = runtime();
    let listener = bind(address);
    let address = listener.local_addr().unwrap().to_string();
    let service =
        KvServiceServer::new(Node { node, state: state.clone() }).max_decoding_message_size(MESSAGE_BYTES_MAX);
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    (address, runtime)
}

struct Node {
    node: u64,
    state: Arc<State>,
}

enum Done {
    Reply(Reply),
    Nothing,
    Break,
}

fn parts(call: &Call) -> (&'static str, pb::RequestHeader) {
    let (kind, header) = match call {
        Call::Get(request) => ("get", &request.header),
        Call::Put(request) => ("put", &request.header),
        Call::Delete(request) => ("delete", &request.header),
        Call::CompareAndSet(request) => ("cas", &request.header),
        Call::BatchGet(request) => ("batch_get", &request.header),
        Call::BatchWrite(request) => ("batch", &request.header),
        Call::Scan(request) => ("scan", &request.header),
    };
    (kind, header.clone().unwrap())
}

fn failure(error: &ServiceError) -> Done {
    Done::Reply(Reply::Failure(error.to_failure()))
}

fn answer(node: u64, state: &State, call: Call) -> Done {
    state.change(|inner| {
        let (kind, header) = parts(&call);
        let named = header.cluster_id == CLUSTER;
        assert!(named || header.cluster_id.is_empty(), "{header:?}");
        assert!(header.timeout_ms > 0);
        assert_eq!(header.wrong_node, i32::from(pb::WrongNode::Redirect));
        inner.sent.push(Sent {
            node,
            kind,
            shard: header.shard_id,
            epoch: header.epoch,
            session: header.session.as_ref().map(|session| (session.client_id.clone(), session.sequence)),
            lowest_unfinished: header.session.as_ref().map_or(0, |session| session.lowest_unfinished),
            named,
        });
        let Some(shard) = inner.shard(header.shard_id).cloned() else {
            return failure(&ServiceError::ShardNotFound { shard: header.shard_id.into() });
        };
        match inner.scripts.get_mut(&node).and_then(std::collections::VecDeque::pop_front) {
            Some(Act::Fail(error)) => return failure(&error),
            Some(Act::NotLeader(leader)) => return failure(&not_leader(inner, shard.id, leader)),
            Some(Act::Hold) => return Done::Nothing,
            Some(Act::DropBefore) => return Done::Break,
            Some(Act::DropAfter) => {
                inner.store.serve(inner.hashed, &shard.range, &header, call);
                return Done::Break;
            }
            None => {}
        }
        if shard.leader != node {
            return failure(&not_leader(inner, shard.id, shard.leader));
        }
        if header.epoch != shard.epoch {
            return failure(&stale_route(inner));
        }
        Done::Reply(inner.store.serve(inner.hashed, &shard.range, &header, call))
    })
}

type Replies = Pin<Box<dyn Stream<Item = Result<pb::PipelineResponse, Status>> + Send>>;
type Pages = Pin<Box<dyn Stream<Item = Result<pb::ScanStreamResponse, Status>> + Send>>;

#[tonic::async_trait]
impl KvService for Node {
    type PipelineStream = Replies;
    type ScanStreamStream = Pages;

    async fn pipeline(&self, request: Request<Streaming<pb::PipelineRequest>>) -> Result<Response<Replies>, Status> {
        let (node, state) = (self.node, self.state.clone());
        let replies = request.into_inner().flat_map(move |message| {
            let message = message.unwrap();
            let reverse = state.change(|inner| {
                inner.messages.push(message.calls.len());
                inner.reverse
            });
            let mut replies = vec![];
            for call in message.calls {
                match answer(node, &state, call.request.unwrap()) {
                    Done::Reply(reply) => replies.push(pb::PipelineReply { id: call.id, response: Some(reply) }),
                    Done::Nothing => {}
                    Done::Break => return futures::stream::iter(vec![Err(Status::unavailable("stream dropped"))]),
                }
            }
            if reverse {
                replies.reverse();
            }
            futures::stream::iter(vec![Ok(pb::PipelineResponse { replies })])
        });
        // tonic ends the stream at its first error.
        Ok(Response::new(Box::pin(replies)))
    }

    async fn list_routes(&self, _: Request<pb::ListRoutesRequest>) -> Result<Response<pb::ListRoutesResponse>, Status> {
        let answer = self.state.change(|inner| {
            inner.routes_asked += 1;
            pb::ListRoutesResponse {
                cluster_id: CLUSTER.to_owned(),
                catalog_version: 1,
                keyspace: "default".to_owned(),
                keyspace_id: KEYSPACE.0,
                hashed: inner.hashed,
                shards: inner.shards.iter().map(|shard| inner.route(shard, shard.told)).collect(),
            }
        });
        Ok(Response::new(answer))
    }

    async fn get(&self, _: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        Err(Status::unimplemented("only pipelined"))
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        Err(Status::unimplemented("only pipelined"))
    }

    async fn delete(&self, _: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteResponse>, Status> {
        Err(Status::unimplemented("only pipelined"))
    }

    async fn compare_and_set(
        &self,
        _: Request<pb::CompareAndSetRequest>,
    ) -> Result<Response<pb::CompareAndSetResponse>, Status> {
        Err(Status::unimplemented("only pipelined"))
    }

    async fn batch_get(&self, _: Request<pb::BatchGetRequest>) -> Result<Response<pb::BatchGetResponse>, Status> {
        Err(Status::unimplemented("only pipelined"))
    }

    async fn batch_write(&self, _: Request<pb::BatchWriteRequest>) -> Result<Response<pb::BatchWriteResponse>, Status> {
        Err(Status::unimplemented("only pipelined"))
    }

    async fn scan(&self, _: Request<pb::ScanRequest>) -> Result<Response<pb::ScanResponse>, Status> {
        Err(Status::unimplemented("only pipelined"))
    }

    async fn scan_stream(&self, _: Request<pb::ScanStreamRequest>) -> Result<Response<Pages>, Status> {
        Err(Status::unimplemented("only pipelined"))
    }
}
