//! Numbers for people: sizes, durations, counts, rates.
//!
//! Not here: keys and values (values).

use std::time::Duration;

use bytesize::ByteSize;

/// What stands where there is nothing to say.
pub(crate) const NOTHING: &str = "-";

/// `14.2 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// The same of what lies in files: nodes see 0 while all is in memory, or too little to be estimated.
pub(crate) fn size_on_disk(bytes: u64) -> String {
    if bytes == 0 { NOTHING.to_owned() } else { size(bytes) }
}

/// The two largest units: `3d 4h`, `12m 5s`, `850ms`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days}d {hours}h")
    } else if hours > 0 {
        format!("{hours}h {minutes}m")
    } else if minutes > 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else if seconds >= 10 {
        format!("{seconds}s")
    } else if seconds > 0 {
        format!("{:.1}s", duration.as_secs_f64())
    } else if (1..10).contains(&duration.as_millis()) {
        format!("{:.1}ms", duration.as_secs_f64() * 1e3)
    } else if duration.is_zero() {
        "0s".to_owned()
    } else if duration.as_millis() > 0 {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{}µs", duration.as_micros())
    }
}

/// The same for a number of seconds as processes count them.
pub(crate) fn seconds(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| NOTHING.to_owned(), duration)
}

/// `1 shard`, `2 shards`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{} {noun}s", grouped(number as u64)) }
}

/// `12,345,678`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1, 2 and 3`.
pub(crate) fn list<T: ToString>(items: &[T]) -> String {
    let words: Vec<String> = items.iter().map(ToString::to_string).collect();
    match words.split_last() {
        None => "none".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// `shard 7`, `shards 2, 4 and 6`, `shards 2 to 9`; ids ascend.
pub(crate) fn shards(ids: &[u64]) -> String {
    match ids {
        [only] => format!("shard {only}"),
        [first, .., last] if ids.len() > 2 && last - first + 1 == ids.len() as u64 => {
            format!("shards {first} to {last}")
        }
        ids => format!("shards {}", list(ids)),
    }
}

/// Milliseconds since the epoch, now.
pub(crate) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// How long ago a moment in milliseconds since the epoch was.
pub(crate) fn age(now_ms: u64, then_ms: u64) -> String {
    if then_ms == 0 { NOTHING.to_owned() } else { duration(Duration::from_millis(now_ms.saturating_sub(then_ms))) }
}

/// A moment in milliseconds since the epoch, in UTC.
pub(crate) fn moment(ms: u64) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    time.map_or_else(|| NOTHING.to_owned(), |time| humantime::format_rfc3339_millis(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_the_two_largest_units() {
        let shown = [(90_061_000, "1d 1h"), (3_660_000, "1h 1m"), (61_000, "1m 1s"), (12_345, "12s"), (1_250, "1.2s")];
        for (ms, text) in shown {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        let short = [(850, "850µs"), (2_340, "2.3ms"), (9_900, "9.9ms"), (12_345, "12ms")];
        for (micros, text) in short {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn numbers_and_lists_read_well() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!(count(1, "shard"), "1 shard");
        assert_eq!(count(2000, "shard"), "2,000 shards");
        assert_eq!(list(&[1, 2, 3]), "1, 2 and 3");
        assert_eq!(list(&[7]), "7");
        assert_eq!(shards(&[7]), "shard 7");
        assert_eq!(shards(&[2, 3]), "shards 2 and 3");
        assert_eq!(shards(&[2, 3, 4]), "shards 2 to 4");
        assert_eq!(shards(&[2, 3, 5]), "shards 2, 3 and 5");
        assert_eq!(size(1536), "1.5 KiB");
    }
}
