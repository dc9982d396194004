//! The device's configuration space (virtio 1.3 §5.2.4).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// Data descriptors in one request, so that header, data and status fill a queue of 256.
pub(super) const SEG_MAX: u32 = 254;
/// Logical block size in bytes.
pub(super) const SECTOR_LEN: u64 = 512;
/// Sectors in one discard: 2 GiB, which keeps one request from holding the thread for long.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Sectors in one write-zeroes request: 32 MiB, because where the host's file system cannot zero a range we write the zeroes.
pub(super) const MAX_ZEROES_SECTORS: u32 = 1 << 16;
/// 4 KiB blocks in units of the logical block size, as a power of two: what file systems and disks like best.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// As the driver reads it.
#[derive(Debug, Clone, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct ConfigSpace {
    capacity_sectors: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_blocks: U16,
    opt_io_blocks: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

impl ConfigSpace {
    pub(super) fn new(capacity_sectors: u64, queues: u16) -> Self {
        Self {
            capacity_sectors: U64::new(capacity_sectors),
            size_max: U32::ZERO,
            seg_max: U32::new(SEG_MAX),
            geometry: [0; 4],
            blk_size: U32::new(SECTOR_LEN as u32),
            physical_block_exp: PHYSICAL_BLOCK_EXP,
            alignment_offset: 0,
            min_io_blocks: U16::new(1 << PHYSICAL_BLOCK_EXP),
            opt_io_blocks: U32::ZERO,
            writeback: 0,
            unused0: 0,
            num_queues: U16::new(queues),
            max_discard_sectors: U32::new(MAX_DISCARD_SECTORS),
            max_discard_seg: U32::new(1),
            discard_sector_alignment: U32::new(1 << PHYSICAL_BLOCK_EXP),
            max_write_zeroes_sectors: U32::new(MAX_ZEROES_SECTORS),
            max_write_zeroes_seg: U32::new(1),
            write_zeroes_may_unmap: 1,
            unused1: [0; 3],
        }
    }

    /// Fills `data` from `offset`, with zeroes beyond the end.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|at| self.as_bytes().get(at..)).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(rest.iter().chain(std::iter::repeat(&0))) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<const N: usize>(offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        ConfigSpace::new(0x1234_5678_9abc, 7).read(offset, &mut data);
        data
    }

    #[test]
    fn fields_lie_where_the_standard_puts_them() {
        assert_eq!(size_of::<ConfigSpace>(), 60);
        assert_eq!(u64::from_le_bytes(at(0)), 0x1234_5678_9abc);
        let words = [
            (8, 0),
            (12, 254),
            (16, 0),
            (20, 512),
            (24, 0x0008_0003),
            (32, 7 << 16),
            (36, 1 << 22),
            (40, 1),
            (44, 8),
            (48, 1 << 16),
            (52, 1),
            (56, 1),
        ];
        for (offset, value) in words {
            assert_eq!(u32::from_le_bytes(at(offset)), value, "offset {offset}");
        }
    }

    #[test]
    fn beyond_the_end_is_zero() {
        assert_eq!(at::<8>(56), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(at::<4>(60), [0; 4]);
        assert_eq!(at::<4>(u64::MAX), [0; 4]);
    }
}
