//! Ten gibibytes on nodes with half a gibibyte of memory each.
//!
//! Not here: small data (footprint).

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kv_client::Consistency;
use kv_load::{Chooser, ClusterTarget, Distribution, Mix, Plan, Workload};
use kv_tests::cluster::Cluster;
use kv_tests::settings::Settings;
use tokio::time::{MissedTickBehavior, interval};

use crate::footprint::{raise, resident};
use crate::record::{Large, Sample, rounded};
use crate::shapes::KEY_BYTES;

/// Long values, so that the time goes into data rather than requests.
const VALUE_BYTES: usize = 4096;
const GIBIBYTE: u64 = 1 << 30;
/// Replicas, compactions in progress and logs, as a multiple of the data.
const DISK_FACTOR: u64 = 5;
const LOAD_BATCH: u64 = 64;
/// Of puts and gets once all is there.
const AFTERWARDS: Duration = Duration::from_secs(60);
const CLIENTS: usize = 64;

/// Loads `gib`, then puts and gets at random; watches the memory all the time.
pub(crate) async fn measure(lines: &[String], gib: u64) -> Result<Large> {
    room(gib)?;
    let settings = Settings { lines: lines.to_vec(), ..Settings::default().shards(0) };
    let cluster = Cluster::start(settings).await?;
    let client = cluster.client().await?;
    let target = ClusterTarget::new(client.keyspace("default"), Consistency::Linearizable);
    let plan = plan(gib);
    let peak = Mutex::new(resident(&cluster)?);
    let work = async {
        let began = Instant::now();
        let mut told = 0;
        let progress = |keys: u64| {
            let done = keys * 20 / plan.keys;
            if done > told {
                told = done;
                eprintln!("  {} % after {:.0} s", done * 5, began.elapsed().as_secs_f64());
            }
        };
        kv_load::load_keys(&plan, &target, LOAD_BATCH, progress).await.context("loading")?;
        let load_seconds = rounded(began.elapsed().as_secs_f64());
        let report = kv_load::run(plan.clone(), std::slice::from_ref(&target), &[], |_, _| ()).await?;
        anyhow::Ok((load_seconds, Sample::from(&report)))
    };
    let (load_seconds, afterwards) = tokio::select! {
        done = work => done?,
        ended = watch(&cluster, &peak) => return Err(ended),
    };
    client.close().await;
    cluster.discard().await?;
    Ok(Large { gib, load_seconds, afterwards, peak_mib: peak.into_inner().unwrap_or_default() })
}

/// Ends only if a node does.
async fn watch(cluster: &Cluster, peak: &Mutex<Vec<f64>>) -> anyhow::Error {
    let mut look = interval(Duration::from_millis(250));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        match (resident(cluster), peak.lock()) {
            (Ok(now), Ok(mut peak)) => raise(&mut peak, now),
            (Err(error), _) => return error.context("a node ended under the load"),
            (Ok(_), Err(_)) => return anyhow::anyhow!("the peak is lost"),
        }
    }
}

fn plan(gib: u64) -> Plan {
    let keys = gib * GIBIBYTE / VALUE_BYTES as u64;
    Plan {
        mix: Mix::of(Workload::YcsbA, 50),
        chooser: Chooser::new(Distribution::Uniform, keys),
        latest: false,
        clients: CLIENTS,
        keys,
        key_bytes: KEY_BYTES,
        value_bytes: VALUE_BYTES,
        batch: 1,
        page: 1,
        rate: None,
        warm_up: Duration::from_secs(2),
        duration: AFTERWARDS,
        seed: 1,
    }
}

fn room(gib: u64) -> Result<()> {
    let folder = std::env::temp_dir();
    let facts = rustix::fs::statvfs(&folder)?;
    let (free, needed) = (facts.f_bavail * facts.f_frsize, gib * GIBIBYTE * DISK_FACTOR);
    ensure!(free >= needed, "{} has {} GiB free of the {} GiB this needs", folder.display(), free >> 30, needed >> 30);
    Ok(())
}
