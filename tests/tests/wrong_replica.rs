//! A bit flips in one replica's data where no checksum of a file tells: it is found, shut out and replaced.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kv_checkers::equal_replicas;
use kv_proto::ids::SYSTEM_KEYSPACE;
use kv_proto::pb::admin::v1::{CheckShardResponse, ShardListing};
use kv_tests::cluster::Cluster;
use kv_tests::recorder::Recorder;
use kv_tests::settings::Settings;
use kv_tests::{http, logs, replicas, wait};

const KEYS: u32 = 200;

/// Detection takes a moment; the replacement is three changes of the group, on a loaded machine.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);

/// The extent in front of keys, then the keyspace.
const KEYSPACE_AT: std::ops::Range<usize> = 8..12;

/// Changes the last bit of one user value of a stopped node. RocksDB writes it as it writes everything: with a checksum
/// that is right.
fn flip_a_bit(data_dir: &Path) -> Result<()> {
    let folder = data_dir.join("data");
    let families = rocksdb::DB::list_cf(&rocksdb::Options::default(), &folder)?;
    let database = rocksdb::DB::open_cf(&rocksdb::Options::default(), &folder, families)?;
    let latest = database.cf_handle("latest").context("a table of values")?;
    let is_users =
        |key: &[u8]| key.get(KEYSPACE_AT).is_some_and(|keyspace| *keyspace != SYSTEM_KEYSPACE.0.to_be_bytes());
    for row in database.iterator_cf(latest, rocksdb::IteratorMode::Start) {
        let (key, mut value) = row.map(|(key, value)| (key, value.to_vec()))?;
        if is_users(&key) {
            *value.last_mut().context("a value")? ^= 1;
            database.put_cf(latest, key, value)?;
            return Ok(database.flush_cf(latest)?);
        }
    }
    anyhow::bail!("no value of a user's key in {}", folder.display())
}

async fn check(cluster: &Cluster, listing: &ShardListing, recorder: &Recorder) -> Result<CheckShardResponse> {
    replicas::check(&mut cluster.admin().await?, listing, recorder).await
}

fn replica_on(listing: &ShardListing, node: u64) -> Option<u64> {
    let replicas = &listing.shard.as_ref()?.replicas;
    replicas.iter().find(|replica| replica.node_id == node).map(|replica| replica.replica_id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_found_and_the_replica_is_replaced_by_one_that_is_right() -> Result<()> {
    // Only on demand here, so that the test sees each step.
    let settings = Settings::default().line("check_interval = \"0s\"").expect("quarantined");
    let mut cluster = Cluster::start(settings).await?;
    let client = cluster.client().await?;
    let users = client.keyspace("default");
    for i in 0..KEYS {
        users.put(format!("key-{i}"), format!("value-{i}")).await?;
    }
    let recorder = Recorder::new(0);
    let before = cluster.admin().await?.shards("default").await?;
    for listing in &before {
        let found = check(&cluster, listing, &recorder).await?;
        assert_eq!((found.equal_replica_ids.len(), found.wrong_replica_ids.len()), (3, 0), "{found:?}");
    }

    let (compared, differing) = recorder.with(|history| equal_replicas::check(history));
    assert_eq!((compared, differing), (2 * before.len(), vec![]));

    // A graceful stop leaves everything in the tables.
    ensure!(cluster.node_mut(2).stop().await?.success());
    flip_a_bit(&cluster.node(2).data_dir())?;
    cluster.restart(2).await?;
    let (mut wrong, mut checked) = (None, 0);
    for listing in &before {
        let found = check(&cluster, listing, &recorder).await?;
        checked += 1;
        if let [replica] = found.wrong_replica_ids.as_slice() {
            assert_eq!(replica_on(listing, 2), Some(*replica), "{found:?}");
            ensure!(wrong.replace((listing.clone(), *replica)).is_none(), "two shards differ");
        }
    }
    let (_, differing) = recorder.with(|history| equal_replicas::check(history));
    assert!(matches!(differing.as_slice(), [one] if one.what.contains("node 2 has")), "{differing:?}");
    let (listing, old) = wrong.with_context(|| format!("no replica of {checked} shards was found wrong"))?;
    let shard = listing.shard.as_ref().map_or(0, |shard| shard.shard_id);

    wait::until("another replica in its place", REPLACED_WITHIN, || async {
        let shards = cluster.admin().await?.shards("default").await?;
        let now = shards.iter().find(|now| now.shard.as_ref().is_some_and(|now| now.shard_id == shard));
        let now = now.context("the shard")?;
        let new = replica_on(now, 2).context("no replica on node 2")?;
        ensure!(new > old, "replica {old} is still there");
        let status = now.replicas.iter().find(|status| status.replica_id == new).context("it does not answer")?;
        ensure!(status.role == "follower" || status.role == "leader", "it is {}", status.role);
        let found = check(&cluster, now, &recorder).await?;
        ensure!(found.equal_replica_ids.len() == 3, "{found:?}");
        Ok(())
    })
    .await?;
    ensure!(logs::contains(&cluster.node(2).log(), "quarantined")?, "node 2 does not say so");
    wait::until("node 2 to be well again", REPLACED_WITHIN, || async {
        let (_, report) = http::get(&cluster.node(2).http_address(), "/readyz?verbose").await?;
        ensure!(report.contains("content") && !report.contains("quarantined"), "{report}");
        Ok(())
    })
    .await?;
    for i in 0..KEYS {
        let found = users.get(format!("key-{i}")).await?.map(|entry| entry.value);
        assert_eq!(found.as_deref(), Some(format!("value-{i}").as_bytes()), "key-{i}");
    }
    cluster.finish().await
}
