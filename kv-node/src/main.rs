//! The `kv-node` binary: arguments, configuration, exit codes.

use std::process::ExitCode;

use kv_node::{config, telemetry};

/// The configuration is at fault.
const EXIT_CONFIG: u8 = 2;

fn main() -> ExitCode {
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
    if let Err(fault) = telemetry::start(&config) {
        eprintln!("kv-node: {fault}");
        return ExitCode::from(EXIT_CONFIG);
    }
    ExitCode::SUCCESS
}
