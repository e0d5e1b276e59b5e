//! Threads whose work nobody waits for: they leave the processor to whoever is woken.
//!
//! Linux leaves a processor to a thread that works on for milliseconds before one that is woken there gets its turn, and a write
//! of a lone caller wakes a dozen threads. So these ask for a small share, and for long slices of it: a thread with a shorter
//! slice takes the processor from them at once (EEVDF: Stoica, Abdel-Wahab, "Earliest Eligible Virtual Deadline First", 1995;
//! Linux has slices by thread from 6.12 on). The share is a tenth of another thread's, so on a machine that is busy throughout
//! they go on ten times as slowly, and do not stand still.
//!
//! Not here: what such threads do.

/// A tenth of the weight of 0.
#[cfg(not(kv_sim))]
const NICE: i32 = 10;

/// As long as Linux allows, in nanoseconds.
#[cfg(not(kv_sim))]
const SLICE: u64 = 100_000_000;

/// The highest there is.
#[cfg(not(kv_sim))]
const NICE_MAX: i32 = 19;

/// Does some work on a thread of its own, in the background, and waits for it. Threads that the work starts, as RocksDB does when
/// it opens, stay in the background to their end.
#[cfg(not(kv_sim))]
pub(crate) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("background".to_owned()).spawn_scoped(scope, || {
            if let Err(error) = enter() {
                tracing::debug!(%error, "work in the background runs like any other");
            }
            work()
        });
        let ended = thread.expect("a thread starts").join();
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The same where there are no threads.
#[cfg(kv_sim)]
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// For the calling thread, for good: only the superuser may take it back. Its policy stays what it was.
#[cfg(not(kv_sim))]
fn enter() -> std::io::Result<()> {
    let mut scheduling = uapi::sched_getattr(0, 0)?;
    scheduling.sched_nice = (scheduling.sched_nice + NICE).min(NICE_MAX);
    scheduling.sched_runtime = SLICE;
    uapi::sched_setattr(0, &scheduling, 0)?;
    Ok(())
}

#[cfg(all(test, not(kv_sim)))]
mod tests {
    use super::*;

    #[test]
    fn work_in_the_background_is_nicer_and_so_are_the_threads_it_starts() {
        let nice = || uapi::sched_getattr(0, 0).unwrap().sched_nice;
        let before = nice();
        let of_both = run(|| (nice(), std::thread::spawn(nice).join().unwrap()));
        assert_eq!(of_both, (before + NICE, before + NICE));
        assert_eq!(nice(), before);
    }
}
