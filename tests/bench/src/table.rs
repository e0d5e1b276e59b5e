//! The goals as a table on a terminal.
//!
//! Not here: the page that is published.

use crate::goals::Goal;

/// One line a goal.
pub(crate) fn text(goals: &[Goal]) -> String {
    let width = |of: fn(&Goal) -> usize| goals.iter().map(of).max().unwrap_or(0);
    let (what, goal) = (width(|goal| goal.what.chars().count()), width(|goal| goal.goal.chars().count()));
    let line = |row: &Goal| {
        let met = match row.met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "-",
        };
        format!("{:<what$}  {:<goal$}  {met:<7}  {}", row.what, row.goal, row.measured)
    };
    goals.iter().map(line).collect::<Vec<_>>().join("\n")
}
