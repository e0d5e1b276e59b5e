//! Keeps this node's view of the catalog, and of who leads what, up to date.
//!
//! A node with a replica of shard 1 reads its own applied state; any other one asks a member to answer as soon as
//! there is something newer. All ask each other now and then which shards they lead.
//!
//! Invariants: nothing here waits for shard 1 to have a leader; nothing here wakes a hibernated shard.
//!
//! Not here: the file and the order of versions (catalog, current).

use std::sync::Arc;
use std::time::Duration;

use kv_proto::ids::{NodeId, SYSTEM_SHARD, ShardId};
use kv_proto::pb::admin::v1::{Node, NodeState};
use kv_proto::pb::raft::v1::{FetchCatalogRequest, FetchCatalogResponse};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::shared::NodeShared;
use super::status::peer_clock;
use crate::catalog::{CatalogView, LeaderRecord, store};
use crate::host::clocks;
use crate::node::readiness::Check;

/// Between looks at the local state of shard 1; a look costs microseconds.
const LOOK: Duration = Duration::from_millis(100);

/// How long a member may hold the answer until there is something newer.
const LONG_POLL: Duration = Duration::from_secs(5);

/// Between rounds of asking everyone what they lead; redirects tell the rest.
const GOSSIP: Duration = Duration::from_secs(1);

/// After a member did not answer.
const RETRY: Duration = Duration::from_millis(200);

/// Follows until cancelled. `changed` tells of changes made on this node.
pub async fn follow_catalog(shared: Arc<NodeShared>, changed: Arc<Notify>, cancel: CancellationToken) {
    let mut applied = None;
    let mut turn: usize = 0;
    let mut said = false;
    while !cancel.is_cancelled() {
        note_knowledge(&shared, &mut said);
        let is_local = shared.host.replica(SYSTEM_SHARD).is_some();
        let pause = if is_local {
            read_local(&shared, &mut applied).await;
            LOOK
        } else {
            turn = turn.wrapping_add(1);
            let fetched = cancel.run_until_cancelled(fetch(&shared, turn)).await;
            if fetched == Some(true) { Duration::ZERO } else { RETRY }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Without a catalog no request can be routed. A node that was taken out sends requests on, but must not look alive.
fn knowledge(view: &CatalogView, node: NodeId) -> Check {
    if view.version() == 0 {
        return Check::Failed("it knows no catalog yet".to_owned());
    }
    match view.node(node).map(Node::state) {
        Some(NodeState::Active | NodeState::Draining | NodeState::Drained) => Check::Passed,
        Some(NodeState::Removed) => Check::Failed("removed from the cluster: stop it".to_owned()),
        Some(NodeState::Lost) => {
            let why = "given up by the cluster: stop it, and start it with an empty data folder to join again";
            Check::Failed(why.to_owned())
        }
        Some(NodeState::Unspecified) | None => Check::Warned("the catalog it knows does not name it yet".to_owned()),
    }
}

/// A replica whose content differs from its peers' serves nothing; the node's others do.
fn content(shared: &NodeShared) -> Check {
    let wrong = shared.host.replicas().into_iter().filter(|replica| replica.is_quarantined());
    let wrong: Vec<String> = wrong.map(|replica| replica.shard().to_string()).collect();
    if wrong.is_empty() {
        return Check::Passed;
    }
    Check::Warned(format!("the replicas of shards {} differ from the majority: quarantined", wrong.join(", ")))
}

/// Sets the check, and says it aloud when it is not a member any more.
fn note_knowledge(shared: &NodeShared, said: &mut bool) {
    let check = knowledge(&shared.view.load(), shared.node());
    if let Check::Failed(why) = &check
        && shared.view.load().version() > 0
        && !std::mem::replace(said, true)
    {
        tracing::warn!(node = %shared.node(), why, "this node is no longer a member");
    }
    shared.readiness.set("catalog", check);
}

async fn read_local(shared: &Arc<NodeShared>, applied: &mut Option<u64>) {
    let Ok(view) = shared.host.context().data().view(SYSTEM_SHARD) else { return };
    let now = view.applied().map(|id| id.index);
    if now == *applied && shared.view.load().version() > 0 {
        return;
    }
    let loaded = kv_raft::blocking::spawn_blocking(move || store::load(&view)).await;
    match loaded {
        // Before the bootstrap, and in a learner that has nothing yet, there is no record of the cluster.
        Ok(Ok(records)) if records.cluster.is_none() => {}
        Ok(Ok(records)) => {
            shared.current.publish(records.to_catalog()).await;
            *applied = now;
        }
        Ok(Err(error)) => tracing::error!(%error, "the catalog cannot be read from shard 1"),
        Err(error) => tracing::debug!(%error, "the catalog was not read"),
    }
}

/// Asks one member, another one each time; tells whether it answered.
async fn fetch(shared: &Arc<NodeShared>, turn: usize) -> bool {
    let members = others(shared);
    let Some(node) = members.get(turn % members.len().max(1)) else { return false };
    let wait_ms = u32::try_from(LONG_POLL.as_millis()).unwrap_or(u32::MAX);
    ask(shared, *node, wait_ms).await
}

/// Asks everyone now and then, and notes what the replicas here know.
pub async fn follow_leaders(shared: Arc<NodeShared>, cancel: CancellationToken) {
    while cancel.run_until_cancelled(tokio::time::sleep(GOSSIP)).await.is_some() {
        shared.host.note_leaders();
        shared.readiness.set("content", content(&shared));
        let asks = others(&shared).into_iter().map(|node| {
            let shared = Arc::clone(&shared);
            async move { ask(&shared, node, 0).await }
        });
        let asks = futures::future::join_all(asks);
        if cancel.run_until_cancelled(asks).await.is_none() {
            return;
        }
    }
}

/// Refuses to lead while the clock is far off.
pub async fn watch_clock(shared: Arc<NodeShared>, cancel: CancellationToken) {
    let mut before = false;
    while cancel.run_until_cancelled(tokio::time::sleep(GOSSIP)).await.is_some() {
        let peers = shared.host.context().transport().peers();
        let clocks: Vec<_> = peers.iter().map(peer_clock).collect();
        let refusal = clocks::refusal(&clocks, shared.config.clock_offset_max);
        if refusal.is_some() != before {
            before = refusal.is_some();
            let check = refusal.as_ref().map_or(Check::Passed, |why| Check::Warned(format!("refuses to lead: {why}")));
            shared.readiness.set("clock", check);
        }
        shared.host.set_clock(refusal);
    }
}

async fn ask(shared: &Arc<NodeShared>, node: NodeId, wait_ms: u32) -> bool {
    let request = FetchCatalogRequest {
        cluster_id: shared.cluster_id().to_owned(),
        have_version: shared.view.load().version(),
        wait_ms,
        from_node_id: shared.node().0,
    };
    match shared.peers.fetch_catalog(node, request).await {
        Ok(response) => {
            take_in(shared, response).await;
            true
        }
        Err(error) => {
            tracing::debug!(%node, %error, "did not tell its catalog");
            false
        }
    }
}

async fn take_in(shared: &Arc<NodeShared>, response: FetchCatalogResponse) {
    for led in response.led {
        let record = LeaderRecord { term: led.term, node: NodeId(led.leader_node_id) };
        shared.leaders.learn(ShardId(led.shard_id), record);
    }
    if let Some(catalog) = response.catalog {
        shared.current.publish(catalog).await;
    }
}

fn others(shared: &NodeShared) -> Vec<NodeId> {
    let view = shared.view.load();
    view.members().map(|node| NodeId(node.node_id)).filter(|node| *node != shared.node()).collect()
}

#[cfg(test)]
mod tests {
    use kv_proto::pb::admin::v1::Catalog;

    use super::*;

    #[test]
    fn a_node_that_was_taken_out_is_not_ready_and_says_what_to_do() {
        let view = |state: NodeState| {
            let node = Node { node_id: 4, state: state.into(), ..Default::default() };
            let format = crate::catalog::records::FORMAT;
            CatalogView::new(Catalog { format, version: 1, nodes: vec![node], ..Default::default() }).unwrap()
        };
        let check = |state| knowledge(&view(state), NodeId(4));
        assert_eq!(check(NodeState::Removed), Check::Failed("removed from the cluster: stop it".to_owned()));
        assert!(matches!(check(NodeState::Lost), Check::Failed(why) if why.contains("empty data folder")));
        for state in [NodeState::Active, NodeState::Draining, NodeState::Drained] {
            assert_eq!(check(state), Check::Passed);
        }
        assert!(
            matches!(knowledge(&view(NodeState::Active), NodeId(5)), Check::Warned(_)),
            "the view is older than it"
        );
        assert!(matches!(knowledge(&CatalogView::default(), NodeId(4)), Check::Failed(_)));
    }
}
