//! A whole cluster in one process, on simulated time and a simulated network, in which everything that can go wrong is
//! drawn from one seed.
//!
//! Invariants: what runs is the code of kv-node and kv-client, built with `cfg(kv_sim)`; one process runs one seed; a seed
//! gives the same run each time, within the limits docs/simulation.md names.
//!
//! Not here: real processes and disks (tests); anything in a normal build, where this package is empty.

#[cfg(kv_sim)]
mod campaign;
#[cfg(kv_sim)]
mod run;

#[cfg(kv_sim)]
mod faults;

#[cfg(kv_sim)]
mod clients;
#[cfg(kv_sim)]
mod node;

#[cfg(kv_sim)]
mod world;

#[cfg(kv_sim)]
mod oracle;

#[cfg(kv_sim)]
mod history;
#[cfg(kv_sim)]
mod plan;

#[cfg(kv_sim)]
fn main() -> anyhow::Result<std::process::ExitCode> {
    campaign::main()
}

#[cfg(not(kv_sim))]
fn main() {
    eprintln!("the simulation is built and run by scripts/sim");
}
