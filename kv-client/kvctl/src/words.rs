//! Splits a line into words as a shell does: blanks separate, quotes hold together.
//!
//! In double quotes a backslash makes `\n \t \r \0 \\ \"` and `\xNN`; outside of quotes it takes the next character as
//! it is; single quotes take everything as it is.
//!
//! Not here: what the words mean (batch_format, shell).

use std::iter::Peekable;
use std::str::Chars;

/// The words of a line, as bytes.
pub(crate) fn split_bytes(line: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut characters = line.chars().peekable();
    loop {
        while characters.next_if(|character| character.is_whitespace()).is_some() {}
        if characters.peek().is_none() {
            return Ok(words);
        }
        words.push(word(&mut characters)?);
    }
}

/// The words of a line that are all text.
pub(crate) fn split(line: &str) -> Result<Vec<String>, String> {
    let text = |word: Vec<u8>| {
        String::from_utf8(word)
            .map_err(|_| "use --key-encoding or --value-encoding hex for bytes that are not text".to_owned())
    };
    split_bytes(line)?.into_iter().map(text).collect()
}

fn word(characters: &mut Peekable<Chars<'_>>) -> Result<Vec<u8>, String> {
    let mut word = Vec::new();
    while let Some(character) = characters.next_if(|character| !character.is_whitespace()) {
        match character {
            '\'' => single_quoted(characters, &mut word)?,
            '"' => double_quoted(characters, &mut word)?,
            '\\' => push(&mut word, characters.next().ok_or("a backslash at the end of the line")?),
            other => push(&mut word, other),
        }
    }
    Ok(word)
}

fn single_quoted(characters: &mut Peekable<Chars<'_>>, word: &mut Vec<u8>) -> Result<(), String> {
    for character in characters.by_ref() {
        if character == '\'' {
            return Ok(());
        }
        push(word, character);
    }
    Err("a single quote is not closed".to_owned())
}

fn double_quoted(characters: &mut Peekable<Chars<'_>>, word: &mut Vec<u8>) -> Result<(), String> {
    while let Some(character) = characters.next() {
        match character {
            '"' => return Ok(()),
            '\\' => escaped(characters, word)?,
            other => push(word, other),
        }
    }
    Err("a double quote is not closed".to_owned())
}

fn escaped(characters: &mut Peekable<Chars<'_>>, word: &mut Vec<u8>) -> Result<(), String> {
    match characters.next() {
        Some('n') => word.push(b'\n'),
        Some('t') => word.push(b'\t'),
        Some('r') => word.push(b'\r'),
        Some('0') => word.push(0),
        Some(same @ ('\\' | '"')) => push(word, same),
        Some('x') => {
            let digits: String = characters.by_ref().take(2).collect();
            word.push(u8::from_str_radix(&digits, 16).map_err(|_| format!("\\x{digits} is not \\xNN"))?);
        }
        Some(other) => return Err(format!("\\{other} is not known: one of \\n \\t \\r \\0 \\\\ \\\" \\xNN")),
        None => return Err("a double quote is not closed".to_owned()),
    }
    Ok(())
}

fn push(word: &mut Vec<u8>, character: char) {
    let mut buffer = [0; 4];
    word.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_separate_and_quotes_hold_together() {
        let words = split(r#"  put 'a b'"c d"e\ f  "" "#).unwrap();
        assert_eq!(words, ["put", "a bc de f", ""]);
    }

    #[test]
    fn single_quotes_take_backslashes_as_they_are() {
        assert_eq!(split(r"'\n'").unwrap(), [r"\n"]);
    }

    #[test]
    fn an_open_quote_is_refused() {
        for line in ["'a", "\"a", "\"a\\", "a\\", r#""\q""#, r#""\xz1""#] {
            assert!(split_bytes(line).is_err(), "{line}");
        }
    }
}
