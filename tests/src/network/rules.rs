//! What is wrong with which links.
//!
//! Invariants: faults that overlap add up, and each ends by itself: a link is whole when none of its faults is left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// The node of this number.
    Node(usize),
    /// Everyone else.
    Clients,
}

/// What is wrong with one direction of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Nothing passes.
    pub blocked: bool,
    /// New connections are closed at once.
    pub refused: bool,
    /// Every piece waits at least this long.
    pub delay: Duration,
    /// And up to this long in addition, at random.
    pub jitter: Duration,
    /// Most bytes per second; 0: no limit.
    pub bytes_per_second: u64,
}

/// What happens at once to all connections of a node that are open now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shocks {
    /// How often they were closed.
    pub resets: u64,
    /// How often they were left open with nobody at the other end.
    pub freezes: u64,
}

/// From one party to another.
pub type Link = (Party, Party, Rule);

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    faults: BTreeMap<u64, Vec<Link>>,
    shocks: BTreeMap<usize, Shocks>,
    last: u64,
}

impl Table {
    /// All that is wrong with a direction.
    pub(super) fn rule(&self, from: Party, to: Party) -> Rule {
        let links = self.faults.values().flatten().filter(|(one, other, _)| (*one, *other) == (from, to));
        links.fold(Rule::default(), |all, (_, _, rule)| all.and(*rule))
    }

    pub(super) fn shocks(&self, node: usize) -> Shocks {
        self.shocks.get(&node).copied().unwrap_or_default()
    }
}

impl Rule {
    /// Nothing passes.
    #[must_use]
    pub fn blocked() -> Self {
        Self { blocked: true, ..Self::default() }
    }

    fn and(self, other: Self) -> Self {
        let slower = match (self.bytes_per_second, other.bytes_per_second) {
            (0, limit) | (limit, 0) => limit,
            (one, two) => one.min(two),
        };
        Self {
            blocked: self.blocked || other.blocked,
            refused: self.refused || other.refused,
            delay: self.delay.max(other.delay),
            jitter: self.jitter.max(other.jitter),
            bytes_per_second: slower,
        }
    }
}

/// The rules of a network; clones share them.
#[derive(Clone, Debug)]
pub struct Rules(Arc<watch::Sender<Table>>);

impl Default for Rules {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Table::default())))
    }
}

impl Rules {
    /// Begins a fault; the name that ends it.
    pub fn begin(&self, links: Vec<Link>) -> u64 {
        let mut name = 0;
        self.0.send_modify(|table| {
            table.last += 1;
            name = table.last;
            table.faults.insert(name, links);
        });
        name
    }

    /// Ends a fault.
    pub fn end(&self, fault: u64) {
        self.0.send_modify(|table| {
            table.faults.remove(&fault);
        });
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.0.send_modify(|table| table.faults.clear());
    }

    /// Closes all connections to a node that are open now.
    pub fn reset(&self, node: usize) {
        self.0.send_modify(|table| table.shocks.entry(node).or_default().resets += 1);
    }

    /// Leaves all connections to a node that are open now open, with nobody at the other end.
    pub fn freeze(&self, node: usize) {
        self.0.send_modify(|table| table.shocks.entry(node).or_default().freezes += 1);
    }

    pub(super) fn watch(&self) -> watch::Receiver<Table> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_add_up_and_end_one_by_one() {
        let (one, two) = (Party::Node(1), Party::Node(2));
        let rules = Rules::default();
        let slow = Rule { delay: Duration::from_millis(5), bytes_per_second: 7, ..Rule::default() };
        let first = rules.begin(vec![(one, two, Rule::blocked())]);
        let second = rules.begin(vec![(one, two, slow), (two, one, slow)]);
        let watch = rules.watch();
        assert_eq!(watch.borrow().rule(one, two), Rule { blocked: true, ..slow });
        assert_eq!(watch.borrow().rule(two, one), slow);
        rules.end(first);
        assert_eq!(watch.borrow().rule(one, two), slow);
        rules.end(second);
        assert_eq!(watch.borrow().rule(one, two), Rule::default());
    }
}
