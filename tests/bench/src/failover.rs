//! How long writes stand still when the node that leads their shard is killed.
//!
//! Not here: whether anything acknowledged is lost then (`tests/tests/faults.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kv_client::{Client, Keyspace};
use kv_tests::cluster::Cluster;
use kv_tests::settings::Settings;
use kv_tests::wait;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::record::{Gap, rounded};

/// Kills, each of the node that leads most shards.
pub(crate) const KILLS: usize = 20;
/// Writers of each shard: acknowledgements come close enough together to time a gap, and the nodes have load to carry.
const WRITERS: u32 = 4;
/// Load before a kill.
const STEADY: Duration = Duration::from_secs(2);
/// Load after the last affected shard goes on: an election that has to be repeated falls into it.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// Longer would be a fault to look into, not a figure.
const GOES_ON_WITHIN: Duration = Duration::from_secs(30);

/// The acknowledgements of one shard's writers.
struct Pulse {
    last: Instant,
    longest: Duration,
}

/// By shard.
type Pulses = BTreeMap<u64, Mutex<Pulse>>;

/// Kills and restarts nodes under load; one gap for each shard that lost its leader.
pub(crate) async fn measure(lines: &[String], kills: usize) -> Result<Vec<Gap>> {
    let settings = Settings { lines: lines.to_vec(), ..Settings::default().shards(3) };
    let mut cluster = Cluster::start(settings).await?;
    let client = cluster.client().await?;
    let load = Load::start(&client).await?;
    let mut gaps = Vec::new();
    for number in 0..kills {
        let of_kill = kill(&mut cluster, &load.pulses).await?;
        for gap in &of_kill {
            eprintln!("  kill {:>2}  shard {:<3} {:>6.0} ms", number + 1, gap.shard, gap.ms);
        }
        gaps.extend(of_kill);
    }
    load.stop().await;
    client.close().await;
    cluster.discard().await?;
    Ok(gaps)
}

/// Writers that go on whatever happens.
struct Load {
    pulses: Arc<Pulses>,
    stop: Arc<AtomicBool>,
    writers: JoinSet<()>,
}

impl Load {
    async fn start(client: &Client) -> Result<Self> {
        let keyspace = client.keyspace("default");
        let routes = keyspace.routes().await?;
        let pulse = || Mutex::new(Pulse { last: Instant::now(), longest: Duration::ZERO });
        let pulses: Arc<Pulses> = Arc::new(routes.shards().iter().map(|route| (route.shard().0, pulse())).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for shard in pulses.keys().copied() {
            let of_shard = |key: &String| routes.shard_of(key.as_bytes()).is_some_and(|route| route.shard().0 == shard);
            for number in 0..WRITERS {
                let key = (0..100_000).map(|salt| format!("pulse/{number}/{salt}")).find(of_shard);
                let key = key.with_context(|| format!("no key of shard {shard} found"))?;
                writers.spawn(write(keyspace.clone(), key, shard, pulses.clone(), stop.clone()));
            }
        }
        Ok(Self { pulses, stop, writers })
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.writers.join_next().await.is_some() {}
    }
}

async fn write(keyspace: Keyspace, key: String, shard: u64, pulses: Arc<Pulses>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        // What fails is sent again: only acknowledgements count.
        if keyspace.put(key.clone(), "value").await.is_err() {
            continue;
        }
        if let Some(pulse) = pulses.get(&shard) {
            let mut pulse = pulse.lock().await;
            let now = Instant::now();
            pulse.longest = pulse.longest.max(now - pulse.last);
            pulse.last = now;
        }
    }
}

/// Kills the node that leads most shards, measures, and starts it again.
async fn kill(cluster: &mut Cluster, pulses: &Pulses) -> Result<Vec<Gap>> {
    tokio::time::sleep(STEADY).await;
    let (node, shards) = busiest(cluster).await?;
    for pulse in pulses.values() {
        pulse.lock().await.longest = Duration::ZERO;
    }
    cluster.node_mut(usize::try_from(node)?).kill().await?;
    let killed = Instant::now();
    wait::until("all shards to go on", GOES_ON_WITHIN, || async {
        for shard in &shards {
            let pulse = pulses.get(shard).context("a shard without writers")?.lock().await;
            // An answer that was on its way when the node died may still arrive.
            let goes_on = pulse.last > killed && pulse.longest > Duration::from_millis(50);
            ensure!(goes_on, "shard {shard} stands still since {:?}", pulse.last.elapsed());
        }
        Ok(())
    })
    .await?;
    tokio::time::sleep(AFTERWARDS).await;
    let mut gaps = Vec::new();
    for shard in shards {
        let pulse = pulses.get(&shard).context("a shard without writers")?.lock().await;
        gaps.push(Gap { shard, ms: rounded(pulse.longest.as_secs_f64() * 1e3) });
    }
    cluster.restart(usize::try_from(node)?).await?;
    Ok(gaps)
}

/// The node that leads most shards of the default keyspace, and these.
async fn busiest(cluster: &Cluster) -> Result<(u64, Vec<u64>)> {
    let listings = cluster.admin().await?.shards("default").await?;
    let mut led: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for listing in &listings {
        let shard = listing.shard.as_ref().map_or(0, |shard| shard.shard_id);
        for leader in listing.replicas.iter().filter(|replica| replica.role == "leader") {
            led.entry(leader.node_id).or_default().push(shard);
        }
    }
    led.into_iter().max_by_key(|(_, shards)| shards.len()).context("no shard has a leader")
}
