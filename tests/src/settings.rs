//! What a test's cluster is made of.

/// Nodes and the lines of their configuration file.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many begin together.
    pub nodes: usize,
    /// Shards of the default keyspace.
    pub default_shards: u32,
    /// Further lines of every node's file.
    pub lines: Vec<String>,
    /// Parts of lines of WARN and ERROR that this test provokes.
    pub expected: Vec<String>,
    /// Whether the network goes through proxies and, where that is allowed, each node has a small disk of its own.
    pub breakable: bool,
    /// Whether each node has a disk whose power can be cut.
    pub mains: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { nodes: 3, default_shards: 3, lines: Vec::new(), expected: Vec::new(), breakable: false, mains: false }
    }
}

impl Settings {
    /// With another number of nodes.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// With another number of shards of the default keyspace.
    #[must_use]
    pub fn shards(mut self, shards: u32) -> Self {
        self.default_shards = shards;
        self
    }

    /// With a network and disks that can be broken.
    #[must_use]
    pub fn breakable(mut self) -> Self {
        self.breakable = true;
        self
    }

    /// With a disk for each node whose power can be cut, where that is allowed.
    #[must_use]
    pub fn mains(mut self) -> Self {
        self.mains = true;
        self
    }

    /// With a line in every node's file, as in `flush_interval = "200ms"`.
    #[must_use]
    pub fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// With elections that take more than five seconds: what is done sooner was done without one.
    #[must_use]
    pub fn rare_elections(self) -> Self {
        let lines =
            ["heartbeat_interval = \"200ms\"", "election_timeout_min = \"6s\"", "election_timeout_max = \"7s\""];
        lines.into_iter().fold(self, Self::line)
    }

    /// Lines of WARN and ERROR with this part are no surprise; `*` joins parts that must all be there.
    #[must_use]
    pub fn expect(mut self, part: impl Into<String>) -> Self {
        self.expected.push(part.into());
        self
    }
}
