//! What a command prints: tables and lines for people, one JSON document for programs.
//!
//! Invariants:
//! - results go to standard output, everything else (progress, notes, errors) to standard error;
//! - a JSON document has `"format": 1`; its fields are documented in docs/kvctl.md and only grow;
//! - colour only on a terminal, never with `NO_COLOR` set, unless asked for.
//!
//! Not here: how bytes become text (values), which fields a noun has (that noun's module).

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde_json::{Map, Value};

use crate::exit::Failure;

/// Version of the JSON documents.
pub(crate) const JSON_FORMAT: u32 = 1;

/// Below this width a terminal gets only the columns that matter most.
const WIDE_COLUMNS: u16 = 110;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Tables and sentences
    #[default]
    Table,
    /// One JSON document per command
    Json,
    /// The bare value, for get
    Value,
}

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum When {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What a word means, for its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Look at it.
    Warn,
    /// Wrong.
    Bad,
    /// Less important.
    Dim,
    /// A heading.
    Strong,
}

/// The content of a cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Text {
    text: String,
    tone: Tone,
}

impl Text {
    /// Without its meaning.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What it means.
    pub(crate) fn tone(&self) -> Tone {
        self.tone
    }
}

impl<T: ToString> From<T> for Text {
    fn from(text: T) -> Self {
        Self { text: text.to_string(), tone: Tone::Plain }
    }
}

/// A cell with a meaning.
pub(crate) fn toned(text: impl ToString, tone: Tone) -> Text {
    Text { text: text.to_string(), tone }
}

#[derive(Clone, Copy, Debug)]
struct Column {
    name: &'static str,
    right: bool,
    wide_only: bool,
}

/// A table without lines, so that it can be cut with ordinary tools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grid {
    columns: Vec<Column>,
    rows: Vec<Vec<Text>>,
}

impl Grid {
    /// Columns by name. `>NAME` is aligned to the right, `NAME?` is left out on narrow terminals.
    pub(crate) fn new(names: &[&'static str]) -> Self {
        let column = |name: &&'static str| {
            let wide_only = name.ends_with('?');
            let bare = name.trim_end_matches('?');
            Column { name: bare.trim_start_matches('>'), right: bare.starts_with('>'), wide_only }
        };
        Self { columns: names.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row; one cell per column.
    pub(crate) fn row(&mut self, cells: Vec<Text>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "one cell per column");
        self.rows.push(cells);
    }

    /// As text: no wider than `width` if there is one.
    pub(crate) fn render(&self, look: Look) -> String {
        let shown = |column: &Column| !column.wide_only || look.width.is_none_or(|width| width >= WIDE_COLUMNS);
        let mut table = Table::new();
        table.load_style(presets::NOTHING).force_no_tty();
        if look.colour {
            table.enforce_styling();
        }
        if let Some(width) = look.width {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        let columns: Vec<&Column> = self.columns.iter().filter(|column| shown(column)).collect();
        table.set_header(columns.iter().map(|column| cell(&toned(column.name, Tone::Strong), column.right)));
        for row in &self.rows {
            let cells = self.columns.iter().zip(row).filter(|(column, _)| shown(column));
            table.add_row(cells.map(|(column, text)| cell(text, column.right)).collect::<Vec<_>>());
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

fn cell(text: &Text, right: bool) -> Cell {
    let cell = Cell::new(&text.text);
    let cell = if right { cell.set_alignment(CellAlignment::Right) } else { cell };
    match text.tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Warn => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Dim => cell.add_attribute(Attribute::Dim),
        Tone::Strong => cell.add_attribute(Attribute::Bold),
    }
}

/// How wide and how colourful.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Columns of the terminal; None where there is none.
    pub(crate) width: Option<u16>,
    /// Whether escape sequences are welcome.
    pub(crate) colour: bool,
}

impl Look {
    /// The text in the colour of its meaning.
    pub(crate) fn paint(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Dim => "2",
            Tone::Strong => "1",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Where a command's result goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Tables or JSON.
    pub(crate) format: Format,
    /// Of standard output.
    pub(crate) look: Look,
    /// Of standard error.
    pub(crate) error_look: Look,
}

impl Output {
    /// As the streams and the environment say.
    pub(crate) fn detect(format: Format, when: When) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let look = |terminal: bool| Look {
            width: terminal.then(terminal_width).flatten(),
            colour: match when {
                When::Auto => terminal && !no_color && !dumb,
                When::Always => true,
                When::Never => false,
            },
        };
        let (out, error) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        Self { format, look: look(out), error_look: look(error) }
    }

    /// Whether programs read this.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints the document, or the text: never both.
    pub(crate) fn show(&self, json: Value, text: impl FnOnce(Look) -> String) -> Result<(), Failure> {
        let text = if self.is_json() { document(json).to_string() } else { text(self.look) };
        if text.is_empty() { Ok(()) } else { self.raw(format!("{text}\n").as_bytes()) }
    }

    /// Writes bytes to standard output as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(|error| Failure::local("write", std::path::Path::new("standard output"), &error))
    }

    /// A remark for people, beside the result.
    pub(crate) fn note(&self, text: &str) {
        if !self.is_json() {
            drop(writeln!(std::io::stderr().lock(), "{}", self.error_look.paint(text, Tone::Dim)));
        }
    }
}

/// With the format's version in front.
pub(crate) fn document(json: Value) -> Value {
    let mut object = Map::new();
    object.insert("format".to_owned(), Value::from(JSON_FORMAT));
    match json {
        Value::Object(fields) => object.extend(fields),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            object.insert("result".to_owned(), other);
        }
    }
    Value::Object(object)
}

fn terminal_width() -> Option<u16> {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns.or_else(|| Table::new().width()).filter(|width| *width >= 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let mut grid = Grid::new(&["NODE", "ADDRESS", "STATE", ">MEMORY", "VERSION?"]);
        grid.row(vec![
            1.into(),
            "127.0.0.1:7001".into(),
            toned("active", Tone::Good),
            "14.2 MiB".into(),
            "0.1.0".into(),
        ]);
        grid.row(vec![12.into(), "127.0.0.1:7012".into(), toned("down", Tone::Bad), "-".into(), "-".into()]);
        grid
    }

    #[test]
    fn a_pipe_gets_every_column_in_one_line_per_row() {
        let expected = "\
NODE  ADDRESS         STATE     MEMORY  VERSION
1     127.0.0.1:7001  active  14.2 MiB  0.1.0
12    127.0.0.1:7012  down           -  -";
        assert_eq!(grid().render(Look::default()), expected);
    }

    #[test]
    fn a_narrow_terminal_gets_the_columns_that_matter() {
        let text = grid().render(Look { width: Some(80), colour: false });
        assert!(!text.contains("VERSION"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn colour_appears_only_where_it_is_welcome() {
        assert!(!grid().render(Look::default()).contains('\x1b'));
        assert!(grid().render(Look { width: None, colour: true }).contains('\x1b'));
        assert_eq!(Look::default().paint("down", Tone::Bad), "down");
    }

    #[test]
    fn a_document_says_its_format() {
        assert_eq!(document(serde_json::json!({ "key": "a" })).to_string(), r#"{"format":1,"key":"a"}"#);
    }
}
