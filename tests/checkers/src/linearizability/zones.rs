//! Linearizability of a register with unique values in O(n log n).
//!
//! After Gibbons and Korach ("Testing Shared Memories", 1997), with compare-and-sets: every write makes a cluster of
//! itself and the reads that saw it. A successful compare-and-set is the last of the cluster it saw and the first of
//! the one it made, so clusters joined by compare-and-sets stand next to each other: they form a chain. Chain A must
//! come before chain B if an operation of A was over before one of B began. The answers can be explained if and only if
//! these demands have no circle, and every circle contains one of two chains (the one whose first end is earliest and
//! the one before it in the circle), so looking at pairs is enough.
//!
//! Invariants: a write of unknown outcome that nobody saw is taken for not applied, which demands least; one that was
//! seen was applied.
//!
//! Not here: registers whose values repeat or that are deleted (wgl).

use std::collections::HashMap;

use super::{Action, Step};
use crate::history::Fate;

/// Why a register was not found linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Values are not unique, or it was deleted: this algorithm does not apply.
    Unfit,
    /// It is not linearizable.
    Violated(String),
}

/// A value and the operations on it.
#[derive(Clone, Debug)]
struct Cluster<'h> {
    value: Option<&'h str>,
    /// The step that wrote it; None for the initial value.
    writer: Option<Step<'h>>,
    /// Whether it was surely written.
    real: bool,
    /// When the first of its operations was over.
    first_end: i64,
    /// When the last of its operations began.
    last_begin: i64,
    /// The cluster a compare-and-set made of it.
    next: Option<usize>,
    /// Whether a compare-and-set made it.
    is_next: bool,
}

/// The time from the first end to the last begin of a chain of clusters, and its first value.
#[derive(Clone, Copy, Debug)]
struct Zone<'h> {
    first_end: i64,
    last_begin: i64,
    value: Option<&'h str>,
}

/// Whether some order explains all answers.
///
/// # Errors
/// If none does, or if the algorithm does not apply.
pub fn check(steps: &[Step<'_>]) -> Result<(), Fault> {
    let mut clusters = Clusters::of(steps)?;
    clusters.mark_real(steps)?;
    clusters.join(steps)?;
    clusters.see(steps)?;
    pairwise(clusters.chains()?)
}

struct Clusters<'h> {
    list: Vec<Cluster<'h>>,
    by_value: HashMap<Option<&'h str>, usize>,
}

impl<'h> Clusters<'h> {
    /// One for the absent key and one for each value that anyone tried to write.
    fn of(steps: &[Step<'h>]) -> Result<Self, Fault> {
        let mut clusters = Self { list: vec![], by_value: HashMap::new() };
        clusters.add(None, None);
        for step in steps {
            let value = match step.action {
                Action::Read(_) => continue,
                Action::Never => return Err(violated("refused although it was as expected".to_owned())),
                Action::Write(None) => return Err(Fault::Unfit),
                Action::Write(Some(value)) | Action::Swap(_, value) => Some(value),
            };
            if clusters.by_value.contains_key(&value) {
                return Err(Fault::Unfit);
            }
            clusters.add(value, Some(step.clone()));
        }
        Ok(clusters)
    }

    fn add(&mut self, value: Option<&'h str>, writer: Option<Step<'h>>) {
        let initial = writer.is_none();
        let real = initial || writer.as_ref().is_some_and(|step| step.fate == Fate::Applied);
        // The initial value was written before all times.
        let (first_end, last_begin) = if initial { (i64::MIN, i64::MIN) } else { (i64::MAX, i64::MIN) };
        self.by_value.insert(value, self.list.len());
        self.list.push(Cluster { value, writer, real, first_end, last_begin, next: None, is_next: false });
    }

    fn place(&self, value: Option<&'h str>) -> Result<usize, Fault> {
        let place = self.by_value.get(&value).copied();
        place.ok_or_else(|| violated(format!("{} was seen and never written", name(value))))
    }

    fn at(&mut self, place: usize) -> &mut Cluster<'h> {
        self.list.get_mut(place).expect("places are given out by `add`")
    }

    /// What was seen was written, and so was what the writer of it saw.
    fn mark_real(&mut self, steps: &[Step<'h>]) -> Result<(), Fault> {
        let mut seen: Vec<Option<&'h str>> = vec![];
        for step in steps.iter().filter(|step| step.fate == Fate::Applied) {
            match step.action {
                Action::Read(value) | Action::Swap(value, _) => seen.push(value),
                Action::Write(_) | Action::Never => {}
            }
        }
        while let Some(value) = seen.pop() {
            let place = self.place(value)?;
            let cluster = self.at(place);
            let Some(writer) = cluster.writer.clone() else { continue };
            if writer.fate == Fate::NotApplied {
                return Err(violated(format!("{} was seen and its write failed as not applied", name(value))));
            }
            if cluster.real {
                continue;
            }
            cluster.real = true;
            match writer.action {
                Action::Swap(from, _) => seen.push(from),
                Action::Read(_) | Action::Write(_) | Action::Never => {}
            }
        }
        Ok(())
    }

    /// Enters the writes that took place, and joins what compare-and-sets join.
    fn join(&mut self, steps: &[Step<'h>]) -> Result<(), Fault> {
        for step in steps {
            let (from, to) = match step.action {
                Action::Read(_) | Action::Never | Action::Write(None) => continue,
                Action::Write(Some(to)) => (None, to),
                Action::Swap(from, to) => (Some(from), to),
            };
            let place = self.place(Some(to))?;
            if !self.at(place).real {
                continue;
            }
            self.enter(place, step);
            let Some(from) = from else { continue };
            let before = self.place(from)?;
            self.enter(before, step);
            if self.at(before).next.replace(place).is_some() {
                return Err(violated(format!("two compare-and-sets took {} away", name(from))));
            }
            self.at(place).is_next = true;
        }
        Ok(())
    }

    fn see(&mut self, steps: &[Step<'h>]) -> Result<(), Fault> {
        for step in steps {
            let Action::Read(value) = step.action else { continue };
            if step.fate != Fate::Applied {
                continue;
            }
            let place = self.place(value)?;
            let written = self.at(place).writer.as_ref().map_or(i64::MIN, |writer| writer.invoke);
            if step.complete < written {
                return Err(violated(format!("{} was seen before it was written", name(value))));
            }
            self.enter(place, step);
        }
        Ok(())
    }

    fn enter(&mut self, place: usize, step: &Step<'h>) {
        let cluster = self.at(place);
        cluster.first_end = cluster.first_end.min(step.complete);
        cluster.last_begin = cluster.last_begin.max(step.invoke);
    }

    /// One zone a chain; the order within a chain is given and is checked here.
    fn chains(self) -> Result<Vec<Zone<'h>>, Fault> {
        let mut zones = vec![];
        let mut joined = 0;
        for first in self.list.iter().filter(|cluster| cluster.real && !cluster.is_next) {
            let mut zone = Zone { first_end: i64::MAX, last_begin: i64::MIN, value: first.value };
            let mut link = Some(first);
            while let Some(cluster) = link {
                if cluster.first_end < zone.last_begin {
                    return Err(violated(format!(
                        "{} was there already when an operation began that saw what it replaced",
                        name(cluster.value)
                    )));
                }
                zone.first_end = zone.first_end.min(cluster.first_end);
                zone.last_begin = zone.last_begin.max(cluster.last_begin);
                joined += 1;
                link = cluster.next.and_then(|next| self.list.get(next));
            }
            zones.push(zone);
        }
        if joined < self.list.iter().filter(|cluster| cluster.real).count() {
            return Err(violated("compare-and-sets follow each other in a circle".to_owned()));
        }
        Ok(zones)
    }
}

/// Two chains exclude each other if each has an operation that was over before one of the other began.
fn pairwise(zones: Vec<Zone<'_>>) -> Result<(), Fault> {
    let (mut forward, backward): (Vec<_>, Vec<_>) =
        zones.into_iter().partition(|zone| zone.first_end < zone.last_begin);
    forward.sort_by_key(|zone| (zone.first_end, zone.last_begin));
    for (one, next) in forward.iter().zip(forward.iter().skip(1)) {
        if next.first_end < one.last_begin {
            return Err(excluded(one, next));
        }
    }
    // Forward zones do not overlap now, so only the last one that ends its first operation before can hold it.
    for zone in backward {
        let after = forward.partition_point(|other| other.first_end < zone.last_begin);
        let holder = after.checked_sub(1).and_then(|place| forward.get(place));
        if let Some(holder) = holder.filter(|holder| zone.first_end < holder.last_begin) {
            return Err(excluded(holder, &zone));
        }
    }
    Ok(())
}

fn excluded(one: &Zone<'_>, other: &Zone<'_>) -> Fault {
    violated(format!(
        "{} and {} (or what compare-and-sets made of them) were each there before and after the other: a stale read or \
         a lost write",
        name(one.value),
        name(other.value)
    ))
}

fn name(value: Option<&str>) -> String {
    value.map_or_else(|| "the absent key".to_owned(), |value| format!("value {:?}", value.trim()))
}

fn violated(why: String) -> Fault {
    Fault::Violated(why)
}
