//! A linearizable read, by ReadIndex or by lease, sees at least what any replica had applied when it began.

use super::Verdict;

/// A read that began when some replica had applied `floor` saw the state at `applied`.
pub(super) fn fresh(floor: u64, applied: u64) -> Verdict {
    if applied >= floor {
        return Ok(());
    }
    Err(format!("a read saw the state at {applied}, and {floor} was applied before it began"))
}
