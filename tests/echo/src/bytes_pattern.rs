//! Reproducible payload bytes and their checksum: what `source` ports send and what uploads carry, so that both ends
//! can say that the same bytes arrived without keeping them.

use bytes::Bytes;
use xxhash_rust::xxh64::Xxh64;

/// A prime, so that the pattern never lines up with buffer sizes and a lost or doubled buffer shows.
const BLOCK: usize = 65_521;

/// Endless pseudo-random bytes, always the same, cut to `remaining`.
pub(crate) struct Pattern {
    block: Bytes,
    at: usize,
    remaining: u64,
}

impl Pattern {
    pub(crate) fn new(length: u64) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let block = (0..BLOCK)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect::<Vec<u8>>();
        Self {
            block: block.into(),
            at: 0,
            remaining: length,
        }
    }
}

impl Iterator for Pattern {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.remaining == 0 {
            return None;
        }
        let length =
            (self.block.len() - self.at).min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        let piece = self.block.slice(self.at..self.at + length);
        self.at = (self.at + length) % self.block.len();
        self.remaining -= length as u64;
        Some(piece)
    }
}

/// Count and xxh64 of a stream of bytes.
pub(crate) struct Account {
    pub(crate) bytes: u64,
    hash: Xxh64,
}

impl Account {
    pub(crate) fn new() -> Self {
        Self {
            bytes: 0,
            hash: Xxh64::new(0),
        }
    }

    pub(crate) fn add(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.hash.update(data);
    }

    /// xxh64 of everything so far, as hexadecimal.
    pub(crate) fn checksum(&self) -> String {
        format!("{:016x}", self.hash.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_has_the_asked_length_and_repeats_itself_exactly() {
        let read = |n| {
            let mut account = Account::new();
            Pattern::new(n).for_each(|piece| account.add(&piece));
            (account.bytes, account.checksum())
        };
        assert_eq!(read(200_000).0, 200_000);
        assert_eq!(read(200_000), read(200_000));
        assert_ne!(read(200_000).1, read(200_001).1);
        assert_eq!(read(0).0, 0);
    }
}
