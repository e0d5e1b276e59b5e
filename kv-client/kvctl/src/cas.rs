//! `cas`: writes or deletes a key if it is as expected.
//!
//! Not here: conditions on several keys (kv-client, batch).

use std::path::PathBuf;

use kv_client::CasResult;
use kv_proto::timestamp::Timestamp;
use serde_json::{Map, Value};

use crate::context::Context;
use crate::data::entry_json;
use crate::exit::{Exit, Explain as _, Failure};
use crate::values::{self, ValueSource};

/// `cas`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    override_usage = "kvctl cas [OPTIONS] <KEY> <--expect V | --expect-file F | --version N | --absent | --exists> \
    <--set V | --set-file F | --delete>"
)]
pub(crate) struct CasArgs {
    /// The key, in --key-encoding
    key: String,
    #[command(flatten)]
    expected: Expected,
    #[command(flatten)]
    change: Change,
}

/// What the key must be.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Expected {
    /// Only if it holds this value, in --value-encoding
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    expect: Option<String>,
    /// Only if it holds what is in this file
    #[arg(long, value_name = "FILE")]
    expect_file: Option<PathBuf>,
    /// Only if it was last written as this version
    #[arg(long)]
    version: Option<u64>,
    /// Only if it does not exist
    #[arg(long)]
    absent: bool,
    /// Only if it exists
    #[arg(long)]
    exists: bool,
}

/// What becomes of it.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Change {
    /// Write this value, in --value-encoding; `-` reads standard input
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    set: Option<String>,
    /// Write what is in this file
    #[arg(long, value_name = "FILE")]
    set_file: Option<PathBuf>,
    /// Delete the key
    #[arg(long)]
    delete: bool,
}

impl Context {
    /// `cas`.
    pub(crate) async fn cas(&self, args: &CasArgs) -> Result<Exit, Failure> {
        let encoding = self.global.value_encoding;
        let key = self.key(&args.key)?;
        let shown = self.show_key(&key);
        let (wanted, change) = (&args.expected, &args.change);
        let begin = self.here().compare_and_set(key.clone());
        let expecting = if let Some(version) = wanted.version {
            begin.expect_version(Timestamp(version))
        } else if wanted.absent {
            begin.expect_absent()
        } else if wanted.exists {
            begin.expect_exists()
        } else if let Some(value) = &wanted.expect {
            begin.expect_value(encoding.decode("value", value)?)
        } else {
            let source = ValueSource { value: None, value_file: wanted.expect_file.clone() };
            begin.expect_value(source.read(encoding)?)
        };
        let write = if change.delete {
            expecting.delete()
        } else {
            let source = ValueSource { value: change.set.clone(), value_file: change.set_file.clone() };
            expecting.set(source.read(encoding)?)
        };
        let mut json = Map::new();
        values::put_json(&mut json, "key", &key);
        match write.await.map_err(|error| error.write(&format!("cas {shown}")))? {
            CasResult::Applied { version } => {
                json.insert("succeeded".into(), true.into());
                json.insert("version".into(), version.0.to_string().into());
                let done = if change.delete { "deleted" } else { "written" };
                self.output.show(json.into(), |_| format!("{shown} {done} as version {}", version.0))?;
                Ok(Exit::Ok)
            }
            CasResult::Refused { current } => {
                json.insert("succeeded".into(), false.into());
                let current_json = current.as_ref().map(|entry| Value::Object(entry_json(entry, true)));
                json.insert("current".into(), current_json.unwrap_or(Value::Null));
                let now = match &current {
                    None => "it does not exist".to_owned(),
                    Some(entry) => format!("version {} holds: {}", entry.version.0, encoding.show(&entry.value)),
                };
                self.output.show(json.into(), |_| format!("refused: {shown} is not as expected: {now}"))?;
                Ok(Exit::No)
            }
        }
    }
}
