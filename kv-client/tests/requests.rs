//! What requests return when nothing goes wrong, over one shard and over many.

mod fake;

use std::time::Duration;

use fake::{Act, Fake};
use futures::{StreamExt as _, TryStreamExt as _};
use kv_client::{BatchResult, Bytes, CasResult, Client, Cursor, Entry, Error, Outcome, ServiceError};
use kv_proto::ids::ShardId;
use kv_proto::keys::{self, Layout};
use kv_proto::limits::BATCH_OPERATIONS_MAX;

fn name(number: usize) -> String {
    format!("key:{number:04}")
}

async fn fill(client: &Client, count: usize) {
    let mut batch = client.batch();
    for number in 0..count {
        batch = batch.put(name(number), format!("value {number}"));
    }
    for part in batch.spread().await.expect("routes are known") {
        assert!(part.result.expect("every part is written").applied());
    }
}

fn keys_of(entries: &[Entry]) -> Vec<Bytes> {
    entries.iter().map(|entry| entry.key.clone()).collect()
}

fn sorted_by_slot(count: usize) -> Vec<Bytes> {
    let mut names: Vec<Bytes> = (0..count).map(|number| Bytes::from(name(number))).collect();
    names.sort_by_key(|key| keys::encode(fake::KEYSPACE, Layout::Hash, key));
    names
}

#[tokio::test]
async fn what_was_put_is_read_and_what_was_deleted_is_not() {
    let cluster = Fake::hashed(3, 6);
    let client = cluster.client().await;
    let version = client.put("a", "1").await.unwrap();
    let entry = client.get("a").await.unwrap().unwrap();
    assert_eq!((&entry.key[..], &entry.value[..], entry.version), (&b"a"[..], &b"1"[..], version));
    assert!(client.delete("a").await.unwrap().existed);
    assert!(!client.delete("a").await.unwrap().existed);
    assert_eq!(client.get("a").await.unwrap(), None);
}

#[tokio::test]
async fn a_refused_compare_and_set_is_an_answer_with_the_key_as_it_is() {
    let cluster = Fake::hashed(3, 6);
    let client = cluster.client().await;
    let applied = client.compare_and_set("k").expect_absent().set("1").await.unwrap();
    let CasResult::Applied { version } = applied else { panic!("the key is absent") };
    let refused = client.compare_and_set("k").expect_value("2").set("3").await.unwrap();
    let CasResult::Refused { current } = refused else { panic!("the value is another") };
    assert_eq!(current.unwrap().value, "1");
    assert!(client.compare_and_set("k").expect_version(version).delete().await.unwrap().applied());
    assert!(!client.compare_and_set("k").expect_exists().set("4").await.unwrap().applied());
}

#[tokio::test]
async fn a_batch_tells_which_condition_did_not_hold() {
    let cluster = Fake::hashed(3, 6);
    let client = cluster.client().await;
    let open = || client.batch().require_absent("{o}:a").require_absent("{o}:b").put("{o}:b", "1").delete("{o}:c");
    assert!(matches!(open().await.unwrap(), BatchResult::Applied { deleted: 0, .. }));
    let BatchResult::Refused { condition, current } = open().await.unwrap() else { panic!("b exists") };
    assert_eq!((condition, current.unwrap().value), (1, Bytes::from("1")));
}

#[tokio::test]
async fn a_batch_over_several_shards_is_refused_before_anything_is_sent() {
    let cluster = Fake::hashed(3, 6);
    let client = cluster.client().await;
    let error = client.batch().put("a", "1").put("b", "2").put("c", "3").await.unwrap_err();
    assert!(matches!(error, Error::Service { error: ServiceError::CrossShard { .. }, attempts: 0, .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(cluster.sent(), []);
}

#[tokio::test]
async fn an_empty_batch_and_a_spread_batch_with_conditions_are_refused() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    assert!(client.batch().await.is_err());
    let conditional = client.batch().require_absent("a").put("a", "1").spread();
    assert!(matches!(conditional.await, Err(Error::Usage { .. })));
    assert_eq!(cluster.sent(), []);
}

#[tokio::test]
async fn a_batch_get_answers_in_the_order_asked_also_for_absent_and_repeated_keys() {
    let cluster = Fake::hashed(3, 6);
    let client = cluster.client().await;
    fill(&client, 50).await;
    let asked = ["key:0007", "none", "key:0001", "key:0007"];
    let found = client.batch_get(asked).await.unwrap();
    let values: Vec<_> = found.into_iter().map(|entry| entry.map(|entry| entry.value)).collect();
    let value = |number: usize| Some(Bytes::from(format!("value {number}")));
    assert_eq!(values, [value(7), None, value(1), value(7)]);
    assert!(client.batch_get(Vec::<&str>::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_batch_get_whose_values_are_too_much_for_one_answer_is_asked_for_in_halves() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    fill(&client, 8).await;
    cluster.with(|inner| inner.sent.clear());
    let too_much = || Act::Fail(ServiceError::invalid("keys", "hold more than one answer"));
    cluster.script(1, [too_much(), too_much()]);
    let found = client.batch_get((0..8).map(name)).await.unwrap();
    assert!(found.iter().all(Option::is_some), "{found:?}");
    assert_eq!(cluster.sent().len(), 1 + 2 + 2, "all, two halves, and two quarters in the place of one half");
    cluster.script(1, [too_much()]);
    assert!(client.batch_get(["key:0001"]).await.is_err(), "a key alone has no halves");
}

#[tokio::test]
async fn a_spread_batch_writes_a_key_in_its_order_also_when_a_part_is_sent_again() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    let mut batch = client.batch().put("twice", "old");
    for number in 0..BATCH_OPERATIONS_MAX {
        batch = batch.put(name(number), "");
    }
    batch = batch.put("twice", "new");
    let retry_after = Duration::from_millis(50);
    cluster.script(1, [Act::Fail(ServiceError::NoLeader { shard: ShardId(0), retry_after })]);
    let parts = batch.spread().await.unwrap();
    assert_eq!(parts.iter().map(|part| part.operations.len()).collect::<Vec<_>>(), [BATCH_OPERATIONS_MAX, 2]);
    assert!(parts.iter().all(|part| part.result.as_ref().is_ok_and(BatchResult::applied)), "{parts:?}");
    assert_eq!(client.get("twice").await.unwrap().unwrap().value, "new");
}

#[tokio::test]
async fn a_scan_of_a_hash_keyspace_gives_every_key_in_slot_order() {
    let cluster = Fake::hashed(3, 6);
    let client = cluster.client().await;
    fill(&client, 300).await;
    let entries: Vec<Entry> = client.scan().page_size(7).stream().try_collect().await.unwrap();
    assert_eq!(keys_of(&entries), sorted_by_slot(300));
    let none: Vec<Entry> = client.scan().prefix("other").stream().try_collect().await.unwrap();
    assert!(none.is_empty());
}

#[tokio::test]
async fn a_scan_of_a_range_keyspace_is_ordered_and_touches_only_shards_in_its_bounds() {
    let cluster = Fake::ranged(3, &["key:0050", "key:0100", "key:0150"]);
    let client = cluster.client().await;
    fill(&client, 200).await;
    cluster.with(|inner| inner.sent.clear());
    let scan = client.scan().start("key:0040").end("key:0120").page_size(9).keys_only();
    let entries: Vec<Entry> = scan.stream().try_collect().await.unwrap();
    assert_eq!(keys_of(&entries), (40..120).map(|number| Bytes::from(name(number))).collect::<Vec<_>>());
    assert!(entries.iter().all(|entry| entry.value.is_empty()));
    assert!(cluster.sent().iter().all(|sent| sent.shard != 13), "the last shard lies beyond the bounds");
}

#[tokio::test]
async fn a_limited_scan_reads_no_shard_it_does_not_need() {
    let cluster = Fake::ranged(3, &["key:0050", "key:0100", "key:0150"]);
    let client = cluster.client().await;
    fill(&client, 200).await;
    cluster.with(|inner| inner.sent.clear());
    let entries: Vec<Entry> = client.scan().limit(5).stream().try_collect().await.unwrap();
    assert_eq!(entries.len(), 5);
    assert_eq!(cluster.sent().len(), 1);
    assert!(client.scan().limit(0).stream().next().await.is_none());
    assert_eq!(client.scan().limit(0).page(None).await.unwrap().entries, []);
}

#[tokio::test]
async fn pages_go_on_where_the_last_one_ended_also_when_the_shard_was_split_meanwhile() {
    for split_after in [0, 1, 3, 8] {
        let cluster = Fake::hashed(2, 2);
        let client = cluster.client().await;
        fill(&client, 100).await;
        let (mut cursor, mut entries, mut pages): (Option<Cursor>, Vec<Entry>, usize) = (None, vec![], 0);
        loop {
            let stored = cursor.map(|cursor| Cursor::from_bytes(cursor.as_bytes()));
            let page = client.scan().page_size(10).page(stored).await.unwrap();
            entries.extend(page.entries);
            cursor = page.next;
            if pages == split_after {
                let third = sorted_by_slot(100)[35].clone();
                cluster.split(10, keys::encode(fake::KEYSPACE, Layout::Hash, &third));
            }
            pages += 1;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(keys_of(&entries), sorted_by_slot(100), "split after page {split_after}");
    }
}

#[tokio::test]
async fn a_stream_gives_each_key_once_when_shards_split_while_it_is_read() {
    let cluster = Fake::hashed(3, 3);
    let client = cluster.client().await;
    fill(&client, 300).await;
    let mut stream = client.scan().page_size(10).stream();
    let mut entries = vec![];
    while let Some(entry) = stream.try_next().await.unwrap() {
        entries.push(entry);
        if entries.len() == 15 {
            for (shard, position) in [(10, 60), (11, 150), (12, 280)] {
                let at = sorted_by_slot(300)[position].clone();
                cluster.split(shard, keys::encode(fake::KEYSPACE, Layout::Hash, &at));
            }
        }
    }
    assert_eq!(keys_of(&entries), sorted_by_slot(300));
}

#[tokio::test]
async fn a_batch_get_and_a_spread_batch_follow_a_split() {
    let cluster = Fake::hashed(2, 2);
    let client = cluster.client().await;
    fill(&client, 100).await;
    let at = sorted_by_slot(100)[20].clone();
    cluster.split(10, keys::encode(fake::KEYSPACE, Layout::Hash, &at));
    let found = client.batch_get((0..100).map(name)).await.unwrap();
    assert!(found.iter().all(Option::is_some));
    let at = sorted_by_slot(100)[80].clone();
    cluster.split(11, keys::encode(fake::KEYSPACE, Layout::Hash, &at));
    let applied = cluster.with(|inner| inner.store.applied);
    fill(&client, 100).await;
    assert_eq!(cluster.with(|inner| inner.store.applied), applied + 4, "one batch for each of the four shards");
}

#[tokio::test]
async fn a_foreign_cursor_and_impossible_pages_are_refused() {
    let cluster = Fake::hashed(1, 1);
    let client = cluster.client().await;
    let foreign = client.scan().page(Cursor::from_bytes("nonsense")).await.unwrap_err();
    assert_eq!(foreign.service(), Some(&ServiceError::CursorMismatch));
    for size in [0, 10_001] {
        assert!(client.scan().page_size(size).page(None).await.is_err());
        assert!(client.scan().page_size(size).stream().next().await.unwrap().is_err());
    }
    assert!(client.scan().prefix("a").start("b").page(None).await.is_err());
}
