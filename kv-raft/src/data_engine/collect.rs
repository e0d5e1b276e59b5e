//! Garbage collection of old versions: compaction drops what no permitted read can see.
//!
//! Invariants: a version goes only if it ended at or before a safepoint that is durable, so that a replica that falls
//! back to its last flush still has everything its own, older safepoint permits; while a snapshot is being sent, the
//! safepoint of its extent stands still at the snapshot's.
//!
//! Not here: how the safepoint moves (state machine, apply).

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use kv_proto::ids::ExtentId;
use kv_proto::timestamp::Timestamp;
use parking_lot::Mutex;
use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

use super::keys;

type ByExtent = BTreeMap<ExtentId, Timestamp>;

/// Up to where each extent may be collected.
#[derive(Debug, Default)]
pub(crate) struct Safepoints {
    durable: ArcSwap<ByExtent>,
    /// (extent, safepoint) -> how many snapshots being sent hold it.
    held: Mutex<BTreeMap<(ExtentId, Timestamp), usize>>,
}

impl Safepoints {
    /// Sets the safepoints that are durable now, of all extents.
    pub(crate) fn publish(&self, durable: ByExtent) {
        self.durable.store(Arc::new(durable));
    }

    /// Keeps what is readable at `safepoint` until the guard is dropped.
    pub(crate) fn hold(self: &Arc<Self>, extent: ExtentId, safepoint: Timestamp) -> Held {
        *self.held.lock().entry((extent, safepoint)).or_default() += 1;
        Held { safepoints: Arc::clone(self), key: (extent, safepoint) }
    }

    fn permitted(&self) -> ByExtent {
        let mut permitted = ByExtent::clone(&self.durable.load());
        for (extent, safepoint) in self.held.lock().keys() {
            permitted.entry(*extent).and_modify(|permitted| *permitted = (*permitted).min(*safepoint));
        }
        permitted
    }
}

/// See [`Safepoints::hold`].
#[derive(Debug)]
pub(crate) struct Held {
    safepoints: Arc<Safepoints>,
    key: (ExtentId, Timestamp),
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.safepoints.held.lock();
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

/// Gives every compaction the safepoints of the moment it begins.
pub(crate) struct CollectorFactory(Arc<Safepoints>);

impl CollectorFactory {
    pub(crate) fn new(safepoints: Arc<Safepoints>) -> Self {
        Self(safepoints)
    }
}

impl CompactionFilterFactory for CollectorFactory {
    type Filter = Collector;

    fn create(&mut self, _context: CompactionFilterContext) -> Collector {
        Collector(self.0.permitted())
    }

    fn name(&self) -> &CStr {
        c"kv.collector"
    }
}

/// Drops what ended at or before its extent's safepoint.
pub(crate) struct Collector(ByExtent);

impl CompactionFilter for Collector {
    fn filter(&mut self, _level: u32, key: &[u8], _value: &[u8]) -> Decision {
        let safepoint = keys::extent_of(key).and_then(|extent| self.0.get(&extent));
        match (safepoint, keys::trailing_timestamp(key)) {
            (Some(safepoint), Some(end)) if end <= *safepoint => Decision::Remove,
            (Some(_) | None, Some(_) | None) => Decision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        c"kv.collector"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_being_sent_holds_the_safepoint_of_its_extent_until_it_is_done() {
        let safepoints = Arc::new(Safepoints::default());
        let (one, two) = (ExtentId(1), ExtentId(2));
        let first = safepoints.hold(one, Timestamp(5));
        let again = safepoints.hold(one, Timestamp(5));
        safepoints.publish([(one, Timestamp(9)), (two, Timestamp(9))].into());
        let held: ByExtent = [(one, Timestamp(5)), (two, Timestamp(9))].into();
        assert_eq!(safepoints.permitted(), held);
        drop(first);
        assert_eq!(safepoints.permitted(), held);
        drop(again);
        assert_eq!(safepoints.permitted(), [(one, Timestamp(9)), (two, Timestamp(9))].into());
    }

    #[test]
    fn only_what_ended_by_the_safepoint_is_dropped_and_nothing_of_unknown_extents() {
        let mut collector = Collector([(ExtentId(1), Timestamp(5))].into());
        let mut drops = |extent, end| {
            let key = keys::history(ExtentId(extent), b"k", Timestamp(end));
            matches!(collector.filter(0, &key, b""), Decision::Remove)
        };
        assert!(drops(1, 4));
        assert!(drops(1, 5));
        assert!(!drops(1, 6));
        assert!(!drops(2, 4));
    }
}
