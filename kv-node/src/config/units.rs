//! How each kind of value is read from text and shown as text again.
//!
//! Invariants: what `show` gives, `parse` takes and returns the same value.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use super::LogFormat;

pub(super) fn parse<T: FromStr>(text: &str, expected: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is not {expected}"))
}

/// A value that prints as it is read.
pub(super) mod plain {
    use super::{Display, FromStr};

    pub(in super::super) fn parse<T: FromStr>(text: &str) -> Result<T, String> {
        let expected = match std::any::type_name::<T>() {
            "u32" | "u64" => "a whole number",
            "core::net::socket_addr::SocketAddr" => "an address as in 127.0.0.1:7001",
            "bool" => "true or false",
            _ => "valid here",
        };
        super::parse(text, expected)
    }

    pub(in super::super) fn show(value: &impl Display) -> String {
        value.to_string()
    }
}

/// Durations such as `100ms` or `1m 30s`.
pub(super) mod duration {
    use super::Duration;

    pub(in super::super) fn parse(text: &str) -> Result<Duration, String> {
        humantime::parse_duration(text.trim()).map_err(|_| format!("{text:?} is not a duration as in 100ms or 2s"))
    }

    pub(in super::super) fn show(value: &Duration) -> String {
        humantime::format_duration(*value).to_string()
    }
}

/// Sizes such as `64MiB`.
pub(super) mod size {
    pub(in super::super) fn parse(text: &str) -> Result<u64, String> {
        let size: Result<bytesize::ByteSize, _> = text.trim().parse();
        size.map(|size| size.as_u64()).map_err(|_| format!("{text:?} is not a size as in 64MiB"))
    }

    /// Exact: the largest unit that divides it.
    pub(in super::super) fn show(value: &u64) -> String {
        let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let unit = units.iter().find(|(bytes, _)| *value != 0 && value.is_multiple_of(*bytes));
        unit.map_or_else(|| format!("{value}B"), |(bytes, name)| format!("{}{name}", value / bytes))
    }
}

/// Addresses separated by commas.
pub(super) mod list {
    pub(in super::super) fn parse(text: &str) -> Result<Vec<String>, String> {
        Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
    }

    pub(in super::super) fn show(value: &[String]) -> String {
        value.join(",")
    }
}

/// Folders.
pub(super) mod path {
    use std::path::{Path, PathBuf};

    pub(in super::super) fn parse(text: &str) -> Result<PathBuf, String> {
        Ok(PathBuf::from(text))
    }

    pub(in super::super) fn show(value: &Path) -> String {
        value.display().to_string()
    }
}

/// Text or JSON.
pub(super) mod log_format {
    use super::LogFormat;

    pub(in super::super) fn parse(text: &str) -> Result<LogFormat, String> {
        match text.trim() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("{text:?} is neither text nor json")),
        }
    }

    pub(in super::super) fn show(value: &LogFormat) -> String {
        match value {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        }
    }
}
