//! A network that can be broken: every connection to a node goes through a TCP proxy that knows who opened it.
//!
//! A node advertises its proxy's address, so other nodes and clients reach it through the proxy. Who opened a
//! connection is looked up in /proc, so cuts are per pair and per direction without any rights.
//!
//! Invariants: bytes of one connection are delayed or withheld, never lost, changed or reordered: TCP promises no less.
//! What is lost is the connection. Messages on different connections may overtake each other.
//!
//! Not here: which faults come when (nemesis).

mod proxy;
mod owner;
pub mod rules;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use self::owner::Owners;
use self::proxy::Proxy;
use self::rules::Rules;

/// The proxies of one cluster and the rules they obey.
#[derive(Debug)]
pub struct Network {
    owners: Arc<Owners>,
    rules: Rules,
    proxies: Vec<Proxy>,
}

impl Network {
    /// For nodes whose folders lie in this one.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { owners: Arc::new(Owners::new(folder)), rules: Rules::default(), proxies: vec![] }
    }

    /// Begins to listen for node `number`, which itself listens at `target`; where it is reached from now on.
    pub async fn add(&mut self, number: usize, target: &str) -> Result<String> {
        let proxy = Proxy::start(number, target.to_owned(), self.owners.clone(), self.rules.clone()).await?;
        let address = proxy.address().to_owned();
        self.proxies.push(proxy);
        Ok(address)
    }

    /// What is broken now.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }
}
