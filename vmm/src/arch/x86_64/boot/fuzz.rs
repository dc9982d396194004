//! Hostile kernel files, made by damaging good ones: whatever the bytes, loading ends quickly, in a
//! result, and touches nothing but RAM above 1 MiB.

pub(crate) mod images;

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use images::{BzImage, Elf, Phdr};

const RAM_LEN: usize = 20 << 20;
/// Written over everything below 1 MiB beforehand.
const CANARY: u8 = 0xc5;
const LOW_LEN: usize = layout::HIGH_MEMORY_START.0 as usize;
/// Generous for a busy machine; a loop over attacker-chosen counts takes minutes.
const TIME_LIMIT: Duration = Duration::from_secs(5);

fn ram() -> GuestRam {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_LEN)]).unwrap();
    ram.write_slice(&[CANARY; LOW_LEN], GuestAddress(0)).unwrap();
    ram
}

/// Loads `kernel` and checks everything that must hold whatever the outcome.
fn try_load(kernel: &[u8], initrd: Option<&[u8]>) -> Result<Loaded> {
    let ram = ram();
    let kernel = images::file(kernel);
    let initrd = initrd.map(images::file);
    let line = CommandLine::new("console=ttyS0").unwrap();
    let started = Instant::now();
    let result = load(&ram, &kernel, initrd.as_ref(), &line);
    assert!(started.elapsed() < TIME_LIMIT, "took {:?}", started.elapsed());

    let mut low = vec![0; LOW_LEN];
    ram.read_slice(&mut low, GuestAddress(0)).unwrap();
    let line_at = layout::COMMAND_LINE.0 as usize;
    let line_len = line.to_bytes_with_nul().len();
    let touched = low.iter().enumerate().filter(|(_, byte)| **byte != CANARY).map(|(at, _)| at);
    match &result {
        Ok(_) => assert!(touched.eq(line_at..line_at + line_len), "only the command line is below 1 MiB"),
        Err(e) => {
            assert_eq!(touched.count(), 0, "{e}");
            assert!(!e.to_string().is_empty());
        }
    }
    if let Ok(loaded) = &result {
        let end = RAM_LEN as u64;
        assert!(loaded.kernel.start >= layout::HIGH_MEMORY_START.0 && loaded.kernel.end <= end);
        assert!(loaded.entry.address.0 >= layout::HIGH_MEMORY_START.0 && loaded.entry.address.0 < end);
        if let Some(initrd) = &loaded.initrd {
            assert!(initrd.address.0 >= loaded.kernel.end && initrd.address.0 + initrd.len <= end);
            assert_eq!(initrd.address.0 % layout::PAGE_SIZE, 0);
        }
        // What was loaded can always be described.
        write_handoff(&ram, loaded, Some(layout::ACPI_RSDP)).unwrap();
    }
    result
}

/// Numbers that break arithmetic, and ordinary ones near the machine's own addresses.
fn nasty() -> impl Strategy<Value = u64> {
    let near = |at: u64| (-16i64..=16).prop_map(move |by| at.wrapping_add_signed(by)).boxed();
    prop_oneof![
        any::<u64>(),
        near(0),
        near(0x10_0000),
        near(RAM_LEN as u64),
        near(1 << 30),
        near(1 << 32),
        near(1 << 63),
        near(u64::MAX),
        0u64..0x200_0000,
    ]
}

fn phdr() -> impl Strategy<Value = Phdr> {
    (prop_oneof![Just(1u32), Just(4), any::<u32>()], nasty(), nasty(), nasty(), nasty())
        .prop_map(|(kind, offset, paddr, filesz, memsz)| Phdr { kind, offset, paddr, filesz, memsz })
}

/// Overwrites, and perhaps a new length.
fn damage() -> impl Strategy<Value = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)> {
    (vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), prop::option::weighted(0.2, any::<prop::sample::Index>()))
}

fn apply(
    bytes: &mut Vec<u8>,
    interesting: usize,
    (changes, cut): (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>),
) {
    for (at, value) in changes {
        let at = at.index(interesting);
        bytes[at] = value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
}

#[test]
fn undamaged_images_load() {
    let pvh = Elf { notes: images::note(b"Xen\0", 18, &0x10_0040u32.to_le_bytes()), ..Elf::tiny() };
    for (bytes, protocol) in [
        (Elf::tiny().bytes(), Protocol::Linux64),
        (pvh.bytes(), Protocol::Pvh),
        (BzImage::tiny().bytes(), Protocol::Linux64),
    ] {
        let loaded = try_load(&bytes, Some(&[1; 5000])).unwrap();
        assert_eq!(loaded.entry.protocol, protocol);
        assert_eq!(loaded.initrd.unwrap().address.0, RAM_LEN as u64 - 8192);
    }
}

#[test]
fn other_files_are_not_kernels() {
    for bytes in [&b"\x1f\x8b\x08\x00 gzip"[..], b"x", b"#!/bin/sh\n", &[0; 0x300]] {
        let e = try_load(bytes, None).unwrap_err();
        assert!(matches!(e, Error::UnknownFormat(_)), "{e}");
    }
    assert!(matches!(try_load(b"", None), Err(Error::Empty(FileKind::Kernel))));
    assert!(matches!(try_load(b"\x7fELF", None), Err(Error::Truncated { .. })));
}

#[test]
fn an_initrd_larger_than_ram_is_an_error() {
    let file = images::file(b"x");
    file.set_len(1 << 40).unwrap();
    let kernel = images::file(&Elf::tiny().bytes());
    let e = load(&ram(), &kernel, Some(&file), &CommandLine::new("").unwrap()).unwrap_err();
    assert!(matches!(e, Error::InitrdDoesNotFit { .. }), "{e}");
}

#[test]
fn an_enormous_sparse_kernel_is_refused_before_it_is_read() {
    for mut bytes in [BzImage::tiny().bytes(), Elf::tiny().bytes()] {
        // For the ELF file, a segment as long as the file.
        if bytes.starts_with(b"\x7fELF") {
            let elf = Elf::with_segment(Phdr { filesz: 1 << 39, memsz: 1 << 39, ..Phdr::code() });
            bytes = elf.bytes();
        }
        let file = images::file(&bytes);
        file.set_len(1 << 40).unwrap();
        let started = Instant::now();
        let e = load(&ram(), &file, None, &CommandLine::new("").unwrap()).unwrap_err();
        assert!(matches!(e, Error::KernelOutsideRam { .. }), "{e}");
        assert!(started.elapsed() < TIME_LIMIT);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_elf_headers(damage in damage()) {
        let mut bytes = Elf { notes: images::note(b"Xen\0", 18, &0x10_0040u32.to_le_bytes()), ..Elf::tiny() }.bytes();
        // The ELF header, the program headers and the notes.
        apply(&mut bytes, images::ELF_INTERESTING, damage);
        if !bytes.is_empty() {
            let _ = try_load(&bytes, Some(&[2; 100]));
        }
    }

    #[test]
    fn elf_files_with_nasty_program_headers(phdrs in vec(phdr(), 0..5), entry in nasty(), phoff in prop::option::weighted(0.1, nasty())) {
        let mut bytes = Elf { phdrs, entry, ..Elf::tiny() }.bytes();
        if let Some(phoff) = phoff {
            bytes[32..40].copy_from_slice(&phoff.to_le_bytes());
        }
        let _ = try_load(&bytes, None);
    }

    #[test]
    fn damaged_bzimage_headers(damage in damage()) {
        let mut bytes = BzImage::tiny().bytes();
        let mut header = bytes[0x1f1..0x26c].to_vec();
        apply(&mut header, 0x7b, (damage.0, None));
        bytes[0x1f1..0x26c].copy_from_slice(&header);
        if let Some(cut) = damage.1 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if !bytes.is_empty() {
            let _ = try_load(&bytes, Some(&[3; 100]));
        }
    }

    #[test]
    fn bzimages_with_nasty_fields(
        pref_address in nasty(), init_size in any::<u32>(), alignment in 0u32..33, sectors in any::<u8>(),
        syssize in prop_oneof![Just(0u32), Just(u32::MAX), 0u32..4096], initrd_max in any::<u32>(), flags in any::<u8>(),
    ) {
        let mut image = BzImage::tiny();
        image.patches.extend([
            (0x258, pref_address.to_le_bytes().to_vec()),
            (0x260, init_size.to_le_bytes().to_vec()),
            (0x230, 1u32.checked_shl(alignment).unwrap_or(0).to_le_bytes().to_vec()),
            (0x1f1, vec![sectors]),
            (0x1f4, syssize.to_le_bytes().to_vec()),
            (0x22c, initrd_max.to_le_bytes().to_vec()),
            (0x236, vec![flags | 1]),
        ]);
        let _ = try_load(&image.bytes(), Some(&[4; 10_000]));
    }

    #[test]
    fn noise(mut bytes in vec(any::<u8>(), 1..1200), magic in 0..3) {
        match magic {
            0 if bytes.len() >= 4 => bytes[..4].copy_from_slice(b"\x7fELF"),
            1 if bytes.len() >= 0x206 => bytes[0x202..0x206].copy_from_slice(b"HdrS"),
            _ => {}
        }
        let _ = try_load(&bytes, None);
    }
}
