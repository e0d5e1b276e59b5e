//! The load shapes that are compared: the same for every system.
//!
//! Not here: how a shape is run (versus).

use std::time::Duration;

use kv_load::{Chooser, Distribution, Mix, Plan, Workload};

/// Keys that are loaded before and drawn from.
pub(crate) const KEYS: u64 = 100_000;
/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 16;
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 128;
/// Puts in a batch.
pub(crate) const BATCH: usize = 100;
/// Shards of the other keyspace: a leader for each node.
pub(crate) const SPREAD_SHARDS: u32 = 3;
/// Reads of the mixed shape, in percent.
const READS: u32 = 90;

/// A keyspace of our own cluster; etcd has but one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Keyspace {
    /// The one that is there, with as many shards as a cluster chooses by itself.
    Default,
    /// One with [`SPREAD_SHARDS`].
    Spread,
}

impl Keyspace {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Spread => "spread",
        }
    }
}

/// A load on a cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    /// As it is selected and kept.
    pub(crate) name: &'static str,
    /// As people read it.
    pub(crate) title: &'static str,
    workload: Workload,
    clients: usize,
    distribution: Distribution,
    /// Whether any replica may answer reads.
    pub(crate) stale: bool,
    /// Whether processors are kept awake.
    pub(crate) awake: bool,
    /// Whose keys; both have the same.
    pub(crate) keyspace: Keyspace,
    /// Whether it is part of the short run.
    pub(crate) quick: bool,
}

const fn shape(name: &'static str, title: &'static str, workload: Workload, clients: usize) -> Shape {
    Shape {
        name,
        title,
        workload,
        clients,
        distribution: Distribution::Uniform,
        stale: false,
        awake: false,
        keyspace: Keyspace::Default,
        quick: false,
    }
}

/// All of them, in the order they run and are shown.
pub(crate) const SHAPES: [Shape; 16] = [
    Shape { quick: true, ..shape("put-1", "put, 1 client", Workload::Put, 1) },
    shape("put-64", "put, 64 clients", Workload::Put, 64),
    Shape { quick: true, ..shape("put-256", "put, 256 clients", Workload::Put, 256) },
    shape("get-1", "linearizable get, 1 client", Workload::Get, 1),
    shape("get-64", "linearizable get, 64 clients", Workload::Get, 64),
    Shape { quick: true, ..shape("get-256", "linearizable get, 256 clients", Workload::Get, 256) },
    Shape { stale: true, ..shape("stale-1", "get from any replica, 1 client", Workload::Get, 1) },
    Shape { stale: true, ..shape("stale-64", "get from any replica, 64 clients", Workload::Get, 64) },
    Shape { stale: true, ..shape("stale-256", "get from any replica, 256 clients", Workload::Get, 256) },
    Shape {
        quick: true,
        distribution: Distribution::Zipfian,
        ..shape("mixed-256", "90% get, 10% put, zipfian, 256 clients", Workload::Mixed, 256)
    },
    Shape { quick: true, ..shape("batch-1", "batches of 100 puts, 1 client", Workload::Batch, 1) },
    Shape { awake: true, ..shape("put-1-awake", "put, 1 client, processors awake", Workload::Put, 1) },
    Shape { awake: true, ..shape("batch-1-awake", "batches of 100, 1 client, processors awake", Workload::Batch, 1) },
    Shape {
        keyspace: Keyspace::Spread,
        ..shape("put-256-spread", "put, 256 clients, three shards", Workload::Put, 256)
    },
    Shape {
        keyspace: Keyspace::Spread,
        ..shape("get-256-spread", "linearizable get, 256 clients, three shards", Workload::Get, 256)
    },
    Shape {
        keyspace: Keyspace::Spread,
        distribution: Distribution::Zipfian,
        ..shape("mixed-256-spread", "90% get, 10% put, 256 clients, three shards", Workload::Mixed, 256)
    },
];

impl Shape {
    /// Whether it writes nothing.
    pub(crate) fn only_reads(&self) -> bool {
        self.workload == Workload::Get
    }

    /// The shape as a plan; rounds draw different keys.
    pub(crate) fn plan(&self, warm_up: Duration, duration: Duration, round: u64) -> Plan {
        Plan {
            mix: Mix::of(self.workload, READS),
            chooser: Chooser::new(self.distribution, KEYS),
            latest: self.workload.reads_latest(),
            clients: self.clients,
            keys: KEYS,
            key_bytes: KEY_BYTES,
            value_bytes: VALUE_BYTES,
            batch: BATCH,
            page: 0,
            rate: None,
            warm_up,
            duration,
            seed: 1_000_000 * round,
        }
    }
}
