//! One simulated node: what `kv-node` does when it runs, without signals, HTTP and the watch over free disk space.
//!
//! Invariants: a node that cannot start, or whose storage or consensus fails, is a violation, for nothing here damages
//! what was synced; so is one that does not stop in time.
//!
//! Not here: the node itself (kv-node).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kv_node::admission::Admission;
use kv_node::config::Config;
use kv_node::metrics::Telemetry;
use kv_node::node::{Node, Readiness, StartParts};
use kv_node::serve::Server;
use kv_node::server::{Grpc, Services, bind};
use kv_raft::log_store::LogMetrics;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::plan::Plan;
use crate::world::World;

/// Where all nodes listen.
pub(crate) const PORT: u16 = 7001;

/// How often a clock that drifts is moved on.
const DRIFT_EVERY: Duration = Duration::from_millis(5);

/// The name of a node's host.
pub(crate) fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

/// Until it is told to stop; then it waits for the end.
pub(crate) async fn run(world: World, node: usize, folder: PathBuf) -> turmoil::Result {
    world.enter(node);
    let served = async {
        if let Err(why) = serve(&world, node, folder).await {
            world.violated(format!("node {} failed: {why}", name(node)));
        }
        std::future::pending().await
    };
    tokio::join!(served, drift(&world, node)).0
}

/// Moves the clock of this node's timers ahead of the simulation's as far as it drifts. No clock can be slowed; one that is
/// slow by a twentieth among others that are fast by a twentieth is one in order among others that are fast by a tenth.
async fn drift(world: &World, node: usize) {
    let begun = Instant::now();
    let (mut last, _) = world.time(node);
    let mut due = Duration::ZERO;
    loop {
        tokio::time::sleep(DRIFT_EVERY).await;
        let (now, thousandths) = world.time(node);
        due += Duration::from_micros((now - last) * (1_000 + thousandths));
        last = now;
        // Timers count whole milliseconds.
        let behind = u64::try_from(due.saturating_sub(begun.elapsed()).as_millis()).unwrap_or_default();
        if thousandths > 0 && behind > 0 {
            tokio::time::advance(Duration::from_millis(behind)).await;
        }
    }
}

async fn serve(world: &World, node: usize, folder: PathBuf) -> Result<(), String> {
    let config = Arc::new(config(&world.plan, node, folder));
    let listener = bind(config.listen).await.map_err(|error| error.to_string())?;
    let mut telemetry = Telemetry::new();
    let log_metrics = LogMetrics::new(&mut telemetry.registry);
    let admission = Arc::new(Admission::new(config.requests_max, config.memory().requests));
    let readiness = Arc::<Readiness>::default();
    let parts = StartParts {
        config: Arc::clone(&config),
        readiness: Arc::clone(&readiness),
        raft_metrics: Arc::clone(&telemetry.raft),
        log_metrics,
        admission,
        door: None,
        cancel: CancellationToken::new(),
    };
    let node_running = Node::start(parts).await.map_err(|error| format!("it does not start: {error}"))?;
    let stop = {
        let mut state = world.state.lock();
        let Some(seat) = state.seats.get_mut(node) else { return Err("it has no seat".to_owned()) };
        seat.shared = Arc::downgrade(node_running.shared());
        Arc::clone(&seat.stop)
    };
    let server = Server::new(Arc::clone(node_running.shared()), Arc::clone(&telemetry.edge));
    let services = Services { server, others: kv_node::services::node_routes(&node_running) };
    let grpc = Grpc::start(listener, services, &config, &telemetry.edge);
    grpc.follow(Arc::clone(&readiness)).await;
    tokio::select! {
        why = node_running.failed() => return Err(why),
        () = stop.notified() => {}
    }
    let patience = config.shutdown_timeout;
    tokio::time::timeout(patience, grpc.stop(node_running))
        .await
        .map_err(|_| format!("it did not stop within {patience:?}"))?;
    if let Some(seat) = world.state.lock().seats.get_mut(node) {
        seat.stopped = true;
    }
    Ok(())
}

fn config(plan: &Plan, node: usize, folder: PathBuf) -> Config {
    let first = format!("{}:{PORT}", name(0));
    Config {
        data_dir: folder,
        listen: ([0, 0, 0, 0], PORT).into(),
        advertise: format!("{}:{PORT}", name(node)),
        http_advertise: format!("{}:7101", name(node)),
        bootstrap: node == 0,
        bootstrap_nodes: u32::try_from(plan.nodes).unwrap_or(u32::MAX),
        default_shards: plan.shards,
        join: if node == 0 { Vec::new() } else { vec![first] },
        hibernate_after: plan.hibernate_after,
        flush_interval: plan.flush_interval,
        log_entries_kept: plan.log_entries_kept,
        log_cache: 16 << 20,
        data_cache: 8 << 20,
        data_write_buffer: 8 << 20,
        shutdown_timeout: Duration::from_secs(15),
        ..Config::default()
    }
}
