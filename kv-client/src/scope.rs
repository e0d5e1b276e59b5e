//! What all requests on one keyspace share: the client's core, the keyspace's name and its routes.
//!
//! Not here: the handle that requests begin at (keyspace), how they are carried out (execute).

use std::fmt;
use std::sync::Arc;

use crate::core::Core;
use crate::route_cache::RouteCache;

/// The keyspace every cluster has.
pub(crate) const DEFAULT: &str = "default";

/// Shared by all handles of a keyspace and their requests.
pub(crate) struct Scope {
    pub(crate) core: Arc<Core>,
    pub(crate) name: Arc<str>,
    pub(crate) routes: RouteCache,
}

impl Scope {
    pub(crate) fn new(core: Arc<Core>, name: Arc<str>) -> Arc<Self> {
        let routes = RouteCache::new(core.clone(), name.clone());
        Arc::new(Self { core, name, routes })
    }

    /// As requests name it: a shard's own keyspace needs no name, which keeps the common requests short.
    pub(crate) fn wire_name(&self) -> String {
        if *self.name == *DEFAULT { String::new() } else { self.name.to_string() }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace").field("name", &self.name).finish_non_exhaustive()
    }
}
