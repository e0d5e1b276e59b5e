//! Keys and values between bytes and people: reading arguments, showing bytes without harm, JSON without loss.
//!
//! Invariants:
//! - [`show`] never yields a character that a terminal acts upon, and two different byte strings never look alike;
//! - [`put_json`] loses nothing: text goes into the named field, anything else into that field with `_base64`.
//!
//! Not here: tables (output), the batch line format (batch_format).

use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::exit::Failure;

/// How bytes are written as an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Encoding {
    /// As text.
    #[default]
    Utf8,
    /// Two digits per byte.
    Hex,
    /// Standard alphabet with padding.
    Base64,
}

impl Encoding {
    /// The bytes an argument stands for.
    pub(crate) fn decode(self, what: &str, text: &str) -> Result<Bytes, Failure> {
        match self {
            Self::Utf8 => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Self::Hex => hex::decode(text)
                .map(Bytes::from)
                .map_err(|error| Failure::usage(format!("{what} {} is not hex: {error}", show(text.as_bytes())))),
            Self::Base64 => STANDARD
                .decode(text)
                .map(Bytes::from)
                .map_err(|error| Failure::usage(format!("{what} {} is not base64: {error}", show(text.as_bytes())))),
        }
    }

    /// The bytes for people; as text they are made harmless, the other two are exact.
    pub(crate) fn show(self, bytes: &[u8]) -> String {
        match self {
            Self::Utf8 => show(bytes),
            Self::Hex => hex::encode(bytes),
            Self::Base64 => STANDARD.encode(bytes),
        }
    }
}

/// Text as it is where that is harmless and clear; otherwise quoted with escapes; `hex:...` where it is not UTF-8.
pub(crate) fn show(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return format!("hex:{}", hex::encode(bytes));
    };
    let plain = !text.is_empty()
        && !text.starts_with('"')
        && !text.starts_with("hex:")
        && !text.starts_with(char::is_whitespace)
        && !text.ends_with(char::is_whitespace)
        && text.chars().all(is_harmless);
    if plain { text.to_owned() } else { quoted(text) }
}

/// Cut to a number of characters for a table cell, with a mark where something is missing.
pub(crate) fn shorten(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest {
        return text.to_owned();
    }
    text.chars().take(longest.saturating_sub(1)).chain(['…']).collect()
}

/// Whether the text can go to a terminal as it is, line breaks and tabs included.
pub(crate) fn is_harmless_text(text: &str) -> bool {
    text.chars().all(|character| matches!(character, '\n' | '\t') || is_harmless(character))
}

fn is_harmless(character: char) -> bool {
    matches!(character, '"' | '\'' | '\\') || character.escape_debug().eq([character])
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        if character == '\'' {
            out.push(character);
        } else {
            out.extend(character.escape_debug());
        }
    }
    out.push('"');
    out
}

/// Adds `name` if the bytes are text, `name_base64` if they are not.
pub(crate) fn put_json(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), Value::from(text)),
        Err(_) => object.insert(format!("{name}_base64"), Value::from(STANDARD.encode(bytes))),
    };
}

/// The inverse of [`put_json`]; None if neither field is there.
pub(crate) fn take_json(object: &Map<String, Value>, name: &str) -> Result<Option<Bytes>, String> {
    let encoded_name = format!("{name}_base64");
    match (object.get(name), object.get(&encoded_name)) {
        (None, None) => Ok(None),
        (Some(Value::String(text)), None) => Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
        (None, Some(Value::String(text))) => {
            STANDARD.decode(text).map(|bytes| Some(bytes.into())).map_err(|error| format!("{encoded_name}: {error}"))
        }
        (Some(_), Some(_)) => Err(format!("both {name} and {encoded_name} are set")),
        (Some(_), None) | (None, Some(_)) => Err(format!("{name} must be a string")),
    }
}

/// Where a value to write comes from: the argument, `-` for standard input, or a file.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ValueSource {
    /// The value, in --value-encoding; `-` reads all of standard input as it is
    #[arg(allow_negative_numbers = true)]
    pub(crate) value: Option<String>,
    /// Read the value from this file, byte for byte
    #[arg(long, value_name = "FILE")]
    pub(crate) value_file: Option<PathBuf>,
}

impl ValueSource {
    /// The bytes to write.
    pub(crate) fn read(&self, encoding: Encoding) -> Result<Bytes, Failure> {
        match (&self.value, &self.value_file) {
            (Some(dash), None) if dash == "-" => read_stdin(),
            (Some(text), None) => encoding.decode("value", text),
            (None, Some(file)) if file.as_os_str() == "-" => read_stdin(),
            (None, Some(file)) => read_file(file),
            (None, None) | (Some(_), Some(_)) => Err(Failure::usage("give either a value or --value-file")),
        }
    }
}

fn read_file(file: &Path) -> Result<Bytes, Failure> {
    let size = std::fs::metadata(file).map_err(|error| Failure::local("read", file, &error))?.len();
    let most = kv_proto::limits::VALUE_BYTES_MAX;
    if size > most as u64 {
        return Err(Failure::usage(format!("{} holds {size} bytes; a value has at most {most}", file.display())));
    }
    std::fs::read(file).map(Bytes::from).map_err(|error| Failure::local("read", file, &error))
}

fn read_stdin() -> Result<Bytes, Failure> {
    let most = kv_proto::limits::VALUE_BYTES_MAX;
    let mut bytes = Vec::new();
    let mut input = std::io::stdin().lock().take(most as u64 + 1);
    input.read_to_end(&mut bytes).map_err(|error| Failure::local("read", Path::new("standard input"), &error))?;
    if bytes.len() > most {
        return Err(Failure::usage(format!("standard input holds more than a value may: {most} bytes")));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_text_is_shown_as_it_is() {
        for text in ["user:1", "héllo", "日本", "it's", "a \"b\" c", "back\\slash"] {
            assert_eq!(show(text.as_bytes()), text);
        }
    }

    #[test]
    fn what_a_terminal_would_act_upon_is_quoted_and_escaped() {
        assert_eq!(show(b"a\x1b[31mred"), "\"a\\u{1b}[31mred\"");
        assert_eq!(show(b"two\nlines"), "\"two\\nlines\"");
        assert_eq!(show("\u{202e}evil".as_bytes()), "\"\\u{202e}evil\"");
        assert_eq!(show(b""), "\"\"");
        assert_eq!(show(b" padded"), "\" padded\"");
        assert_eq!(show(&[0, 255]), "hex:00ff");
    }

    #[test]
    fn different_bytes_never_look_alike() {
        assert_eq!(show(b"hex:00ff"), "\"hex:00ff\"");
        assert_eq!(show(b"\"\""), "\"\\\"\\\"\"");
    }

    proptest::proptest! {
        #[test]
        fn shown_bytes_hold_no_control_characters(bytes: Vec<u8>) {
            assert!(show(&bytes).chars().all(|character| !character.is_control()));
        }
        #[test]
        fn json_brings_back_every_byte(bytes: Vec<u8>) {
            let mut object = Map::new();
            put_json(&mut object, "value", &bytes);
            assert_eq!(take_json(&object, "value").unwrap().unwrap(), bytes);
        }
        #[test]
        fn hex_and_base64_bring_back_every_byte(bytes: Vec<u8>) {
            for encoding in [Encoding::Hex, Encoding::Base64] {
                assert_eq!(encoding.decode("value", &encoding.show(&bytes)).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn a_field_that_is_given_twice_is_refused() {
        let object = serde_json::json!({ "key": "a", "key_base64": "YQ==" });
        assert!(take_json(object.as_object().unwrap(), "key").is_err());
    }

    #[test]
    fn wrong_hex_names_the_argument() {
        let failure = Encoding::Hex.decode("key", "zz").unwrap_err();
        assert!(failure.to_string().starts_with("key zz is not hex"), "{failure}");
    }

    #[test]
    fn a_long_cell_ends_in_a_mark() {
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("abcd", 4), "abcd");
    }
}
