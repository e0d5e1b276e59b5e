//! `put`, `get`, `del`.
//!
//! Invariants: a value goes to a pipe or file byte for byte, to a terminal only if it is harmless there.
//!
//! Not here: conditional writes (cas), many keys (scan, batch).

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use kv_client::Entry;
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::exit::{Exit, Explain as _, Failure};
use crate::human;
use crate::output::{Format, Grid, Text};
use crate::values::{self, Encoding, ValueSource};

/// `put`.
#[derive(Clone, Debug, clap::Args)]
#[command(override_usage = "kvctl put [OPTIONS] <KEY> <VALUE | - | --value-file FILE>")]
pub(crate) struct PutArgs {
    /// The key, in --key-encoding
    key: String,
    #[command(flatten)]
    value: ValueSource,
}

/// `get`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// The key, in --key-encoding
    key: String,
    /// Write the value to this file, byte for byte; `-` for standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// `del`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DelArgs {
    /// The keys, in --key-encoding
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

impl Context {
    /// `put`.
    pub(crate) async fn put(&self, args: &PutArgs) -> Result<Exit, Failure> {
        let (key, value) = (self.key(&args.key)?, args.value.read(self.global.value_encoding)?);
        let shown = self.show_key(&key);
        let version =
            self.here().put(key.clone(), value).await.map_err(|error| error.write(&format!("put {shown}")))?;
        let mut json = Map::new();
        values::put_json(&mut json, "key", &key);
        json.insert("version".into(), version.0.to_string().into());
        self.output.show(json.into(), |_| format!("{shown} written as version {}", version.0))?;
        Ok(Exit::Ok)
    }

    /// `get`.
    pub(crate) async fn get(&self, args: &GetArgs) -> Result<Exit, Failure> {
        let key = self.key(&args.key)?;
        let shown = self.show_key(&key);
        let get = self.here().get(key).consistency(self.consistency());
        let entry = get.await.map_err(|error| error.read(&format!("get {shown}")))?;
        let Some(entry) = entry else {
            return Err(Failure::no("KEY_NOT_FOUND", format!("key {shown} not found")));
        };
        match &args.out {
            Some(file) if file.as_os_str() == "-" => self.output.raw(&entry.value)?,
            Some(file) => self.save(file, &entry)?,
            None => self.show_entry(&entry)?,
        }
        Ok(Exit::Ok)
    }

    fn save(&self, file: &Path, entry: &Entry) -> Result<(), Failure> {
        std::fs::write(file, &entry.value).map_err(|error| Failure::local("write", file, &error))?;
        let mut json = entry_json(entry, false);
        json.insert("file".into(), file.display().to_string().into());
        json.insert("bytes".into(), entry.value.len().into());
        let text = format!("{} in {}", human::size(entry.value.len() as u64), file.display());
        self.output.show(json.into(), |_| text)
    }

    fn show_entry(&self, entry: &Entry) -> Result<(), Failure> {
        match self.global.output.unwrap_or(Format::Value) {
            Format::Json => self.output.show(entry_json(entry, true).into(), |_| String::new()),
            Format::Table => {
                let mut grid = Grid::new(&["KEY", "VALUE", ">VERSION", "WRITTEN"]);
                grid.row(self.entry_row(entry));
                self.output.show(Value::Null, |look| grid.render(look))
            }
            Format::Value => self.show_value(entry),
        }
    }

    fn show_value(&self, entry: &Entry) -> Result<(), Failure> {
        let encoding = self.global.value_encoding;
        if encoding != Encoding::Utf8 {
            return self.output.raw(format!("{}\n", encoding.show(&entry.value)).as_bytes());
        }
        if !std::io::stdout().is_terminal() {
            return self.output.raw(&entry.value);
        }
        match std::str::from_utf8(&entry.value) {
            Ok(text) if values::is_harmless_text(text) => {
                self.output.raw(format!("{}\n", text.strip_suffix('\n').unwrap_or(text)).as_bytes())
            }
            Ok(_) | Err(_) => {
                self.output.raw(format!("{}\n", values::show(&entry.value)).as_bytes())?;
                self.output.note("not plain text: shown escaped; --out FILE saves it byte for byte");
                Ok(())
            }
        }
    }

    /// Key, value, version and when it was written.
    pub(crate) fn entry_row(&self, entry: &Entry) -> Vec<Text> {
        vec![
            self.show_key(&entry.key).into(),
            self.global.value_encoding.show(&entry.value).into(),
            entry.version.0.into(),
            written(entry.version.0).into(),
        ]
    }

    /// `del`.
    pub(crate) async fn del(&self, args: &DelArgs) -> Result<Exit, Failure> {
        let keys = args.keys.iter().map(|key| self.key(key)).collect::<Result<Vec<_>, _>>()?;
        let (mut lines, mut list, mut absent) = (Vec::new(), Vec::new(), 0);
        for key in keys {
            let shown = self.show_key(&key);
            let deleted =
                self.here().delete(key.clone()).await.map_err(|error| error.write(&format!("delete {shown}")))?;
            let mut json = Map::new();
            values::put_json(&mut json, "key", &key);
            json.insert("existed".into(), deleted.existed.into());
            json.insert("version".into(), deleted.version.0.to_string().into());
            list.push(Value::Object(json));
            absent += usize::from(!deleted.existed);
            lines.push(if deleted.existed { format!("{shown} deleted") } else { format!("{shown} did not exist") });
        }
        let all_absent = absent == lines.len();
        self.output.show(json!({ "deleted": list }), |_| lines.join("\n"))?;
        Ok(if all_absent { Exit::No } else { Exit::Ok })
    }
}

/// When a version was written: the clock part of its commit timestamp.
pub(crate) fn written(version: u64) -> String {
    human::moment(version >> 16)
}

/// As documented in docs/kvctl.md.
pub(crate) fn entry_json(entry: &Entry, with_value: bool) -> Map<String, Value> {
    let mut json = Map::new();
    values::put_json(&mut json, "key", &entry.key);
    if with_value {
        values::put_json(&mut json, "value", &entry.value);
    }
    json.insert("version".into(), entry.version.0.to_string().into());
    json.insert("written_ms".into(), (entry.version.0 >> 16).into());
    json
}

#[cfg(test)]
mod tests {
    use kv_proto::timestamp::Timestamp;

    use super::*;

    #[test]
    fn a_version_too_large_for_a_float_is_a_string_in_json() {
        let version = Timestamp((1_700_000_000_000 << 16) + 1);
        let entry = Entry { key: "k".into(), value: vec![0xff].into(), version };
        let json = Value::Object(entry_json(&entry, true)).to_string();
        let expected = r#"{"key":"k","value_base64":"/w==","version":"111411200000000001","written_ms":1700000000000}"#;
        assert_eq!(json, expected);
        assert_eq!(written(version.0), "2023-11-14T22:13:20.000Z");
    }
}
