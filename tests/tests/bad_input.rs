//! What a request at fault gets: its gRPC code, one reason, the fields at fault, and nothing changed.

use std::future::Future;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use kv_proto::errors::{Outcome, ServiceError};
use kv_proto::limits::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, MESSAGE_BYTES_MAX, PAGE_ENTRIES_MAX, TIMEOUT_MS_MAX,
    VALUE_BYTES_MAX,
};
use kv_proto::pb::admin::v1 as admin_pb;
use kv_proto::pb::v1::kv_service_client::KvServiceClient;
use kv_proto::pb::v1::write_operation::Operation;
use kv_proto::pb::v1::{
    BatchGetRequest, BatchWriteRequest, DeleteRequest, GetRequest, PipelineCall, PipelineRequest, PutOperation,
    PutRequest, RequestHeader, ScanRequest, Session, WriteOperation, pipeline_call, pipeline_reply,
};
use kv_tests::bare::{self, Bare};
use kv_tests::cluster::Cluster;
use kv_tests::raw::{self, header, refusal};
use kv_tests::settings::Settings;
use tonic::Code;
use tonic::transport::Channel;

type Kv = KvServiceClient<Channel>;

/// A value that stands throughout and must not change.
const WITNESS: &[u8] = b"witness";

/// Runs `look` on a fresh node, then sees that the witness and the number of keys are as before.
async fn on_a_node<F, Fut>(look: F) -> Result<()>
where
    F: FnOnce(Cluster, Kv) -> Fut,
    Fut: Future<Output = Result<Cluster>>,
{
    let cluster = Cluster::start(Settings::default().nodes(1).shards(2)).await?;
    let mut kv = raw::kv(&cluster.node(1).address()).await?;
    kv.put(PutRequest { header: header(), key: WITNESS.into(), value: WITNESS.into() }).await?;
    let cluster = look(cluster, kv.clone()).await?;
    let scan = ScanRequest { header: header(), page_size: 100, ..ScanRequest::default() };
    let mut found = Vec::new();
    let mut cursor = Bytes::new();
    loop {
        let page = kv.scan(ScanRequest { cursor, ..scan.clone() }).await?.into_inner();
        found.extend(page.entries.into_iter().map(|entry| entry.key));
        cursor = page.cursor;
        if cursor.is_empty() {
            break;
        }
    }
    ensure!(found == [Bytes::from_static(WITNESS)], "something changed: {found:?}");
    cluster.finish().await
}

fn key(length: usize) -> Bytes {
    vec![b'k'; length].into()
}

fn value(length: usize) -> Bytes {
    vec![b'v'; length].into()
}

fn put(key: Bytes, value: Bytes) -> PutRequest {
    PutRequest { header: header(), key, value }
}

fn put_with(change: impl FnOnce(&mut RequestHeader)) -> PutRequest {
    let mut header = header().unwrap_or_default();
    change(&mut header);
    PutRequest { header: Some(header), key: key(1), value: value(1) }
}

fn operation(key: Bytes, value: Bytes) -> WriteOperation {
    WriteOperation { operation: Some(Operation::Put(PutOperation { key, value })) }
}

fn batch(operations: Vec<WriteOperation>) -> BatchWriteRequest {
    BatchWriteRequest { header: header(), conditions: vec![], operations }
}

fn scan(change: impl FnOnce(&mut ScanRequest)) -> ScanRequest {
    let mut request = ScanRequest { header: header(), page_size: 10, ..ScanRequest::default() };
    change(&mut request);
    request
}

/// INVALID_ARGUMENT, INVALID_REQUEST, and a violation of this field.
fn expect_invalid<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, tonic::Status>, field: &str) -> Result<()> {
    let error = refusal(answer).with_context(|| format!("for field {field}"))?;
    ensure!(error.code() == Code::InvalidArgument, "{field}: code {:?} of {error:?}", error.code());
    let ServiceError::Invalid { violations } = &error else { anyhow::bail!("{field}: {error:?}") };
    let named = violations.iter().any(|violation| violation.field == field && !violation.description.is_empty());
    ensure!(named, "no violation of {field} in {violations:?}");
    ensure!(error.outcome() == Outcome::NotApplied, "{field}: outcome {}", error.outcome());
    Ok(())
}

/// Exactly this code and reason, and not applied.
fn expect<T: std::fmt::Debug>(
    answer: Result<tonic::Response<T>, tonic::Status>,
    code: Code,
    reason: &str,
) -> Result<ServiceError> {
    let error = refusal(answer).with_context(|| format!("for reason {reason}"))?;
    ensure!(error.code() == code && error.reason() == reason, "{reason} ({code:?}) expected, got {error:?}");
    ensure!(error.outcome() == Outcome::NotApplied, "{reason}: outcome {}", error.outcome());
    Ok(error)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_at_their_limit_pass_and_one_byte_more_is_refused() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        expect_invalid(kv.put(put(Bytes::new(), value(1))).await, "key")?;
        expect_invalid(kv.get(GetRequest { header: header(), key: Bytes::new(), read: None }).await, "key")?;
        expect_invalid(kv.delete(DeleteRequest { header: header(), key: Bytes::new() }).await, "key")?;
        expect_invalid(kv.put(put(key(KEY_BYTES_MAX + 1), value(1))).await, "key")?;
        expect_invalid(kv.put(put(key(1), value(VALUE_BYTES_MAX + 1))).await, "value")?;

        let largest = put(key(KEY_BYTES_MAX), value(VALUE_BYTES_MAX));
        kv.put(largest.clone()).await.context("a largest key with a largest value")?;
        kv.delete(DeleteRequest { header: header(), key: largest.key }).await?;
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_over_a_limit_are_refused_whole() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        let many = (0..=BATCH_OPERATIONS_MAX).map(|n| operation(Bytes::from(format!("{{t}}{n}")), value(1))).collect();
        expect_invalid(kv.batch_write(batch(many)).await, "operations")?;
        let heavy = (0..5).map(|n| operation(Bytes::from(format!("{{t}}{n}")), value(VALUE_BYTES_MAX))).collect();
        const { assert!(5 * VALUE_BYTES_MAX > BATCH_BYTES_MAX) };
        expect_invalid(kv.batch_write(batch(heavy)).await, "operations")?;
        expect_invalid(kv.batch_write(batch(vec![])).await, "operations")?;
        expect_invalid(kv.batch_write(batch(vec![WriteOperation { operation: None }])).await, "operations[0]")?;
        expect_invalid(kv.batch_write(batch(vec![operation(Bytes::new(), value(1))])).await, "operations[0].put.key")?;
        let keys = vec![Bytes::from_static(b"{t}"); BATCH_OPERATIONS_MAX + 1];
        expect_invalid(kv.batch_get(BatchGetRequest { header: header(), keys, read: None }).await, "keys")?;
        // With two shards, these slots lie on either side.
        let apart = vec![operation("foo".into(), value(1)), operation("bar".into(), value(1))];
        expect(kv.batch_write(batch(apart)).await, Code::InvalidArgument, "CROSS_SHARD")?;
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_are_not_found() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        let other = put_with(|header| header.keyspace = "nowhere".to_owned());
        expect(kv.put(other).await, Code::NotFound, "KEYSPACE_NOT_FOUND")?;
        let shard = put_with(|header| header.shard_id = 4711);
        expect(kv.put(shard).await, Code::NotFound, "SHARD_NOT_FOUND")?;
        let long = put_with(|header| header.keyspace = "n".repeat(65));
        expect_invalid(kv.put(long).await, "header.keyspace")?;
        let mut admin = cluster.admin().await?;
        let drain = admin_pb::DrainNodeRequest { node_id: 99, force: vec![] };
        expect(admin.service().drain_node(drain).await, Code::NotFound, "NOT_FOUND")?;
        let cancel = admin_pb::CancelActionRequest { action_id: 99 };
        expect(admin.service().cancel_action(cancel).await, Code::NotFound, "NOT_FOUND")?;
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn keyspaces_at_fault_are_not_created() -> Result<()> {
    on_a_node(|cluster, kv| async move {
        let mut admin = cluster.admin().await?;
        let sound = admin_pb::CreateKeyspaceRequest { name: "sound".to_owned(), replicas: 1, ..Default::default() };
        let mut refused = async |change: fn(&mut admin_pb::CreateKeyspaceRequest), field: &str| {
            let mut request = sound.clone();
            change(&mut request);
            expect_invalid(admin.service().create_keyspace(request).await, field)
        };
        refused(|request| request.name.clear(), "name").await?;
        refused(|request| request.name = "n".repeat(65), "name").await?;
        refused(|request| request.replicas = 2, "replicas").await?;
        refused(|request| request.shards = 1025, "shards").await?;
        refused(|request| request.kind = 7, "kind").await?;
        let again = admin_pb::CreateKeyspaceRequest { name: "default".to_owned(), replicas: 1, ..Default::default() };
        expect(admin.service().create_keyspace(again).await, Code::AlreadyExists, "ALREADY_EXISTS")?;
        drop(kv);
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_epoch_gets_the_route_as_it_is() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        let routes = kv.list_routes(kv_proto::pb::v1::ListRoutesRequest { header: header() }).await?.into_inner();
        let slot = kv_proto::slot::Slot::of(&key(1)).get();
        let shard = routes.shards.get(usize::from(slot >= 8192)).context("two shards")?.clone();
        let stale = put_with(|header| (header.shard_id, header.epoch) = (shard.shard_id, shard.epoch + 7));
        let error = expect(kv.put(stale).await, Code::FailedPrecondition, "STALE_ROUTE")?;
        let hint = error.route_hint().context("a route hint")?;
        let named =
            |route: &kv_proto::pb::v1::ShardRoute| route.shard_id == shard.shard_id && route.epoch == shard.epoch;
        ensure!(hint.current.iter().chain(&hint.shard).any(named), "no current route in {hint:?}");
        let elsewhere = routes.shards.get(usize::from(slot < 8192)).context("two shards")?;
        let wrong = put_with(|header| (header.shard_id, header.epoch) = (elsewhere.shard_id, elsewhere.epoch));
        expect(kv.put(wrong).await, Code::FailedPrecondition, "STALE_ROUTE")?;
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn page_sizes_and_cursors_at_fault_are_refused() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        for size in [0, -1, i32::MIN, i32::try_from(PAGE_ENTRIES_MAX)? + 1, i32::MAX] {
            expect_invalid(kv.scan(scan(|request| request.page_size = size)).await, "page_size")?;
        }
        expect_invalid(kv.scan(scan(|request| (request.start, request.prefix) = (key(1), key(1)))).await, "prefix")?;
        let garbage = scan(|request| request.cursor = Bytes::from_static(b"not a cursor"));
        expect(kv.scan(garbage).await, Code::InvalidArgument, "CURSOR_MISMATCH")?;

        for n in 0..4 {
            kv.put(put(Bytes::from(format!("c{n}")), value(1))).await?;
        }
        let page = kv.scan(scan(|request| (request.page_size, request.prefix) = (1, "c".into()))).await?.into_inner();
        ensure!(!page.cursor.is_empty(), "a cursor to go on with");
        let other = scan(|request| (request.cursor, request.prefix) = (page.cursor.clone(), "d".into()));
        expect(kv.scan(other).await, Code::InvalidArgument, "CURSOR_MISMATCH")?;
        for n in 0..4 {
            kv.delete(DeleteRequest { header: header(), key: Bytes::from(format!("c{n}")) }).await?;
        }
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_needed_and_bounded() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        let missing = put_with(|header| header.timeout_ms = 0);
        expect(kv.put(missing.clone()).await, Code::InvalidArgument, "DEADLINE_MISSING")?;
        let none = PutRequest { header: None, key: key(1), value: value(1) };
        expect(kv.put(none).await, Code::InvalidArgument, "DEADLINE_MISSING")?;
        let long = put_with(|header| header.timeout_ms = TIMEOUT_MS_MAX + 1);
        expect_invalid(kv.put(long).await, "header.timeout_ms")?;
        let mut enough = tonic::Request::new(GetRequest { header: missing.header, key: key(1), read: None });
        enough.metadata_mut().insert("grpc-timeout", "5S".parse()?);
        kv.get(enough).await.context("grpc-timeout is a deadline")?;
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_timeout_that_is_over_is_named_as_such() -> Result<()> {
    on_a_node(|cluster, _| async move {
        // A client library gives up by itself before the node can answer.
        let mut bare = Bare::connect(&cluster.node(1).address(), 64 << 10).await?;
        let get = GetRequest { header: None, key: WITNESS.into(), read: None };
        for timeout in ["0S", "1n", "1u", "1m"] {
            for _ in 0..200 {
                match bare::ended(bare.call("kv.v1.KvService/Get", Some(timeout), &get).await?).await? {
                    Err(ServiceError::DeadlineExceeded { .. }) => {}
                    other => bail!("a get with {timeout}: {other:?}"),
                }
            }
        }
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_on_the_way_is_named_and_its_outcome_is_true() -> Result<()> {
    let cluster = Cluster::start(Settings::default().nodes(1).shards(2)).await?;
    let mut kv = raw::kv(&cluster.node(1).address()).await?;
    let name = |n: u64| Bytes::from(format!("hasty{n}"));
    let call = |n| {
        let hasty = RequestHeader { timeout_ms: 1, ..header().unwrap_or_default() };
        let put = PutRequest { header: Some(hasty), key: name(n), value: value(4096) };
        PipelineCall { id: n, request: Some(pipeline_call::Request::Put(put)) }
    };
    let calls = (0..500).map(call).collect();
    let mut replies = kv.pipeline(tokio_stream::iter([PipelineRequest { calls }])).await?.into_inner();
    let mut outcomes = std::collections::BTreeMap::new();
    while let Some(message) = replies.message().await? {
        for reply in message.replies {
            let response = reply.response.context("a reply says something")?;
            let outcome = if let pipeline_reply::Response::Failure(failure) = response {
                let error = ServiceError::from_failure(failure);
                ensure!(error.reason() == "DEADLINE_EXCEEDED", "{error:?}");
                Some(error.outcome())
            } else {
                None
            };
            outcomes.insert(reply.id, outcome);
        }
    }
    ensure!(outcomes.len() == 500, "{} of 500 were answered", outcomes.len());
    for (n, outcome) in &outcomes {
        let found = kv.get(GetRequest { header: header(), key: name(*n), read: None }).await?.into_inner().entry;
        match outcome {
            None => ensure!(found.is_some(), "acknowledged write {n} is not there"),
            Some(Outcome::NotApplied) => ensure!(found.is_none(), "write {n} is there, though it was not applied"),
            Some(Outcome::Unknown) => {}
        }
    }
    let count = |wanted: Option<Outcome>| outcomes.values().filter(|outcome| **outcome == wanted).count();
    let (late, open) = (count(Some(Outcome::NotApplied)), count(Some(Outcome::Unknown)));
    println!("of 500 puts with a millisecond each: {} done, {late} not applied, {open} unknown", count(None));
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_at_fault_are_refused() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        let other = put_with(|header| header.cluster_id = "another-cluster".to_owned());
        expect(kv.put(other).await, Code::FailedPrecondition, "CLUSTER_MISMATCH")?;
        let short = Session { client_id: Bytes::from_static(b"short"), sequence: 1, lowest_unfinished: 1 };
        expect_invalid(kv.put(put_with(|header| header.session = Some(short))).await, "header.session.client_id")?;
        let zero = Session { client_id: vec![7; 16].into(), sequence: 0, lowest_unfinished: 0 };
        expect_invalid(kv.put(put_with(|header| header.session = Some(zero))).await, "header.session.sequence")?;
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_cannot_be_written_as_data() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        let system = put_with(|header| header.keyspace = "system".to_owned());
        let error = refusal(kv.put(system).await)?;
        ensure!(error.outcome() == Outcome::NotApplied, "{error:?}");
        let shard = put_with(|header| header.shard_id = 1);
        let error = refusal(kv.put(shard).await)?;
        ensure!(error.outcome() == Outcome::NotApplied, "{error:?}");
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_by_the_server() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        let error = refusal(kv.put(put(key(1), value(MESSAGE_BYTES_MAX + 1))).await)?;
        ensure!(is_of_request(&error), "{error:?}");
        Ok(cluster)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_protobuf_is_refused_by_the_server() -> Result<()> {
    on_a_node(|cluster, kv| async move {
        let channel = raw::channel(&cluster.node(1).address()).await?;
        // Field 2 (the key) of length 200, of which one byte follows; and a keyspace name that is no UTF-8.
        for bytes in [&[0x12, 200, 1, b'x'][..], &[0x0a, 4, 0x12, 2, 0xff, 0xfe][..]] {
            let error = refusal(raw_put(channel.clone(), bytes).await)?;
            ensure!(is_of_request(&error), "{error:?}");
        }
        drop(kv);
        Ok(cluster)
    })
    .await
}

/// What the decoder refuses: one violation, of the whole request, whatever the library calls it.
fn is_of_request(error: &ServiceError) -> bool {
    matches!(error, ServiceError::Invalid { violations }
        if matches!(&violations[..], [only] if only.field == "request" && !only.description.is_empty()))
}

/// Puts bytes on the wire as a PutRequest that no encoder would write.
async fn raw_put(channel: Channel, bytes: &'static [u8]) -> Result<tonic::Response<Bytes>, tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|e| tonic::Status::unknown(e.to_string()))?;
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/kv.v1.KvService/Put");
    grpc.unary(tonic::Request::new(Bytes::from_static(bytes)), path, kv_tests::raw::BytesCodec).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_at_fault_on_a_pipeline_leaves_the_others_alone() -> Result<()> {
    on_a_node(|cluster, mut kv| async move {
        let get = |key: Bytes| pipeline_call::Request::Get(GetRequest { header: header(), key, read: None });
        let calls = vec![
            PipelineCall { id: 1, request: Some(get(WITNESS.into())) },
            PipelineCall { id: 2, request: Some(get(Bytes::new())) },
            PipelineCall { id: 3, request: None },
            PipelineCall { id: 4, request: Some(get(WITNESS.into())) },
        ];
        let requests = tokio_stream::iter([PipelineRequest { calls }]);
        let mut replies = kv.pipeline(requests).await?.into_inner();
        let mut seen = std::collections::BTreeMap::new();
        while let Some(message) = replies.message().await? {
            seen.extend(message.replies.into_iter().map(|reply| (reply.id, reply.response)));
        }
        for id in [1, 4] {
            let answer = seen.get(&id).cloned().flatten();
            ensure!(matches!(answer, Some(pipeline_reply::Response::Get(_))), "call {id}: {answer:?}");
        }
        for id in [2, 3] {
            let answer = seen.get(&id).cloned().flatten();
            let Some(pipeline_reply::Response::Failure(failure)) = answer else {
                anyhow::bail!("call {id}: {answer:?}")
            };
            let error = ServiceError::from_failure(failure);
            ensure!(error.reason() == "INVALID_REQUEST", "call {id}: {error:?}");
        }
        Ok(cluster)
    })
    .await
}
