//! Loading a kernel on x86_64 and writing what it is handed at entry.
//!
//! Three kinds of kernel file, tried in this order: ELF with a PVH note (32-bit entry), other ELF (the
//! 64-bit Linux boot protocol), bzImage (the same protocol, entered at `+0x200`). [`load`] runs before
//! devices are placed, [`write_handoff`] after the ACPI tables exist. Called by the machine room through
//! [`crate::boot`].

pub mod bzimage;
pub mod elf;
pub mod memory_map;
pub mod pvh;
pub mod zero_page;

#[cfg(test)]
mod fuzz;

use std::fs::File;
use std::ops::Range;

use linux_loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::layout;
use crate::boot::image::{FileKind, Image};
use crate::boot::initrd::{self, Initrd};
use crate::boot::{CommandLine, Error, Result};
use devices::ram::GuestRam;

/// How vCPU 0 is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// 32-bit protected mode, `ebx` points to `hvm_start_info` (Xen docs/misc/pvh.pandoc).
    Pvh,
    /// 64-bit mode, `rsi` points to `boot_params` (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
    Linux64,
}

/// Where vCPU 0 starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The state it starts in.
    pub protocol: Protocol,
    /// Guest-physical address of the first instruction.
    pub address: GuestAddress,
}

/// A kernel, and perhaps an initrd, in guest RAM. What [`write_handoff`] needs to describe them.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Where vCPU 0 starts.
    pub entry: Entry,
    /// Guest-physical range the kernel occupies in the first RAM region, including its bss and, for a
    /// bzImage, the space it unpacks itself into.
    pub kernel: Range<u64>,
    /// The initrd, if there is one.
    pub initrd: Option<Initrd>,
    /// A bzImage's own setup header.
    setup_header: Option<setup_header>,
    /// Command line length in bytes, without its NUL.
    command_line_len: u32,
}

/// What a format reader found and put into RAM.
struct Kernel {
    entry: Entry,
    extent: Range<u64>,
    /// One past the last byte an initrd may use.
    initrd_limit: u64,
    setup_header: Option<setup_header>,
}

/// Puts kernel, initrd and command line into guest RAM.
///
/// The RAM must be freshly mapped: bss is taken to be zero already. On an error, RAM above 1 MiB may
/// have been written; nothing outside it ever is. Time is bounded by the RAM and file sizes.
pub fn load(ram: &GuestRam, kernel: &File, initrd: Option<&File>, command_line: &CommandLine) -> Result<Loaded> {
    let image = Image::new(kernel, FileKind::Kernel)?;
    // Look at the initrd before reading a large kernel for nothing.
    let initrd = initrd.map(|file| Image::new(file, FileKind::Initrd)).transpose()?;

    let mut magic = [0; 4];
    let len = usize::try_from(image.len()).unwrap_or(usize::MAX).min(magic.len());
    image.read_bytes("the file magic", 0, &mut magic[..len])?;
    let kernel = if magic == *b"\x7fELF" {
        elf::load(ram, &image)?
    } else if bzimage::is_bzimage(&image)? {
        bzimage::load(ram, &image)?
    } else {
        return Err(Error::UnknownFormat(magic));
    };
    if kernel.entry.protocol == Protocol::Pvh {
        log::info!("Kernel loaded using PVH boot protocol");
    }

    let initrd = initrd.map(|image| initrd::load(ram, &image, &kernel.extent, kernel.initrd_limit)).transpose()?;

    let bytes = command_line.to_bytes_with_nul();
    write(ram, "the kernel command line", layout::COMMAND_LINE, &bytes)?;
    Ok(Loaded {
        entry: kernel.entry,
        kernel: kernel.extent,
        initrd,
        setup_header: kernel.setup_header,
        command_line_len: u32::try_from(bytes.len().saturating_sub(1)).unwrap_or(u32::MAX),
    })
}

/// Writes the structure the kernel expects at entry: `hvm_start_info` or `boot_params`, with the memory
/// map, the initrd, the command line and (when there is one) the ACPI root pointer.
pub fn write_handoff(ram: &GuestRam, loaded: &Loaded, rsdp: Option<GuestAddress>) -> Result<Entry> {
    match loaded.entry.protocol {
        Protocol::Pvh => pvh::write(ram, loaded, rsdp)?,
        Protocol::Linux64 => zero_page::write(ram, loaded, rsdp)?,
    }
    Ok(loaded.entry)
}

/// End of the first RAM region (which starts at 0), in bytes; 0 if there is none.
fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.find_region(GuestAddress(0)).map_or(0, |region| region.len())
}

/// Whether `range` is not empty and lies in one RAM region.
fn in_one_region(ram: &GuestRam, range: &Range<u64>) -> bool {
    ram.find_region(GuestAddress(range.start)).is_some_and(|region| {
        let room = region.start_addr().0.saturating_add(region.len());
        range.start < range.end && range.end <= room
    })
}

fn write(ram: &GuestRam, what: &'static str, address: GuestAddress, bytes: &[u8]) -> Result<()> {
    ram.write_slice(bytes, address).map_err(|source| Error::GuestMemory { what, address: address.0, source })
}
