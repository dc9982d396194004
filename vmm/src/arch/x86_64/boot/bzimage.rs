//! bzImage kernels: the compressed images distributions install, entered at their 64-bit entry point.
//!
//! Follows Documentation/arch/x86/boot.rst of Linux. The image unpacks itself, so besides the bytes in
//! the file it needs `init_size` bytes of memory that nothing else may occupy.

use linux_loader::bootparam::{CAN_USE_HEAP, LOADED_HIGH, XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64, setup_header};
use vm_memory::{ByteValued, GuestAddress};

use super::super::layout;
use super::{Entry, Kernel, Protocol, in_one_region, low_ram_end};
use crate::boot::image::Image;
use crate::boot::{Error, Result};
use devices::ram::GuestRam;

/// File offset of the setup header.
const SETUP_HEADER_OFFSET: u64 = 0x1f1;
/// File offset of the `HdrS` magic.
const MAGIC_OFFSET: u64 = 0x202;
/// `HdrS`, little-endian.
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// `boot_flag` of every boot sector.
pub(super) const BOOT_FLAG: u16 = 0xaa55;
/// Boot protocol 2.12 (Linux 3.8) brought the 64-bit entry point.
const MIN_VERSION: u16 = 0x020c;
/// The header of protocol 2.12 ends here (`handover_offset` is its last field).
const MIN_HEADER_END: u16 = 0x268;
/// Offset of the 64-bit entry point from the start of the loaded code.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

/// Whether the file has the boot sector and header magic of a bzImage.
pub(super) fn is_bzimage(image: &Image<'_>) -> Result<bool> {
    if image.check("the bzImage magic", MAGIC_OFFSET, 4).is_err() {
        return Ok(false);
    }
    let mut magic = [0; 4];
    image.read_bytes("the bzImage magic", MAGIC_OFFSET, &mut magic)?;
    Ok(u32::from_le_bytes(magic) == MAGIC)
}

/// Loads the protected-mode part of a bzImage at 1 MiB.
pub(super) fn load(ram: &GuestRam, image: &Image<'_>) -> Result<Kernel> {
    let mut header = read_header(image)?;
    let xloadflags = header.xloadflags;

    // Zero means four (boot.rst, "setup_sects").
    let setup_sectors = match header.setup_sects {
        0 => 4,
        n => u64::from(n),
    };
    let code_offset = (setup_sectors + 1) * SECTOR;
    // `syssize` leaves out what signing tools append; it is a lower bound that finds truncated files.
    let code_len_declared = u64::from(header.syssize) * 16;
    let code_len = code_len_declared.max(ENTRY_64 + 1);
    image.check("the kernel code", code_offset, code_len)?;
    let code_len = image.len() - code_offset;

    let start = layout::HIGH_MEMORY_START.0;
    let outside = |end| Error::KernelOutsideRam { start, end, ram_end: low_ram_end(ram) };
    let loaded_end = start.checked_add(code_len).ok_or_else(|| outside(u64::MAX))?;
    let extent = start..unpacked_end(&header, start)?.ok_or_else(|| outside(u64::MAX))?.max(loaded_end);
    if !in_one_region(ram, &extent) {
        return Err(outside(extent.end));
    }
    if extent.end > layout::BOOT_IDENTITY_MAP_LEN {
        let value = extent.end;
        return Err(Error::BzImage {
            field: "end of init_size",
            value,
            expected: "at most 1 GiB, which is mapped at entry",
        });
    }

    image.read_into("the kernel code", code_offset, code_len, ram, GuestAddress(start))?;

    let ram_end = low_ram_end(ram);
    let initrd_limit = if xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 {
        // The kernel reads all 64 bits of the address; `initrd_addr_max` is only for older loaders.
        ram_end
    } else {
        ram_end.min(u64::from(header.initrd_addr_max).saturating_add(1))
    };
    // 1 MiB fits 32 bits.
    header.code32_start = start as u32;
    // There is no real-mode code, and so no heap for it.
    header.loadflags &= !CAN_USE_HEAP;
    Ok(Kernel {
        entry: Entry { protocol: Protocol::Linux64, address: GuestAddress(start + ENTRY_64) },
        extent,
        initrd_limit,
        setup_header: Some(header),
    })
}

/// Reads the setup header, clears what lies past its declared end, and checks that it offers a 64-bit
/// entry point.
fn read_header(image: &Image<'_>) -> Result<setup_header> {
    let mut header: setup_header = image.read_obj("the bzImage setup header", SETUP_HEADER_OFFSET)?;
    // The header's end: offset 0x202 plus the second byte of the jump at 0x200.
    let end = (MAGIC_OFFSET as u16) + (header.jump >> 8);
    if end < MIN_HEADER_END {
        return Err(Error::BzImage {
            field: "end of the setup header",
            value: u64::from(end),
            expected: "at least 0x268",
        });
    }
    let known = usize::from(end - SETUP_HEADER_OFFSET as u16);
    if let Some(rest) = header.as_mut_slice().get_mut(known..) {
        rest.fill(0);
    }
    let (boot_flag, version, loadflags, xloadflags) =
        (header.boot_flag, header.version, header.loadflags, header.xloadflags);
    let checks = [
        (boot_flag == BOOT_FLAG, "boot_flag", u64::from(boot_flag), "0xaa55"),
        (version >= MIN_VERSION, "version", u64::from(version), "0x20c (boot protocol 2.12) or later"),
        (loadflags & LOADED_HIGH != 0, "loadflags", u64::from(loadflags), "bit 0 (LOADED_HIGH) set"),
        (
            xloadflags & XLF_KERNEL_64 != 0,
            "xloadflags",
            u64::from(xloadflags),
            "bit 0 (XLF_KERNEL_64) set: only 64-bit kernels can be booted",
        ),
    ];
    for (good, field, value, expected) in checks {
        if !good {
            return Err(Error::BzImage { field, value, expected });
        }
    }
    Ok(header)
}

/// One past the memory the kernel uses before it knows its memory map (boot.rst, "init_size"), for code
/// loaded at `start`; `None` if that wraps around.
fn unpacked_end(header: &setup_header, start: u64) -> Result<Option<u64>> {
    let preferred = header.pref_address;
    let runtime_start = if header.relocatable_kernel != 0 {
        let alignment = u64::from(header.kernel_alignment);
        if !alignment.is_power_of_two() {
            return Err(Error::BzImage { field: "kernel_alignment", value: alignment, expected: "a power of two" });
        }
        start.max(preferred).checked_next_multiple_of(alignment)
    } else {
        Some(preferred)
    };
    Ok(runtime_start.and_then(|at| at.checked_add(u64::from(header.init_size))))
}

#[cfg(test)]
mod tests;
