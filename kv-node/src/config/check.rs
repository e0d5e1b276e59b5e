//! How the values of a configuration must fit together. Pure.

use kv_proto::limits::{KEYSPACE_SHARDS_MAX, MESSAGE_BYTES_MAX};

use super::layers::Fault;
use super::{Config, Memory};

/// More than any machine has cores: a slip of the pen.
const WORKER_THREADS_MAX: u32 = 1024;

/// All faults between values; empty if there are none.
pub(super) fn check(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut need = |holds: bool, key: &str, why: String| {
        if !holds {
            faults.push(Fault::new(key, why));
        }
    };

    need(!config.data_dir.as_os_str().is_empty(), "data_dir", "is needed: the folder of this node".to_owned());
    address(&mut need, "advertise", &config.advertise);
    address(&mut need, "http_advertise", &config.http_advertise);
    need(
        config.listen != config.http_listen || config.listen.port() == 0,
        "http_listen",
        format!("is {}, as listen: choose another port", config.listen),
    );
    for seed in &config.join {
        address(&mut need, "join", seed);
    }
    let twice =
        config.join.iter().enumerate().find(|(at, seed)| config.join.iter().take(*at).any(|other| other == *seed));
    need(twice.is_none(), "join", format!("names {} twice", twice.map_or("", |(_, seed)| seed)));
    need(config.bootstrap_nodes <= 64, "bootstrap_nodes", "must be at most 64".to_owned());
    need(
        config.default_shards <= KEYSPACE_SHARDS_MAX,
        "default_shards",
        format!("must be at most {KEYSPACE_SHARDS_MAX}"),
    );

    for (key, value) in [
        ("heartbeat_interval", config.heartbeat_interval),
        ("disk_check_interval", config.disk_check_interval),
        ("handshake_timeout", config.handshake_timeout),
        ("keepalive_interval", config.keepalive_interval),
        ("keepalive_timeout", config.keepalive_timeout),
        ("flush_interval", config.flush_interval),
        ("clock_offset_max", config.clock_offset_max),
        ("hibernate_after", config.hibernate_after),
        ("shutdown_timeout", config.shutdown_timeout),
    ] {
        need(!value.is_zero(), key, "must be more than zero".to_owned());
    }
    let tripled = config.heartbeat_interval.saturating_mul(3);
    need(
        tripled <= config.election_timeout_min,
        "election_timeout_min",
        "must be at least three heartbeat_interval, or one lost heartbeat starts an election".to_owned(),
    );
    need(
        config.election_timeout_min < config.election_timeout_max,
        "election_timeout_max",
        "must be above election_timeout_min, or votes split".to_owned(),
    );

    for (key, value) in [
        ("connections_max", config.connections_max),
        ("connection_requests_max", config.connection_requests_max),
        ("requests_max", config.requests_max),
        ("stream_calls_max", config.stream_calls_max),
    ] {
        need(value > 0, key, "must be at least 1".to_owned());
    }
    let message = u64::try_from(MESSAGE_BYTES_MAX).unwrap_or(u64::MAX);
    need(
        config.stream_bytes_max >= message,
        "stream_bytes_max",
        "must be at least 8MiB, one largest message".to_owned(),
    );
    need(
        config.worker_threads <= WORKER_THREADS_MAX,
        "worker_threads",
        format!("must be at most {WORKER_THREADS_MAX}"),
    );
    memory(&mut need, config);
    if let Err(fault) = crate::telemetry::filter(&config.log) {
        need(false, "log", format!("is no filter: {fault}"));
    }
    faults
}

/// Shares too small to work with, and shares that exceed the budget.
fn memory(need: &mut impl FnMut(bool, &str, String), config: &Config) {
    let shares = config.memory();
    need(
        config.memory_budget >= Memory::BUDGET_MIN,
        "memory_budget",
        "must be at least 128MiB: a node without data needs half of that".to_owned(),
    );
    need(
        shares.requests >= config.stream_bytes_max,
        "request_bytes_max",
        "must be at least stream_bytes_max (it is an eighth of memory_budget unless it is set)".to_owned(),
    );
    for (key, value) in
        [("log_cache", shares.log), ("data_cache", shares.data_cache), ("data_write_buffer", shares.data_write_buffer)]
    {
        need(value >= 1 << 20, key, "must be at least 1MiB".to_owned());
    }
    need(
        shares.total() <= config.memory_budget,
        "memory_budget",
        format!(
            "is less than the sum of its parts (log_cache, data_cache, data_write_buffer, twice request_bytes_max): {}",
            bytesize::ByteSize(shares.total())
        ),
    );
}

fn address(need: &mut impl FnMut(bool, &str, String), key: &str, address: &str) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let valid = !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok();
    need(valid, key, format!("{address:?} is not host:port"));
    let unspecified = address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
    need(!unspecified, key, format!("{address} means every interface: give the address others reach"));
}
