//! What every kind of write operation has.
//!
//! Not here: what an operation must be (kv-node, validate), what it does (kv-raft, command).

use bytes::Bytes;

use crate::pb::v1::WriteOperation;
use crate::pb::v1::write_operation::Operation;

static NO_KEY: Bytes = Bytes::new();

impl WriteOperation {
    /// The key it writes, as the user names it; empty if it says nothing to do.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match &self.operation {
            Some(Operation::Put(put)) => &put.key,
            Some(Operation::Delete(delete)) => &delete.key,
            None => &NO_KEY,
        }
    }

    /// Bytes of its key and value.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.operation {
            Some(Operation::Put(put)) => put.key.len() + put.value.len(),
            Some(Operation::Delete(delete)) => delete.key.len(),
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::v1::{DeleteOperation, PutOperation};

    #[test]
    fn an_operation_has_a_key_and_a_size_whatever_its_kind() {
        let of = |operation| WriteOperation { operation };
        let put = of(Some(Operation::Put(PutOperation { key: "key".into(), value: "value".into() })));
        let delete = of(Some(Operation::Delete(DeleteOperation { key: "key".into() })));
        assert_eq!((put.key().as_ref(), put.bytes()), (&b"key"[..], 8));
        assert_eq!((delete.key().as_ref(), delete.bytes()), (&b"key"[..], 3));
        assert_eq!((of(None).key().as_ref(), of(None).bytes()), (&b""[..], 0));
    }
}
