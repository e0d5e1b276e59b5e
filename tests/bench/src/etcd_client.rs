//! etcd under load, through a plain gRPC client: one connection to each member.
//!
//! Not here: the processes (etcd).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use kv_load::{Answer, Operation, Target};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use self::pb::kv_client::KvClient;
use self::pb::lease_client::LeaseClient;
use self::pb::maintenance_client::MaintenanceClient;
use self::pb::request_op::Request as Op;
use self::pb::{LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, StatusRequest, StatusResponse, TxnRequest};

/// What tonic generates.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}

/// As long as our own client waits.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Long enough to end after the run, so that nothing else happens meanwhile.
const LEASE_SECONDS: i64 = 24 * 3600;

/// Opens a connection.
pub(crate) async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(Duration::from_secs(2));
    endpoint.connect().await.with_context(|| format!("connecting to etcd at {address}"))
}

/// What a member says of itself.
pub(crate) async fn status(channel: Channel) -> Result<StatusResponse> {
    Ok(MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner())
}

/// Writes a little that is no key.
pub(crate) async fn grant_lease(channel: Channel) -> Result<()> {
    LeaseClient::new(channel).lease_grant(LeaseGrantRequest { ttl: LEASE_SECONDS }).await?;
    Ok(())
}

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct EtcdTarget {
    client: KvClient<Channel>,
    serializable: bool,
}

impl EtcdTarget {
    /// `serializable` reads are answered from the member's own state.
    pub(crate) fn new(channel: Channel, serializable: bool) -> Self {
        Self { client: KvClient::new(channel), serializable }
    }

    async fn range(&self, key: Bytes, range_end: Bytes, limit: i64) -> Result<u64, Status> {
        let request = RangeRequest { key, range_end, limit, serializable: self.serializable };
        let answer = self.client.clone().range(within(request)).await?;
        Ok(answer.into_inner().kvs.len() as u64)
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<Answer, Status> {
        self.client.clone().put(within(PutRequest { key, value })).await?;
        Ok(Answer::Keys(1))
    }

    /// One transaction; it may name each key only once.
    async fn batch(&self, entries: Vec<(Bytes, Bytes)>) -> Result<Answer, Status> {
        let keys = entries.len() as u64;
        let entries: BTreeMap<Bytes, Bytes> = entries.into_iter().collect();
        let put = |(key, value)| RequestOp { request: Some(Op::RequestPut(PutRequest { key, value })) };
        self.client.clone().txn(within(TxnRequest { success: entries.into_iter().map(put).collect() })).await?;
        Ok(Answer::Keys(keys))
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(REQUEST_TIMEOUT);
    request
}

impl Target for EtcdTarget {
    type Error = Status;

    async fn operate(&self, operation: Operation) -> Result<Answer, Status> {
        match operation {
            Operation::Get(key) => Ok(Answer::Keys(self.range(key, Bytes::new(), 0).await?)),
            Operation::Put(key, value) => self.put(key, value).await,
            Operation::ReadModifyWrite(key, value) => {
                self.range(key.clone(), Bytes::new(), 0).await?;
                self.put(key, value).await
            }
            Operation::Scan(start, limit) => {
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                Ok(Answer::Keys(self.range(start, Bytes::from_static(b"\0"), limit).await?))
            }
            Operation::Batch(entries) => self.batch(entries).await,
            Operation::CompareAndSet(..) => Err(Status::unimplemented("compare-and-set is not compared")),
        }
    }
}
