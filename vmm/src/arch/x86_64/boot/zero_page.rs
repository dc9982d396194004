//! `boot_params`, the page a kernel entered by the 64-bit Linux protocol finds in `rsi`
//! (Documentation/arch/x86/zero-page.rst).

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{ByteValued, GuestAddress};

use super::super::layout;
use super::bzimage::{BOOT_FLAG, MAGIC};
use super::{Loaded, memory_map};
use crate::boot::{Error, Result};
use devices::ram::GuestRam;

/// `type_of_loader`: "no number assigned".
const LOADER_UNDEFINED: u8 = 0xff;
/// Alignment given to kernels without a setup header of their own: 16 MiB, the usual
/// `CONFIG_PHYSICAL_ALIGN` bound.
const ELF_KERNEL_ALIGNMENT: u32 = 0x0100_0000;

/// The zero page. A bzImage's own setup header is passed on; an ELF kernel gets a minimal one.
fn page(loaded: &Loaded, map: &[memory_map::Range], rsdp: Option<GuestAddress>) -> Result<boot_params> {
    let mut params = boot_params::default();
    match loaded.setup_header {
        Some(header) => params.hdr = header,
        None => {
            params.hdr.boot_flag = BOOT_FLAG;
            params.hdr.header = MAGIC;
            params.hdr.kernel_alignment = ELF_KERNEL_ALIGNMENT;
        }
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    // Both addresses are below 4 GiB by construction of the layout.
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE.0 as u32;
    params.hdr.cmdline_size = loaded.command_line_len;
    if let Some(initrd) = &loaded.initrd {
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(initrd.address.0);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(initrd.len);
    }
    params.acpi_rsdp_addr = rsdp.map_or(0, |address| address.0);

    let too_long = || Error::MemoryMapTooLong(map.len());
    for (index, range) in map.iter().enumerate() {
        let entry = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind as u32 };
        *params.e820_table.get_mut(index).ok_or_else(too_long)? = entry;
    }
    params.e820_entries = u8::try_from(map.len()).map_err(|_| too_long())?;
    Ok(params)
}

/// Writes the zero page into guest RAM.
pub(super) fn write(ram: &GuestRam, loaded: &Loaded, rsdp: Option<GuestAddress>) -> Result<()> {
    let params = page(loaded, &memory_map::ranges(ram), rsdp)?;
    super::write(ram, "the zero page", layout::ZERO_PAGE, params.as_slice())
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, Protocol};
    use super::*;
    use crate::boot::initrd::Initrd;
    use linux_loader::bootparam::setup_header;
    use vm_memory::Bytes;

    fn loaded(setup_header: Option<setup_header>) -> Loaded {
        Loaded {
            entry: Entry { protocol: Protocol::Linux64, address: GuestAddress(0x10_0200) },
            kernel: 0x10_0000..0x20_0000,
            initrd: Some(Initrd { address: GuestAddress(0x1f0_0000), len: 0x12345 }),
            setup_header,
            command_line_len: 7,
        }
    }

    fn u32_at(ram: &GuestRam, offset: u64) -> u32 {
        ram.read_obj(GuestAddress(layout::ZERO_PAGE.0 + offset)).unwrap()
    }

    #[test]
    fn every_field_is_where_the_kernel_looks() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        write(&ram, &loaded(None), Some(layout::ACPI_RSDP)).unwrap();
        // Offsets from Documentation/arch/x86/zero-page.rst and boot.rst.
        assert_eq!(u32_at(&ram, 0x070), 0xe_0000);
        assert_eq!(u32_at(&ram, 0x1e8) & 0xff, 4, "e820_entries");
        assert_eq!(u32_at(&ram, 0x1fe) & 0xffff, 0xaa55);
        assert_eq!(u32_at(&ram, 0x202), MAGIC);
        assert_eq!(u32_at(&ram, 0x210) & 0xff, 0xff, "type_of_loader");
        assert_eq!((u32_at(&ram, 0x218), u32_at(&ram, 0x21c)), (0x1f0_0000, 0x12345));
        assert_eq!((u32_at(&ram, 0x0c0), u32_at(&ram, 0x0c4)), (0, 0), "upper halves");
        assert_eq!((u32_at(&ram, 0x228), u32_at(&ram, 0x238)), (0x20000, 7));
        assert_eq!(u32_at(&ram, 0x230), 0x0100_0000);
        // First and third e820 entry: 20 bytes each from 0x2d0.
        assert_eq!([0, 8, 16].map(|o| u32_at(&ram, 0x2d0 + o)), [0, 0x9fc00, 1]);
        assert_eq!([0, 8, 16].map(|o| u32_at(&ram, 0x2d0 + 40 + o)), [0x10_0000, (32 << 20) - 0x10_0000, 1]);
    }

    #[test]
    fn a_bzimage_header_is_passed_on() {
        let header = setup_header {
            boot_flag: BOOT_FLAG,
            header: MAGIC,
            version: 0x20f,
            init_size: 0x1234,
            type_of_loader: 1,
            ..Default::default()
        };
        let params = page(&loaded(Some(header)), &[], None).unwrap();
        let (version, init_size, rsdp) = (params.hdr.version, params.hdr.init_size, params.acpi_rsdp_addr);
        assert_eq!((version, init_size, rsdp), (0x20f, 0x1234, 0));
        assert_eq!(params.hdr.type_of_loader, 0xff);
    }

    #[test]
    fn a_map_too_long_is_an_error() {
        let range = memory_map::Range { start: 0, len: 1, kind: memory_map::Kind::Ram };
        assert!(page(&loaded(None), &[range; 128], None).is_ok());
        assert!(matches!(page(&loaded(None), &[range; 129], None), Err(Error::MemoryMapTooLong(129))));
    }

    #[test]
    fn high_addresses_keep_their_upper_half() {
        assert_eq!(halves(0x1_2345_6789), (0x2345_6789, 1));
    }
}
