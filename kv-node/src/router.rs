//! Which shard a request is for, and what this node does with it. Pure.
//!
//! Invariants:
//! - nothing is looked up but in the arguments;
//! - a request that has been forwarded [`HOPS_MAX`] times is never forwarded again;
//! - the system keyspace is neither read nor written here.
//!
//! Not here: doing it (serve, forward); what is wrong with a request by itself (validate).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::errors::ServiceError;
use kv_proto::ids::{Epoch, KeyspaceId, NodeId, SYSTEM_KEYSPACE, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::keys::{self, Layout};
use kv_proto::limits::HOPS_MAX;
use kv_proto::pb::v1::{RequestHeader, RouteHint, WrongNode};

use crate::catalog::view::{layout, serves};
use crate::catalog::{CatalogView, Leaders, ShardInfo};

/// Elections end within a second; a shorter wait only burdens the nodes.
pub const NO_LEADER_RETRY: Duration = Duration::from_millis(100);

/// The keyspace of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its id.
    pub id: KeyspaceId,
    /// How it lays out keys.
    pub layout: Layout,
    /// Whether overwritten versions are kept.
    pub keeps_history: bool,
}

impl Space {
    /// The encoded key of a user's key.
    #[must_use]
    pub fn encode(&self, key: &[u8]) -> Bytes {
        keys::encode(self.id, self.layout, key)
    }

    /// Those of a batch.
    #[must_use]
    pub fn encode_all<'k>(&self, batch: impl Iterator<Item = &'k Bytes> + Clone) -> Vec<Bytes> {
        keys::encode_all(self.id, self.layout, batch)
    }
}

/// What this node's own replica of a shard says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hosted {
    /// It leads.
    pub leads: bool,
    /// Who leads, if it knows.
    pub leader: Option<NodeId>,
}

/// Which replica may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Only the leader.
    Leader,
    /// Any replica.
    Any,
}

/// What this node does with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Asks its own replica.
    Serve,
    /// Sends it on.
    Forward {
        /// To whom.
        node: NodeId,
        /// Where that node is.
        address: String,
    },
    /// Says no.
    Refuse(ServiceError),
}

/// What a plan is made from.
#[derive(Clone, Copy)]
pub struct Situation<'a> {
    /// The catalog.
    pub view: &'a CatalogView,
    /// Who leads, as heard.
    pub leaders: &'a Leaders,
    /// This node.
    pub node: NodeId,
}

impl Situation<'_> {
    /// The keyspace a header names.
    pub fn space(&self, header: &RequestHeader) -> Result<Space, ServiceError> {
        let shard = self.named_shard(header)?;
        let name = header.keyspace.as_str();
        let keyspace = match (name, shard) {
            ("", Some(shard)) => self.view.keyspace_by_id(shard.keyspace()),
            ("", None) => self.view.keyspace("default"),
            (name, _) => self.view.keyspace(name),
        };
        let keyspace = keyspace.filter(|keyspace| serves(keyspace));
        let id = keyspace.map(|keyspace| KeyspaceId(keyspace.keyspace_id));
        let of_system = shard.is_some_and(|shard| shard.keyspace() == SYSTEM_KEYSPACE);
        if name == "system" || id == Some(SYSTEM_KEYSPACE) || of_system {
            let why = "the keyspace \"system\" is read and changed through kv.admin.v1 only".to_owned();
            return Err(ServiceError::Refused { why, force: String::new() });
        }
        let (Some(keyspace), Some(id)) = (keyspace, id) else {
            if self.view.version() == 0 {
                let why = "it does not know the catalog yet".to_owned();
                return Err(ServiceError::NotReady { why, retry_after: NO_LEADER_RETRY });
            }
            let name = if name.is_empty() { "default" } else { name };
            return Err(ServiceError::KeyspaceNotFound { name: name.to_owned() });
        };
        if let Some(shard) = shard
            && shard.keyspace() != id
        {
            let why = format!("{} is not a shard of keyspace {:?}", shard.id(), keyspace.name);
            return Err(ServiceError::invalid("header.shard_id", why));
        }
        Ok(Space { id, layout: layout(keyspace), keeps_history: keyspace.retention_seconds > 0 })
    }

    fn named_shard(&self, header: &RequestHeader) -> Result<Option<&Arc<ShardInfo>>, ServiceError> {
        let id = ShardId(header.shard_id);
        match self.view.shard(id) {
            _ if header.shard_id == 0 => Ok(None),
            Some(shard) => Ok(Some(shard)),
            None => Err(ServiceError::ShardNotFound { shard: id }),
        }
    }

    /// The shard of an encoded key, checked against the route the caller took.
    pub fn shard_of(&self, header: &RequestHeader, encoded: &[u8]) -> Result<&Arc<ShardInfo>, ServiceError> {
        let holder = self.view.shard_of_key(encoded);
        let Some(named) = self.named_shard(header)? else {
            let holder = holder.ok_or_else(|| creating("the shards of the keyspace are being created"))?;
            return self.current(header, holder);
        };
        if !named.range.contains(encoded) {
            let holder = holder.map(|holder| self.view.route(holder, self.leaders));
            let hint =
                RouteHint { shard: Some(self.view.route(named, self.leaders)), current: holder.into_iter().collect() };
            return Err(ServiceError::StaleRoute { hint: Box::new(hint) });
        }
        self.current(header, named)
    }

    /// The shard a header names; for scans of one shard.
    pub fn shard_by_id(&self, header: &RequestHeader) -> Result<Option<&Arc<ShardInfo>>, ServiceError> {
        self.named_shard(header)?.map(|shard| self.current(header, shard)).transpose()
    }

    /// Any other epoch is refused, also a newer one: this node then does not know the range it would serve.
    fn current<'s>(
        &self,
        header: &RequestHeader,
        shard: &'s Arc<ShardInfo>,
    ) -> Result<&'s Arc<ShardInfo>, ServiceError> {
        if header.epoch == 0 || Epoch(header.epoch) == shard.epoch() {
            return Ok(shard);
        }
        let current = self.view.shards_in(&shard.range);
        let current = current.iter().map(|shard| self.view.route(shard, self.leaders)).collect();
        let hint = RouteHint { shard: Some(self.view.route(shard, self.leaders)), current };
        Err(ServiceError::StaleRoute { hint: Box::new(hint) })
    }

    /// The one shard of all keys of a batch.
    pub fn shard_of_all(&self, header: &RequestHeader, encoded: &[Bytes]) -> Result<&Arc<ShardInfo>, ServiceError> {
        let first = encoded.first().ok_or_else(|| ServiceError::invalid("operations", "is empty"))?;
        let shard = self.shard_of(header, first)?;
        match encoded.iter().find(|key| !shard.range.contains(key)) {
            None => Ok(shard),
            Some(other) => {
                let second = self.view.shard_of_key(other).map_or(ShardId(0), |other| other.id());
                Err(ServiceError::CrossShard { first: shard.id(), second })
            }
        }
    }

    /// What to do with a request for this shard; `tried` are nodes that turned out not to lead it.
    #[must_use]
    pub fn plan(
        &self,
        header: &RequestHeader,
        shard: &ShardInfo,
        need: Need,
        hosted: Option<Hosted>,
        tried: &[NodeId],
    ) -> Plan {
        if hosted.is_some_and(|hosted| hosted.leads || need == Need::Any) && !tried.contains(&self.node) {
            return Plan::Serve;
        }
        let heard = || self.leaders.leader(shard.id()).map(|leader| leader.node);
        let leader = hosted.and_then(|hosted| hosted.leader).or_else(heard);
        let leader = leader.filter(|leader| *leader != self.node && !tried.contains(leader));
        let redirects = header.wrong_node == i32::from(WrongNode::Redirect) || header.hops >= HOPS_MAX;
        match leader {
            _ if redirects => Plan::Refuse(self.not_leader(shard, leader)),
            // A replica here that knows no leader knows best: an election is going on.
            None if hosted.is_some() => Plan::Refuse(no_leader(shard)),
            None => self.guess(shard, tried),
            Some(leader) => match self.view.address(leader) {
                Some(address) => Plan::Forward { node: leader, address: address.to_owned() },
                None => Plan::Refuse(no_leader(shard)),
            },
        }
    }

    /// Any node that holds the shard knows more; the preferred leader most likely leads.
    fn guess(&self, shard: &ShardInfo, tried: &[NodeId]) -> Plan {
        let preferred = shard.descriptor.preferred_leader_replica_id;
        let mut replicas: Vec<_> = shard.descriptor.replicas.iter().collect();
        replicas.sort_by_key(|replica| replica.replica_id != preferred);
        let nodes = replicas.into_iter().map(|replica| NodeId(replica.node_id));
        let reachable = nodes
            .filter(|node| *node != self.node && !tried.contains(node))
            .find_map(|node| Some((node, self.view.address(node)?.to_owned())));
        reachable.map_or_else(|| Plan::Refuse(no_leader(shard)), |(node, address)| Plan::Forward { node, address })
    }

    /// The answer that tells a caller where the shard is served.
    #[must_use]
    pub fn not_leader(&self, shard: &ShardInfo, leader: Option<NodeId>) -> ServiceError {
        let mut route = self.view.route(shard, self.leaders);
        route.leader_node_id = leader.map_or(0, |leader| leader.0);
        ServiceError::NotLeader { hint: Box::new(RouteHint { shard: Some(route), current: vec![] }) }
    }

    /// The first shard of a keyspace that begins at or after a key; where a scan goes on after a shard's end.
    #[must_use]
    pub fn holds_more(&self, space: &Space, from: &Bytes) -> bool {
        let rest = KeyRange::new(from.clone(), keys::keyspace_range(space.id).end().clone());
        rest.is_some_and(|rest| !from.is_empty() && !self.view.shards_in(&rest).is_empty())
    }
}

/// Nobody leads the shard now.
#[must_use]
pub fn no_leader(shard: &ShardInfo) -> ServiceError {
    ServiceError::NoLeader { shard: shard.id(), retry_after: NO_LEADER_RETRY }
}

fn creating(why: &str) -> ServiceError {
    ServiceError::NotReady { why: why.to_owned(), retry_after: NO_LEADER_RETRY }
}

#[cfg(test)]
mod tests;
