//! What many keys are cut into: by shard, and within one by the limits of a request.
//!
//! Invariants: what goes to one shard keeps its order; each part fits one request, unless one item alone does not.
//!
//! Not here: what is sent (batch, batch_get).

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_proto::ids::ShardId;
use kv_proto::limits::{BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX};

use crate::routes::Routes;

/// The parts of each shard, by an item's key and the bytes it takes. What lies in no known shard is kept together, and its
/// request finds out more.
pub(super) fn by_shard<T>(
    routes: &Routes,
    items: Vec<T>,
    key_and_bytes: impl Fn(&T) -> (&Bytes, usize),
) -> Vec<Vec<Vec<T>>> {
    let mut shards: BTreeMap<ShardId, Vec<(Vec<T>, usize)>> = BTreeMap::new();
    let room = (items.len() / routes.shards().len().max(1) + 1).min(BATCH_OPERATIONS_MAX);
    for item in items {
        let (key, bytes) = key_and_bytes(&item);
        let shard = routes.shard_of(key).map(|route| route.shard()).unwrap_or_default();
        let parts = shards.entry(shard).or_default();
        match parts.last_mut() {
            Some((part, held)) if part.len() < BATCH_OPERATIONS_MAX && *held + bytes <= BATCH_BYTES_MAX => {
                part.push(item);
                *held += bytes;
            }
            Some(_) | None => {
                let mut part = Vec::with_capacity(room);
                part.push(item);
                parts.push((part, bytes));
            }
        }
    }
    shards.into_values().map(|parts| parts.into_iter().map(|(part, _)| part).collect()).collect()
}
