//! Records what clients ask and are told.
//!
//! Invariants: a time is taken before the request leaves and after its answer came, by one clock for all processes.
//!
//! Not here: asking (caller), the format and the judgement (kv-checkers).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use kv_checkers::history::{Call, Fault, Header, History, Operation, Outcome, Replica};

/// The history of a run while it grows.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    acknowledged: AtomicUsize,
    processes: AtomicU64,
    history: Mutex<History>,
}

impl Recorder {
    /// Of a run with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let header = Header { source: "cluster".to_owned(), seed, ..Header::default() };
        Self {
            began: Instant::now(),
            acknowledged: AtomicUsize::new(0),
            processes: AtomicU64::new(1),
            history: Mutex::new(History { header, ..History::default() }),
        }
    }

    /// A number no other process of this run has.
    pub fn process(&self) -> u64 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    /// Nanoseconds since the begin of the run.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Enters an operation that began at `invoke` and ends now.
    pub fn enter(&self, process: u64, shard: Option<u64>, invoke: u64, call: Call, outcome: Outcome) {
        if outcome.written().is_some() {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        let operation = Operation { process, shard, invoke, complete: Some(self.now()), call, outcome };
        self.with(|history| history.operations.push(operation));
    }

    /// Enters something that was done to the cluster.
    pub fn fault(&self, what: impl Into<String>) {
        let fault = Fault { at: self.now(), what: what.into() };
        self.with(|history| history.faults.push(fault));
    }

    /// Enters the checksum of a replica.
    pub fn replica(&self, replica: Replica) {
        self.with(|history| history.replicas.push(replica));
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Looks at the history so far.
    pub fn with<T>(&self, look: impl FnOnce(&mut History) -> T) -> T {
        look(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All of it.
    #[must_use]
    pub fn take(&self) -> History {
        self.with(std::mem::take)
    }
}
