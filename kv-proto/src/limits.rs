//! The limits of what a request may hold, each with its reason. Part of the interface: raising one is compatible,
//! lowering one is not.

/// Longest key. A key is compared, hashed and indexed on each hop; longer names belong in the value.
pub const KEY_BYTES_MAX: usize = 4 << 10;

/// Longest value. Larger ones stall every other command that shares their log entry.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Most operations (or keys, or conditions) of one batch. Bounds the time one apply takes.
pub const BATCH_OPERATIONS_MAX: usize = 4096;

/// Most bytes of keys and values in one batch; leaves room in a message for headers.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Most entries of one scan page.
pub const PAGE_ENTRIES_MAX: usize = 10_000;

/// A scan page ends once its entries reach this many bytes.
pub const PAGE_BYTES_MAX: usize = 4 << 20;

/// Largest gRPC message either way: a batch or page at its limit plus framing.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Most calls one pipelined message carries.
pub const PIPELINE_CALLS_MAX: usize = 4096;

/// Longest time a request may wait, in milliseconds. Sessions outlive it by far, so a late retry still finds its session.
pub const TIMEOUT_MS_MAX: u32 = 60_000;

/// Most writes of one client id from the lowest unfinished one to the newest. A client that needs more at a time goes on
/// under another id.
pub const SESSION_WINDOW_MAX: usize = 1024;

/// Replies that a shard remembers for one client id: those of a full window, and those of the window before, which the
/// shard keeps until it hears that they are finished. Beyond it the oldest are given up.
pub const SESSION_REPLIES_MAX: usize = 2048;

/// Replies that a shard remembers for all clients together: some 10 MiB of memory.
pub const SHARD_REPLIES_MAX: usize = 262_144;

/// Clients that a shard remembers: some 15 MiB of memory.
pub const SHARD_CLIENTS_MAX: usize = 32_768;

/// Longest keyspace name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Most shards of one keyspace at creation.
pub const KEYSPACE_SHARDS_MAX: u32 = 1024;

/// Most hops of a forwarded request: the first node's route may be stale once, the leader may have just moved once.
pub const HOPS_MAX: u32 = 2;

const _: () = assert!(KEY_BYTES_MAX + VALUE_BYTES_MAX < BATCH_BYTES_MAX, "a batch holds at least one largest entry");
const _: () = assert!(2 * SESSION_WINDOW_MAX <= SESSION_REPLIES_MAX, "no awaited write is given up for later ones");
const _: () = assert!(2 * SESSION_REPLIES_MAX <= SHARD_REPLIES_MAX, "one client does not take all room");
const _: () = assert!(BATCH_BYTES_MAX + (1 << 20) < MESSAGE_BYTES_MAX, "a message holds a largest batch");
const _: () =
    assert!(PAGE_BYTES_MAX + VALUE_BYTES_MAX + (1 << 20) < MESSAGE_BYTES_MAX, "a page may overshoot by one entry");
