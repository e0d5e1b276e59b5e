//! Whether a node may be asked now.
//!
//! Closed: yes. After a failure it is open: nobody waits for the node. Once the wait is over one probe goes out
//! (half-open) while everyone else is still refused; its success closes the circuit, its failure doubles the wait.
//!
//! Invariants: at most one probe at a time; the wait stays between [`WAIT_MIN`] and [`WAIT_MAX`].
//!
//! Not here: what counts as a failure (pool).

use std::time::Duration;

use tokio::time::Instant;

/// A node that restarts listens again within tens of milliseconds.
pub(crate) const WAIT_MIN: Duration = Duration::from_millis(20);

/// A node that came back is noticed within a second.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(1);

/// What the circuit says to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Connect and wait for it.
    Go,
    /// Connect in the background; do not wait.
    Probe,
    /// Do not connect.
    Refused {
        /// Least time until asking again may help.
        retry_after: Duration,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant, wait: Duration },
    HalfOpen { wait: Duration },
}

/// One node's circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Circuit(State);

impl Circuit {
    pub(crate) fn new() -> Self {
        Self(State::Closed)
    }

    /// Asked before connecting. [`Admission::Probe`] obliges the caller to report how it went.
    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        match self.0 {
            State::Closed => Admission::Go,
            State::Open { until, .. } if now < until => Admission::Refused { retry_after: until - now },
            State::Open { wait, .. } => {
                self.0 = State::HalfOpen { wait };
                Admission::Probe
            }
            State::HalfOpen { .. } => Admission::Refused { retry_after: WAIT_MIN },
        }
    }

    /// Whether a caller would be refused.
    pub(crate) fn is_open(&self) -> bool {
        self.0 != State::Closed
    }

    pub(crate) fn succeeded(&mut self) {
        self.0 = State::Closed;
    }

    /// `jitter` in `[0, 1)` spreads the probes of many clients over half of the wait.
    pub(crate) fn failed(&mut self, now: Instant, jitter: f64) {
        let wait = match self.0 {
            State::Closed => WAIT_MIN,
            State::Open { wait, .. } | State::HalfOpen { wait } => (wait * 2).min(WAIT_MAX),
        };
        self.0 = State::Open { until: now + wait.mul_f64(0.5 + jitter / 2.0), wait };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_probe_goes_out_and_everyone_else_is_refused() {
        let (mut circuit, start) = (Circuit::new(), Instant::now());
        assert_eq!(circuit.admit(start), Admission::Go);
        circuit.failed(start, 0.99);
        assert!(matches!(circuit.admit(start), Admission::Refused { .. }));
        let later = start + WAIT_MIN;
        assert_eq!(circuit.admit(later), Admission::Probe);
        assert!(matches!(circuit.admit(later), Admission::Refused { .. }), "the probe is out");
        circuit.succeeded();
        assert_eq!(circuit.admit(later), Admission::Go);
    }

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        let (mut circuit, mut now) = (Circuit::new(), Instant::now());
        let mut waits = vec![];
        for _ in 0..9 {
            circuit.failed(now, 0.0);
            let Admission::Refused { retry_after } = circuit.admit(now) else { panic!("open") };
            waits.push(u64::try_from(retry_after.as_millis()).unwrap());
            now += retry_after;
            assert_eq!(circuit.admit(now), Admission::Probe);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 500, 500, 500]);
    }
}
