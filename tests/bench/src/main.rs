//! How fast a local cluster is: beside etcd, beside what the machine could do at most, and against the goals.
//!
//! Invariants: every process it starts ends with it; both systems get the same load from the same code.
//!
//! Not here: a load on a cluster of one's own (kvctl bench), promises that must hold (`tests/tests`).

// Modules: wiring, then what is measured, then what becomes of it, then vocabulary.
mod run;

mod versus;
mod limits;
mod failover;
mod large;
mod footprint;
mod awake;
mod etcd;
mod etcd_client;
mod shapes;

mod table;
mod page;
mod plot;
mod goals;
mod record;
mod machine;

use clap::Parser as _;

/// As the nodes have: what the load generator costs is taken from both systems under it. The limits measured of RocksDB are
/// those of RocksDB with it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let arguments = run::Arguments::parse();
    // One thread, as kvctl has: it leaves the other core to the nodes, and is cheaper than several.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run::run(arguments))
}
