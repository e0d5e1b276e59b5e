//! Where blocking work runs: on threads of its own, or in line after a drawn delay in the simulation (`cfg(kv_sim)`).
//!
//! Not here: the log's writer, which is a thread of its own (log_store, engine).

use tokio::task::JoinHandle;

/// As [`tokio::task::spawn_blocking`].
#[cfg(not(kv_sim))]
pub fn spawn_blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(run)
}

/// Runs the work when a drawn time has passed; a crash before that leaves it undone.
#[cfg(kv_sim)]
#[expect(clippy::disallowed_methods, reason = "stands for a thread of the pool, which has no owner either")]
pub fn spawn_blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(async move {
        crate::simulated::disk(crate::simulated::Disk::Work).await;
        run()
    })
}
