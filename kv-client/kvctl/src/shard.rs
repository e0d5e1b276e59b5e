//! `shard`: list, describe, and the commands that change replicas and leaders.
//!
//! Not here: following the actions these commands start (action), how shards are shown (shard_view).

use clap::Subcommand;
use kv_proto::pb::admin::v1::{
    Action, AddLearnerRequest, ChangeVotersRequest, CheckShardRequest, MoveReplicaRequest, PromoteLearnerRequest,
    RemoveReplicaRequest, TransferLeaderRequest,
};
use serde_json::json;

use crate::action::Waiting;
use crate::context::Context;
use crate::doctor::leader_of;
use crate::exit::{Exit, Explain as _, Failure};
use crate::human;
use crate::shard_view;

/// `shard`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ShardCommand {
    /// List shards with leader, replicas and lag
    #[command(visible_alias = "ls")]
    List {
        /// Only this keyspace
        #[arg(value_name = "KEYSPACE")]
        of: Option<String>,
    },
    /// Show a shard's range and the state of each replica
    Describe {
        /// As `shard list` shows it
        shard: u64,
    },
    /// Move a replica from one node to another
    Move {
        /// As `shard list` shows it
        shard: u64,
        /// The node that gives its replica up
        #[arg(long, value_name = "NODE")]
        from: u64,
        /// The node that gets one
        #[arg(long, value_name = "NODE")]
        to: u64,
        #[command(flatten)]
        plan: Plan,
    },
    /// Compare the content of all replicas (exit code 0 or 5)
    Check {
        /// As `shard list` shows it
        shard: u64,
    },
    /// Hand leadership to another replica
    TransferLeader {
        /// As `shard list` shows it
        shard: u64,
        /// To the replica on this node; without it, to the one that is most caught up
        #[arg(long, value_name = "NODE")]
        to: Option<u64>,
    },
    /// Add a learner: a replica that does not vote
    AddLearner {
        /// As `shard list` shows it
        shard: u64,
        /// Where
        #[arg(long)]
        node: u64,
        #[command(flatten)]
        plan: Plan,
    },
    /// Make a caught-up learner a voter
    Promote {
        /// As `shard list` shows it
        shard: u64,
        /// Where the learner is
        #[arg(long)]
        node: u64,
        #[command(flatten)]
        plan: Plan,
    },
    /// Set the voters to exactly the replicas on these nodes
    ChangeVoters {
        /// As `shard list` shows it
        shard: u64,
        /// Nodes of all voters
        #[arg(long, value_name = "NODE,...", value_delimiter = ',', required = true)]
        nodes: Vec<u64>,
        /// Switch a named check off: "quorum" allows fewer voters than the keyspace asks for
        #[arg(long, value_name = "CHECK")]
        force: Vec<String>,
        #[command(flatten)]
        plan: Plan,
    },
    /// Remove the replica on a node
    RemoveReplica {
        /// As `shard list` shows it
        shard: u64,
        /// Where the replica is
        #[arg(long)]
        node: u64,
        /// Switch a named check off: "quorum" allows fewer voters than the keyspace asks for
        #[arg(long, value_name = "CHECK")]
        force: Vec<String>,
        #[command(flatten)]
        plan: Plan,
    },
}

/// For every change of replicas.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Plan {
    /// Only if the shard is still at this epoch; 0 does not check
    #[arg(long, default_value_t = 0)]
    epoch: u64,
    #[command(flatten)]
    waiting: Waiting,
}

impl Context {
    /// `shard ...`.
    pub(crate) async fn shard(&self, command: &ShardCommand) -> Result<Exit, Failure> {
        match command {
            ShardCommand::List { of } => self.list_shards(of.as_deref().unwrap_or_default()).await,
            ShardCommand::Describe { shard } => self.describe_shard(*shard).await,
            ShardCommand::Check { shard } => self.check_shard(*shard).await,
            ShardCommand::TransferLeader { shard, to } => self.transfer_leader(*shard, *to).await,
            ShardCommand::Move { plan, .. }
            | ShardCommand::AddLearner { plan, .. }
            | ShardCommand::Promote { plan, .. }
            | ShardCommand::ChangeVoters { plan, .. }
            | ShardCommand::RemoveReplica { plan, .. } => {
                let (doing, answer) = self.change_replicas(command, plan.epoch).await;
                let action = answer.map_err(|error| error.write(&doing))?;
                let action = action.ok_or_else(|| Failure::unavailable("the node named no action").doing(doing))?;
                self.finish_action(action, plan.waiting).await
            }
        }
    }

    async fn list_shards(&self, keyspace: &str) -> Result<Exit, Failure> {
        let mut shards = self.shards(keyspace, 0).await?;
        shards.sort_by_key(|listing| listing.shard.as_ref().map(|shard| (shard.keyspace_id, shard.start.clone())));
        let kinds = self.kinds().await?;
        let json = json!({
            "shards": shards.iter().map(|listing| shard_view::to_json(listing, &kinds)).collect::<Vec<_>>()
        });
        self.output.show(json, |look| {
            if shards.is_empty() { "no shards".to_owned() } else { shard_view::table(&shards, &kinds).render(look) }
        })?;
        Ok(Exit::Ok)
    }

    async fn describe_shard(&self, shard: u64) -> Result<Exit, Failure> {
        let listing = self.one_shard(shard).await?;
        let kinds = self.kinds().await?;
        let json = json!({ "shard": shard_view::to_json(&listing, &kinds) });
        self.output.show(json, |look| shard_view::describe(&listing, &kinds, look))?;
        Ok(Exit::Ok)
    }

    async fn one_shard(&self, shard: u64) -> Result<kv_proto::pb::admin::v1::ShardListing, Failure> {
        let listings = self.shards("", shard).await?;
        let is_it = |record: &kv_proto::pb::admin::v1::Shard| record.shard_id == shard;
        listings.into_iter().find(|listing| listing.shard.as_ref().is_some_and(is_it)).ok_or_else(|| {
            Failure::no("SHARD_NOT_FOUND", format!("shard {shard} does not exist"))
                .advise("kvctl shard list shows the shards")
        })
    }

    async fn check_shard(&self, shard: u64) -> Result<Exit, Failure> {
        let listing = self.one_shard(shard).await?;
        let doing = format!("compare the replicas of shard {shard}");
        let found = self.admin().check_shard(CheckShardRequest { shard_id: shard }).await;
        let found = found.map_err(|error| error.write(&doing))?;
        let replicas = listing.shard.map(|shard| shard.replicas).unwrap_or_default();
        let nodes = |ids: &[u64]| -> Vec<u64> {
            replicas.iter().filter(|replica| ids.contains(&replica.replica_id)).map(|replica| replica.node_id).collect()
        };
        let (equal, wrong) = (nodes(&found.equal_replica_ids), nodes(&found.wrong_replica_ids));
        let (missing, undecided) = (nodes(&found.missing_replica_ids), nodes(&found.undecided_replica_ids));
        let json = json!({
            "shard": shard, "index": found.index,
            "equal_nodes": equal, "wrong_nodes": wrong, "missing_nodes": missing, "undecided_nodes": undecided,
        });
        let named = |nodes: &[u64]| human::list(&nodes.iter().map(|node| format!("node {node}")).collect::<Vec<_>>());
        let mut lines = Vec::new();
        let mut say = |nodes: &[u64], what: &str| {
            if !nodes.is_empty() {
                lines.push(format!("{what}: {}", named(nodes)));
            }
        };
        say(&equal, "equal");
        say(&wrong, "wrong, quarantined and being replaced");
        say(&undecided, "different, and no majority tells which is right");
        say(&missing, "not known yet; a large replica takes its time, shard describe tells later");
        self.output.show(json, |_| format!("shard {shard} at index {}\n{}", found.index, lines.join("\n")))?;
        Ok(if wrong.is_empty() && undecided.is_empty() { Exit::Ok } else { Exit::Problems })
    }

    async fn transfer_leader(&self, shard: u64, to: Option<u64>) -> Result<Exit, Failure> {
        let before = self.one_shard(shard).await?;
        let from = leader_of(&before).map_or(0, |leader| leader.node_id);
        let request = TransferLeaderRequest { shard_id: shard, to_node_id: to.unwrap_or(0), epoch: 0 };
        let doing = format!("transfer the leadership of shard {shard}");
        let response = self.admin().transfer_leader(request).await.map_err(|error| error.write(&doing))?;
        let leader = response.leader_node_id;
        let text = match from {
            0 => format!("node {leader} leads shard {shard}"),
            from if from == leader => format!("node {leader} leads shard {shard}, as before"),
            from => format!("node {leader} leads shard {shard}; before, node {from} did"),
        };
        let json = json!({ "shard": shard, "leader_node": leader, "previous_leader_node": from });
        self.output.show(json, |_| text)?;
        Ok(Exit::Ok)
    }

    /// What is attempted, and the action that the cluster began.
    async fn change_replicas(
        &self,
        command: &ShardCommand,
        epoch: u64,
    ) -> (String, Result<Option<Action>, kv_client::Error>) {
        let admin = self.admin();
        match command {
            ShardCommand::Move { shard, from, to, .. } => {
                let (shard_id, from_node_id, to_node_id) = (*shard, *from, *to);
                let request = MoveReplicaRequest { shard_id, from_node_id, to_node_id, epoch };
                let answer = admin.move_replica(request).await.map(|response| response.action);
                (format!("move shard {shard} from node {from} to node {to}"), answer)
            }
            ShardCommand::AddLearner { shard, node, .. } => {
                let request = AddLearnerRequest { shard_id: *shard, node_id: *node, epoch };
                let answer = admin.add_learner(request).await.map(|response| response.action);
                (format!("add a learner of shard {shard} on node {node}"), answer)
            }
            ShardCommand::Promote { shard, node, .. } => {
                let request = PromoteLearnerRequest { shard_id: *shard, node_id: *node, epoch };
                let answer = admin.promote_learner(request).await.map(|response| response.action);
                (format!("promote the learner of shard {shard} on node {node}"), answer)
            }
            ShardCommand::ChangeVoters { shard, nodes, force, .. } => {
                let (shard_id, node_ids, force) = (*shard, nodes.clone(), force.clone());
                let request = ChangeVotersRequest { shard_id, node_ids, epoch, force };
                let answer = admin.change_voters(request).await.map(|response| response.action);
                (format!("change the voters of shard {shard}"), answer)
            }
            ShardCommand::RemoveReplica { shard, node, force, .. } => {
                let (shard_id, node_id, force) = (*shard, *node, force.clone());
                let request = RemoveReplicaRequest { shard_id, node_id, epoch, force };
                let answer = admin.remove_replica(request).await.map(|response| response.action);
                (format!("remove the replica of shard {shard} on node {node}"), answer)
            }
            ShardCommand::List { .. }
            | ShardCommand::Describe { .. }
            | ShardCommand::Check { .. }
            | ShardCommand::TransferLeader { .. } => (String::new(), Ok(None)),
        }
    }
}
