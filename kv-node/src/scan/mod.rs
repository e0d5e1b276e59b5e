//! Scans: which ranges a page reads, and the cursor that carries it on.
//!
//! Not here: which shard a page is asked of (router).

pub mod cursor;
pub mod page;
pub mod ranges;
