//! Named places where a build with the feature `failpoints` crashes, waits or fails on demand; nothing in any other build.
//!
//! Which there are: docs/failpoints.md. They are set by the variable `FAILPOINTS` when `kv-node-failpoints` starts, as in
//! `FAILPOINTS="log.write=panic;data.flush=sleep(50)"`.
//!
//! With `FAILPOINTS_SEEN` naming a file, the name of each place that was come to is added to it, once.
//!
//! Invariants: without the feature a failpoint is no code at all; a place is in the file before anything happens at it.

#[cfg(feature = "failpoints")]
pub use noted::come_to;

/// A place by its name; with an error, the place where `return` makes the function fail with it.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::come_to($name);
        #[cfg(feature = "failpoints")]
        ::fail::fail_point!($name);
    };
    ($name:literal, $error:expr) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::come_to($name);
        #[cfg(feature = "failpoints")]
        ::fail::fail_point!($name, |_| Err($error));
    };
}

#[cfg(feature = "failpoints")]
mod noted {
    use std::collections::BTreeSet;
    use std::fs::OpenOptions;
    use std::io::Write as _;

    use parking_lot::Mutex;

    static NAMES: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

    /// Called by the macro at every place.
    pub fn come_to(name: &'static str) {
        let Some(path) = std::env::var_os("FAILPOINTS_SEEN") else { return };
        let mut names = NAMES.lock();
        if names.insert(name) {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let written = file.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes()));
            written.expect("the test that named the file can be told");
        }
    }
}
