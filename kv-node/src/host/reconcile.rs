//! From the catalog and what is held here to what must be created and destroyed. Pure.
//!
//! Not here: doing it (host).

use std::collections::BTreeMap;
use std::time::Duration;

use kv_proto::ids::{NodeId, ReplicaId, SYSTEM_SHARD, ShardId};
use kv_raft::replica::ReplicaSpec;

use crate::catalog::{CatalogView, ShardInfo};

/// One replica to create or destroy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostStep {
    /// The catalog wants it and it is not here.
    Create(ReplicaSpec),
    /// It is here and the catalog dropped it.
    Destroy {
        /// Its shard.
        shard: ShardId,
        /// Its id.
        replica: ReplicaId,
    },
}

/// What to do. A shard whose old replica must go first gets its new one in the next round.
#[must_use]
pub fn plan(view: &CatalogView, node: NodeId, held: &BTreeMap<ShardId, ReplicaId>) -> Vec<HostStep> {
    if view.version() == 0 {
        return Vec::new();
    }
    let destroy = held.iter().filter(|(shard, replica)| is_dropped(view, **shard, **replica));
    let destroy = destroy.map(|(shard, replica)| HostStep::Destroy { shard: *shard, replica: *replica });
    let wanted = view.shards().filter_map(|info| Some((info, info.replica_on(node)?)));
    let create = wanted.filter(|(info, _)| !held.contains_key(&info.id()));
    let create = create.map(|(info, replica)| {
        let retention = view.keyspace_by_id(info.keyspace()).map_or(0, |keyspace| keyspace.retention_seconds);
        HostStep::Create(ReplicaSpec {
            shard: info.id(),
            replica,
            range: info.range.clone(),
            retention: Duration::from_secs(retention),
            initialize: initial_voters(info, replica),
        })
    });
    destroy.chain(create).collect()
}

/// The first voters of a group, for the one replica that begins it; None for all others and once it has begun.
#[must_use]
pub fn initial_voters(info: &ShardInfo, replica: ReplicaId) -> Option<BTreeMap<ReplicaId, NodeId>> {
    let descriptor = &info.descriptor;
    let begins = descriptor.creating && descriptor.preferred_leader_replica_id == replica.0;
    let voters = descriptor.replicas.iter().map(|voter| (ReplicaId(voter.replica_id), NodeId(voter.node_id)));
    begins.then(|| voters.collect())
}

/// Whether the catalog knew the replica and has dropped it since.
fn is_dropped(view: &CatalogView, shard: ShardId, replica: ReplicaId) -> bool {
    match view.shard(shard) {
        Some(info) => {
            let names = info.descriptor.replicas.iter().any(|known| known.replica_id == replica.0);
            !names && replica.0 < info.descriptor.next_replica_id
        }
        // Deleted, unless the view is older than the shard: views never go back, but a node that lost the file of its
        // last one begins with whatever it is told first. The catalog's own shard is there before any view is.
        None => shard != SYSTEM_SHARD && shard.0 < view.catalog().next_shard_id,
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::key_range::KeyRange;
    use kv_proto::pb::admin::v1::{Catalog, Replica, Shard};

    use super::*;

    fn view(replicas: &[(u64, u64)], next_replica_id: u64, creating: bool) -> CatalogView {
        let replica =
            |(replica_id, node_id): &(u64, u64)| Replica { replica_id: *replica_id, node_id: *node_id, role: 1 };
        let shard = Shard {
            shard_id: 5,
            epoch: 3,
            start: "a".into(),
            end: "b".into(),
            replicas: replicas.iter().map(replica).collect(),
            next_replica_id,
            preferred_leader_replica_id: 2,
            creating,
            ..Default::default()
        };
        CatalogView::new(Catalog {
            format: 1,
            version: 1,
            shards: vec![shard],
            next_shard_id: 10,
            ..Default::default()
        })
        .unwrap()
    }

    fn held(shard: u64, replica: u64) -> BTreeMap<ShardId, ReplicaId> {
        BTreeMap::from([(ShardId(shard), ReplicaId(replica))])
    }

    #[test]
    fn only_the_preferred_replica_begins_a_group_and_only_while_it_is_created() {
        for (node, creating, begins) in [(2, true, true), (1, true, false), (2, false, false)] {
            let steps = plan(&view(&[(1, 1), (2, 2), (3, 3)], 4, creating), NodeId(node), &BTreeMap::new());
            let [HostStep::Create(spec)] = steps.as_slice() else { unreachable!("{steps:?}") };
            assert_eq!(spec.initialize.as_ref().map(BTreeMap::len), begins.then_some(3));
            assert_eq!(spec.range, KeyRange::new("a", "b").unwrap());
        }
    }

    #[test]
    fn a_replica_that_the_catalog_dropped_is_destroyed_and_none_before() {
        let dropped = [HostStep::Destroy { shard: ShardId(5), replica: ReplicaId(3) }];
        assert_eq!(plan(&view(&[(1, 1)], 4, false), NodeId(3), &held(5, 3)), dropped);
        assert_eq!(plan(&view(&[(1, 1)], 3, false), NodeId(3), &held(5, 3)), [], "the view is older than the replica");
        assert_eq!(plan(&view(&[(1, 1), (3, 3)], 4, false), NodeId(3), &held(5, 3)), []);
    }

    #[test]
    fn replicas_of_deleted_shards_go_but_never_the_catalogs_own() {
        let gone = [HostStep::Destroy { shard: ShardId(9), replica: ReplicaId(1) }];
        assert_eq!(plan(&view(&[], 1, false), NodeId(1), &held(9, 1)), gone);
        assert_eq!(plan(&view(&[], 1, false), NodeId(1), &held(10, 1)), [], "the view is older than the shard");
        assert_eq!(plan(&view(&[], 1, false), NodeId(1), &held(1, 1)), []);
        assert_eq!(plan(&CatalogView::default(), NodeId(1), &held(9, 1)), []);
    }

    #[test]
    fn a_new_replica_waits_until_the_old_one_is_destroyed() {
        let steps = plan(&view(&[(1, 1), (4, 3)], 5, false), NodeId(3), &held(5, 3));
        assert_eq!(steps, [HostStep::Destroy { shard: ShardId(5), replica: ReplicaId(3) }]);
    }
}
