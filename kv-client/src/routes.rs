//! What a client knows of a keyspace's shards: ranges, epochs, leaders, addresses.
//!
//! Invariants: routes are in range order and do not overlap; a shard's route is never replaced by one of a lower epoch.
//!
//! Not here: how routes are fetched (route_cache), which node of a route is asked (execute).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_proto::errors::ServiceError;
use kv_proto::ids::{Epoch, KeyspaceId, NodeId, ShardId};
use kv_proto::key_range::KeyRange;
use kv_proto::keys::{self, Layout};
use kv_proto::pb::v1 as pb;

use crate::session::Lane;

/// A replica that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRoute {
    /// The node it is on.
    pub node: NodeId,
    /// Where the node listens.
    pub address: Arc<str>,
    /// False for a learner.
    pub voter: bool,
}

/// Where one shard is served.
#[derive(Debug)]
pub struct ShardRoute {
    shard: ShardId,
    epoch: Epoch,
    range: KeyRange,
    leader: AtomicU64,
    replicas: Vec<ReplicaRoute>,
    lane: Arc<Lane>,
}

impl ShardRoute {
    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The version of this route.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The encoded keys it holds.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// The node that leads it, as far as known.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        match self.leader.load(Ordering::Relaxed) {
            0 => None,
            node => Some(NodeId(node)),
        }
    }

    /// Its replicas.
    #[must_use]
    pub fn replicas(&self) -> &[ReplicaRoute] {
        &self.replicas
    }

    pub(crate) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    fn set_leader(&self, node: u64) {
        self.leader.store(node, Ordering::Relaxed);
    }

    /// Forgets the leader if it is still this one.
    pub(crate) fn forget_leader(&self, node: NodeId) {
        // Someone else may have learned of another one meanwhile, which is better.
        let _ = self.leader.compare_exchange(node.0, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn from_pb(route: &pb::ShardRoute, lane: impl FnOnce() -> Arc<Lane>) -> Option<Self> {
        let replica = |replica: &pb::RouteReplica| ReplicaRoute {
            node: NodeId(replica.node_id),
            address: Arc::from(replica.address.as_str()),
            voter: replica.voter,
        };
        Some(Self {
            shard: ShardId(route.shard_id),
            epoch: Epoch(route.epoch),
            range: KeyRange::new(route.start.clone(), route.end.clone())?,
            leader: AtomicU64::new(route.leader_node_id),
            replicas: route.replicas.iter().map(replica).collect(),
            lane: lane(),
        })
    }
}

/// The routes of one keyspace at one moment.
#[derive(Clone, Debug)]
pub struct Routes {
    cluster_id: Arc<str>,
    keyspace: KeyspaceId,
    layout: Layout,
    shards: Vec<Arc<ShardRoute>>,
    /// There is one shard, and it holds every key.
    is_whole: bool,
}

/// What a hint did to the routes.
#[derive(Debug)]
pub(crate) enum Merged {
    /// Nothing new, or only a leader, which is noted in place.
    InPlace,
    /// Other ranges or replicas.
    Changed(Routes),
}

impl Routes {
    fn new(cluster_id: Arc<str>, keyspace: KeyspaceId, layout: Layout, shards: Vec<Arc<ShardRoute>>) -> Self {
        let is_whole = matches!(shards.as_slice(), [only] if only.range.covers(&keys::keyspace_range(keyspace)));
        Self { cluster_id, keyspace, layout, shards, is_whole }
    }

    /// The cluster they are of.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The keyspace's id.
    #[must_use]
    pub fn keyspace(&self) -> KeyspaceId {
        self.keyspace
    }

    /// Whether keys are placed by slot or in order.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// All shards, in range order.
    #[must_use]
    pub fn shards(&self) -> &[Arc<ShardRoute>] {
        &self.shards
    }

    /// The shard of a user's key.
    #[must_use]
    pub fn shard_of(&self, key: &[u8]) -> Option<&Arc<ShardRoute>> {
        if self.is_whole {
            return self.shards.first();
        }
        self.at(&keys::encode(self.keyspace, self.layout, key))
    }

    /// The shard of an encoded key.
    pub(crate) fn at(&self, encoded: &[u8]) -> Option<&Arc<ShardRoute>> {
        let after = self.shards.partition_point(|route| route.range.start() <= encoded);
        self.shards.get(after.checked_sub(1)?).filter(|route| route.range.contains(encoded))
    }

    /// From an answer; lanes of shards that `previous` knows go on, and so do its routes where the answering node's catalog
    /// is the older one.
    pub(crate) fn from_pb(answer: &pb::ListRoutesResponse, previous: Option<&Self>) -> Result<Self, ServiceError> {
        let damaged = |why: &str| ServiceError::Foreign {
            code: tonic::Code::DataLoss,
            message: format!("the routes of keyspace {:?} are damaged: {why}", answer.keyspace),
        };
        let lane = |shard: u64| move || previous.and_then(|known| known.lane_of(shard)).unwrap_or_else(Lane::new);
        let routes = answer.shards.iter().map(|route| ShardRoute::from_pb(route, lane(route.shard_id)).map(Arc::new));
        let mut shards = routes.collect::<Option<Vec<_>>>().ok_or_else(|| damaged("an empty range"))?;
        sort(&mut shards);
        if shards.windows(2).any(|pair| matches!(pair, [left, right] if overlap(left, right))) {
            return Err(damaged("overlapping ranges"));
        }
        if let Some(previous) = previous {
            shards = previous.newer_than(shards);
        }
        let layout = if answer.hashed { Layout::Hash } else { Layout::Range };
        let cluster_id = Arc::from(answer.cluster_id.as_str());
        Ok(Self::new(cluster_id, KeyspaceId(answer.keyspace_id), layout, shards))
    }

    /// The routes told, but for those of which this knows a newer epoch, and whatever overlaps those. Where that leaves
    /// holes, what was known there stays.
    fn newer_than(&self, told: Vec<Arc<ShardRoute>>) -> Vec<Arc<ShardRoute>> {
        let is_newer =
            |known: &ShardRoute| told.iter().any(|told| told.shard == known.shard && told.epoch < known.epoch);
        let mut shards: Vec<_> = self.shards.iter().filter(|known| is_newer(known)).cloned().collect();
        if shards.is_empty() {
            return told;
        }
        for route in told.iter().chain(&self.shards) {
            if !shards.iter().any(|kept| kept.shard == route.shard || overlap(kept, route)) {
                shards.push(route.clone());
            }
        }
        sort(&mut shards);
        shards
    }

    fn lane_of(&self, shard: u64) -> Option<Arc<Lane>> {
        self.shards.iter().find(|route| route.shard.0 == shard).map(|route| route.lane.clone())
    }

    /// Takes over what a node said. Routes that overlap a newer one go; a hole left behind makes the next lookup there
    /// fetch all routes.
    pub(crate) fn merge(&self, hint: &pb::RouteHint) -> Merged {
        let mut changed: Option<Self> = None;
        for told in hint.shard.iter().chain(&hint.current) {
            let base = changed.as_ref().unwrap_or(self);
            if let Some(next) = base.merge_one(told) {
                changed = Some(next);
            }
        }
        changed.map_or(Merged::InPlace, Merged::Changed)
    }

    fn merge_one(&self, told: &pb::ShardRoute) -> Option<Self> {
        if told.keyspace_id != self.keyspace.0 {
            return None;
        }
        let known = self.shards.iter().find(|route| route.shard.0 == told.shard_id);
        if let Some(known) = known
            && known.epoch.0 >= told.epoch
        {
            if known.epoch.0 == told.epoch {
                known.set_leader(told.leader_node_id);
            }
            return None;
        }
        let lane = || known.map_or_else(Lane::new, |route| route.lane.clone());
        let told = Arc::new(ShardRoute::from_pb(told, lane)?);
        let keep = |route: &&Arc<ShardRoute>| route.shard != told.shard && !overlap(route, &told);
        let mut shards: Vec<_> = self.shards.iter().filter(keep).cloned().collect();
        let position = shards.partition_point(|route| route.range.start() < told.range.start());
        shards.insert(position, told);
        Some(Self::new(self.cluster_id.clone(), self.keyspace, self.layout, shards))
    }

    /// Every address in them.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Arc<str>> {
        self.shards.iter().flat_map(|route| route.replicas.iter().map(|replica| &replica.address))
    }
}

fn sort(shards: &mut [Arc<ShardRoute>]) {
    shards.sort_by(|left, right| left.range.start().cmp(right.range.start()));
}

fn overlap(left: &ShardRoute, right: &ShardRoute) -> bool {
    left.range.intersection(&right.range).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn told(shard: u64, epoch: u64, start: &str, end: &str, leader: u64) -> pb::ShardRoute {
        let replica = |node_id| pb::RouteReplica { node_id, address: format!("n{node_id}:1"), voter: true };
        pb::ShardRoute {
            shard_id: shard,
            epoch,
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: Bytes::copy_from_slice(end.as_bytes()),
            leader_node_id: leader,
            replicas: vec![replica(1), replica(2)],
            keyspace_id: 9,
        }
    }

    fn routes(shards: Vec<pb::ShardRoute>) -> Routes {
        let answer = pb::ListRoutesResponse { keyspace_id: 9, shards, ..pb::ListRoutesResponse::default() };
        Routes::from_pb(&answer, None).unwrap()
    }

    fn shape(routes: &Routes) -> Vec<(u64, u64, String)> {
        routes.shards.iter().map(|route| (route.shard.0, route.epoch.0, route.range.to_string())).collect()
    }

    #[test]
    fn a_key_is_found_in_the_shard_that_holds_it_and_not_in_a_hole() {
        let routes = routes(vec![told(2, 1, "m", "t", 0), told(1, 1, "a", "m", 0)]);
        let at = |key: &str| routes.at(key.as_bytes()).map(|route| route.shard.0);
        assert_eq!([at("a"), at("lz"), at("m"), at("t"), at("A")], [Some(1), Some(1), Some(2), None, None]);
    }

    #[test]
    fn a_lone_shard_holds_the_keys_of_its_range_and_no_others() {
        let of = |routes: &Routes, key: &str| routes.shard_of(key.as_bytes()).map(|route| route.shard.0);
        let all = routes(vec![told(1, 1, "\0\0\0\x09", "\0\0\0\x0a", 0)]);
        assert_eq!(["", "a", "z"].map(|key| of(&all, key)), [Some(1); 3]);
        let half = pb::RouteHint { shard: None, current: vec![told(1, 2, "\0\0\0\x09", "\0\0\0\x09m", 0)] };
        let Merged::Changed(half) = all.merge(&half) else { panic!("the range changed") };
        assert_eq!(["", "a", "z"].map(|key| of(&half, key)), [Some(1), Some(1), None]);
        let other = pb::RouteHint { shard: None, current: vec![told(7, 2, "\0\0\0\x09m", "\0\0\0\x0a", 0)] };
        let Merged::Changed(both) = half.merge(&other) else { panic!("a shard came") };
        assert_eq!(["", "a", "z"].map(|key| of(&both, key)), [Some(1), Some(1), Some(7)]);
    }

    #[test]
    fn a_hint_of_the_same_epoch_only_changes_the_leader() {
        let routes = routes(vec![told(1, 3, "a", "m", 1)]);
        let hint = pb::RouteHint { shard: Some(told(1, 3, "a", "m", 2)), current: vec![] };
        assert!(matches!(routes.merge(&hint), Merged::InPlace));
        assert_eq!(routes.shards[0].leader(), Some(NodeId(2)));
    }

    #[test]
    fn a_hint_of_an_older_epoch_changes_nothing() {
        let routes = routes(vec![told(1, 3, "a", "m", 1)]);
        let hint = pb::RouteHint { shard: Some(told(1, 2, "a", "z", 2)), current: vec![] };
        assert!(matches!(routes.merge(&hint), Merged::InPlace));
        assert_eq!(routes.shards[0].leader(), Some(NodeId(1)));
    }

    #[test]
    fn a_split_takes_the_place_of_its_parent_and_the_parent_keeps_its_lane() {
        let before = routes(vec![told(1, 3, "a", "m", 1), told(2, 1, "m", "", 1)]);
        let hint = pb::RouteHint { shard: None, current: vec![told(1, 4, "a", "g", 1), told(7, 4, "g", "m", 2)] };
        let Merged::Changed(after) = before.merge(&hint) else { panic!("ranges changed") };
        let expected = [(1, 4, "[a, g)"), (7, 4, "[g, m)"), (2, 1, "[m, ∞)")];
        assert_eq!(shape(&after), expected.map(|(shard, epoch, range)| (shard, epoch, range.to_owned())));
        assert!(Arc::ptr_eq(before.shards[0].lane(), after.shards[0].lane()));
    }

    #[test]
    fn a_hint_of_another_keyspace_changes_nothing() {
        let routes = routes(vec![told(1, 3, "a", "m", 1)]);
        let foreign = pb::ShardRoute { keyspace_id: 8, ..told(1, 9, "a", "z", 2) };
        assert!(matches!(routes.merge(&pb::RouteHint { shard: Some(foreign), current: vec![] }), Merged::InPlace));
    }

    #[test]
    fn the_answer_of_a_node_that_lags_behind_takes_nothing_back() {
        let known = routes(vec![told(1, 4, "a", "g", 1), told(7, 4, "g", "m", 2), told(2, 1, "m", "", 1)]);
        let lags = vec![told(1, 3, "a", "m", 1), told(2, 2, "m", "", 2)];
        let answer = pb::ListRoutesResponse { keyspace_id: 9, shards: lags, ..pb::ListRoutesResponse::default() };
        let merged = Routes::from_pb(&answer, Some(&known)).unwrap();
        let expected = [(1, 4, "[a, g)"), (7, 4, "[g, m)"), (2, 2, "[m, ∞)")];
        assert_eq!(shape(&merged), expected.map(|(shard, epoch, range)| (shard, epoch, range.to_owned())));
        let recreated = vec![told(11, 1, "a", "", 0)];
        let answer = pb::ListRoutesResponse { keyspace_id: 9, shards: recreated, ..pb::ListRoutesResponse::default() };
        assert_eq!(shape(&Routes::from_pb(&answer, Some(&known)).unwrap()).len(), 1, "a newer answer replaces all");
    }

    #[test]
    fn overlapping_routes_are_refused() {
        let shards = vec![told(1, 1, "a", "n", 0), told(2, 1, "m", "t", 0)];
        let answer = pb::ListRoutesResponse { keyspace_id: 9, shards, ..pb::ListRoutesResponse::default() };
        assert!(Routes::from_pb(&answer, None).is_err());
    }
}
