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

#[cfg(not(kv_sim))]
pub(crate) use threads::{Thread, run};

#[cfg(not(kv_sim))]
mod threads {
    use std::io;
    use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
    use std::thread::JoinHandle;

    /// A tenth of the weight of 0.
    const NICE: i32 = 10;

    /// The highest there is.
    const NICE_MAX: i32 = 19;

    /// Three times and more what threads have that ask for none, in nanoseconds. One that never sleeps waits as long.
    const SLICE: u64 = 10_000_000;

    type Work = Box<dyn FnOnce() + Send>;

    /// A thread that does one piece of work after another, until this is dropped. It lasts, since memory that one thread frees is
    /// seldom given to another, and new memory costs a fault for each page.
    pub(crate) struct Thread(SyncSender<Work>);

    impl Thread {
        /// Starts it.
        pub(crate) fn start() -> io::Result<Self> {
            let (sender, work) = sync_channel::<Work>(1);
            spawn(move || work.iter().for_each(|work| work()))?;
            Ok(Self(sender))
        }

        /// Does some work once what came before is done. False, and nothing is done, if other work waits already or the thread has
        /// panicked.
        pub(crate) fn run(&self, work: impl FnOnce() + Send + 'static) -> bool {
            match self.0.try_send(Box::new(work)) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            }
        }
    }

    /// Does some work on a thread of its own and waits for it. Threads that it starts stay in the background to their end.
    pub(crate) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        spawn(work)?.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    }

    fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
        std::thread::Builder::new().name("background".to_owned()).spawn(|| {
            if let Err(error) = enter() {
                tracing::debug!(%error, "work in the background has the share of any other");
            }
            work()
        })
    }

    /// For the calling thread, for good: to take it back is a privilege. Its policy stays what it was.
    fn enter() -> io::Result<()> {
        let mut scheduling = uapi::sched_getattr(0, 0)?;
        scheduling.sched_nice = (scheduling.sched_nice + NICE).min(NICE_MAX);
        scheduling.sched_runtime = SLICE;
        uapi::sched_setattr(0, &scheduling, 0)?;
        Ok(())
    }

    #[cfg(test)]
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
            let of_both = run(move || (scheduling(), std::thread::spawn(scheduling).join().unwrap()));
            assert_eq!(of_both.unwrap(), ((nice, slice), (nice, slice)), "slices are zero where Linux has none");
            assert_eq!(scheduling(), before);
        }

        #[test]
        fn a_thread_does_what_it_is_told_one_after_another_and_refuses_more_than_one_ahead() {
            let thread = Thread::start().unwrap();
            let (done, told) = sync_channel(3);
            let (go_on, wait) = sync_channel::<()>(0);
            let (begun, first) = (done.clone(), done.clone());
            let work = move || {
                begun.send(0).unwrap();
                wait.recv().unwrap();
                first.send(1).unwrap();
            };
            assert!(thread.run(work));
            assert_eq!(told.recv(), Ok(0));
            assert!(thread.run(move || done.send(2).unwrap()));
            assert!(!thread.run(|| panic!("there is no room")));
            go_on.send(()).unwrap();
            assert_eq!((told.recv(), told.recv()), (Ok(1), Ok(2)));
        }

        #[test]
        fn a_thread_that_panicked_takes_no_work() {
            let thread = Thread::start().unwrap();
            let (last, ended) = sync_channel::<()>(0);
            let panics = move || {
                let _last = last;
                panic!("as it should");
            };
            assert!(thread.run(panics));
            assert!(ended.recv().is_err());
            // It unwinds further before what it takes work from is gone.
            let begun = std::time::Instant::now();
            while thread.run(|| ()) {
                assert!(begun.elapsed() < std::time::Duration::from_secs(10), "it still takes work");
                std::thread::yield_now();
            }
        }
    }
}

/// In line, where there are no threads.
#[cfg(kv_sim)]
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> std::io::Result<T> {
    Ok(work())
}

/// What stands for the thread there.
#[cfg(kv_sim)]
pub(crate) struct Thread(());

#[cfg(kv_sim)]
impl Thread {
    /// There is nothing to start.
    pub(crate) fn start() -> std::io::Result<Self> {
        Ok(Self(()))
    }

    /// Does the work like any other that blocks.
    pub(crate) fn run(&self, work: impl FnOnce() + Send + 'static) -> bool {
        drop(crate::blocking::spawn_blocking(work));
        true
    }
}
