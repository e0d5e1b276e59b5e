//! What the nodes' logs say that no test expected.
//!
//! Invariants: every line of WARN or ERROR, and every line that is not a structured one (a panic, a sanitizer), is
//! unexpected unless the test lists a part of it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Lines of WARN and ERROR that match none of the `expected` patterns: parts that must all be there, joined by `*`.
pub fn unexpected(log: &Path, expected: &[String]) -> Result<Vec<String>> {
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    let matches = |line: &str, pattern: &String| pattern.split('*').all(|part| line.contains(part));
    let surprising = |line: &&str| is_alarming(line) && !expected.iter().any(|pattern| matches(line, pattern));
    Ok(text.lines().filter(surprising).map(str::to_owned).collect())
}

/// Whether a log holds a line with this part.
pub fn contains(log: &Path, part: &str) -> Result<bool> {
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    Ok(text.lines().any(|line| line.contains(part)))
}

fn is_alarming(line: &str) -> bool {
    if line.trim().is_empty() {
        return false;
    }
    let line = serde_json::from_str::<serde_json::Value>(line).unwrap_or_default();
    let field = |name| line.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    !matches!(field("level"), "INFO" | "DEBUG" | "TRACE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_errors_and_unstructured_lines_alarm() {
        assert!(!is_alarming(r#"{"timestamp":"t","level":"INFO","message":"fine"}"#));
        assert!(is_alarming(r#"{"timestamp":"t","level":"WARN","message":"hm"}"#));
        assert!(is_alarming(r#"{"timestamp":"t","level":"ERROR","message":"no"}"#));
        assert!(is_alarming("thread 'main' panicked at src/main.rs"));
        assert!(!is_alarming(""));
    }

    #[test]
    fn what_a_test_expects_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        fs::write(
            &log,
            "{\"level\":\"WARN\",\"message\":\"peer 2 is lost\"}\n{\"level\":\"WARN\",\"message\":\"odd\"}\n",
        )
        .unwrap();
        assert_eq!(unexpected(&log, &[]).unwrap().len(), 2);
        assert_eq!(unexpected(&log, &["is lost".to_owned()]).unwrap().len(), 1);
        assert_eq!(unexpected(&log, &["WARN*is lost".to_owned()]).unwrap().len(), 1);
        assert_eq!(unexpected(&log, &["ERROR*is lost".to_owned()]).unwrap().len(), 2);
    }
}
