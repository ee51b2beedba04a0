//! Many small copies in few allocations.

use bytes::{BufMut, Bytes, BytesMut};

/// Hands out copies that share a few allocations: one that just fits the first
/// copy, which often is the only one, then chunks that grow from 4 KiB to
/// 1 MiB, so that a large answer is never moved.
#[derive(Default)]
pub(super) struct Buffer {
    chunk: BytesMut,
    next_chunk_len: usize,
}

impl Buffer {
    const FIRST_CHUNK_LEN: usize = 4 << 10;
    const MAX_CHUNK_LEN: usize = 1 << 20;

    pub(super) fn copy(&mut self, bytes: &[u8]) -> Bytes {
        self.copy_parts(&[bytes])
    }

    /// The concatenation of `parts`.
    pub(super) fn copy_parts(&mut self, parts: &[&[u8]]) -> Bytes {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if self.chunk.capacity() - self.chunk.len() < len {
            self.chunk = BytesMut::with_capacity(self.next_chunk_len.max(len));
            self.next_chunk_len =
                (self.next_chunk_len * 2).clamp(Buffer::FIRST_CHUNK_LEN, Buffer::MAX_CHUNK_LEN);
        }
        for part in parts {
            self.chunk.put_slice(part);
        }
        self.chunk.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_chunks_and_keep_their_bytes() {
        let mut buffer = Buffer::default();
        let copies: Vec<Bytes> = (0..2000u32)
            .map(|n| buffer.copy_parts(&[&n.to_be_bytes(), b"!"]))
            .collect();
        let large = buffer.copy(&vec![7; 3 << 20]);
        assert_eq!(large.len(), 3 << 20);
        for (n, copy) in copies.iter().enumerate() {
            assert_eq!(copy[..4], (n as u32).to_be_bytes());
            assert_eq!(&copy[4..], b"!");
        }
    }
}
