//! Leader Completeness: if an entry is committed in a given term, then it is in the logs of the leaders of all later terms.
//!
//! openraft orders leaders by term and replica, so a term may have several: one whose vote reaches its slow disk late owes
//! nothing to those that came after it, nor what those committed of its predecessors' entries.

use kv_proto::ids::ShardId;

use super::Verdict;
use super::committed_on_quorum::CommittedOnQuorum;
use super::disks::Disk;

/// A replica became leader, which is on its disk now, as is every entry it had before.
pub(super) fn check(shard: ShardId, disk: &Disk, commits: &CommittedOnQuorum) -> Verdict {
    let lacks = commits.owed(shard, disk).find(|log_id| !disk.has(*log_id));
    lacks.map_or(Ok(()), |lacks| Err(format!("a new leader lacks {lacks}, which is committed")))
}
