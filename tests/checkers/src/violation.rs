//! A broken promise, for people.

use std::fmt;

/// What a checker says that could not decide.
pub(crate) const UNDECIDED: &str = "undecided";

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The name of the checker's module.
    pub property: &'static str,
    /// What is wrong and where, in one line.
    pub what: String,
}

impl Violation {
    /// Of this property.
    #[must_use]
    pub fn new(property: &'static str, what: impl Into<String>) -> Self {
        Self { property, what: what.into() }
    }

    /// Whether the checker could not tell right from wrong.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        self.what.contains(UNDECIDED)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.what)
    }
}
