//! The command line: options that hold for every command, and the commands.
//!
//! Invariants: the same parser reads a shell's command line and a line of the interactive mode.
//!
//! Not here: what a command does (the module of its noun).

use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::output::{Format, When};
use crate::values::Encoding;
use crate::{action, batch, bench, cas, checkup, cost, data, keyspace, node, scan, shard};

/// The endpoints of the cluster that scripts/cluster starts.
const LOCAL_CLUSTER: &str = "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003";

/// A node gives up a request after a minute at the latest.
const TIMEOUT_MAX: Duration = Duration::from_millis(kv_proto::limits::TIMEOUT_MS_MAX as u64);

/// Reads, writes and runs a kv cluster.
///
/// Without a command on a terminal it becomes interactive.
#[derive(Clone, Debug, Parser)]
#[command(name = "kvctl", version, max_term_width = 100, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// For every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the answer is no: key not found, condition not met, refused, an action that failed
  2  the command line or the request is wrong
  3  unavailable or timed out; nothing was applied
  4  outcome unknown: the write may or may not be applied
  5  doctor, health or shard check found problems
  6  a local file or stream cannot be read or written
  130  Ctrl-C";

/// For every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Addresses of nodes; any of them will do
    #[arg(
        long,
        global = true,
        env = "KV_ENDPOINTS",
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        hide_env_values = true,
        default_value = LOCAL_CLUSTER
    )]
    pub(crate) endpoints: Vec<String>,

    /// The keyspace that keys belong to
    #[arg(long, short, global = true, env = "KV_KEYSPACE", hide_env_values = true, default_value = "default")]
    pub(crate) keyspace: String,

    /// How long a request may take, retries included
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s", value_parser = parse_timeout)]
    pub(crate) timeout: Duration,

    /// What to print: table (default) or json; get also knows value, which is its default
    #[arg(long, short, global = true, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) output: Option<Format>,

    /// What reads promise: linearizable, lease, stale[:MAX_AGE] or snapshot:TIMESTAMP
    #[arg(long, global = true, value_name = "PROMISE", default_value = "linearizable", value_parser = parse_promise)]
    pub(crate) consistency: Promise,

    /// How keys are written on the command line and in tables: utf8, hex or base64
    #[arg(long, global = true, value_name = "ENCODING", hide_possible_values = true, default_value = "utf8")]
    pub(crate) key_encoding: Encoding,

    /// How values are written on the command line and in tables: utf8, hex or base64
    #[arg(long, global = true, value_name = "ENCODING", hide_possible_values = true, default_value = "utf8")]
    pub(crate) value_encoding: Encoding,

    /// When to use colour: auto (on a terminal, unless NO_COLOR is set), always or never
    #[arg(long, global = true, value_name = "WHEN", hide_possible_values = true, default_value = "auto")]
    pub(crate) color: When,
}

impl Global {
    /// What to print where a command has no preference of its own.
    pub(crate) fn format(&self) -> Format {
        self.output.unwrap_or_default()
    }

    /// Takes from a session what this command line does not name.
    pub(crate) fn inherit(&mut self, session: &Self, matches: &clap::ArgMatches) {
        let named = |id: &str| deepest(matches).value_source(id) == Some(ValueSource::CommandLine);
        let given = self.clone();
        *self = session.clone();
        if named("endpoints") {
            self.endpoints = given.endpoints;
        }
        if named("keyspace") {
            self.keyspace = given.keyspace;
        }
        if named("timeout") {
            self.timeout = given.timeout;
        }
        if named("output") {
            self.output = given.output;
        }
        if named("consistency") {
            self.consistency = given.consistency;
        }
        if named("key_encoding") {
            self.key_encoding = given.key_encoding;
        }
        if named("value_encoding") {
            self.value_encoding = given.value_encoding;
        }
        if named("color") {
            self.color = given.color;
        }
    }
}

/// Options for every command are found at the innermost one.
fn deepest(matches: &clap::ArgMatches) -> &clap::ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| deepest(inner))
}

/// What a read promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Sees every write acknowledged before.
    Linearizable,
    /// The same while clocks drift within the bound.
    Lease,
    /// At most so old; None: however old.
    Stale(Option<Duration>),
    /// The state at a commit timestamp.
    Snapshot(u64),
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a key
    Put(data::PutArgs),
    /// Read a key
    Get(data::GetArgs),
    /// Delete keys
    Del(data::DelArgs),
    /// Write or delete a key if it is as expected
    Cas(cas::CasArgs),
    /// List keys
    Scan(scan::ScanArgs),
    /// Run many writes from a file
    Batch(batch::BatchArgs),
    /// Keyspaces
    #[command(subcommand, visible_alias = "keyspaces")]
    Keyspace(keyspace::KeyspaceCommand),
    /// Nodes
    #[command(subcommand, visible_alias = "nodes")]
    Node(node::NodeCommand),
    /// Shards, their replicas and leaders
    #[command(subcommand, visible_alias = "shards")]
    Shard(shard::ShardCommand),
    /// Long actions, such as moving a replica
    #[command(subcommand, visible_alias = "actions")]
    Action(action::ActionCommand),
    /// The cluster at a glance, and what a replica costs
    Status(cost::StatusArgs),
    /// Whether requests can be served (exit code 0 or 5)
    Health,
    /// What is wrong and what to do about it (exit code 0 or 5)
    Doctor(checkup::DoctorArgs),
    /// Measure throughput and latency under a load
    Bench(Box<bench::BenchArgs>),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Interactive mode with history and completion
    Shell,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err(format!("must be more than 0 and at most {}", humantime::format_duration(TIMEOUT_MAX)));
    }
    Ok(timeout)
}

fn parse_promise(text: &str) -> Result<Promise, String> {
    match text.split_once(':') {
        None if text == "linearizable" => Ok(Promise::Linearizable),
        None if text == "lease" => Ok(Promise::Lease),
        None if text == "stale" => Ok(Promise::Stale(None)),
        Some(("stale", age)) => match humantime::parse_duration(age) {
            Ok(age) if age.is_zero() => {
                Err("a state of age 0 is linearizable; stale alone means however old".to_owned())
            }
            Ok(age) => Ok(Promise::Stale(Some(age))),
            Err(error) => Err(error.to_string()),
        },
        Some(("snapshot", timestamp)) => {
            timestamp.parse().map(Promise::Snapshot).map_err(|error| format!("a version as get shows it: {error}"))
        }
        None | Some(_) => Err("one of linearizable, lease, stale, stale:MAX_AGE, snapshot:TIMESTAMP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_local_cluster_is_the_default() {
        let cli = parse("kvctl get a --endpoints 127.0.0.1:1,127.0.0.1:2").unwrap();
        assert_eq!(cli.global.endpoints, ["127.0.0.1:1", "127.0.0.1:2"]);
        if std::env::var_os("KV_ENDPOINTS").is_none() {
            assert_eq!(parse("kvctl get a").unwrap().global.endpoints.len(), 3);
        }
    }

    #[test]
    fn options_may_stand_before_and_after_the_command() {
        for line in ["kvctl -o json -k users get a", "kvctl get a -k users -o json"] {
            let cli = parse(line).unwrap();
            assert_eq!((cli.global.keyspace.as_str(), cli.global.format()), ("users", Format::Json));
        }
    }

    #[test]
    fn consistency_is_read_with_its_argument() {
        let promises = [
            ("lease", Promise::Lease),
            ("stale", Promise::Stale(None)),
            ("stale:500ms", Promise::Stale(Some(Duration::from_millis(500)))),
            ("snapshot:77", Promise::Snapshot(77)),
        ];
        for (text, promise) in promises {
            assert_eq!(parse(&format!("kvctl get a --consistency {text}")).unwrap().global.consistency, promise);
        }
        assert!(parse("kvctl get a --consistency eventual").is_err());
        assert!(parse("kvctl get a --consistency stale:soon").is_err());
        assert!(parse("kvctl get a --consistency stale:0s").is_err());
    }

    #[test]
    fn a_timeout_is_positive_and_bounded() {
        for text in ["0s", "61s", "soon"] {
            assert!(parse(&format!("kvctl get a --timeout {text}")).is_err(), "{text}");
        }
        assert_eq!(parse("kvctl get a --timeout 60s").unwrap().global.timeout, TIMEOUT_MAX);
    }

    #[test]
    fn every_command_that_the_manual_names_parses() {
        let lines = "\
            put a b|put a --value-file f|put a -|get a|get a --out f|del a b c|cas a --expect x --set y
            cas a --absent --set y|cas a --version 7 --delete|cas a --exists --set y|scan|scan --prefix u --limit 5
            scan --start a --end b --keys-only --cursor abc|batch f|batch - --atomic|keyspace list
            keyspace create users --range --split m --replicas 3|keyspace create u --shards 12 --retention 1h
            keyspace delete users --yes|node list|node status|node status 2|node drain 3|node undrain 3
            node remove 3 --force not-drained|shard list|shard describe 4|shard move 4 --from 1 --to 2
            shard check 4|shard transfer-leader 4 --to 2|shard transfer-leader 4|shard add-learner 4 --node 3
            shard promote 4 --node 3|shard change-voters 4 --nodes 1,2,3|shard remove-replica 4 --node 3 --no-wait
            action list|action list --running|action cancel 7|action wait 7|status|status --cost --interval 10s
            health|doctor|completions bash|shell";
        for line in lines.split(['|', '\n']) {
            parse(&format!("kvctl {line}")).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let lines = [
            "put a",
            "put a b --value-file f",
            "cas a --set y",
            "cas a --absent",
            "cas a --absent --exists --set y",
            "cas a --absent --set y --delete",
            "scan --prefix a --start b",
            "scan --limit 0",
            "keyspace create u --range --shards 3 --hash",
            "shard move 4 --to 2 --from x",
            "node drain",
        ];
        for line in lines {
            assert!(parse(&format!("kvctl {line}")).is_err(), "{line}");
        }
    }
}
