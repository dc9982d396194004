//! Test data that host and guest can both compute: the bytes a sector gets for
//! a seed, a checksum, and the random numbers behind both.
//!
//! This file is compiled twice, into the host library and into the freestanding
//! guest, so it uses `core` only.

/// Bytes in a sector, virtio-blk's unit.
pub const SECTOR: usize = 512;

/// A small random number generator (xorshift64*, Vigna 2014). Same seed, same
/// sequence, on both sides.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts a sequence. Zero is a valid seed.
    pub const fn new(seed: u64) -> Self {
        // Spread the seed over the word (the state must not be zero).
        let mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self(if mixed == 0 { 1 } else { mixed })
    }

    /// The next number, all 64 bits usable.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`; zero if `bound` is zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }
}

/// Fills one sector (or its first bytes) with what `seed` puts there.
pub fn fill(seed: u64, sector: u64, bytes: &mut [u8]) {
    let mut random = Random::new(seed ^ sector.wrapping_mul(0xd6e8_feb8_6659_fd93));
    for chunk in bytes.chunks_mut(8) {
        let word = random.next().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// FNV-1a, 64 bits, continued from `sum`; start with [`CHECKSUM_START`].
pub fn checksum(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The checksum of no bytes at all.
pub const CHECKSUM_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Fills `bytes` with what a stream has from byte `from` on, a multiple of 8.
pub fn stream(from: u64, bytes: &mut [u8]) {
    for (index, chunk) in (from / 8..).zip(bytes.chunks_mut(8)) {
        let word = stream_word(index).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// How many of `bytes` are not what a stream has from byte `from` on.
pub fn strays(from: u64, bytes: &[u8]) -> u64 {
    if from.is_multiple_of(8) {
        let words = (from / 8..).zip(bytes.chunks(8));
        let stray = |(index, chunk): (u64, &[u8])| match <[u8; 8]>::try_from(chunk) {
            Ok(word) if u64::from_le_bytes(word) == stream_word(index) => 0,
            _ => differing(&stream_word(index).to_le_bytes(), chunk),
        };
        return words.map(stray).sum();
    }
    let byte = |at: u64| stream_word(at / 8).to_le_bytes()[(at % 8) as usize];
    (from..).zip(bytes).map(|(at, got)| u64::from(*got != byte(at))).sum()
}

fn differing(expected: &[u8], got: &[u8]) -> u64 {
    expected.iter().zip(got).map(|(one, other)| u64::from(one != other)).sum()
}

/// No shift of the stream looks like the stream.
const fn stream_word(index: u64) -> u64 {
    index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
