//! The `kv-node` binary: arguments, configuration, exit codes.
//!
//! Exit codes: 0 after a signal, 1 if the node cannot start or go on, 2 if its configuration is at fault.
//!
//! Not here: what a run is made of (run).

use std::io::Write as _;
use std::process::ExitCode;

use kv_node::config::{self, Config};
use kv_node::run::RunError;
use kv_node::{run, telemetry};
use kv_proto::ids::ShardId;

/// Also RocksDB's: the feature replaces malloc itself.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The configuration is at fault.
const EXIT_CONFIG: u8 = 2;

pub(crate) fn main() -> ExitCode {
    let matches = config::command().get_matches();
    let config = match config::load(&matches, |name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("kv-node: {faults}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if let Some(("config", _)) = config::subcommand_of(&matches) {
        print!("{}", config::print(&config));
        return ExitCode::SUCCESS;
    }
    telemetry::abort_on_panic();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    if let Err(fault) = telemetry::start(&config) {
        eprintln!("kv-node: {fault}");
        return ExitCode::from(EXIT_CONFIG);
    }
    if let Some((config::RECOVER, arguments)) = config::subcommand_of(&matches) {
        let shard = arguments.get_one::<u64>("shard").copied().unwrap_or(0);
        return recover(&config, ShardId(shard));
    }
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kv-node: {error}");
            let is_of_config = error.downcast_ref::<RunError>().is_some_and(RunError::is_of_config);
            if is_of_config { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

/// Works on the data folder of a stopped node.
fn recover(config: &Config, shard: ShardId) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let recovered = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(kv_node::recover::recover(config, shard)).map_err(anyhow::Error::from));
    match recovered {
        Ok(report) => {
            // It is done, whether anybody reads so or not.
            let _ = writeln!(std::io::stdout(), "{}", kv_node::recover::describe(&report));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kv-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.worker_threads())
        .enable_all()
        .thread_name("kv-node")
        .build()?;
    let ended = runtime.block_on(run::run(config));
    // What blocks on a disk that does not answer must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(ended?)
}
