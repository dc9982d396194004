//! Where the initial RAM disk goes: as high as it fits in the first RAM region, page-aligned, above the
//! kernel. Called by the architecture's loader once it knows the kernel's extent.

use std::ops::Range;

use vm_memory::GuestAddress;

use super::image::Image;
use super::{Error, Result};
use crate::arch::layout::PAGE_SIZE;
use devices::ram::GuestRam;

/// A loaded initrd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Guest-physical address of its first byte, page-aligned.
    pub address: GuestAddress,
    /// Length in bytes.
    pub len: u64,
}

/// Reads `image` to the highest page-aligned place that ends at or before `limit` and does not touch
/// anything below `kernel.end`.
///
/// `limit` is the end of the first RAM region, or less where the kernel says it cannot reach as high.
pub fn load(ram: &GuestRam, image: &Image<'_>, kernel: &Range<u64>, limit: u64) -> Result<Initrd> {
    let len = image.len();
    let address = limit
        .checked_sub(len)
        .map(|top| top & !(PAGE_SIZE - 1))
        .filter(|&address| address >= kernel.end)
        .ok_or(Error::InitrdDoesNotFit { len, kernel_end: kernel.end, limit })?;
    image.read_into("the initrd", 0, len, ram, GuestAddress(address))?;
    Ok(Initrd { address: GuestAddress(address), len })
}

#[cfg(test)]
mod tests {
    use super::super::image::FileKind;
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    const MIB: u64 = 1 << 20;

    fn place(len: usize, kernel_end: u64, limit: u64) -> Result<Initrd> {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0x5a; len]).unwrap();
        let initrd = load(&ram, &Image::new(&file, FileKind::Initrd)?, &(MIB..kernel_end), limit)?;
        assert_eq!(ram.read_obj::<u8>(initrd.address).unwrap(), 0x5a);
        let last = GuestAddress(initrd.address.0 + initrd.len - 1);
        assert_eq!(ram.read_obj::<u8>(last).unwrap(), 0x5a);
        Ok(initrd)
    }

    #[test]
    fn it_ends_at_the_top_page() {
        assert_eq!(place(5000, 2 * MIB, 4 * MIB).unwrap().address, GuestAddress(4 * MIB - 8192));
        assert_eq!(place(4096, 2 * MIB, 3 * MIB).unwrap().address, GuestAddress(3 * MIB - 4096));
        assert_eq!(place(1 << 20, 3 * MIB, 4 * MIB).unwrap().address, GuestAddress(3 * MIB));
    }

    #[test]
    fn it_never_overlaps_the_kernel() {
        let e = place((1 << 20) + 1, 3 * MIB, 4 * MIB).unwrap_err();
        assert!(matches!(e, Error::InitrdDoesNotFit { len: 1_048_577, .. }), "{e}");
        assert!(matches!(place(5 << 20, MIB, 4 * MIB), Err(Error::InitrdDoesNotFit { .. })));
    }
}
