//! Processor time and memory of processes, from /proc.
//!
//! Not here: what a node says of itself (status).

use std::time::Duration;

/// A process that cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It is not there, or not ours to look at.
    #[error("cannot look at process {pid}")]
    Unreadable {
        /// Which.
        pid: String,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel writes something else than we know.
    #[error("/proc/{pid} is not as expected")]
    Format {
        /// Which.
        pid: String,
    },
}

/// Clock ticks a second in /proc/PID/stat: USER_HZ, 100 on every Linux architecture Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// One look at one process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time since its start.
    pub processor: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// Looks at process `pid`; `"self"` is this one.
///
/// # Errors
/// If there is no such process.
pub fn usage(pid: &str) -> Result<Usage, ProcessError> {
    let read = |file: &str| {
        let unreadable = |source| ProcessError::Unreadable { pid: pid.to_owned(), source };
        std::fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(unreadable)
    };
    parse(&read("stat")?, &read("status")?).ok_or_else(|| ProcessError::Format { pid: pid.to_owned() })
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The name in parentheses may hold spaces: fields count from after it. utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = resident.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(Usage { processor: Duration::from_secs_f64(ticks / TICKS_PER_SECOND), resident: kibibytes << 10 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 5 6 7";
        let usage = parse(stat, "Name:\ta\nVmRSS:\t    2048 kB\n").unwrap();
        assert_eq!(usage, Usage { processor: Duration::from_secs(2), resident: 2 << 20 });
    }
}
