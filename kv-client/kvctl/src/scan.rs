//! `scan`: lists keys, page by page.
//!
//! Invariants: memory holds about one page, however long the scan; a JSON document is written as it comes.
//!
//! Not here: pages and cursors themselves (kv-client, scan).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kv_client::{Cursor, Entry, Scan};
use serde_json::Value;

use crate::context::Context;
use crate::data::{entry_json, written};
use crate::exit::{Exit, Explain as _, Failure};
use crate::human;
use crate::output::{Grid, JSON_FORMAT, Text};
use crate::values;

/// Rows that get a common column width, and entries asked for at once.
const PAGE: usize = 1000;

/// Bytes of values after which rows are shown without waiting for a whole page.
const SHOWN_BYTES: usize = 1 << 20;

/// Characters of a value on a terminal; `get` shows all of it.
const VALUE_SHOWN: usize = 60;

/// `scan`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ScanArgs {
    /// Only keys that begin so, in --key-encoding
    #[arg(long, short, conflicts_with_all = ["start", "end"])]
    prefix: Option<String>,
    /// First key, inclusive
    #[arg(long)]
    start: Option<String>,
    /// Last key, exclusive
    #[arg(long)]
    end: Option<String>,
    /// Most keys; the cursor for the rest is printed
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Go on where a scan with the same bounds ended
    #[arg(long)]
    cursor: Option<String>,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
}

impl Context {
    /// `scan`.
    pub(crate) async fn scan(&self, args: &ScanArgs) -> Result<Exit, Failure> {
        let mut left = args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let mut cursor = args.cursor.as_deref().map(decode_cursor).transpose()?;
        let (mut printed, mut bytes, mut entries) = (0_usize, 0_usize, Vec::new());
        if self.output.is_json() {
            self.output.raw(format!("{{\"format\":{JSON_FORMAT},\"entries\":[").as_bytes())?;
        }
        loop {
            let scan = self.begin_scan(args)?.page_size(left.min(PAGE));
            let page = match scan.page(cursor.take()).await {
                Ok(page) => page,
                Err(error) => {
                    self.show_entries(args, &entries, printed)?;
                    return Err(error.read("scan"));
                }
            };
            left = left.saturating_sub(page.entries.len());
            bytes += page.entries.iter().map(|entry| entry.value.len()).sum::<usize>();
            entries.extend(page.entries);
            cursor = page.next;
            let is_over = left == 0 || cursor.is_none();
            // A page ends with its shard: small ones are shown together, so that their columns are the same.
            if is_over || entries.len() >= PAGE || bytes >= SHOWN_BYTES {
                self.show_entries(args, &entries, printed)?;
                printed += entries.len();
                entries.clear();
                bytes = 0;
            }
            if is_over {
                break;
            }
        }
        let cursor = cursor.map(|cursor| URL_SAFE_NO_PAD.encode(cursor.as_bytes()));
        if self.output.is_json() {
            let cursor = cursor.map_or(Value::Null, Value::from);
            self.output.raw(format!("],\"cursor\":{cursor}}}\n").as_bytes())?;
        } else {
            self.output.note(&human::count(printed, "key"));
            if let Some(cursor) = cursor {
                self.output.note(&format!("there is more: repeat the command with --cursor {cursor}"));
            }
        }
        Ok(Exit::Ok)
    }

    fn begin_scan(&self, args: &ScanArgs) -> Result<Scan, Failure> {
        let mut scan = self.here().scan().consistency(self.consistency());
        if let Some(prefix) = &args.prefix {
            scan = scan.prefix(self.key(prefix)?);
        }
        if let Some(start) = &args.start {
            scan = scan.start(self.key(start)?);
        }
        if let Some(end) = &args.end {
            scan = scan.end(self.key(end)?);
        }
        Ok(if args.keys_only { scan.keys_only() } else { scan })
    }

    fn show_entries(&self, args: &ScanArgs, entries: &[Entry], printed: usize) -> Result<(), Failure> {
        if entries.is_empty() {
            return Ok(());
        }
        if self.output.is_json() {
            let documents = entries.iter().map(|entry| Value::Object(entry_json(entry, !args.keys_only)).to_string());
            let text = documents.collect::<Vec<_>>().join(",\n");
            let separator = if printed > 0 { ",\n" } else { "" };
            return self.output.raw(format!("{separator}{text}").as_bytes());
        }
        let look = self.output.look;
        let on_terminal = look.width.is_some();
        let names: &[&str] =
            if args.keys_only { &["KEY", ">VERSION?", "WRITTEN?"] } else { &["KEY", "VALUE", ">VERSION?", "WRITTEN?"] };
        let mut grid = Grid::new(names);
        for entry in entries {
            let mut row: Vec<Text> = vec![self.show_key(&entry.key).into()];
            if !args.keys_only {
                let value = self.global.value_encoding.show(&entry.value);
                row.push(if on_terminal { values::shorten(&value, VALUE_SHOWN) } else { value }.into());
            }
            row.extend([entry.version.0.into(), written(entry.version.0).into()]);
            grid.row(row);
        }
        let text = grid.render(look);
        let shown = if printed > 0 { text.split_once('\n').map_or("", |(_, rows)| rows) } else { &text };
        self.output.raw(format!("{shown}\n").as_bytes())
    }
}

fn decode_cursor(text: &str) -> Result<Cursor, Failure> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| {
        Failure::usage("the cursor is damaged: copy it as the last scan printed it")
            .advise("leave --cursor out to begin again")
    })?;
    Ok(Cursor::from_bytes(bytes))
}
