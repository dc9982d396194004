//! The Internet checksum (RFC 1071).

/// Of `bytes` alone.
pub fn of(bytes: &[u8]) -> u16 {
    fold(add(0, bytes))
}

/// Adds `bytes` to an unfinished sum. All but the last stretch must have an even length.
pub fn add(sum: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(sum, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
}

/// Finishes a sum.
pub fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
