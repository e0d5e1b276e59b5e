//! `node`: list, status, drain, undrain, remove.
//!
//! Not here: what a replica costs (cost), which node is wrong (doctor).

use std::time::Duration;

use clap::Subcommand;
use kv_proto::pb::admin::v1::{
    DrainNodeRequest, Node, NodeListing, NodeState, RemoveNodeRequest, ReplicaStatus, UndrainNodeRequest,
};
use serde_json::json;

use crate::action::Waiting;
use crate::context::Context;
use crate::exit::{Exit, Explain as _, Failure};
use crate::human;
use crate::node_view;
use crate::progress::Progress;

/// How often the cluster is asked how far a drain is.
const POLL: Duration = Duration::from_millis(300);

/// `node`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes
    #[command(visible_alias = "ls")]
    List,
    /// Show what a node says of itself and its replicas
    #[command(visible_alias = "describe")]
    Status {
        /// As `node list` shows it; all nodes without it
        node: Option<u64>,
    },
    /// Move leaders and replicas off a node
    Drain {
        /// As `node list` shows it
        node: u64,
        /// Switch a named check off: "quorum" drains even if shards then have fewer replicas
        #[arg(long, value_name = "CHECK")]
        force: Vec<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Take a drain back
    Undrain {
        /// As `node list` shows it
        node: u64,
    },
    /// Remove a drained node from the cluster
    #[command(visible_alias = "rm")]
    Remove {
        /// As `node list` shows it
        node: u64,
        /// Switch a named check off: "not-drained" removes a dead node and replaces its replicas
        #[arg(long, value_name = "CHECK")]
        force: Vec<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
}

impl Context {
    /// `node ...`.
    pub(crate) async fn node(&self, command: &NodeCommand) -> Result<Exit, Failure> {
        match command {
            NodeCommand::List => {
                let nodes = self.nodes().await?;
                let json = json!({ "nodes": nodes.iter().map(node_view::to_json).collect::<Vec<_>>() });
                self.output.show(json, |look| node_view::table(&nodes).render(look))?;
                Ok(Exit::Ok)
            }
            NodeCommand::Status { node } => self.node_status(*node).await,
            NodeCommand::Drain { node, force, waiting } => self.drain(*node, force, *waiting).await,
            NodeCommand::Undrain { node } => {
                let doing = format!("undrain node {node}");
                let request = UndrainNodeRequest { node_id: *node };
                let response = self.admin().undrain_node(request).await.map_err(|error| error.write(&doing))?;
                self.show_node(response.node.unwrap_or_default(), &format!("node {node} takes replicas again"))
            }
            NodeCommand::Remove { node, force, waiting } => self.remove(*node, force, *waiting).await,
        }
    }

    async fn node_status(&self, node: Option<u64>) -> Result<Exit, Failure> {
        let mut nodes = self.nodes().await?;
        if let Some(node) = node {
            nodes.retain(|listing| id(listing) == node);
        } else {
            nodes.retain(|listing| listing.node.as_ref().is_some_and(|node| node.state() != NodeState::Removed));
        }
        if nodes.is_empty() {
            let node = node.unwrap_or_default();
            return Err(Failure::no("NOT_FOUND", format!("node {node} does not exist"))
                .advise("kvctl node list shows the nodes"));
        }
        let json = json!({ "nodes": nodes.iter().map(node_view::to_json_with_replicas).collect::<Vec<_>>() });
        self.output.show(json, |look| {
            nodes.iter().map(|listing| node_view::describe(listing, look)).collect::<Vec<_>>().join("\n\n")
        })?;
        Ok(Exit::Ok)
    }

    async fn drain(&self, node: u64, force: &[String], waiting: Waiting) -> Result<Exit, Failure> {
        let doing = format!("drain node {node}");
        let request = DrainNodeRequest { node_id: node, force: force.to_vec() };
        let response = self.admin().drain_node(request).await.map_err(|error| error.write(&doing))?;
        if waiting.no_wait {
            let text = format!("node {node} is being drained; kvctl node status {node} shows what it still holds");
            return self.show_node(response.node.unwrap_or_default(), &text);
        }
        let drained = self.follow(node, &doing, NodeState::Drained).await?;
        self.show_node(drained, &format!("node {node} is drained: it holds no replica and takes none"))
    }

    async fn remove(&self, node: u64, force: &[String], waiting: Waiting) -> Result<Exit, Failure> {
        let doing = format!("remove node {node}");
        let request = RemoveNodeRequest { node_id: node, force: force.to_vec() };
        let response = self.admin().remove_node(request).await.map_err(|error| error.write(&doing))?;
        let record = response.node.unwrap_or_default();
        if waiting.no_wait && record.state() != NodeState::Removed {
            return self.show_node(record, &format!("node {node} is being removed; its replicas are being replaced"));
        }
        let removed = self.follow(node, &doing, NodeState::Removed).await?;
        self.show_node(removed, &format!("node {node} is removed; its id will not be used again"))
    }

    fn show_node(&self, node: Node, text: &str) -> Result<Exit, Failure> {
        let listing = NodeListing { node: Some(node), ..NodeListing::default() };
        self.output.show(json!({ "node": node_view::record_json(&listing) }), |_| text.to_owned())?;
        Ok(Exit::Ok)
    }

    /// Until the node is in a state, with a bar over the replicas it still holds.
    async fn follow(&self, node: u64, doing: &str, until: NodeState) -> Result<Node, Failure> {
        let mut progress: Option<(Progress, usize)> = None;
        loop {
            match self.holdings(node).await {
                // A removed node may no longer be listed.
                Ok((None, _)) if until == NodeState::Removed => {
                    return Ok(Node { node_id: node, state: NodeState::Removed.into(), ..Node::default() });
                }
                Ok((Some(record), _)) if record.state() == until => return Ok(record),
                Ok((record, held)) => {
                    if until == NodeState::Drained && record.is_some_and(|record| record.state() == NodeState::Active) {
                        return Err(Failure::no("CANCELLED", format!("{doing} was taken back")));
                    }
                    let (bar, whole) =
                        progress.get_or_insert_with(|| (Progress::share(&self.output, held as u64), held));
                    bar.set((whole.saturating_sub(held)) as u64, format!("{} left", human::count(held, "replica")));
                }
                Err(failure) if failure.exit == Exit::Unavailable => {
                    if let Some((bar, _)) = &progress {
                        bar.set(0, "waiting for the cluster to answer");
                    }
                }
                Err(failure) => return Err(failure),
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                _ = tokio::signal::ctrl_c() => {
                    drop(progress);
                    return Err(Failure::interrupted("no longer waiting; the cluster goes on")
                        .advise(format!("kvctl node status {node} shows how far it is, kvctl node undrain {node} takes a drain back")));
                }
            }
        }
    }

    /// The node's record and how many replicas the catalog still places on it.
    async fn holdings(&self, node: u64) -> Result<(Option<Node>, usize), Failure> {
        let response = self.admin().get_catalog(kv_proto::pb::admin::v1::GetCatalogRequest {}).await;
        let catalog = response.map_err(|error| error.read("read the catalog"))?.catalog.unwrap_or_default();
        let held = catalog.shards.iter().flat_map(|shard| &shard.replicas).filter(|replica| replica.node_id == node);
        let held = held.count();
        Ok((catalog.nodes.into_iter().find(|record| record.node_id == node), held))
    }
}

/// Its number.
pub(crate) fn id(listing: &NodeListing) -> u64 {
    listing.node.as_ref().map_or(0, |node| node.node_id)
}

/// How many of them lead and are answered by a majority.
pub(crate) fn leaders(replicas: &[ReplicaStatus]) -> usize {
    replicas.iter().filter(|replica| replica.role == "leader" && !replica.no_quorum).count()
}
