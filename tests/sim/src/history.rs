//! What clients asked and were told, and whether that keeps the promise of a key: linearizable, applied once, never lost.
//!
//! A write's version is its place in its shard's log, so the order of a key's versions is the order to test: a
//! request that ended before another began must not come after it. Values are unique, so a value names its write.
//!
//! Invariants: `at` counts invocations and completions in the order they happened, so comparing two is exact.
//!
//! Not here: what a replica may do (oracle).

use std::collections::BTreeMap;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Read, whatever is there.
    Read,
    /// Write this.
    Write(String),
    /// Write this if the key is at this version.
    Swap(u64, String),
}

/// What was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The key's version and value, none if it is absent.
    Found(Option<(u64, String)>),
    /// Written at this version.
    Done(u64),
    /// Surely not done.
    NotDone,
    /// Done or not, now or later.
    Unknown,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) key: String,
    pub(crate) ask: Ask,
    pub(crate) began: u64,
    /// Set with the answer.
    pub(crate) ended: u64,
    pub(crate) answer: Option<Answer>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) calls: Vec<Call>,
    at: u64,
}

impl History {
    /// Notes a request; its number is for [`History::end`].
    pub(crate) fn begin(&mut self, key: &str, ask: Ask) -> usize {
        self.at += 1;
        self.calls.push(Call { key: key.to_owned(), ask, began: self.at, ended: u64::MAX, answer: None });
        self.calls.len() - 1
    }

    /// Notes its answer.
    pub(crate) fn end(&mut self, call: usize, answer: Answer) {
        self.at += 1;
        if let Some(call) = self.calls.get_mut(call) {
            (call.ended, call.answer) = (self.at, Some(answer));
        }
    }

    /// How many were answered so.
    pub(crate) fn count(&self, which: impl Fn(&Answer) -> bool) -> usize {
        self.calls.iter().filter_map(|call| call.answer.as_ref()).filter(|answer| which(answer)).count()
    }

    /// Every broken promise.
    pub(crate) fn check(&self) -> Vec<String> {
        let mut keys: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
        for call in &self.calls {
            keys.entry(&call.key).or_default().push(call);
        }
        keys.into_iter().flat_map(|(key, calls)| Key::new(key, &calls).check()).collect()
    }
}

/// A request that saw or made a version.
struct Seen<'a> {
    call: &'a Call,
    version: u64,
    wrote: bool,
}

struct Key<'a> {
    key: &'a str,
    calls: &'a [&'a Call],
    broken: Vec<String>,
}

impl<'a> Key<'a> {
    fn new(key: &'a str, calls: &'a [&'a Call]) -> Self {
        Self { key, calls, broken: Vec::new() }
    }

    fn check(mut self) -> Vec<String> {
        let values = self.values();
        self.once(&values);
        self.order();
        self.swaps(&values);
        self.broken
    }

    fn broke(&mut self, what: &str, detail: &impl std::fmt::Debug) {
        self.broken.push(format!("{what}: key {}: {detail:?}", self.key));
    }

    /// The value of each version anyone saw or made.
    fn values(&mut self) -> BTreeMap<u64, &'a str> {
        let mut values: BTreeMap<u64, &str> = BTreeMap::new();
        for call in self.calls {
            let (version, value) = match (&call.ask, &call.answer) {
                (Ask::Write(value) | Ask::Swap(_, value), Some(Answer::Done(version))) => (*version, value),
                (_, Some(Answer::Found(Some((version, value))))) => (*version, value),
                _ => continue,
            };
            if *values.entry(version).or_insert(value) != value {
                self.broke("two values of one version", call);
            }
        }
        values
    }

    /// A value was asked for before it is seen, was not refused, and has one version.
    fn once(&mut self, values: &BTreeMap<u64, &str>) {
        let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
        for (version, value) in values {
            if let Some(other) = versions.insert(value, *version) {
                self.broke("applied twice", &(value, other, version));
            }
        }
        for (value, version) in versions {
            let of = |call: &&&Call| matches!(&call.ask, Ask::Write(wrote) | Ask::Swap(_, wrote) if wrote == value);
            match self.calls.iter().find(of) {
                None => self.broke("never written", &(value, version)),
                Some(call) if matches!(call.answer, Some(Answer::NotDone | Answer::Found(_))) => {
                    self.broke("applied although refused", call);
                }
                Some(_) => {}
            }
        }
    }

    /// Versions never go back in time.
    fn order(&mut self) {
        let mut seen: Vec<Seen<'_>> = Vec::new();
        for call in self.calls {
            match &call.answer {
                Some(Answer::Done(version)) => seen.push(Seen { call, version: *version, wrote: true }),
                Some(Answer::Found(found)) => {
                    let version = found.as_ref().map_or(0, |found| found.0);
                    seen.push(Seen { call, version, wrote: false });
                }
                Some(Answer::NotDone | Answer::Unknown) | None => {}
            }
        }
        let mut ends: Vec<&Seen<'_>> = seen.iter().collect();
        ends.sort_by_key(|seen| seen.call.ended);
        let mut ends = ends.into_iter().peekable();
        let mut latest: Option<&Seen<'_>> = None;
        let mut broken = Vec::new();
        // In the order they began: what had ended by then must not be newer.
        for next in &seen {
            while let Some(ended) = ends.next_if(|ended| ended.call.ended < next.call.began) {
                if latest.is_none_or(|latest| latest.version <= ended.version) {
                    latest = Some(ended);
                }
            }
            let Some(before) = latest else { continue };
            if next.version < before.version || (next.wrote && next.version == before.version) {
                broken.push(format!("stale: key {}: {:?} after {:?}", self.key, next.call, before.call));
            }
        }
        self.broken.extend(broken);
    }

    /// Between what a swap expected and what it made there is nothing.
    fn swaps(&mut self, values: &BTreeMap<u64, &str>) {
        for call in self.calls {
            if let (Ask::Swap(expected, _), Some(Answer::Done(version))) = (&call.ask, &call.answer) {
                let between = values.range(expected.saturating_add(1)..*version).next();
                if between.is_some() || expected >= version {
                    self.broke("swapped what was not there", &(call, between));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(calls: &[(Ask, Answer)]) -> Vec<String> {
        let mut history = History::default();
        for (ask, answer) in calls {
            let call = history.begin("k", ask.clone());
            history.end(call, answer.clone());
        }
        history.check()
    }

    fn write(value: &str) -> Ask {
        Ask::Write(value.to_owned())
    }

    fn found(version: u64, value: &str) -> Answer {
        Answer::Found(Some((version, value.to_owned())))
    }

    #[test]
    fn a_kept_promise_passes() {
        let calls = [
            (Ask::Read, Answer::Found(None)),
            (write("a"), Answer::Done(5)),
            (Ask::Read, found(5, "a")),
            (write("b"), Answer::Unknown),
            (Ask::Swap(5, "c".to_owned()), Answer::NotDone),
            (Ask::Read, found(7, "b")),
            (Ask::Swap(7, "d".to_owned()), Answer::Done(9)),
        ];
        assert_eq!(history(&calls), Vec::<String>::new());
    }

    #[test]
    fn each_planted_violation_is_found() {
        let first = |calls: &[(Ask, Answer)]| history(calls).into_iter().next().unwrap_or_default();
        let a = || (write("a"), Answer::Done(5));
        assert!(first(&[a(), (Ask::Read, Answer::Found(None))]).starts_with("stale"));
        assert!(first(&[a(), (write("b"), Answer::Done(7)), (Ask::Read, found(5, "a"))]).starts_with("stale"));
        assert!(first(&[a(), (Ask::Read, found(6, "a"))]).starts_with("applied twice"));
        assert!(first(&[(write("a"), Answer::NotDone), (Ask::Read, found(6, "a"))]).starts_with("applied although"));
        assert!(first(&[(Ask::Read, found(6, "a"))]).starts_with("never written"));
        assert!(first(&[a(), (Ask::Read, found(5, "b"))]).starts_with("two values"));
        let swapped = [a(), (write("b"), Answer::Done(6)), (Ask::Swap(5, "c".to_owned()), Answer::Done(7))];
        assert!(first(&swapped).starts_with("swapped"));
    }

    #[test]
    fn what_overlaps_may_come_in_either_order() {
        let mut history = History::default();
        let (one, two) = (history.begin("k", write("a")), history.begin("k", Ask::Read));
        history.end(one, Answer::Done(5));
        history.end(two, Answer::Found(None));
        assert_eq!(history.check(), Vec::<String>::new());
    }
}
