//! What a load was told, and whether what is found afterwards agrees. Knows the promise, not the code.
//!
//! The promise: an acknowledged write is there; a write that failed as NotApplied is not, and never will be; one that
//! failed as Unknown may be. No write is applied twice. A linearizable read sees every write acknowledged before.
//!
//! Not here: sending (load).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kv_proto::errors::Outcome;

/// One request of the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A key written once, by one request, with a value no other has.
    Put {
        /// Unique in the history.
        key: String,
        /// As sent.
        value: String,
    },
    /// Adds one to a counter that only one writer uses, by a compare-and-set of what it read.
    Increment {
        /// Its key.
        counter: String,
    },
    /// Reads a counter, by its only writer.
    Read {
        /// Its key.
        counter: String,
        /// What the answer was; meaningless if it failed.
        found: u64,
    },
}

/// A request that was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What became of it.
    pub outcome: Outcome,
    /// Why, for people.
    pub reason: String,
}

/// A request and how it ended. Times count from the begin of the load.
#[derive(Clone, Debug)]
pub struct Record {
    /// What was asked.
    pub request: Request,
    /// When it was sent.
    pub began: Duration,
    /// When its answer came.
    pub ended: Duration,
    /// Acknowledged, or why not.
    pub result: Result<(), Failure>,
}

/// All requests of a load. Those of one writer are in the order it sent them.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In any order of writers.
    pub records: Vec<Record>,
}

/// Figures of a history that kept its promise.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Writes acknowledged.
    pub acknowledged: usize,
    /// Writes and reads that failed and were not applied.
    pub not_applied: usize,
    /// Writes that may be applied.
    pub unknown: usize,
    /// Longest time without any acknowledged write, over all writers.
    pub longest_gap: Duration,
    /// Longest time from the sending of a request to its answer, good or bad.
    pub slowest: Duration,
    /// A few of the reasons of failures.
    pub reasons: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "load: {} acknowledged, {} not applied, {} unknown; longest gap {:?}, slowest request {:?}",
            self.acknowledged, self.not_applied, self.unknown, self.longest_gap, self.slowest
        )?;
        self.reasons.iter().try_for_each(|reason| write!(f, "\n  failed: {reason}"))
    }
}

/// Acknowledged and unknown increments of a counter.
#[derive(Clone, Copy, Debug, Default)]
struct Bracket {
    acknowledged: u64,
    unknown: u64,
}

impl History {
    /// Every key the load wrote or may have written.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let key = |record: &Record| match &record.request {
            Request::Put { key, .. } => key.clone(),
            Request::Increment { counter } | Request::Read { counter, .. } => counter.clone(),
        };
        let mut keys: Vec<String> = self.records.iter().map(key).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.records.iter().filter(|record| record.is_write() && record.result.is_ok()).count()
    }

    /// Compares with what is found afterwards: key to value, absent keys left out. Err lists every broken promise.
    pub fn check(&self, found: &BTreeMap<String, String>) -> Result<Report, Vec<String>> {
        let mut broken = self.check_puts(found);
        broken.extend(self.check_counters(found));
        if broken.is_empty() { Ok(self.report()) } else { Err(broken) }
    }

    fn check_puts(&self, found: &BTreeMap<String, String>) -> Vec<String> {
        let mut broken = Vec::new();
        for record in &self.records {
            let Request::Put { key, value } = &record.request else { continue };
            let outcome = record.result.as_ref().map_err(|failure| failure.outcome);
            match (outcome, found.get(key)) {
                (Ok(()), None) => broken.push(format!("lost: {key} was acknowledged and is not there")),
                (Err(Outcome::NotApplied), Some(_)) => {
                    broken.push(format!("applied: {key} failed as not applied and is there"));
                }
                (_, Some(other)) if other != value => {
                    broken.push(format!("wrong: {key} holds {other}, written was {value}"));
                }
                (Ok(()) | Err(Outcome::Unknown), Some(_)) | (Err(_), None) => {}
            }
        }
        broken
    }

    fn check_counters(&self, found: &BTreeMap<String, String>) -> Vec<String> {
        let mut broken = Vec::new();
        let mut counters: BTreeMap<&str, Bracket> = BTreeMap::new();
        for record in &self.records {
            match (&record.request, &record.result) {
                (Request::Put { .. }, _) => {}
                (Request::Increment { counter }, result) => {
                    let bracket = counters.entry(counter).or_default();
                    match result.as_ref().map_err(|failure| failure.outcome) {
                        Ok(()) => bracket.acknowledged += 1,
                        Err(Outcome::Unknown) => bracket.unknown += 1,
                        Err(Outcome::NotApplied) => {}
                    }
                }
                (Request::Read { counter, found }, Ok(())) => {
                    let bracket = counters.entry(counter).or_default();
                    broken.extend(bracket.judge(*found).map(|fault| format!("read: {counter} {fault}")));
                }
                (Request::Read { .. }, Err(_)) => {}
            }
        }
        for (counter, bracket) in counters {
            match found.get(counter).map_or(Ok(0), |value| value.parse::<u64>()) {
                Ok(value) => broken.extend(bracket.judge(value).map(|fault| format!("counter: {counter} {fault}"))),
                Err(_) => broken.push(format!("wrong: {counter} holds no number")),
            }
        }
        broken
    }

    fn report(&self) -> Report {
        let writes = || self.records.iter().filter(|record| record.is_write());
        let mut ends: Vec<Duration> = writes().filter(|r| r.result.is_ok()).map(|r| r.ended).collect();
        ends.sort();
        let gaps = ends.iter().zip(ends.iter().skip(1)).map(|(one, next)| *next - *one);
        let failures = || self.records.iter().filter_map(|record| record.result.as_ref().err());
        let failed = |outcome| failures().filter(|failure| failure.outcome == outcome).count();
        let mut reasons: Vec<String> = failures().map(|failure| failure.reason.clone()).collect();
        reasons.sort();
        reasons.dedup();
        reasons.truncate(5);
        Report {
            acknowledged: ends.len(),
            not_applied: failed(Outcome::NotApplied),
            unknown: failed(Outcome::Unknown),
            longest_gap: gaps.max().unwrap_or_default(),
            slowest: self.records.iter().map(|record| record.ended - record.began).max().unwrap_or_default(),
            reasons,
        }
    }
}

impl Record {
    fn is_write(&self) -> bool {
        !matches!(self.request, Request::Read { .. })
    }
}

impl Bracket {
    /// What is wrong with this value of the counter, if anything.
    fn judge(self, value: u64) -> Option<String> {
        let Self { acknowledged, unknown } = self;
        let fits = (acknowledged..=acknowledged + unknown).contains(&value);
        (!fits).then(|| format!("is {value}; acknowledged were {acknowledged}, unknown {unknown}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, result: Result<(), Outcome>) -> Record {
        record(Request::Put { key: key.to_owned(), value: format!("value of {key}") }, result)
    }

    fn increment(result: Result<(), Outcome>) -> Record {
        record(Request::Increment { counter: "c".to_owned() }, result)
    }

    fn read(found: u64) -> Record {
        record(Request::Read { counter: "c".to_owned(), found }, Ok(()))
    }

    fn record(request: Request, result: Result<(), Outcome>) -> Record {
        let result = result.map_err(|outcome| Failure { outcome, reason: "planted".to_owned() });
        Record { request, began: Duration::ZERO, ended: Duration::from_millis(1), result }
    }

    fn check(records: Vec<Record>, found: &[(&str, &str)]) -> Result<Report, Vec<String>> {
        let found = found.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        History { records }.check(&found)
    }

    fn broken(records: Vec<Record>, found: &[(&str, &str)]) -> String {
        check(records, found).expect_err("a planted violation is found").join("; ")
    }

    #[test]
    fn a_kept_promise_passes_with_its_figures() {
        let records = vec![
            put("a", Ok(())),
            put("b", Err(Outcome::Unknown)),
            put("c", Err(Outcome::NotApplied)),
            put("d", Err(Outcome::Unknown)),
        ];
        let report = check(records, &[("a", "value of a"), ("b", "value of b")]).unwrap();
        assert_eq!((report.acknowledged, report.not_applied, report.unknown), (1, 1, 2));
    }

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        assert!(broken(vec![put("a", Ok(())), put("b", Ok(()))], &[("b", "value of b")]).starts_with("lost: a"));
    }

    #[test]
    fn another_value_than_written_is_found() {
        assert!(broken(vec![put("a", Ok(()))], &[("a", "something")]).starts_with("wrong: a"));
        assert!(broken(vec![put("a", Err(Outcome::Unknown))], &[("a", "something")]).starts_with("wrong: a"));
    }

    #[test]
    fn a_write_applied_although_it_said_not_applied_is_found() {
        let found = [("a", "value of a")];
        assert!(broken(vec![put("a", Err(Outcome::NotApplied))], &found).starts_with("applied: a"));
    }

    #[test]
    fn a_counter_off_by_one_either_way_is_found() {
        let two = || vec![increment(Ok(())), increment(Ok(()))];
        assert!(check(two(), &[("c", "2")]).is_ok());
        assert!(broken(two(), &[("c", "1")]).starts_with("counter: c is 1"));
        assert!(broken(two(), &[("c", "3")]).starts_with("counter: c is 3"));
        assert!(broken(two(), &[]).starts_with("counter: c is 0"));
        assert!(broken(two(), &[("c", "two")]).starts_with("wrong: c"));
    }

    #[test]
    fn an_unknown_increment_is_bracketed_and_not_more() {
        let records = || vec![increment(Ok(())), increment(Err(Outcome::Unknown)), increment(Err(Outcome::NotApplied))];
        assert!(check(records(), &[("c", "1")]).is_ok());
        assert!(check(records(), &[("c", "2")]).is_ok());
        assert!(broken(records(), &[("c", "0")]).starts_with("counter: c is 0"));
        assert!(broken(records(), &[("c", "3")]).starts_with("counter: c is 3"));
    }

    #[test]
    fn a_stale_read_is_found_even_if_the_end_is_right() {
        let records = vec![increment(Ok(())), read(0), increment(Ok(())), read(2)];
        assert!(broken(records, &[("c", "2")]).starts_with("read: c is 0"));
    }

    #[test]
    fn the_longest_gap_counts_acknowledged_writes_of_all_writers() {
        let at = |millis: u64, result| {
            let mut record = put(&format!("k{millis}"), result);
            record.began = Duration::from_millis(millis - 1);
            record.ended = Duration::from_millis(millis);
            record
        };
        let records = vec![at(10, Ok(())), at(400, Err(Outcome::NotApplied)), at(900, Ok(())), at(20, Ok(()))];
        let report = check(records, &[("k10", "value of k10"), ("k20", "value of k20"), ("k900", "value of k900")]);
        assert_eq!(report.unwrap().longest_gap, Duration::from_millis(880));
    }
}
