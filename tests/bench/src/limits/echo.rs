//! What gRPC alone costs: a server in a process of its own that sends back what it gets.
//!
//! Not here: requests that do something (versus).

use std::collections::VecDeque;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use kv_load::{Answer, Chooser, Distribution, Mix, Operation, Plan, Target, Workload};
use kv_tests::ports::free_port;
use kv_tests::wait;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::etcd_client::connect;
use crate::record::{Limit, Sample};
use crate::shapes::VALUE_BYTES;

use self::pb::Payload;
use self::pb::echo_client::EchoClient;
use self::pb::echo_server::{Echo, EchoServer};

use super::Watch;

/// What tonic generates.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod pb {
    tonic::include_proto!("bench");
}

/// Connections, as many as the clients of the systems have.
const CONNECTIONS: usize = 3;
/// Messages on their way over the stream.
const IN_FLIGHT: usize = 256;
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A server process; ends with the value.
pub(super) struct Server {
    _child: Child,
    address: String,
}

impl Server {
    /// Starts this program once more, as the server.
    pub(super) async fn start() -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--echo-server", &address]).stdin(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().context("starting the echo server")?;
        wait::until("the echo server", READY_WITHIN, || connect(&address)).await?;
        Ok(Self { _child: child, address })
    }

    /// `clients` calls at once.
    pub(super) async fn unary(&self, clients: usize, each: Duration) -> Result<Limit> {
        let mut targets = Vec::new();
        for _ in 0..CONNECTIONS {
            targets.push(Unary(EchoClient::new(connect(&self.address).await?)));
        }
        let plan = Plan {
            mix: Mix::of(Workload::Put, 0),
            chooser: Chooser::new(Distribution::Uniform, 1),
            latest: false,
            clients,
            keys: 1,
            key_bytes: 16,
            value_bytes: VALUE_BYTES,
            batch: 1,
            page: 1,
            rate: None,
            warm_up: each / 4,
            duration: each,
            seed: 1,
        };
        let sample = Sample::from(&kv_load::run(plan, &targets, &[], |_, _| ()).await?);
        Ok(Limit { per_second: sample.per_second, p50_us: sample.p50_us, p99_us: sample.p99_us })
    }

    /// One stream that always has [`IN_FLIGHT`] messages on their way.
    pub(super) async fn stream(&self, each: Duration) -> Result<Limit> {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let mut client = EchoClient::new(connect(&self.address).await?);
        let mut answers = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
        let payload = || Payload { body: Bytes::from_static(&[7; VALUE_BYTES]) };
        let mut sent = VecDeque::new();
        let mut watch = Watch::start(each)?;
        while watch.goes_on() {
            while sent.len() < IN_FLIGHT {
                sent.push_back(Instant::now());
                sender.send(payload()).await.ok().context("the stream ended")?;
            }
            answers.next().await.context("the stream ended")??;
            watch.record(sent.pop_front().context("an answer to nothing")?);
        }
        Ok(watch.limit(1))
    }
}

/// Serves until it is killed.
pub(crate) async fn serve(address: &str) -> Result<()> {
    let server = tonic::transport::Server::builder().add_service(EchoServer::new(Mirror));
    Ok(server.serve(address.parse()?).await?)
}

struct Mirror;

#[tonic::async_trait]
impl Echo for Mirror {
    async fn unary(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    type StreamStream = Streaming<Payload>;

    async fn stream(&self, request: Request<Streaming<Payload>>) -> Result<Response<Self::StreamStream>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

#[derive(Clone)]
struct Unary(EchoClient<Channel>);

impl Target for Unary {
    type Error = Status;

    async fn operate(&self, operation: Operation) -> Result<Answer, Status> {
        match operation {
            Operation::Put(_, body) => {
                self.0.clone().unary(Payload { body }).await?;
                Ok(Answer::Keys(1))
            }
            Operation::Get(_)
            | Operation::CompareAndSet(..)
            | Operation::ReadModifyWrite(..)
            | Operation::Scan(..)
            | Operation::Batch(_) => Err(Status::unimplemented("only puts are echoed")),
        }
    }
}
