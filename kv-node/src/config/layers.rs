//! Defaults < file < environment < flags, and the faults found on the way.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::Config;
use super::check::check;
use super::settings::{SETTINGS, Setting};

/// One thing wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    key: String,
    origin: String,
    what: String,
}

impl Fault {
    pub(super) fn new(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key: key.into(), origin: String::new(), what: what.into() }
    }

    fn from(mut self, origin: impl Into<String>) -> Self {
        self.origin = origin.into();
        self
    }
}

/// Everything wrong, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Faults(Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault{}:", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        for Fault { key, origin, what } in &self.0 {
            write!(f, "\n  {key}: {what}")?;
            if !origin.is_empty() {
                write!(f, " ({origin})")?;
            }
        }
        Ok(())
    }
}

/// The command line without subcommands.
#[must_use]
pub fn command() -> Command {
    let file = Arg::new("config").long("config").value_name("FILE").global(true);
    let file = file.help("Configuration file (TOML); variables and flags override it [env: KV_CONFIG]");
    let command = Command::new("kv-node").version(env!("CARGO_PKG_VERSION")).about("One node of a key-value cluster");
    let command = command.subcommand_negates_reqs(true).arg(file);
    let command = command.subcommand(Command::new("config").about("Prints the configuration in effect and ends"));
    let shard = Arg::new("shard").long("shard").value_name("NUMBER").required(true);
    let shard = shard.value_parser(clap::value_parser!(u64)).help("The shard that lost its majority for good");
    let accept = Arg::new("accept").long("accept-data-loss").required(true).num_args(0);
    let accept = accept.help("Writes that only the lost replicas held are gone for ever");
    let recover = Command::new(RECOVER)
        .about("LAST RESORT, on a stopped node: makes its replica the only voter of a shard whose majority is gone for good")
        .arg(shard)
        .arg(accept);
    let command = command.subcommand(recover);
    SETTINGS.iter().fold(command, |command, setting| command.arg(argument(setting)))
}

fn argument(setting: &Setting) -> Arg {
    let shown = (setting.show)(&Config::default());
    let default = if shown.is_empty() { String::new() } else { format!(" [default: {shown}]") };
    let help = format!("{}{default} [env: {}]", setting.help, setting.variable());
    // Leaked: clap wants names that live as long as the process, and there are few.
    let flag: &'static str = setting.flag().leak();
    let argument = Arg::new(setting.key).long(flag).value_name(setting.value).help(help).global(true);
    if setting.switch {
        argument.num_args(0..=1).default_missing_value("true").require_equals(true)
    } else {
        argument.action(ArgAction::Set)
    }
}

/// Name of the subcommand that forces a shard to go on without its majority.
pub const RECOVER: &str = "unsafe-recover-shard";

/// The subcommand given, if any, with its arguments.
#[must_use]
pub fn subcommand_of(matches: &ArgMatches) -> Option<(&str, &ArgMatches)> {
    matches.subcommand()
}

/// Puts the layers together; `variable` looks an environment variable up.
pub fn load(matches: &ArgMatches, variable: impl Fn(&str) -> Option<String>) -> Result<Config, Faults> {
    let mut config = Config::default();
    let mut faults = Vec::new();

    let given = matches.try_get_one::<String>("config").ok().flatten().cloned();
    if let Some(file) = given.or_else(|| variable("KV_CONFIG")) {
        match read_file(Path::new(&file)) {
            Ok(values) => faults.extend(apply_file(&mut config, values, &file)),
            Err(what) => faults.push(Fault::new("config", what)),
        }
    }
    for setting in SETTINGS {
        let name = setting.variable();
        let from_variable = variable(&name).map(|text| (text, name));
        let from_flag = flag_value(matches, setting.key).map(|text| (text, format!("--{}", setting.flag())));
        for (text, origin) in from_variable.into_iter().chain(from_flag) {
            if let Err(what) = (setting.set)(&mut config, &text) {
                faults.push(Fault::new(setting.key, what).from(origin));
            }
        }
    }
    if config.advertise.is_empty() {
        config.advertise = config.listen.to_string();
    }
    if config.http_advertise.is_empty() {
        config.http_advertise = config.http_listen.to_string();
    }
    // A value that could not be read kept its default, which would only bring faults that are not there.
    let unread: Vec<String> = faults.iter().map(|fault| fault.key.clone()).collect();
    faults.extend(check(&config).into_iter().filter(|fault| !unread.contains(&fault.key)));
    if faults.is_empty() { Ok(config) } else { Err(Faults(faults)) }
}

fn flag_value(matches: &ArgMatches, key: &str) -> Option<String> {
    let given = matches.value_source(key) == Some(ValueSource::CommandLine);
    given.then(|| matches.get_one::<String>(key).cloned()).flatten()
}

fn read_file(file: &Path) -> Result<toml::Table, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    text.parse().map_err(|e: toml::de::Error| format!("{} is not TOML: {}", file.display(), e.message()))
}

fn apply_file(config: &mut Config, values: toml::Table, file: &str) -> Vec<Fault> {
    let settings: BTreeMap<&str, &Setting> = SETTINGS.iter().map(|setting| (setting.key, setting)).collect();
    let apply = |(key, value): (String, toml::Value)| {
        let applied = match settings.get(key.as_str()) {
            None => Err(unknown_key(&key)),
            Some(setting) => value_text(&value).and_then(|text| (setting.set)(config, &text)),
        };
        applied.err().map(|what| Fault::new(key, what).from(file))
    };
    values.into_iter().filter_map(apply).collect()
}

fn unknown_key(key: &str) -> String {
    let with_underscores = key.replace('-', "_");
    let known = SETTINGS.iter().find(|setting| setting.key == with_underscores);
    known.map_or_else(
        || "is not a known key".to_owned(),
        |setting| format!("is not a known key; did you mean {}", setting.key),
    )
}

fn value_text(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(switch) => Ok(switch.to_string()),
        toml::Value::Array(items) => {
            let items: Result<Vec<String>, String> = items.iter().map(value_text).collect();
            Ok(items?.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => {
            Err(format!("is a {}, which no setting takes", value.type_str()))
        }
    }
}

/// The configuration in effect, as a file that would give it.
#[must_use]
pub fn print(config: &Config) -> String {
    let line = |setting: &Setting| {
        let value = (setting.show)(config);
        // A number may be larger than those of TOML.
        let bare = !setting.quoted && (value.parse::<i64>().is_ok() || value.parse::<bool>().is_ok());
        let value = if bare { value } else { toml::Value::String(value).to_string() };
        format!("# {}\n{} = {value}\n", setting.help, setting.key)
    };
    SETTINGS.iter().map(line).collect()
}
