//! What is written at once: whole blocks that begin where direct writes want them in memory.
//!
//! Not here: what is put into it (record, disk).

use bytes::{BufMut, BytesMut};

use super::record::{self, BLOCK_BYTES, RECORD_HEADER_BYTES};

/// More than this is given back after a large write.
const KEPT_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: BytesMut,
    start: usize,
}

impl Buffer {
    /// Empties it for about so many bytes.
    pub(super) fn begin(&mut self, expected: usize) {
        let wanted = record::blocks(expected) + 2 * BLOCK_BYTES;
        self.bytes.clear();
        if self.bytes.capacity() < wanted || self.bytes.capacity() > wanted.max(KEPT_BYTES) {
            self.bytes = BytesMut::with_capacity(wanted);
        }
        self.start = self.bytes.as_ptr().align_offset(BLOCK_BYTES);
        self.bytes.put_bytes(0, self.start);
    }

    /// The same, for a record: leaves room for its header.
    pub(super) fn begin_record(&mut self, expected: usize) {
        self.begin(RECORD_HEADER_BYTES + expected);
        self.bytes.put_bytes(0, RECORD_HEADER_BYTES);
    }

    /// Where to put what is to be written.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// Bytes of whole blocks that what was put takes.
    pub(super) fn blocks(&self) -> usize {
        record::blocks(self.bytes.len() - self.start)
    }

    /// Bytes of operations put into the record so far.
    pub(super) fn operations(&self) -> usize {
        self.bytes.len() - self.start - RECORD_HEADER_BYTES
    }

    /// Fills the header of the record.
    pub(super) fn seal(&mut self, sequence: u64, salt: u32) {
        if let Some(record) = self.bytes.get_mut(self.start..) {
            record::seal(record, sequence, salt);
        }
    }

    /// What was put, and zeros to the end of its last block.
    pub(super) fn finish(&mut self) -> &[u8] {
        let length = self.bytes.len() - self.start;
        self.bytes.put_bytes(0, self.blocks() - length);
        if self.bytes.as_ptr().wrapping_add(self.start).align_offset(BLOCK_BYTES) != 0 {
            // More was put than expected, and it lies elsewhere now.
            let moved = self.bytes.split_off(self.start);
            self.begin(moved.len());
            self.bytes.put_slice(&moved);
        }
        self.written()
    }

    /// What [`Buffer::finish`] returned.
    pub(super) fn written(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_whole_blocks_at_a_block_of_memory_also_if_more_was_put_than_expected() {
        let mut buffer = Buffer::default();
        for (expected, bytes) in [(0, 1), (100, 100), (100, 9_000), (4_096, 4_096), (10, 3 << 20), (10, 10)] {
            buffer.begin(expected);
            buffer.out().put_bytes(7, bytes);
            let written = buffer.finish();
            assert_eq!((written.len(), written.as_ptr().align_offset(BLOCK_BYTES)), (record::blocks(bytes), 0));
            assert!(written[..bytes].iter().all(|byte| *byte == 7) && written[bytes..].iter().all(|byte| *byte == 0));
        }
    }
}
