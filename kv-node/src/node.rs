//! One running node: what its parts share, how they start, and the order in which they stop.
//!
//! Not here: what is listened on and served (main, services).

pub mod readiness;
pub mod shared;

pub use readiness::Readiness;
pub use shared::NodeShared;
