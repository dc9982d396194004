use super::*;
use crate::arch::x86_64::boot::fuzz::images::{self, Elf, Phdr};
use crate::boot::image::FileKind;
use proptest::prelude::*;
use vm_memory::Bytes;

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 8 << 20), (GuestAddress(4 << 30), 1 << 20)]).unwrap()
}

fn load_bytes(ram: &GuestRam, bytes: &[u8]) -> Result<Kernel> {
    let file = images::file(bytes);
    load(ram, &Image::new(&file, FileKind::Kernel)?)
}

fn refused(elf: &Elf) -> String {
    match load_bytes(&ram(), &elf.bytes()) {
        Ok(kernel) => panic!("loaded at {:x?}", kernel.extent),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_plain_elf_is_entered_as_64_bit_linux() {
    let ram = ram();
    let kernel = load_bytes(&ram, &Elf::tiny().bytes()).unwrap();
    assert_eq!(kernel.entry, Entry { protocol: Protocol::Linux64, address: GuestAddress(0x10_0010) });
    assert_eq!(kernel.extent, 0x10_0000..0x10_2000);
    assert_eq!(kernel.initrd_limit, 8 << 20);
    let mut got = [0; 8];
    ram.read_slice(&mut got, GuestAddress(0x10_0000)).unwrap();
    assert_eq!(&got, b"KERNELKE");
    // bss starts where the file data ends and stays zero.
    let bss: u8 = ram.read_obj(GuestAddress(0x10_0000 + images::CODE_LEN as u64)).unwrap();
    assert_eq!(bss, 0);
}

#[test]
fn a_pvh_note_selects_the_32_bit_entry() {
    let mut elf = Elf::tiny();
    elf.notes = [images::note(b"GNU\0", 3, &[1; 20]), images::note(b"Xen\0", 18, &0x10_0040u32.to_le_bytes())].concat();
    let kernel = load_bytes(&ram(), &elf.bytes()).unwrap();
    assert_eq!(kernel.entry, Entry { protocol: Protocol::Pvh, address: GuestAddress(0x10_0040) });

    // The same type under another owner's name is not it; a note without content neither.
    elf.notes = [images::note(b"Foo\0", 18, &[0; 4]), images::note(b"", 0, &[])].concat();
    assert_eq!(load_bytes(&ram(), &elf.bytes()).unwrap().entry.protocol, Protocol::Linux64);
}

#[test]
fn broken_notes_are_named() {
    for (notes, expected) in [
        (images::note(b"Xen\0", 18, &[1, 2]), "shorter than 4 bytes"),
        ([4u32, u32::MAX, 18, 0].map(u32::to_le_bytes).concat(), "runs past the end"),
        ([u32::MAX, 4, 18, 0].map(u32::to_le_bytes).concat(), "runs past the end"),
        (images::note(b"Xen\0", 18, &0x20_0000u32.to_le_bytes()), "not inside a loaded segment"),
        (vec![0; (64 << 10) + 1], "larger than 64 KiB"),
    ] {
        let text = refused(&Elf { notes, ..Elf::tiny() });
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_note_segment_of_zeros_ends() {
    // Empty notes are 12 bytes each: 64 KiB of them is the longest walk there is.
    let elf = Elf { notes: vec![0; 64 << 10], ..Elf::tiny() };
    assert_eq!(load_bytes(&ram(), &elf.bytes()).unwrap().entry.protocol, Protocol::Linux64);
}

#[test]
fn header_fields_are_checked_by_name() {
    let tiny = Elf::tiny().bytes();
    for (at, value, field) in [
        (4, 1, "EI_CLASS"),
        (5, 2, "EI_DATA"),
        (16, 1, "e_type"),
        (18, 3, "e_machine"),
        (54, 32, "e_phentsize"),
        (56, 200, "e_phnum"),
    ] {
        let mut bytes = tiny.clone();
        bytes[at] = value;
        let text = load_bytes(&ram(), &bytes).err().unwrap().to_string();
        assert!(text.contains(field), "{field}: {text}");
    }
    let mut none = tiny.clone();
    none[56] = 0;
    assert!(matches!(load_bytes(&ram(), &none), Err(Error::ElfNothingToLoad)));
    // e_phoff at the end of the address space.
    let mut far = tiny.clone();
    far[32..40].fill(0xff);
    assert!(matches!(load_bytes(&ram(), &far), Err(Error::Truncated { .. })));
    assert!(matches!(load_bytes(&ram(), &tiny[..40]), Err(Error::Truncated { .. })));
}

#[test]
fn segments_stay_above_1_mib_and_inside_ram() {
    let segment = |paddr, memsz| Elf::with_segment(Phdr { paddr, memsz, ..Phdr::code() });
    for (elf, expected) in [
        (segment(0, 0x1000), "below 1 MiB"),
        (segment(0xf_f000, 0x2000), "below 1 MiB"),
        (segment(u64::MAX - 0xfff, 0x2000), "wraps around"),
        (segment(0x10_0000, u64::MAX - 0x10_0000), "not all RAM"),
        (segment(0x10_0000, 8 << 20), "not all RAM"),
        (segment(8 << 20, 0x1000), "not all RAM"),
        (segment(0xc000_0000, 0x1000), "not all RAM"),
        (segment(0x10_0000, 4), "larger in the file"),
        (Elf::with_segment(Phdr { offset: u64::MAX, ..Phdr::code() }), "truncated"),
        (Elf::with_segment(Phdr { filesz: 1 << 40, memsz: 1 << 40, ..Phdr::code() }), "truncated"),
    ] {
        let text = refused(&elf);
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn segments_together_are_bounded() {
    // Two segments from the same file bytes: more data than the file has.
    let twice = Elf { phdrs: vec![Phdr::code(), Phdr { paddr: 0x20_0000, ..Phdr::code() }], ..Elf::tiny() };
    let long = Elf { code: vec![1; 0x10000], ..twice };
    let long =
        Elf { phdrs: long.phdrs.iter().map(|p| Phdr { filesz: 0x10000, memsz: 0x10000, ..*p }).collect(), ..long };
    assert!(refused(&long).contains("all kernel segments together"));

    let overlap = Elf {
        phdrs: vec![
            Phdr { memsz: 0x2000, ..Phdr::code() },
            Phdr { paddr: 0x10_1000, filesz: 0, memsz: 0x10, ..Phdr::code() },
        ],
        ..Elf::tiny()
    };
    assert!(refused(&overlap).contains("overlaps another"));
}

#[test]
fn a_segment_in_high_memory_does_not_push_the_initrd_away() {
    let elf = Elf {
        phdrs: vec![Phdr::code(), Phdr { paddr: 4 << 30, filesz: 0, memsz: 0x1000, ..Phdr::code() }],
        ..Elf::tiny()
    };
    assert_eq!(load_bytes(&ram(), &elf.bytes()).unwrap().extent, 0x10_0000..0x10_2000);
}

#[test]
fn entry_points_outside_the_kernel_are_refused() {
    for entry in [0, 0x7000, 0xf_ffff, 0x10_2000, 0xffff_ffff_8100_0000] {
        let text = refused(&Elf { entry, ..Elf::tiny() });
        assert!(text.contains("not inside a loaded segment"), "{entry:#x}: {text}");
    }
    let high = Elf { entry: 4 << 30, ..Elf::with_segment(Phdr { paddr: 4 << 30, ..Phdr::code() }) };
    assert!(refused(&high).contains("first GiB"));
}

proptest! {
    #[test]
    fn any_note_bytes_are_bounded(notes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = load_bytes(&ram(), &Elf { notes, ..Elf::tiny() }.bytes());
    }

    #[test]
    fn a_note_after_others_is_found(before in proptest::collection::vec((0usize..40, 0usize..40), 0..6)) {
        let mut notes: Vec<u8> = before.iter().flat_map(|(n, d)| images::note(&vec![b'n'; *n], 18, &vec![7; *d])).collect();
        notes.extend(images::note(b"Xen\0", 18, &0x10_0000u32.to_le_bytes()));
        let kernel = load_bytes(&ram(), &Elf { notes, ..Elf::tiny() }.bytes()).unwrap();
        prop_assert_eq!(kernel.entry, Entry { protocol: Protocol::Pvh, address: GuestAddress(0x10_0000) });
    }
}
