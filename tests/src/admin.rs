//! The administration service, through one node, as the tests use it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kv_proto::pb::admin::v1 as pb;
use kv_proto::pb::admin::v1::admin_service_client::AdminServiceClient;
use tonic::transport::Channel;

use crate::raw;
use crate::wait;

/// A small shard is moved well within this on a loaded machine of two cores.
const ACTION_WITHIN: Duration = Duration::from_secs(60);

/// A connection to one node's administration.
#[derive(Clone, Debug)]
pub struct Admin {
    service: AdminServiceClient<Channel>,
}

impl Admin {
    /// Through the node at this address.
    pub async fn to(address: &str) -> Result<Self> {
        Ok(Self { service: raw::admin(address).await? })
    }

    /// The generated client, for calls that have no method here.
    pub fn service(&mut self) -> &mut AdminServiceClient<Channel> {
        &mut self.service
    }

    /// What the node says of itself.
    pub async fn node_status(&mut self) -> Result<pb::NodeStatus> {
        let answer = self.service.get_node_status(pb::GetNodeStatusRequest::default()).await?;
        answer.into_inner().status.context("the answer has no status")
    }

    /// Makes the node know every change of the catalog that was made before, also one whose caller got no answer: it shows
    /// what an edit left, and this one of an active node leaves all as it is.
    pub async fn catch_up(&mut self, active_node: u64) -> Result<()> {
        self.service.undrain_node(pb::UndrainNodeRequest { node_id: active_node }).await?;
        Ok(())
    }

    /// The catalog as the node knows it.
    pub async fn catalog(&mut self) -> Result<pb::Catalog> {
        let answer = self.service.get_catalog(pb::GetCatalogRequest {}).await?;
        answer.into_inner().catalog.context("the answer has no catalog")
    }

    /// All nodes.
    pub async fn nodes(&mut self) -> Result<Vec<pb::NodeListing>> {
        Ok(self.service.list_nodes(pb::ListNodesRequest {}).await?.into_inner().nodes)
    }

    /// The record of one node.
    pub async fn node(&mut self, node: u64) -> Result<pb::Node> {
        let nodes = self.catalog().await?.nodes;
        nodes.into_iter().find(|entry| entry.node_id == node).with_context(|| format!("no node {node}"))
    }

    /// Shards of a keyspace; of all if the name is empty.
    pub async fn shards(&mut self, keyspace: &str) -> Result<Vec<pb::ShardListing>> {
        let request = pb::ListShardsRequest { keyspace: keyspace.to_owned(), shard_id: 0 };
        Ok(self.service.list_shards(request).await?.into_inner().shards)
    }

    /// One shard with its replicas.
    pub async fn shard(&mut self, shard: u64) -> Result<pb::ShardListing> {
        let request = pb::ListShardsRequest { keyspace: String::new(), shard_id: shard };
        let mut shards = self.service.list_shards(request).await?.into_inner().shards;
        shards.pop().with_context(|| format!("no shard {shard}"))
    }

    /// The node that leads a shard; waits for one.
    pub async fn leader(&mut self, shard: u64) -> Result<u64> {
        let admin = self.clone();
        wait::until(&format!("shard {shard} to have a leader"), ACTION_WITHIN, || {
            let mut admin = admin.clone();
            async move {
                let listing = admin.shard(shard).await?;
                let leader = listing.replicas.iter().find(|replica| replica.role == "leader");
                leader.map(|replica| replica.node_id).with_context(|| format!("shard {shard} has no leader"))
            }
        })
        .await
    }

    /// Creates a keyspace and waits until it serves.
    pub async fn create_keyspace(&mut self, request: pb::CreateKeyspaceRequest) -> Result<()> {
        let name = request.name.clone();
        self.service.create_keyspace(request).await?;
        let admin = self.clone();
        wait::until(&format!("keyspace {name} to be ready"), ACTION_WITHIN, || {
            let (mut admin, name) = (admin.clone(), name.clone());
            async move {
                let keyspaces = admin.catalog().await?.keyspaces;
                let keyspace = keyspaces.into_iter().find(|keyspace| keyspace.name == name).context("not there")?;
                ensure!(keyspace.state() == pb::KeyspaceState::Ready, "it is {:?}", keyspace.state());
                let shards = admin.shards(&name).await?;
                ensure!(!shards.is_empty(), "it has no shards");
                let led = |shard: &pb::ShardListing| shard.replicas.iter().any(|replica| replica.role == "leader");
                ensure!(shards.iter().all(led), "not every shard has a leader");
                Ok(())
            }
        })
        .await
    }

    /// Waits until an action is done; its failure is one here.
    pub async fn done(&mut self, action: Option<pb::Action>) -> Result<()> {
        let id = action.context("the answer has no action")?.action_id;
        let admin = self.clone();
        let ended = wait::until(&format!("action {id} to end"), ACTION_WITHIN, || {
            let mut admin = admin.clone();
            async move {
                let request = pb::ListActionsRequest { running: false };
                let actions = admin.service.list_actions(request).await?.into_inner().actions;
                let action = actions.into_iter().find(|action| action.action_id == id).context("not listed")?;
                ensure!(action.state() != pb::ActionState::Running, "{} ({} %)", action.progress, action.percent);
                Ok(action)
            }
        })
        .await?;
        if ended.state() != pb::ActionState::Done {
            bail!("action {id} ended {:?}: {}", ended.state(), ended.progress);
        }
        Ok(())
    }
}
