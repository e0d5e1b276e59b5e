//! What the machine could do at most: the disk, the storage engine, an RPC that does nothing.
//!
//! Not here: the systems themselves (versus).

mod disk;
pub(crate) mod echo;
mod rocks;

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::record::{Limit, Record, rounded};

/// What a limit is called and what it is, in the order they are shown.
pub(crate) const LIMITS: [(&str, &str); 7] = [
    ("fdatasync-append", "fdatasync after an append of 512 B, one file"),
    ("fdatasync-preallocated", "the same into preallocated space"),
    ("rocksdb-64", "RocksDB, synced puts of 128 B from 64 threads of one process"),
    ("rocksdb-batch", "RocksDB, puts in synced batches of 64 from one thread"),
    ("echo-unary-1", "tonic, unary echo of 128 B, one at a time"),
    ("echo-unary-256", "tonic, unary echo of 128 B, 256 at a time over three connections"),
    ("echo-stream", "tonic, echo over one stream, 256 messages of 128 B on their way"),
];

/// Measures all limits once, each for this long.
pub(crate) async fn round(each: Duration, record: &mut Record) -> Result<()> {
    let mut keep = |name: &str, limit: Limit| {
        eprintln!(
            "  {name:<24} {:>9.0}/s  p50 {:>7.0} us  p99 {:>7.0} us",
            limit.per_second, limit.p50_us, limit.p99_us
        );
        record.limits.entry(name.to_owned()).or_default().push(limit);
    };
    keep("fdatasync-append", disk::append(each)?);
    keep("fdatasync-preallocated", disk::overwrite(each)?);
    keep("rocksdb-64", rocks::threads(each)?);
    keep("rocksdb-batch", rocks::batches(each)?);
    let server = echo::Server::start().await?;
    keep("echo-unary-1", server.unary(1, each).await?);
    keep("echo-unary-256", server.unary(256, each).await?);
    keep("echo-stream", server.stream(each).await?);
    Ok(())
}

/// No single step takes longer than this.
const LATENCY_MICROS_MAX: u64 = 100_000_000;

/// Times what is done until the time is up.
struct Watch {
    began: Instant,
    each: Duration,
    latency: Histogram<u64>,
}

impl Watch {
    fn start(each: Duration) -> Result<Self> {
        Ok(Self { began: Instant::now(), each, latency: Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3)? })
    }

    fn goes_on(&self) -> bool {
        self.began.elapsed() < self.each
    }

    fn record(&mut self, began: Instant) {
        self.latency.saturating_record(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// `of_each` is how much each recorded one counts.
    #[allow(clippy::cast_precision_loss)]
    fn limit(&self, of_each: u32) -> Limit {
        let count = self.latency.len() as f64 * f64::from(of_each);
        Limit {
            per_second: rounded(count / self.began.elapsed().as_secs_f64()),
            p50_us: self.latency.value_at_percentile(50.0) as f64,
            p99_us: self.latency.value_at_percentile(99.0) as f64,
        }
    }
}
