//! Decompression of LZ4 "legacy" frames, the form the kernel's build makes with `lz4 -l`.
//!
//! Formats: `lz4_Frame_format.md` (legacy frame) and `lz4_Block_format.md` of the LZ4 project.

/// Starts a legacy frame.
const MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
/// Matches are at least this long, and the length field counts from there.
const MIN_MATCH: usize = 4;

/// Decompresses a legacy frame; `None` when it is not one or is damaged.
pub(super) fn decompress(frame: &[u8]) -> Option<Vec<u8>> {
    let mut rest = frame.strip_prefix(&MAGIC)?;
    let mut out = Vec::with_capacity(frame.len() * 4);
    while !rest.is_empty() {
        let (size, after) = rest.split_first_chunk::<4>()?;
        let (block, after) = after.split_at_checked(u32::from_le_bytes(*size) as usize)?;
        decompress_block(block, &mut out)?;
        rest = after;
    }
    Some(out)
}

fn decompress_block(mut block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    while let Some((&token, rest)) = block.split_first() {
        block = rest;
        let literals = length(usize::from(token >> 4), &mut block)?;
        let (copied, rest) = block.split_at_checked(literals)?;
        out.extend_from_slice(copied);
        block = rest;
        // The last sequence of a block has no match.
        if block.is_empty() {
            return Some(());
        }
        let (offset, rest) = block.split_first_chunk::<2>()?;
        block = rest;
        let offset = usize::from(u16::from_le_bytes(*offset));
        let mut matched = length(usize::from(token & 15), &mut block)? + MIN_MATCH;
        if offset == 0 || offset > out.len() - start {
            return None;
        }
        // A match may overlap what it produces: copy at most `offset` bytes at a time.
        while matched > 0 {
            let from = out.len() - offset;
            let n = matched.min(offset);
            out.extend_from_within(from..from + n);
            matched -= n;
        }
    }
    Some(())
}

/// A four-bit length, continued by bytes as long as they are 255.
fn length(nibble: usize, block: &mut &[u8]) -> Option<usize> {
    let mut total = nibble;
    if nibble == 15 {
        loop {
            let (&byte, rest) = block.split_first()?;
            *block = rest;
            total += usize::from(byte);
            if byte != 255 {
                break;
            }
        }
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(block: &[u8]) -> Vec<u8> {
        let size = u32::try_from(block.len()).unwrap();
        [&MAGIC[..], &size.to_le_bytes(), block].concat()
    }

    #[test]
    fn literals_and_overlapping_matches() {
        // "ab", then 4 + 15 + 3 = 22 bytes from 2 back, then the literal "z".
        let block = [0x2f, b'a', b'b', 2, 0, 3, 0x10, b'z'];
        let text = decompress(&frame(&block)).unwrap();
        assert_eq!(text, [b"ab".repeat(12), b"z".to_vec()].concat());
    }

    #[test]
    fn damaged_frames_are_refused() {
        let block = [0x2f, b'a', b'b', 3, 0, 3, 0x10, b'z'];
        assert_eq!(decompress(&frame(&block)), None, "a match before the start");
        assert_eq!(decompress(&frame(&[0x2f, b'a'])), None, "cut off");
        assert_eq!(decompress(b"\x89PNG"), None, "another format");
    }
}
