//! What the loader tells: command line and memory map, from either protocol.
//!
//! Linux: the zero page (`struct boot_params`, kernel file
//! arch/x86/include/uapi/asm/bootparam.h). PVH: `hvm_start_info` (Xen file
//! include/public/arch-x86/hvm/start_info.h).

use crate::cpu::DEVICE_SPACE;
use crate::dma::Dma;
use crate::entry::BOOTED_BY_PVH;

/// Longest command line read, in bytes.
const COMMAND_LINE_MAX: u64 = 2048;
/// First word of `hvm_start_info`.
const PVH_MAGIC: u32 = 0x336e_c578;
/// Memory type of usable RAM, the same number in both protocols.
const RAM: u32 = 1;

/// One entry of the memory map.
#[derive(Clone, Copy)]
pub struct Range {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Usable RAM, as opposed to reserved.
    pub is_ram: bool,
}

/// The loader's message, validated lightly: this program trusts its loader.
pub struct BootInfo {
    /// `linux` or `pvh`.
    pub protocol: &'static str,
    /// The kernel command line.
    pub command_line: &'static str,
    map: Dma,
    entries: u64,
    entry_len: u64,
}

impl BootInfo {
    /// Reads the structure at `info`; `kind` as in [`crate::entry`].
    pub fn read(kind: u64, info: u64) -> Self {
        if kind == BOOTED_BY_PVH { Self::from_start_info(info) } else { Self::from_zero_page(info) }
    }

    fn from_zero_page(info: u64) -> Self {
        let page = Dma::left_by_loader(info, 4096);
        let command_line = u64::from(page.read32(0x228));
        let entries = u64::from(page.read8(0x1e8)).min(128);
        Self {
            protocol: "linux",
            command_line: text_at(command_line),
            map: page.part(0x2d0, entries * 20),
            entries,
            entry_len: 20,
        }
    }

    fn from_start_info(info: u64) -> Self {
        let head = Dma::left_by_loader(info, 56);
        assert!(head.read32(0) == PVH_MAGIC, "not a PVH start_info");
        // The memory map came with version 1.
        let entries = if head.read32(4) >= 1 { u64::from(head.read32(48)).min(128) } else { 0 };
        let map = if entries == 0 { head.part(0, 0) } else { Dma::left_by_loader(head.read64(40), entries * 24) };
        Self { protocol: "pvh", command_line: text_at(head.read64(24)), map, entries, entry_len: 24 }
    }

    /// The memory map in the loader's order.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        (0..self.entries).map(|i| {
            let entry = self.map.part(i * self.entry_len, self.entry_len).bytes();
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap_or_default());
            let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
            Range { start: long(0), len: long(8), is_ram: word(16) == RAM }
        })
    }

    /// Usable RAM in bytes.
    pub fn ram_bytes(&self) -> u64 {
        self.ranges().filter(|r| r.is_ram).map(|r| r.len).sum()
    }

    /// End of the RAM range that holds `address`; zero if none does.
    pub fn ram_end_above(&self, address: u64) -> u64 {
        self.ranges()
            .filter(|r| r.is_ram && r.start <= address && address < r.start + r.len)
            .map(|r| (r.start + r.len).min(DEVICE_SPACE))
            .max()
            .unwrap_or(0)
    }
}

/// The zero-terminated ASCII text at `address`; empty if there is none.
fn text_at(address: u64) -> &'static str {
    if address == 0 {
        return "";
    }
    let bytes = Dma::left_by_loader(address, COMMAND_LINE_MAX).bytes();
    let len = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    str::from_utf8(&bytes[..len]).unwrap_or("")
}
