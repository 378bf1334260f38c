//! Small changes to known inputs, the same for the same seed, so that a finding can be made again.

use crate::INPUT_BYTES_MAX;

/// Byte strings that parsers tend to trip over.
const INTERESTING: &[&[u8]] = &[
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x80",
    b"\x7f\xff\xff\xff",
    b"\xc0\x0c",
    b"\r\n",
    b"%",
    b"{{",
    b"&a *a",
    b"---\n",
    b"[",
    b"::",
    b"65536",
    b"-1",
    b"\xef\xbb\xbf",
    b"\"",
    b"spiffe://",
    b".",
];

/// A small generator of random numbers (xorshift64*): not for secrets.
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number of all that 64 bits can hold.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`; 0 when there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number() % (bound.max(1) as u64)).unwrap_or(0)
    }
}

/// One of `corpus`, changed in one to eight places.
pub fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let Some(first) = corpus.get(random.below(corpus.len())) else {
        return Vec::new();
    };
    let mut input = first.clone();
    for _ in 0..=random.below(8) {
        change(&mut input, corpus, random);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = (at + random.below(16)).min(input.len());
    match random.below(8) {
        0 => flip(input, random),
        1 => drop(input.drain(at..end)),
        2 => insert(
            input,
            at,
            &INTERESTING[random.below(INTERESTING.len())].repeat(1 + random.below(3)),
        ),
        3 => insert(input, at, &[random.number().to_le_bytes()[0]]),
        4 => insert(input, at, &input[at..end].repeat(1 + random.below(64))),
        5 => input.truncate(at),
        6 => splice(input, at, corpus, random),
        _ => overwrite(input, at, INTERESTING[random.below(INTERESTING.len())]),
    }
}

fn flip(input: &mut [u8], random: &mut Random) {
    let bit = random.below(8);
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << bit;
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if input.len() + bytes.len() <= INPUT_BYTES_MAX {
        drop(input.splice(at..at, bytes.iter().copied()));
    }
}

fn overwrite(input: &mut [u8], at: usize, bytes: &[u8]) {
    for (old, new) in input[at..].iter_mut().zip(bytes) {
        *old = *new;
    }
}

/// Goes on as another input of the corpus does.
fn splice(input: &mut Vec<u8>, at: usize, corpus: &[Vec<u8>], random: &mut Random) {
    if let Some(other) = corpus.get(random.below(corpus.len())) {
        input.truncate(at);
        input.extend_from_slice(&other[random.below(other.len())..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let corpus = [b"hello".to_vec(), b"world, wide".to_vec(), Vec::new()];
        let inputs = |seed| {
            let mut random = Random::new(seed);
            (0..1000)
                .map(|_| mutated(&corpus, &mut random))
                .collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
        assert!(inputs(7).iter().all(|input| input.len() <= INPUT_BYTES_MAX));
    }
}
