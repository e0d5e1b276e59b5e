//! `[start, end)` over encoded keys.
//!
//! Invariants: `start < end`, or `end` is empty, which has no upper bound.

use std::fmt;

use bytes::Bytes;

/// A half-open range of encoded keys; an empty end has no upper bound.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyRange {
    start: Bytes,
    end: Bytes,
}

impl KeyRange {
    /// None if the range would be empty.
    #[must_use]
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Option<Self> {
        let (start, end) = (start.into(), end.into());
        (end.is_empty() || start < end).then_some(Self { start, end })
    }

    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: Bytes::new() }
    }

    /// First key, inclusive.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// Exclusive; empty has no upper bound.
    #[must_use]
    pub fn end(&self) -> &Bytes {
        &self.end
    }

    /// Whether the key lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start <= key && (self.end.is_empty() || key < self.end)
    }

    /// What both ranges hold; None if nothing.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let start = Bytes::clone((&self.start).max(&other.start));
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (false, true) => self.end.clone(),
            (false, false) => Bytes::clone((&self.end).min(&other.end)),
        };
        Self::new(start, end)
    }

    /// Whether all of `other` lies in this range.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.intersection(other).as_ref() == Some(other)
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", self.start.escape_ascii())?;
        if self.end.is_empty() { f.write_str("∞)") } else { write!(f, "{})", self.end.escape_ascii()) }
    }
}
