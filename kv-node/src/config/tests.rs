use std::io::Write as _;

use super::*;

fn load_from(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, Faults> {
    let matches = command().try_get_matches_from(std::iter::once(&"kv-node").chain(arguments)).unwrap();
    load(&matches, |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn a_data_folder_is_all_a_node_needs_to_be_told() {
    let config = load_from(&["--data-dir", "/data"], &[]).unwrap();
    assert_eq!(config.advertise, "127.0.0.1:7001");
    assert_eq!(config.http_advertise, "127.0.0.1:7101");
}

#[test]
fn threads_are_half_of_the_cores_unless_they_are_set() {
    let half = std::thread::available_parallelism().unwrap().get() / 2;
    assert_eq!(load_from(&["--data-dir", "/data"], &[]).unwrap().worker_threads(), half.max(1));
    let set = load_from(&["--data-dir", "/data"], &[("KV_WORKER_THREADS", "3")]).unwrap();
    assert_eq!(set.worker_threads(), 3);
    let faults = load_from(&["--data-dir", "/data", "--worker-threads", "5000"], &[]).unwrap_err().to_string();
    assert!(faults.contains("worker_threads: must be at most 1024"), "{faults}");
}

#[test]
fn a_list_of_seeds_says_how_many_nodes_make_the_cluster() {
    let config = load_from(&["--data-dir", "/data", "--bootstrap", "--join", "a:1,b:1,c:1"], &[]).unwrap();
    assert_eq!(config.bootstrap_nodes(), 3);
    let given = load_from(&["--data-dir", "/data", "--join", "a:1,b:1", "--bootstrap-nodes", "5"], &[]).unwrap();
    assert_eq!(given.bootstrap_nodes(), 5);
}

#[test]
fn a_keyspace_begins_with_as_many_shards_as_the_threads_of_the_nodes_can_serve() {
    let shards = |threads: &str, nodes: &str, set: &str| {
        let flags = ["--data-dir", "/data", "--worker-threads", threads, "--bootstrap-nodes", nodes];
        load_from(&flags, &[("KV_DEFAULT_SHARDS", set)]).unwrap().default_shards()
    };
    assert_eq!(shards("1", "3", "0"), 1, "three nodes of two cores");
    assert_eq!(shards("4", "3", "0"), 3, "three nodes of eight cores");
    assert_eq!(shards("1024", "64", "0"), 1024, "as many as a keyspace may have");
    assert_eq!(shards("1", "3", "7"), 7, "who says so has so many");
}

#[test]
fn flags_override_variables_which_override_the_file() {
    let file = file("data_dir = '/file'\nlog = 'debug'\nheartbeat_interval = '50ms'\nbootstrap_nodes = 3\n");
    let path = file.path().to_str().unwrap();
    let variables = [("KV_LOG", "warn"), ("KV_HEARTBEAT_INTERVAL", "60ms"), ("KV_SERVICE_HOST", "10.0.0.1")];
    let config = load_from(&["--config", path, "--heartbeat-interval", "70ms", "--bootstrap"], &variables).unwrap();
    assert_eq!(config.data_dir, PathBuf::from("/file"));
    assert_eq!(config.log, "warn");
    assert_eq!(config.heartbeat_interval, Duration::from_millis(70));
    assert_eq!(config.bootstrap_nodes, 3);
    assert!(config.bootstrap);
}

#[test]
fn every_fault_is_reported_at_once_with_where_it_came_from() {
    let file = file("data_dirr = '/x'\nlog-format = 'json'\nlog_cache = 1.5\nelection_timeout_min = '200ms'\n");
    let path = file.path().to_str().unwrap();
    let arguments =
        ["--config", path, "--bootstrap", "--join", "10.0.0.1:7001,10.0.0.1:7001", "--connections-max", "many"];
    let faults = load_from(&arguments, &[("KV_DISK_FREE_MIN", "lots"), ("KV_ADVERTISE", "0.0.0.0:7001")]).unwrap_err();
    let text = faults.to_string();
    for part in [
        "data_dirr: is not a known key",
        "log-format: is not a known key; did you mean log_format",
        "log_cache: is a float",
        "election_timeout_min: must be at least three heartbeat_interval",
        "join: names 10.0.0.1:7001 twice",
        "connections_max: \"many\" is not a whole number (--connections-max)",
        "disk_free_min: \"lots\" is not a size as in 64MiB (KV_DISK_FREE_MIN)",
        "advertise: 0.0.0.0:7001 means every interface",
        "data_dir: is needed",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert!(text.starts_with("the configuration has 9 faults:"), "{text}");
}

#[test]
fn what_grows_with_load_shares_one_memory_budget() {
    let config = load_from(&["--data-dir", "/a", "--memory-budget", "1GiB", "--data-cache", "300MiB"], &[]).unwrap();
    let eighth = 128 << 20;
    let expected = Memory { log: eighth, data_cache: 300 << 20, data_write_buffer: eighth, requests: eighth };
    assert_eq!(config.memory(), expected);
    assert!(config.memory().total() < config.memory_budget);

    let faults = load_from(&["--data-dir", "/a", "--memory-budget", "256MiB", "--data-cache", "300MiB"], &[]);
    let text = faults.unwrap_err().to_string();
    assert!(text.contains("memory_budget: is less than the sum of its parts"), "{text}");
    let text = load_from(&["--data-dir", "/a", "--memory-budget", "64MiB"], &[]).unwrap_err().to_string();
    assert!(text.contains("memory_budget: must be at least 128MiB"), "{text}");
}

#[test]
fn a_file_that_is_no_toml_is_named() {
    let file = file("data_dir = \n");
    let text = load_from(&["--config", file.path().to_str().unwrap()], &[]).unwrap_err().to_string();
    assert!(text.contains(&format!("{} is not TOML", file.path().display())), "{text}");
    assert!(load_from(&["--config", "/nowhere"], &[]).unwrap_err().to_string().contains("cannot read /nowhere"));
}

#[test]
fn what_print_shows_loads_to_the_same_configuration() {
    let arguments = ["--data-dir", "/a \"b\"", "--join", "a:1,b:2", "--log-cache", "3KiB", "--log-cache=3000000B"];
    let config = load_from(&arguments[..4], &[("KV_LOG_CACHE", "3000001B")]).unwrap();
    let printed = file(&print(&config));
    assert_eq!(load_from(&["--config", printed.path().to_str().unwrap()], &[]).unwrap(), config);
}

#[test]
fn a_number_too_large_for_toml_is_printed_so_that_it_loads_again() {
    let largest = u64::MAX.to_string();
    let config = load_from(&["--data-dir", "/a", "--log-entries-kept", &largest], &[]).unwrap();
    let printed = file(&print(&config));
    assert_eq!(load_from(&["--config", printed.path().to_str().unwrap()], &[]).unwrap(), config);
}

#[test]
fn every_setting_is_documented_and_has_a_flag() {
    let help = command().render_long_help().to_string();
    for setting in settings::SETTINGS {
        assert!(help.contains(&format!("--{}", setting.flag())), "{}", setting.key);
        assert!(setting.help.len() > 4 && !setting.value.is_empty());
    }
}
