use bytes::Bytes;
use kv_proto::pb::v1::{CompareAndSetRequest, DeleteOperation, DeleteRequest, GetRequest, PutOperation, PutRequest};

use super::*;

const OURS: &str = "c1";

fn good_header() -> RequestHeader {
    RequestHeader { timeout_ms: 1000, ..Default::default() }
}

fn check(request: &Request) -> Result<Duration, ServiceError> {
    super::request(request, OURS, GrpcTimeout::Absent)
}

fn violations(request: &Request) -> Vec<String> {
    let error = check(request).unwrap_err();
    let ServiceError::Invalid { violations } = error else { panic!("{error}") };
    violations.iter().map(ToString::to_string).collect()
}

fn get(key: &[u8], read: Option<ReadOptions>) -> Request {
    Request::Get(GetRequest { header: Some(good_header()), key: Bytes::copy_from_slice(key), read })
}

fn put_with(header: RequestHeader) -> Request {
    Request::Put(PutRequest { header: Some(header), key: "k".into(), value: "v".into() })
}

fn batch(conditions: Vec<Condition>, operations: Vec<Option<Operation>>) -> Request {
    let operations = operations.into_iter().map(|operation| WriteOperation { operation }).collect();
    Request::BatchWrite(BatchWriteRequest { header: Some(good_header()), conditions, operations })
}

fn put(key: &[u8], value: usize) -> Option<Operation> {
    Some(Operation::Put(PutOperation { key: Bytes::copy_from_slice(key), value: vec![0; value].into() }))
}

fn scan(change: impl FnOnce(&mut ScanRequest)) -> Request {
    let mut scan = ScanRequest { header: Some(good_header()), page_size: 10, ..Default::default() };
    change(&mut scan);
    Request::Scan(scan)
}

#[test]
fn each_bad_field_is_named_with_its_limit() {
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    let too_big = Bytes::from(vec![0; VALUE_BYTES_MAX + 1]);
    let read = |consistency: i32, max_staleness_ms, snapshot_timestamp| {
        Some(ReadOptions { consistency, max_staleness_ms, snapshot_timestamp })
    };
    let header = |change: fn(&mut RequestHeader)| {
        let mut header = good_header();
        change(&mut header);
        put_with(header)
    };
    let session = |client: usize, sequence, lowest_unfinished| {
        let session = Session { client_id: vec![7; client].into(), sequence, lowest_unfinished };
        put_with(RequestHeader { session: Some(session), ..good_header() })
    };
    let condition = |key: &[u8], expected| Condition { key: Bytes::copy_from_slice(key), expected };
    let table: Vec<(Request, &[&str])> = vec![
        (get(b"", None), &["key: is empty"]),
        (get(&long, None), &["key: is 4097 bytes; at most 4096"]),
        (Request::Delete(DeleteRequest { header: Some(good_header()), ..Default::default() }), &["key: is empty"]),
        (
            Request::Put(PutRequest { header: Some(good_header()), key: Bytes::new(), value: too_big.clone() }),
            &["key: is empty", "value: is 1048577 bytes; at most 1048576"],
        ),
        (
            Request::CompareAndSet(CompareAndSetRequest {
                header: Some(good_header()),
                condition: None,
                new_value: Some(too_big.clone()),
            }),
            &["condition: is needed: it names the key", "new_value: is 1048577 bytes; at most 1048576"],
        ),
        (
            Request::CompareAndSet(CompareAndSetRequest {
                header: Some(good_header()),
                condition: Some(condition(b"", None)),
                new_value: None,
            }),
            &["condition.key: is empty", "condition.expected: is needed: value, commit_timestamp or exists"],
        ),
        (get(b"k", read(9, 0, 0)), &["read.consistency: 9 is not known"]),
        (get(b"k", read(1, 5, 0)), &["read.max_staleness_ms: is only for CONSISTENCY_STALE"]),
        (get(b"k", read(4, 0, 0)), &["read.snapshot_timestamp: is needed for CONSISTENCY_SNAPSHOT"]),
        (get(b"k", read(0, 0, 5)), &["read.snapshot_timestamp: is only for CONSISTENCY_SNAPSHOT"]),
        (header(|h| h.keyspace = "x".repeat(65)), &["header.keyspace: is 65 bytes; at most 64"]),
        (header(|h| h.wrong_node = 3), &["header.wrong_node: 3 is not known"]),
        (header(|h| h.hops = 3), &["header.hops: is 3; at most 2, and 0 from clients"]),
        (header(|h| h.timeout_ms = 60_001), &["header.timeout_ms: is 60001; at most 60000"]),
        (session(15, 1, 0), &["header.session.client_id: is 15 bytes; 16 are needed"]),
        (session(16, 0, 0), &["header.session.sequence: is 0; the first is 1"]),
        (session(16, 2, 3), &["header.session.lowest_unfinished: is 3, above the sequence 2"]),
        (batch(vec![], vec![]), &["operations: is empty"]),
        (batch(vec![], vec![None]), &["operations[0]: is neither put nor delete"]),
        (
            batch(vec![condition(b"k", None)], vec![put(b"", 0), put(b"k", VALUE_BYTES_MAX + 1)]),
            &[
                "conditions[0].expected: is needed: value, commit_timestamp or exists",
                "operations[0].put.key: is empty",
                "operations[1].put.value: is 1048577 bytes; at most 1048576",
            ],
        ),
        (batch(vec![], vec![put(b"k", 0); 4097]), &["operations: holds 4097; at most 4096"]),
        (batch(vec![], vec![put(b"k", 1 << 20); 5]), &["operations: is 5242885 bytes; at most 4194304"]),
        (Request::BatchGet(BatchGetRequest { header: Some(good_header()), ..Default::default() }), &["keys: is empty"]),
        (
            Request::BatchGet(BatchGetRequest {
                header: Some(good_header()),
                keys: vec!["k".into(), Bytes::new()],
                read: None,
            }),
            &["keys[1]: is empty"],
        ),
        (scan(|s| s.page_size = 0), &["page_size: is 0; between 1 and 10000"]),
        (scan(|s| s.page_size = -1), &["page_size: is -1; between 1 and 10000"]),
        (scan(|s| s.page_size = 10_001), &["page_size: is 10001; between 1 and 10000"]),
        (scan(|s| (s.prefix, s.start) = ("p".into(), "a".into())), &["prefix: cannot be together with start or end"]),
        (scan(|s| (s.start, s.end) = ("b".into(), "a".into())), &["end: must come after start"]),
    ];
    for (request, expected) in table {
        assert_eq!(violations(&request), expected, "{request:?}");
    }
}

#[test]
fn all_faults_of_a_request_are_told_together() {
    let session = Some(Session::default());
    let header = RequestHeader { wrong_node: 9, session, ..Default::default() };
    let request = Request::Put(PutRequest { header: Some(header), ..Default::default() });
    let expected = [
        "key: is empty",
        "header.wrong_node: 9 is not known",
        "header.session.client_id: is 0 bytes; 16 are needed",
        "header.session.sequence: is 0; the first is 1",
        "header.timeout_ms: is needed, or grpc-timeout",
    ];
    assert_eq!(violations(&request), expected);
}

#[test]
fn the_list_of_faults_is_bounded() {
    let faults = violations(&batch(vec![], vec![None; 4096]));
    assert_eq!(faults.len(), VIOLATIONS_MAX);
    assert!(faults.last().unwrap().ends_with("(and 4064 more faults)"));
}

#[test]
fn a_request_without_a_deadline_is_refused_as_such() {
    let request = Request::Get(GetRequest { key: "k".into(), ..Default::default() });
    assert_eq!(check(&request), Err(ServiceError::DeadlineMissing));
    let given = GrpcTimeout::Given(Duration::from_secs(3));
    assert_eq!(super::request(&request, OURS, given), Ok(Duration::from_millis(2950)));
}

#[test]
fn the_shorter_deadline_counts() {
    let given = |seconds| GrpcTimeout::Given(Duration::from_secs(seconds));
    assert_eq!(super::request(&put_with(good_header()), OURS, given(3600)), Ok(Duration::from_secs(1)));
    assert_eq!(super::request(&put_with(good_header()), OURS, given(0)), Ok(Duration::ZERO));
    let request = Request::Get(GetRequest { key: "k".into(), ..Default::default() });
    assert!(super::request(&request, OURS, given(61)).unwrap_err().to_string().contains("grpc-timeout: is 61s"));
    assert!(super::request(&request, OURS, GrpcTimeout::Malformed).is_err());
}

#[test]
fn a_call_is_answered_a_little_before_its_caller_gives_up() {
    let table = [(5000, 4950), (500, 450), (100, 90), (10, 8), (2, 0), (0, 0)];
    for (gives_up, answered) in table {
        assert_eq!(due(Duration::from_millis(gives_up)), Duration::from_millis(answered));
    }
}

#[test]
fn another_clusters_request_is_told_so_before_anything_else() {
    let header = RequestHeader { cluster_id: "c2".to_owned(), ..Default::default() };
    let request = Request::Put(PutRequest { header: Some(header), ..Default::default() });
    let expected = ServiceError::ClusterMismatch { ours: "c1".to_owned(), theirs: "c2".to_owned() };
    assert_eq!(check(&request), Err(expected));
}

#[test]
fn requests_at_the_limits_pass() {
    let key = vec![b'k'; KEY_BYTES_MAX];
    assert!(check(&get(&key, None)).is_ok());
    let delete = Some(Operation::Delete(DeleteOperation { key: "k".into() }));
    assert!(check(&batch(vec![], vec![delete; 4096])).is_ok());
    assert!(check(&batch(vec![], vec![put(b"k", VALUE_BYTES_MAX); 3])).is_ok());
    assert!(check(&scan(|s| s.page_size = 10_000)).is_ok());
}

#[test]
fn grpc_timeouts_are_read_as_the_specification_has_them() {
    let read = |text: &str| grpc_timeout(Some(text.as_bytes()));
    assert_eq!(grpc_timeout(None), GrpcTimeout::Absent);
    assert_eq!(read("5S"), GrpcTimeout::Given(Duration::from_secs(5)));
    assert_eq!(read("250m"), GrpcTimeout::Given(Duration::from_millis(250)));
    assert_eq!(read("99999999H"), GrpcTimeout::Given(Duration::from_secs(99_999_999 * 3600)));
    for malformed in ["", "S", "5", "5s", "123456789S", "-1S", "+1S"] {
        assert_eq!(read(malformed), GrpcTimeout::Malformed, "{malformed}");
    }
}
