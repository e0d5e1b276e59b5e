//! A server in front of a cluster that breaks the promise now and then: what the checkers must catch.
//!
//! Invariants: it forwards everything else unchanged; how often it lied is counted.
//!
//! Not here: the checkers (kv-checkers).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
use futures::Stream;
use kv_proto::pb::v1 as pb;
use kv_proto::pb::v1::kv_service_client::KvServiceClient;
use kv_proto::pb::v1::kv_service_server::{KvService, KvServiceServer};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::raw;

/// How it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Acknowledges a put and drops it.
    Lost,
    /// Answers a read with what it read before.
    Stale,
    /// Applies a write again, under no session, after other writes.
    Again,
}

/// A lying server that runs.
#[derive(Debug)]
pub struct Liar {
    address: String,
    lies: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Liar {
    /// In front of the node at `target`; lies at every `every`th chance.
    pub async fn start(target: &str, lie: Lie, every: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let lies = Arc::new(AtomicUsize::new(0));
        let service = Service {
            node: raw::kv(target).await?,
            lie,
            every,
            chances: AtomicUsize::new(0),
            lies: lies.clone(),
            read: Mutex::default(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = Server::builder().add_service(KvServiceServer::new(service));
            // A liar that cannot serve is found by the load, which then has no answers.
            let _ = server.serve_with_incoming(incoming).await;
        });
        Ok(Self { address, lies, _tasks: tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How often it lied.
    #[must_use]
    pub fn lies(&self) -> usize {
        self.lies.load(Ordering::Relaxed)
    }
}

struct Service {
    node: KvServiceClient<Channel>,
    lie: Lie,
    every: usize,
    chances: AtomicUsize,
    lies: Arc<AtomicUsize>,
    /// The first answer about each key, and the write to be applied again.
    read: Mutex<HashMap<Bytes, pb::GetResponse>>,
}

impl Service {
    fn lies(&self, lie: Lie) -> bool {
        let now = self.lie == lie && (self.chances.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(self.every);
        if now {
            self.lies.fetch_add(1, Ordering::Relaxed);
        }
        now
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl KvService for Service {
    type ScanStreamStream = Messages<pb::ScanStreamResponse>;
    type PipelineStream = Messages<pb::PipelineResponse>;

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        let key = request.get_ref().key.clone();
        let old = self.read.lock().await.get(&key).cloned();
        if let Some(old) = old.filter(|_| self.lies(Lie::Stale)) {
            return Ok(Response::new(old));
        }
        let answer = self.node.clone().get(request.into_inner()).await?;
        self.read.lock().await.entry(key).or_insert_with(|| answer.get_ref().clone());
        Ok(answer)
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        if self.lies(Lie::Lost) {
            return Ok(Response::new(pb::PutResponse::default()));
        }
        self.node.clone().put(request.into_inner()).await
    }

    async fn compare_and_set(
        &self,
        request: Request<pb::CompareAndSetRequest>,
    ) -> Result<Response<pb::CompareAndSetResponse>, Status> {
        let request = request.into_inner();
        let answer = self.node.clone().compare_and_set(request.clone()).await?;
        if answer.get_ref().succeeded && self.lies(Lie::Again) {
            // What a lost session would do: the write comes a second time and does not know that it was there.
            let key = request.condition.map(|condition| condition.key).unwrap_or_default();
            let value = request.new_value.unwrap_or_default();
            let count = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<u64>().ok());
            let header = request.header.map(|header| pb::RequestHeader { session: None, ..header });
            let value = count.map_or(value, |count| Bytes::from((count + 1).to_string()));
            self.node.clone().put(pb::PutRequest { header, key, value }).await?;
        }
        Ok(answer)
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteResponse>, Status> {
        self.node.clone().delete(request.into_inner()).await
    }

    async fn batch_get(&self, request: Request<pb::BatchGetRequest>) -> Result<Response<pb::BatchGetResponse>, Status> {
        self.node.clone().batch_get(request.into_inner()).await
    }

    async fn batch_write(
        &self,
        request: Request<pb::BatchWriteRequest>,
    ) -> Result<Response<pb::BatchWriteResponse>, Status> {
        self.node.clone().batch_write(request.into_inner()).await
    }

    async fn scan(&self, request: Request<pb::ScanRequest>) -> Result<Response<pb::ScanResponse>, Status> {
        self.node.clone().scan(request.into_inner()).await
    }

    async fn list_routes(
        &self,
        request: Request<pb::ListRoutesRequest>,
    ) -> Result<Response<pb::ListRoutesResponse>, Status> {
        self.node.clone().list_routes(request.into_inner()).await
    }

    async fn scan_stream(&self, _: Request<pb::ScanStreamRequest>) -> Result<Response<Self::ScanStreamStream>, Status> {
        Err(Status::unimplemented("the liar speaks unary calls only"))
    }

    async fn pipeline(
        &self,
        _: Request<Streaming<pb::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        Err(Status::unimplemented("the liar speaks unary calls only"))
    }
}
