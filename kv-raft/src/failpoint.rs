//! Named places where a build with the feature `failpoints` crashes, waits or fails on demand; nothing in any other build.
//!
//! Which there are: docs/failpoints.md. They are set by the variable `FAILPOINTS` when `kv-node-failpoints` starts, as in
//! `FAILPOINTS="log.write=panic;data.flush=sleep(50)"`.
//!
//! Invariants: without the feature a failpoint is no code at all.

/// A place by its name; with an error, the place where `return` makes the function fail with it.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        ::fail::fail_point!($name);
    };
    ($name:literal, $error:expr) => {
        #[cfg(feature = "failpoints")]
        ::fail::fail_point!($name, |_| Err($error));
    };
}
