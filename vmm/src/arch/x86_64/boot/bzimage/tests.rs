use super::*;
use crate::arch::x86_64::boot::fuzz::images::{self, BzImage};
use crate::boot::image::FileKind;
use vm_memory::Bytes;

const MIB: u64 = 1 << 20;

fn load_bytes(ram: &GuestRam, bytes: &[u8]) -> Result<Kernel> {
    let file = images::file(bytes);
    let image = Image::new(&file, FileKind::Kernel)?;
    assert!(is_bzimage(&image)?);
    load(ram, &image)
}

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap()
}

fn refused(image: &BzImage) -> String {
    load_bytes(&ram(), &image.bytes()).err().expect("refused").to_string()
}

#[test]
fn it_is_loaded_at_1_mib_and_entered_at_0x200() {
    let ram = ram();
    let kernel = load_bytes(&ram, &BzImage::tiny().bytes()).unwrap();
    assert_eq!(kernel.entry, Entry { protocol: Protocol::Linux64, address: GuestAddress(0x10_0200) });
    let mut got = [0; 4];
    ram.read_slice(&mut got, GuestAddress(0x10_0000)).unwrap();
    assert_eq!(&got, b"CODE");
    // Unpacks to its preferred address, 16 MiB, and uses 3 MiB there.
    assert_eq!(kernel.extent, MIB..19 * MIB);
    assert_eq!(kernel.initrd_limit, 32 * MIB);
    let header = kernel.setup_header.unwrap();
    let (version, code32_start) = (header.version, header.code32_start);
    assert_eq!((version, code32_start), (0x20f, 0x10_0000));
}

#[test]
fn header_fields_are_checked_by_name() {
    for (at, bytes, field) in [
        (0x1fe, &[0, 0][..], "boot_flag"),
        (0x206, &[0x0b, 0x02], "version"),
        (0x211, &[0], "loadflags"),
        (0x236, &[0x02, 0], "xloadflags"),
        (0x201, &[0x65], "end of the setup header"),
        (0x230, &[3, 0, 0, 0], "kernel_alignment"),
        (0x230, &[0, 0, 0, 0], "kernel_alignment"),
    ] {
        let mut image = BzImage::tiny();
        image.patches.push((at, bytes.to_vec()));
        let text = refused(&image);
        assert!(text.contains(field), "{field}: {text}");
    }
}

#[test]
fn bytes_past_the_headers_end_are_not_passed_on() {
    let mut image = BzImage::tiny();
    // kernel_info_offset, at 0x268, came after 2.12.
    image.patches.push((0x201, vec![0x66]));
    image.patches.push((0x268, vec![0xaa; 4]));
    let header = load_bytes(&ram(), &image.bytes()).unwrap().setup_header.unwrap();
    let (past_the_end, init_size) = (header.kernel_info_offset, header.init_size);
    assert_eq!((past_the_end, init_size), (0, 3 << 20));
}

#[test]
fn truncated_files_are_noticed() {
    let bytes = BzImage::tiny().bytes();
    for len in [0x206, 0x26b, 0x400, bytes.len() - 16] {
        let e = load_bytes(&ram(), &bytes[..len]).err().unwrap();
        assert!(matches!(e, Error::Truncated { .. }), "{len:#x}: {e}");
    }
}

#[test]
fn what_a_signing_tool_appends_is_harmless() {
    let mut bytes = BzImage::tiny().bytes();
    bytes.extend([0x5a; 1000]);
    load_bytes(&ram(), &bytes).unwrap();
}

#[test]
fn the_space_it_unpacks_into_must_be_ram() {
    let with = |at, bytes: &[u8]| {
        let mut image = BzImage::tiny();
        image.patches.push((at, bytes.to_vec()));
        refused(&image)
    };
    assert!(with(0x260, &[0xff; 4]).contains("not all RAM"), "init_size");
    assert!(with(0x258, &[0xff; 8]).contains("not all RAM"), "pref_address");
    assert!(with(0x258, &0x4000_0000u64.to_le_bytes()).contains("not all RAM"));
    let small = GuestRam::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let e = load_bytes(&small, &BzImage::tiny().bytes()).err().unwrap();
    assert!(matches!(e, Error::KernelOutsideRam { start: 0x10_0000, end: 0x130_0000, ram_end: 0x100_0000 }), "{e}");
}

#[test]
fn a_kernel_past_the_mapped_gib_is_refused() {
    // Reserving address space costs nothing; only touched pages exist.
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 30)]).unwrap();
    let mut image = BzImage::tiny();
    image.patches.push((0x258, (0x4000_0000u64 - MIB).to_le_bytes().to_vec()));
    let e = load_bytes(&ram, &image.bytes()).err().unwrap();
    assert!(e.to_string().contains("at most 1 GiB"), "{e}");
}

#[test]
fn a_fixed_kernel_counts_from_its_preferred_address() {
    let mut image = BzImage::tiny();
    image.patches.push((0x234, vec![0]));
    image.patches.push((0x258, 0x20_0000u64.to_le_bytes().to_vec()));
    assert_eq!(load_bytes(&ram(), &image.bytes()).unwrap().extent, MIB..5 * MIB);
}

#[test]
fn older_kernels_limit_where_the_initrd_goes() {
    let mut image = BzImage::tiny();
    image.patches.push((0x236, vec![1, 0]));
    image.patches.push((0x22c, 0x1bf_ffffu32.to_le_bytes().to_vec()));
    assert_eq!(load_bytes(&ram(), &image.bytes()).unwrap().initrd_limit, 28 * MIB);
    image.patches.push((0x22c, u32::MAX.to_le_bytes().to_vec()));
    assert_eq!(load_bytes(&ram(), &image.bytes()).unwrap().initrd_limit, 32 * MIB);
}
