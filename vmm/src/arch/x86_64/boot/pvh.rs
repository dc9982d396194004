//! `hvm_start_info`, what a kernel entered by PVH finds in `ebx`
//! (Linux include/xen/interface/hvm/start_info.h), version 1 with a memory map.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestAddress};

use super::super::layout;
use super::{Loaded, memory_map};
use crate::boot::{Error, Result};
use devices::ram::GuestRam;

/// Entries that fit between the map's address and the boot stack's page.
const MAX_ENTRIES: usize = layout::PAGE_SIZE as usize / size_of::<hvm_memmap_table_entry>();

/// Writes the start info, its module list and its memory map into guest RAM.
pub(super) fn write(ram: &GuestRam, loaded: &Loaded, rsdp: Option<GuestAddress>) -> Result<()> {
    let map = memory_map::ranges(ram);
    if map.len() > MAX_ENTRIES {
        return Err(Error::MemoryMapTooLong(map.len()));
    }
    let mut bytes = Vec::with_capacity(map.len() * size_of::<hvm_memmap_table_entry>());
    for range in &map {
        let entry =
            hvm_memmap_table_entry { addr: range.start, size: range.len, type_: range.kind as u32, reserved: 0 };
        bytes.extend_from_slice(entry.as_slice());
    }
    super::write(ram, "the PVH memory map", layout::PVH_MEMORY_MAP, &bytes)?;

    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE.0,
        rsdp_paddr: rsdp.map_or(0, |address| address.0),
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        // Bounded above.
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initrd) = &loaded.initrd {
        let module = hvm_modlist_entry { paddr: initrd.address.0, size: initrd.len, ..Default::default() };
        super::write(ram, "the PVH module list", layout::PVH_MODULES, module.as_slice())?;
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODULES.0;
    }
    super::write(ram, "the PVH start info", layout::PVH_START_INFO, info.as_slice())
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, Protocol};
    use super::*;
    use crate::boot::initrd::Initrd;
    use vm_memory::Bytes;

    fn written(initrd: Option<Initrd>) -> (GuestRam, hvm_start_info) {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        let loaded = Loaded {
            entry: Entry { protocol: Protocol::Pvh, address: GuestAddress(0x100_0000) },
            kernel: 0x100_0000..0x110_0000,
            initrd,
            setup_header: None,
            command_line_len: 0,
        };
        write(&ram, &loaded, Some(layout::ACPI_RSDP)).unwrap();
        let info = ram.read_obj(layout::PVH_START_INFO).unwrap();
        (ram, info)
    }

    #[test]
    fn start_info_points_at_everything() {
        let initrd = Initrd { address: GuestAddress(0x1f0_0000), len: 77 };
        let (ram, info) = written(Some(initrd));
        assert_eq!((info.magic, info.version, info.flags), (0x336e_c578, 1, 0));
        assert_eq!((info.cmdline_paddr, info.rsdp_paddr), (0x20000, 0xe_0000));
        assert_eq!((info.nr_modules, info.modlist_paddr), (1, 0x6040));
        let module: hvm_modlist_entry = ram.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size, module.cmdline_paddr), (0x1f0_0000, 77, 0));
        assert_eq!((info.memmap_paddr, info.memmap_entries), (0x7000, 4));
        let second: hvm_memmap_table_entry = ram.read_obj(GuestAddress(info.memmap_paddr + 24)).unwrap();
        assert_eq!((second.addr, second.size, second.type_), (0x9fc00, 0x60400, 2));
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let (_, info) = written(None);
        assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
    }
}
