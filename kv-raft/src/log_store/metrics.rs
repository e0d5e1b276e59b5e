//! What the log engine measures: how long commands wait for the writer, how much it gathers, how long an fsync takes.
//!
//! Not here: what other stages measure (metrics of the crate).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Families of the log engine; one per process.
#[derive(Debug)]
pub struct LogMetrics {
    pub(super) queue: Histogram,
    pub(super) fsync: Histogram,
    /// The same among the stages of a request, once they are known.
    stage: OnceLock<Histogram>,
    pub(super) batch_entries: Histogram,
    pub(super) batch_bytes: Histogram,
    pub(super) entries: Counter,
    pub(super) disk_reads: Counter,
    pub(super) cache_bytes: Gauge,
}

impl LogMetrics {
    /// Registers the families.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self::unregistered();
        let families = registry.sub_registry_with_prefix("kv_log");
        families.register_with_unit(
            "queue",
            "Wait of an append for the log writer",
            Unit::Seconds,
            metrics.queue.clone(),
        );
        families.register_with_unit(
            "fsync",
            "One synced write of a gathered batch",
            Unit::Seconds,
            metrics.fsync.clone(),
        );
        families.register("batch_entries", "Entries of all shards in one synced write", metrics.batch_entries.clone());
        families.register_with_unit("batch", "Size of one synced write", Unit::Bytes, metrics.batch_bytes.clone());
        families.register("entries", "Entries appended", metrics.entries.clone());
        families.register("disk_reads", "Reads of entries that were no longer in memory", metrics.disk_reads.clone());
        families.register_with_unit("cache", "Recent entries held in memory", Unit::Bytes, metrics.cache_bytes.clone());
        metrics
    }

    /// One synced write.
    pub(super) fn synced(&self, taken: Duration) {
        self.fsync.observe(taken.as_secs_f64());
        if let Some(stage) = self.stage.get() {
            stage.observe(taken.as_secs_f64());
        }
    }

    /// Counts synced writes here as well; the first one given stays.
    pub(super) fn share(&self, stage: &Histogram) {
        self.stage.get_or_init(|| stage.clone());
    }

    /// Counts without being shown, for tests and offline commands.
    #[must_use]
    pub fn unregistered() -> Arc<Self> {
        // 20 us to 10 s, and 1 to 65,536 entries: an fsync takes 0.1 ms on a good disk and seconds on a dying one.
        let seconds = || Histogram::new(exponential_buckets(20e-6, 2.0, 20));
        Arc::new(Self {
            queue: seconds(),
            fsync: seconds(),
            stage: OnceLock::new(),
            batch_entries: Histogram::new(exponential_buckets(1.0, 2.0, 17)),
            batch_bytes: Histogram::new(exponential_buckets(256.0, 4.0, 10)),
            entries: Counter::default(),
            disk_reads: Counter::default(),
            cache_bytes: Gauge::default(),
        })
    }
}
