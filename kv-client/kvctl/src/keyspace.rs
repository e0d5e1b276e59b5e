//! `keyspace`: list, create, delete.
//!
//! Not here: the shards of a keyspace (shard).

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Subcommand;
use kv_proto::pb::admin::v1::{
    CreateKeyspaceRequest, DeleteKeyspaceRequest, Keyspace, KeyspaceKind, KeyspaceListing, KeyspaceState,
    ListKeyspacesRequest,
};
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::{Exit, Explain as _, Failure};
use crate::human;
use crate::output::{Grid, Text, Tone, toned};
use crate::progress::Progress;
use crate::values;

/// How often the cluster is asked whether a keyspace is ready.
const POLL: Duration = Duration::from_millis(200);

/// `keyspace`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KeyspaceCommand {
    /// List keyspaces
    #[command(visible_alias = "ls")]
    List,
    /// Create a keyspace
    Create(CreateArgs),
    /// Delete a keyspace with all its data
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// `keyspace create`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Its name
    name: String,
    /// Spread keys evenly by hash; scans go in hash order (this is the default)
    #[arg(long, conflicts_with = "range")]
    hash: bool,
    /// Keep keys in order; scans go in key order
    #[arg(long)]
    range: bool,
    /// Voters per shard: 1, 3, 5 or 7; 0 takes the cluster's default
    #[arg(long, default_value_t = 0, value_name = "N")]
    replicas: u32,
    /// Shards to begin with; 0 takes the cluster's default
    #[arg(long, default_value_t = 0, value_name = "N", conflicts_with = "range")]
    shards: u32,
    /// For --range: the first key of another shard, in --key-encoding; repeatable
    #[arg(long, value_name = "KEY", requires = "range")]
    split: Vec<String>,
    /// How long overwritten versions are kept for snapshot reads
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    retention: Duration,
    /// Return before the keyspace is ready
    #[arg(long)]
    no_wait: bool,
}

impl Context {
    /// `keyspace ...`.
    pub(crate) async fn keyspace(&self, command: &KeyspaceCommand) -> Result<Exit, Failure> {
        match command {
            KeyspaceCommand::List => {
                let keyspaces = self.keyspaces().await?;
                let json = json!({ "keyspaces": keyspaces.iter().map(to_json).collect::<Vec<_>>() });
                self.output.show(json, |look| table(&keyspaces).render(look))?;
                Ok(Exit::Ok)
            }
            KeyspaceCommand::Create(args) => self.create_keyspace(args).await,
            KeyspaceCommand::Delete { name, yes } => self.delete_keyspace(name, *yes).await,
        }
    }

    /// As the cluster lists them.
    pub(crate) async fn keyspaces(&self) -> Result<Vec<KeyspaceListing>, Failure> {
        let response = self.admin().list_keyspaces(ListKeyspacesRequest {}).await;
        Ok(response.map_err(|error| error.read("list keyspaces"))?.keyspaces)
    }

    async fn create_keyspace(&self, args: &CreateArgs) -> Result<Exit, Failure> {
        let mut split_keys = args.split.iter().map(|key| self.key(key)).collect::<Result<Vec<_>, _>>()?;
        split_keys.sort();
        let shards = if split_keys.is_empty() { args.shards } else { u32::try_from(split_keys.len() + 1).unwrap_or(0) };
        let request = CreateKeyspaceRequest {
            name: args.name.clone(),
            kind: if args.range { KeyspaceKind::Range } else { KeyspaceKind::Hash }.into(),
            replicas: args.replicas,
            retention_seconds: args.retention.as_secs(),
            shards,
            split_keys,
        };
        let name = values::show(args.name.as_bytes());
        let doing = format!("create keyspace {name}");
        let response = self.admin().create_keyspace(request).await.map_err(|error| error.write(&doing))?;
        let mut listing = KeyspaceListing { keyspace: response.keyspace, shards };
        if !args.no_wait {
            listing = self.await_ready(listing).await?;
        }
        let state = state_name(listing.keyspace.as_ref().map_or(KeyspaceState::Unspecified, Keyspace::state));
        self.output.show(json!({ "keyspace": to_json(&listing) }), |_| format!("keyspace {name} is {state}"))?;
        Ok(Exit::Ok)
    }

    async fn await_ready(&self, mut listing: KeyspaceListing) -> Result<KeyspaceListing, Failure> {
        let id = listing.keyspace.as_ref().map_or(0, |keyspace| keyspace.keyspace_id);
        let progress = Progress::endless(&self.output);
        let deadline = tokio::time::Instant::now() + self.global.timeout.max(Duration::from_secs(30));
        while listing.keyspace.as_ref().is_some_and(|keyspace| keyspace.state() == KeyspaceState::Creating) {
            if tokio::time::Instant::now() > deadline {
                return Err(Failure::unavailable("the keyspace was created, but its shards are not ready yet")
                    .advise("kvctl keyspace list shows its state, kvctl doctor what holds it up"));
            }
            progress.set(0, "waiting for its shards to elect leaders");
            tokio::time::sleep(POLL).await;
            let mut keyspaces = match self.keyspaces().await {
                Ok(keyspaces) => keyspaces.into_iter(),
                Err(failure) if failure.exit == Exit::Unavailable => continue,
                Err(failure) => return Err(failure),
            };
            let is_it = |other: &KeyspaceListing| other.keyspace.as_ref().is_some_and(|k| k.keyspace_id == id);
            listing = keyspaces.find(is_it).unwrap_or_default();
        }
        Ok(listing)
    }

    async fn delete_keyspace(&self, name: &str, yes: bool) -> Result<Exit, Failure> {
        let shown = values::show(name.as_bytes());
        if !yes {
            confirm(&format!("Delete keyspace {shown} with all its data?"))?;
        }
        let request = DeleteKeyspaceRequest { name: name.to_owned() };
        let doing = format!("delete keyspace {shown}");
        let response = self.admin().delete_keyspace(request).await.map_err(|error| error.write(&doing))?;
        let listing = KeyspaceListing { keyspace: response.keyspace, shards: 0 };
        self.output.show(json!({ "keyspace": to_json(&listing) }), |_| format!("keyspace {shown} is deleted"))?;
        Ok(Exit::Ok)
    }
}

/// Asks on the terminal; without one, `--yes` is needed.
fn confirm(question: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("this deletes data: add --yes to do it without being asked"));
    }
    let mut error = std::io::stderr().lock();
    drop(write!(error, "{question} Type yes: ").and_then(|()| error.flush()));
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        Ok(_) | Err(_) => Err(Failure::no("NOT_CONFIRMED", "nothing was deleted")),
    }
}

/// `hash` or `range`.
pub(crate) fn kind_name(kind: KeyspaceKind) -> &'static str {
    match kind {
        KeyspaceKind::Hash => "hash",
        KeyspaceKind::Range => "range",
        KeyspaceKind::Unspecified => "unknown",
    }
}

fn state_name(state: KeyspaceState) -> &'static str {
    match state {
        KeyspaceState::Creating => "being created",
        KeyspaceState::Ready => "ready",
        KeyspaceState::Deleting => "being deleted",
        KeyspaceState::Unspecified => "unknown",
    }
}

fn state_word(state: KeyspaceState) -> &'static str {
    match state {
        KeyspaceState::Creating => "creating",
        KeyspaceState::Ready => "ready",
        KeyspaceState::Deleting => "deleting",
        KeyspaceState::Unspecified => "unknown",
    }
}

/// As documented in docs/kvctl.md.
fn to_json(listing: &KeyspaceListing) -> Value {
    let keyspace = listing.keyspace.clone().unwrap_or_default();
    json!({
        "keyspace_id": keyspace.keyspace_id,
        "name": keyspace.name,
        "kind": kind_name(keyspace.kind()),
        "replicas": keyspace.replicas,
        "shards": listing.shards,
        "retention_seconds": keyspace.retention_seconds,
        "state": state_word(keyspace.state()),
        "epoch": keyspace.epoch,
    })
}

fn table(keyspaces: &[KeyspaceListing]) -> Grid {
    let mut grid = Grid::new(&["NAME", "KIND", ">SHARDS", ">REPLICAS", ">RETENTION", "STATE", ">ID?"]);
    for listing in keyspaces {
        let keyspace = listing.keyspace.clone().unwrap_or_default();
        let retention = match keyspace.retention_seconds {
            0 => "none".to_owned(),
            seconds => human::duration(Duration::from_secs(seconds)),
        };
        let tone = if keyspace.state() == KeyspaceState::Ready { Tone::Good } else { Tone::Warn };
        grid.row(vec![
            Text::from(values::show(keyspace.name.as_bytes())),
            kind_name(keyspace.kind()).into(),
            listing.shards.into(),
            keyspace.replicas.into(),
            retention.into(),
            toned(state_word(keyspace.state()), tone),
            keyspace.keyspace_id.into(),
        ]);
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Look;

    #[test]
    fn the_table_shows_kind_shards_and_state() {
        let keyspace = |name: &str, kind: KeyspaceKind, retention_seconds| Keyspace {
            keyspace_id: 2,
            name: name.into(),
            kind: kind.into(),
            replicas: 3,
            retention_seconds,
            state: KeyspaceState::Ready.into(),
            epoch: 1,
        };
        let list = [
            KeyspaceListing { keyspace: Some(keyspace("default", KeyspaceKind::Hash, 0)), shards: 6 },
            KeyspaceListing { keyspace: Some(keyspace("orders", KeyspaceKind::Range, 86_400)), shards: 1 },
        ];
        let expected = "\
NAME     KIND   SHARDS  REPLICAS  RETENTION  STATE  ID
default  hash        6         3       none  ready   2
orders   range       1         3      1d 0h  ready   2";
        assert_eq!(table(&list).render(Look::default()), expected);
    }
}
