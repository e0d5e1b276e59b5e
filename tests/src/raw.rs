//! Plain gRPC: the generated clients without kv-client, for what kv-client would never send.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BufMut as _, Bytes};
use kv_proto::errors::ServiceError;
use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::pb::admin::v1::admin_service_client::AdminServiceClient;
use kv_proto::pb::v1::RequestHeader;
use kv_proto::pb::v1::kv_service_client::KvServiceClient;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};

/// A call that takes longer is hung.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The data interface of the node at an address.
pub async fn kv(address: &str) -> anyhow::Result<KvServiceClient<Channel>> {
    // Above the server's limit, so that it is the server that refuses.
    let limit = 8 * MESSAGE_BYTES_MAX;
    Ok(KvServiceClient::new(channel(address).await?).max_decoding_message_size(limit).max_encoding_message_size(limit))
}

/// The administration of the node at an address.
pub async fn admin(address: &str) -> anyhow::Result<AdminServiceClient<Channel>> {
    Ok(AdminServiceClient::new(channel(address).await?).max_decoding_message_size(8 * MESSAGE_BYTES_MAX))
}

/// A connection of its own.
pub async fn channel(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let endpoint = endpoint.connect_timeout(Duration::from_secs(2)).timeout(CALL_TIMEOUT);
    endpoint.connect().await.with_context(|| format!("connecting to {address}"))
}

/// A header for the default keyspace with ten seconds.
#[must_use]
pub fn header() -> Option<RequestHeader> {
    Some(RequestHeader { timeout_ms: 10_000, ..RequestHeader::default() })
}

/// The refusal, as the contract has it; an answer is a failure.
pub fn refusal<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> anyhow::Result<ServiceError> {
    match answer {
        Ok(answer) => bail!("answered instead of refused: {answer:?}"),
        Err(status) => Ok(ServiceError::from_status(&status)),
    }
}

/// Sends and takes bytes as they are, in place of protobuf.
#[derive(Clone, Copy, Debug, Default)]
pub struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
