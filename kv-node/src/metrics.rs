//! What the edge of a node counts and times, beside what kv-raft does.
//!
//! Invariants: no key and no client is a label; handles are taken once, so that counting takes no lock on the way of a
//! request that succeeds.
//!
//! Not here: gauges made when the node is scraped (http, scrape).

use std::sync::Arc;
use std::time::Duration;

use kv_proto::pb::v1::pipeline_call::Request;
use kv_raft::metrics::RaftMetrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// 50 us to 13 s, as kv-raft's stages.
const BUCKETS: u16 = 19;

type CallLabel = [(&'static str, &'static str); 1];
type FailureLabels = [(&'static str, &'static str); 2];

/// The calls of the data interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Reads one key.
    Get,
    /// Writes one.
    Put,
    /// Deletes one.
    Delete,
    /// Writes one if it is as expected.
    CompareAndSet,
    /// Reads several.
    BatchGet,
    /// Writes several.
    BatchWrite,
    /// Reads a page.
    Scan,
}

impl CallKind {
    /// Of a request.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        match request {
            Request::Get(_) => Self::Get,
            Request::Put(_) => Self::Put,
            Request::Delete(_) => Self::Delete,
            Request::CompareAndSet(_) => Self::CompareAndSet,
            Request::BatchGet(_) => Self::BatchGet,
            Request::BatchWrite(_) => Self::BatchWrite,
            Request::Scan(_) => Self::Scan,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::CompareAndSet => "compare_and_set",
            Self::BatchGet => "batch_get",
            Self::BatchWrite => "batch_write",
            Self::Scan => "scan",
        }
    }
}

/// The handles of one kind of call.
#[derive(Debug)]
struct CallHandles {
    served: Counter,
    seconds: Histogram,
}

/// The handles of the edge.
#[derive(Debug)]
pub struct EdgeMetrics {
    get: CallHandles,
    put: CallHandles,
    delete: CallHandles,
    compare_and_set: CallHandles,
    batch_get: CallHandles,
    batch_write: CallHandles,
    scan: CallHandles,
    failures: Family<FailureLabels, Counter>,
    /// Sent on to another node until its answer.
    pub forward: Histogram,
    /// Open gRPC connections.
    pub connections: Gauge,
    /// Connections closed because there were too many, or because they never began.
    pub connections_refused: Counter,
    /// Open pipelined streams.
    pub streams: Gauge,
    /// Messages of replies sent on pipelined streams; calls per message tell how well they gather.
    pub stream_messages: Counter,
    /// Replies in them.
    pub stream_replies: Counter,
}

impl EdgeMetrics {
    /// Registers all families.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let histogram = || Histogram::new(exponential_buckets(50e-6, 2.0, BUCKETS));
        let served = Family::<CallLabel, Counter>::default();
        let seconds = Family::<CallLabel, Histogram>::new_with_constructor(histogram);
        let stages = Family::<CallLabel, Histogram>::new_with_constructor(histogram);
        let failures = Family::<FailureLabels, Counter>::default();
        registry.register("kv_requests_served", "Calls answered with a response", served.clone());
        registry.register("kv_requests_failed", "Calls answered with an error, by its reason", failures.clone());
        let help = "From the arrival of a call to its answer";
        registry.register_with_unit("kv_request", help, Unit::Seconds, seconds.clone());
        let help = "Time spent in each stage before consensus";
        registry.register_with_unit("kv_edge_stage", help, Unit::Seconds, stages.clone());
        let handles = |kind: CallKind| {
            let label = [("call", kind.label())];
            CallHandles { served: served.get_or_create(&label).clone(), seconds: seconds.get_or_create(&label).clone() }
        };
        let metrics = Self {
            get: handles(CallKind::Get),
            put: handles(CallKind::Put),
            delete: handles(CallKind::Delete),
            compare_and_set: handles(CallKind::CompareAndSet),
            batch_get: handles(CallKind::BatchGet),
            batch_write: handles(CallKind::BatchWrite),
            scan: handles(CallKind::Scan),
            failures,
            forward: stages.get_or_create(&[("stage", "forward")]).clone(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            streams: Gauge::default(),
            stream_messages: Counter::default(),
            stream_replies: Counter::default(),
        };
        registry.register("kv_connections", "Open gRPC connections", metrics.connections.clone());
        let help = "Connections closed because there were too many, or because they never began";
        registry.register("kv_connections_refused", help, metrics.connections_refused.clone());
        registry.register("kv_streams", "Open pipelined streams", metrics.streams.clone());
        let help = "Messages of replies sent on pipelined streams";
        registry.register("kv_stream_messages", help, metrics.stream_messages.clone());
        registry.register("kv_stream_replies", "Replies in those messages", metrics.stream_replies.clone());
        metrics
    }

    /// Counts an answered call.
    pub fn answered(&self, kind: CallKind, within: Duration, failure: Option<&'static str>) {
        let handles = self.call(kind);
        handles.seconds.observe(within.as_secs_f64());
        match failure {
            None => handles.served.inc(),
            Some(reason) => self.failures.get_or_create(&[("call", kind.label()), ("reason", reason)]).inc(),
        };
    }

    fn call(&self, kind: CallKind) -> &CallHandles {
        match kind {
            CallKind::Get => &self.get,
            CallKind::Put => &self.put,
            CallKind::Delete => &self.delete,
            CallKind::CompareAndSet => &self.compare_and_set,
            CallKind::BatchGet => &self.batch_get,
            CallKind::BatchWrite => &self.batch_write,
            CallKind::Scan => &self.scan,
        }
    }
}

/// Everything that is counted in this process.
pub struct Telemetry {
    /// All families but those made when scraped.
    pub registry: Registry,
    /// The handles kv-raft counts with.
    pub raft: Arc<RaftMetrics>,
    /// The handles of the edge.
    pub edge: Arc<EdgeMetrics>,
}

impl Telemetry {
    /// Registers everything once.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let raft = Arc::new(RaftMetrics::new(&mut registry));
        let edge = Arc::new(EdgeMetrics::new(&mut registry));
        Self { registry, raft, edge }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}
