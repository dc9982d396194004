//! The device's configuration space (virtio 1.3 §5.5.4).

use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

/// Where the driver writes.
const ACTUAL: std::ops::Range<usize> = 4..8;

/// As the driver reads it. `poison_val` is left out: VIRTIO_BALLOON_F_PAGE_POISON is not offered.
#[derive(Debug, Clone, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct ConfigSpace {
    /// Pages the balloon should have.
    pub num_pages: U32,
    /// Pages it has, says the driver.
    pub actual: U32,
    /// The command for hinting.
    pub free_page_hint_cmd_id: U32,
}

impl ConfigSpace {
    /// Fills `data` from `offset`; zeroes beyond the end.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut from = self.as_bytes().iter().skip(skip);
        data.fill_with(|| from.next().copied().unwrap_or(0));
    }

    /// A driver's write. Only `actual` can be written, also in parts (§5.5.6.2); `false` if this write is anything else.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let Ok(start) = usize::try_from(offset) else { return false };
        if start < ACTUAL.start || start.saturating_add(data.len()) > ACTUAL.end {
            return false;
        }
        let mut bytes = self.actual.to_bytes();
        for (to, from) in bytes.iter_mut().skip(start.saturating_sub(ACTUAL.start)).zip(data) {
            *to = *from;
        }
        self.actual = U32::from_bytes(bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_actual_can_be_written() {
        let mut space = ConfigSpace { num_pages: U32::new(1), actual: U32::new(2), free_page_hint_cmd_id: U32::new(3) };
        assert!(space.write(4, &[0x78, 0x56, 0x34, 0x12]));
        assert!(space.write(7, &[0x99]) && space.write(4, &[]));
        assert_eq!(space.actual.get(), 0x9934_5678);
        for (offset, len) in [(0, 4), (2, 4), (4, 8), (5, 4), (8, 4), (3, 1), (u64::MAX, 4)] {
            assert!(!space.write(offset, &vec![0xff; len]), "{offset} {len}");
        }
        let mut all = [0xee; 20];
        space.read(0, &mut all);
        assert_eq!(all[..12], [1, 0, 0, 0, 0x78, 0x56, 0x34, 0x99, 3, 0, 0, 0]);
        assert_eq!(all[12..], [0; 8]);
        space.read(u64::MAX, &mut all);
        assert_eq!(all, [0; 20]);
    }
}
