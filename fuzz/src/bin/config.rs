//! Settings: any text is a value or a fault that is told. Lines `name=value` stand for variables.

#![no_main]

use std::collections::HashMap;
use std::sync::LazyLock;

use clap::ArgMatches;
use kv_node::config;
use libfuzzer_sys::fuzz_target;

/// No flags. Once: what clap is told lives as long as the process.
static MATCHES: LazyLock<ArgMatches> = LazyLock::new(|| config::command().get_matches_from(["kv-node"]));

fuzz_target!(|text: &str| {
    let variables: HashMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        // No file is read.
        .filter(|(name, _)| !name.eq_ignore_ascii_case("config"))
        .map(|(name, value)| (format!("KV_{}", name.to_uppercase()), value.to_owned()))
        .collect();
    if let Ok(config) = config::load(&MATCHES, |name| variables.get(name).cloned()) {
        let _ = config::print(&config);
    }
});
