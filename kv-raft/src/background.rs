//! Threads that leave the processor to whoever is woken: those of flushes, merges and the writing out of rows, which are seldom
//! waited for.
//!
//! Linux leaves a processor to a thread that works on for milliseconds before one that is woken there gets its turn, and a write
//! of a lone caller wakes a dozen threads. So these ask for a small share, and for long slices of it: a thread with a shorter
//! slice takes the processor from them at once (EEVDF: Stoica, Abdel-Wahab, "Earliest Eligible Virtual Deadline First", 1995;
//! Linux has slices by thread from 6.12 on). The share is a tenth of another thread's, so on a machine that is busy throughout
//! they go on ten times as slowly, and do not stand still. They must not yield: Linux counts
//! the whole slice as used then, ten times over for such a share. With a yield after each few rows, and slices of 100 ms, a
//! cluster beside two threads that spin wrote nothing at all.
//!
//! Not here: what such threads do.

/// A tenth of the weight of 0.
#[cfg(not(kv_sim))]
const NICE: i32 = 10;

/// The highest there is.
#[cfg(not(kv_sim))]
const NICE_MAX: i32 = 19;

/// Three times and more what threads have that ask for none, in nanoseconds. One that never sleeps waits as long.
#[cfg(not(kv_sim))]
const SLICE: u64 = 10_000_000;

/// Does some work on a thread of its own, in the background, and waits for it. Threads that it starts stay in the background to
/// their end.
#[cfg(not(kv_sim))]
pub(crate) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = parking_lot::Mutex::new(Some(work));
    let begin = || {
        let work = work.lock().take().expect("it begins once");
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("background".to_owned()).spawn_scoped(scope, || {
            if let Err(error) = enter() {
                tracing::debug!(%error, "work in the background has the share of any other");
            }
            begin()
        });
        match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                tracing::warn!(%error, "no thread can be started: work in the background is done in line");
                begin()
            }
        }
    })
}

/// The same where there are no threads.
#[cfg(kv_sim)]
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// For the calling thread, for good: to take it back is a privilege. Its policy stays what it was.
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
        let scheduling = || {
            let found = uapi::sched_getattr(0, 0).unwrap();
            (found.sched_nice, found.sched_runtime)
        };
        let before = scheduling();
        let (nice, slice) = ((before.0 + NICE).min(NICE_MAX), if before.1 > 0 { SLICE } else { 0 });
        let of_both = run(|| (scheduling(), std::thread::spawn(scheduling).join().unwrap()));
        assert_eq!(of_both, ((nice, slice), (nice, slice)), "slices are zero where Linux has none");
        assert_eq!(scheduling(), before);
    }
}
