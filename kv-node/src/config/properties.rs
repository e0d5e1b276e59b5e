//! Whatever a configuration is told, it is a value or a fault that is named; what is printed loads again.
//!
//! Not here: examples (tests); the same with coverage as a guide (fuzz, config).

use std::io::Write as _;

use proptest::prelude::*;
use proptest::sample::select;

use super::settings::SETTINGS;
use super::{Config, Faults, command, load, print};

/// Anything, and what looks nearly right.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9]{1,20}",
        Just(u64::MAX.to_string()),
        "-?[0-9]{1,20}(\\.[0-9]{1,3})? ?(ns|us|ms|s|m|h|days|months|y|B|kB|KiB|MiB|GiB|TiB|EiB|)",
        "[a-z0-9.:-]{0,12}:[0-9]{0,6}(,[a-z0-9.:]{1,12}:[0-9]{1,5}){0,3}",
        "(true|false|text|json|info|warn|debug|kv_raft=debug|off)(,(kv_node|h2)=(trace|[a-z]{0,6})){0,2}",
    ]
}

fn key() -> impl Strategy<Value = &'static str> {
    select(SETTINGS.iter().map(|setting| setting.key).collect::<Vec<_>>())
}

fn load_file(text: &str) -> Result<Config, Faults> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    load(&command().try_get_matches_from(["kv-node", "--config", path]).unwrap(), |_| None)
}

proptest! {
    /// One at a time, or one fault would hide whether the others load again.
    #[test]
    fn any_value_of_a_variable_is_refused_by_name_or_loads_again_from_what_is_printed(key in key(), value in value()) {
        let matches = command().try_get_matches_from(["kv-node", "--data-dir", "/data"]).unwrap();
        let variable = format!("KV_{}", key.to_uppercase());
        match load(&matches, |name| (name == variable).then(|| value.clone())) {
            Ok(config) => prop_assert_eq!(load_file(&print(&config)).unwrap(), config),
            Err(faults) => prop_assert!(!faults.to_string().is_empty()),
        }
    }

    #[test]
    fn any_values_together_are_a_configuration_or_faults(
        values in proptest::collection::hash_map(key(), value(), 0..8),
    ) {
        let matches = command().try_get_matches_from(["kv-node"]).unwrap();
        let variable = |name: &str| values.get(name.strip_prefix("KV_")?.to_lowercase().as_str()).cloned();
        if let Ok(config) = load(&matches, variable) {
            prop_assert_eq!(load_file(&print(&config)).unwrap(), config);
        }
    }

    #[test]
    fn any_file_is_a_configuration_or_faults(
        lines in proptest::collection::vec((prop_oneof![key().prop_map(str::to_owned), "[a-z_.-]{0,9}"], value()), 0..6),
        quoted in any::<bool>(),
    ) {
        let quote = |value: &String| if quoted { format!("{value:?}") } else { value.clone() };
        let text: String = lines.iter().map(|(key, value)| format!("{key} = {}\n", quote(value))).collect();
        if let Ok(config) = load_file(&text) {
            prop_assert_eq!(load_file(&print(&config)).unwrap(), config);
        }
    }
}
