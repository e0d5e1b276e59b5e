//! Our own cluster under load, through kv-client.
//!
//! Not here: how the clients share connections (whoever makes the targets).

use bytes::Bytes;
use futures::StreamExt as _;
use kv_client::{Consistency, Error, Keyspace};

use crate::target::{Answer, Operation, Target};

/// One keyspace over one instance of the client library, that is, one stream to each node.
#[derive(Clone, Debug)]
pub struct ClusterTarget {
    keyspace: Keyspace,
    consistency: Consistency,
}

impl ClusterTarget {
    /// Reads promise `consistency`.
    #[must_use]
    pub fn new(keyspace: Keyspace, consistency: Consistency) -> Self {
        Self { keyspace, consistency }
    }

    async fn compare_and_set(&self, key: Bytes, value: Bytes) -> Result<Answer, Error> {
        let entry = self.keyspace.get(key.clone()).consistency(self.consistency).await?;
        let request = self.keyspace.compare_and_set(key);
        let expecting = match entry {
            Some(entry) => request.expect_version(entry.version),
            None => request.expect_absent(),
        };
        let result = expecting.set(value).await?;
        Ok(if result.applied() { Answer::Keys(1) } else { Answer::Refused })
    }

    async fn scan(&self, start: Bytes, limit: usize) -> Result<Answer, Error> {
        let request = self.keyspace.scan().start(start).limit(limit).page_size(limit).consistency(self.consistency);
        let mut stream = request.stream();
        let mut keys = 0;
        while let Some(entry) = stream.next().await {
            entry?;
            keys += 1;
        }
        Ok(Answer::Keys(keys))
    }

    /// Split by shard: each part is atomic, the parts are under way at once.
    async fn batch(&self, entries: Vec<(Bytes, Bytes)>) -> Result<Answer, Error> {
        let keys = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        let batch = entries.into_iter().fold(self.keyspace.batch(), |batch, (key, value)| batch.put(key, value));
        for part in batch.spread().await? {
            part.result?;
        }
        Ok(Answer::Keys(keys))
    }
}

impl Target for ClusterTarget {
    type Error = Error;

    async fn operate(&self, operation: Operation) -> Result<Answer, Error> {
        match operation {
            Operation::Get(key) => {
                let entry = self.keyspace.get(key).consistency(self.consistency).await?;
                Ok(Answer::Keys(u64::from(entry.is_some())))
            }
            Operation::Put(key, value) => {
                self.keyspace.put(key, value).await?;
                Ok(Answer::Keys(1))
            }
            Operation::CompareAndSet(key, value) => self.compare_and_set(key, value).await,
            Operation::ReadModifyWrite(key, value) => {
                self.keyspace.get(key.clone()).consistency(self.consistency).await?;
                self.keyspace.put(key, value).await?;
                Ok(Answer::Keys(1))
            }
            Operation::Scan(start, limit) => self.scan(start, limit).await,
            Operation::Batch(entries) => self.batch(entries).await,
        }
    }
}
