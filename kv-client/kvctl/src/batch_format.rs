//! The lines of a batch file: words or JSON, one write each.
//!
//! ```text
//! # comment
//! put user:1 Ada
//! put "two words" 'single quotes take everything as it is'
//! put bin "\x00\xff\n"
//! del user:2
//! {"key": "user:3", "value": "Bob"}
//! {"op": "del", "key_base64": "/w=="}
//! ```
//!
//! Invariants: what `scan -o json` prints as an entry is a line that writes that entry.
//!
//! Not here: running the writes (batch), splitting into words (words).

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::values::{self, Encoding};
use crate::words;

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Write a key.
    Put {
        /// Which.
        key: Bytes,
        /// What.
        value: Bytes,
    },
    /// Delete a key.
    Delete {
        /// Which.
        key: Bytes,
    },
}

impl Operation {
    /// Bytes of key and value.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// How words become bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Encodings {
    /// Of keys.
    pub(crate) key: Encoding,
    /// Of values.
    pub(crate) value: Encoding,
}

/// The write on a line; None for blank lines and comments.
pub(crate) fn parse(line: &str, encodings: Encodings) -> Result<Option<Operation>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    if line.starts_with('{') { parse_json(line).map(Some) } else { parse_words(line, encodings).map(Some) }
}

fn parse_words(line: &str, encodings: Encodings) -> Result<Operation, String> {
    let words = words::split_bytes(line)?;
    let decode = |encoding: Encoding, what: &str, word: &[u8]| match encoding {
        Encoding::Utf8 => Ok(Bytes::copy_from_slice(word)),
        Encoding::Hex | Encoding::Base64 => {
            let text = std::str::from_utf8(word).map_err(|_| format!("{what} is not text"))?;
            encoding.decode(what, text).map_err(|failure| failure.to_string())
        }
    };
    match words.iter().map(Vec::as_slice).collect::<Vec<_>>().as_slice() {
        [b"put", key, value] => Ok(Operation::Put {
            key: decode(encodings.key, "key", key)?,
            value: decode(encodings.value, "value", value)?,
        }),
        [b"del", key] => Ok(Operation::Delete { key: decode(encodings.key, "key", key)? }),
        [b"put", ..] => Err("put takes a key and a value; quote what holds blanks".to_owned()),
        [b"del", ..] => Err("del takes one key; quote what holds blanks".to_owned()),
        _ => Err("a line begins with put, del, # or {".to_owned()),
    }
}

fn parse_json(line: &str) -> Result<Operation, String> {
    let object: Map<String, Value> = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    let key = values::take_json(&object, "key")?.ok_or("key is missing")?;
    let value = values::take_json(&object, "value")?;
    match (object.get("op").map_or(Some("put"), Value::as_str), value) {
        (Some("put"), Some(value)) => Ok(Operation::Put { key, value }),
        (Some("put"), None) => Err("value is missing".to_owned()),
        (Some("del"), None) => Ok(Operation::Delete { key }),
        (Some("del"), Some(_)) => Err("del takes no value".to_owned()),
        (Some(_) | None, _) => Err("op is put or del".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Option<Operation>, String> {
        parse(line, Encodings::default())
    }

    fn put(key: &'static [u8], value: &'static [u8]) -> Operation {
        Operation::Put { key: Bytes::from_static(key), value: Bytes::from_static(value) }
    }

    #[test]
    fn words_and_json_say_the_same() {
        assert_eq!(read("put user:1 Ada"), Ok(Some(put(b"user:1", b"Ada"))));
        assert_eq!(read(r#"{"op":"put","key":"user:1","value":"Ada"}"#), Ok(Some(put(b"user:1", b"Ada"))));
        let del = Operation::Delete { key: Bytes::from_static(b"a b") };
        assert_eq!(read("del 'a b'"), Ok(Some(del.clone())));
        assert_eq!(read(r#"{"op":"del","key":"a b"}"#), Ok(Some(del)));
    }

    #[test]
    fn blank_lines_and_comments_are_nothing() {
        assert_eq!(read("  "), Ok(None));
        assert_eq!(read("# put a b"), Ok(None));
    }

    #[test]
    fn any_byte_can_be_written_in_double_quotes() {
        assert_eq!(read(r#"put k "\x00\xff\n""#), Ok(Some(put(b"k", b"\x00\xff\n"))));
    }

    #[test]
    fn encodings_hold_for_words() {
        let encodings = Encodings { key: Encoding::Hex, value: Encoding::Base64 };
        assert_eq!(parse("put 00ff /w==", encodings), Ok(Some(put(b"\x00\xff", b"\xff"))));
        assert!(parse("put zz /w==", encodings).is_err());
    }

    #[test]
    fn an_entry_of_a_scan_is_a_line() {
        let line = r#"{"key_base64":"/w==","value":"x","version":"7","written_ms":0}"#;
        assert_eq!(read(line), Ok(Some(put(b"\xff", b"x"))));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, part) in [
            ("put a", "takes a key and a value"),
            ("put a b c", "quote what holds blanks"),
            ("del", "one key"),
            ("get a", "begins with put"),
            ("put \"a b", "quote"),
            ("{\"key\":1,\"value\":\"\"}", "must be a string"),
            ("{\"value\":\"x\"}", "key is missing"),
            ("{\"op\":\"del\",\"key\":\"a\",\"value\":\"b\"}", "no value"),
            ("{", "not JSON"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
