//! ELF kernels (`vmlinux`): checked, loaded by physical address, entered by PVH or as 64-bit Linux.
//!
//! The file is hostile until proven otherwise, so the reading is our own and strict: every header is
//! checked before a byte of a segment is read; the segments together may not be longer than the file, and
//! may not overwrite each other, which bounds the work.

use std::ops::Range;

use linux_loader::elf;
use vm_memory::GuestAddress;

use super::super::layout;
use super::{Entry, Kernel, Protocol, in_one_region, low_ram_end};
use crate::boot::image::Image;
use crate::boot::{Error, Result};
use devices::ram::GuestRam;

/// Most program headers accepted. Kernels have about five.
const MAX_SEGMENTS: u16 = 128;
/// Longest note segment accepted, in bytes. Kernels have a few hundred.
const MAX_NOTES_LEN: u64 = 64 << 10;
/// `XEN_ELFNOTE_PHYS32_ENTRY` (Linux include/xen/interface/elfnote.h): the PVH entry point.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// Alignment of the parts of a note. It is 4 even in ELF64 kernels, whatever `p_align` says.
const NOTE_ALIGN: usize = 4;

/// A loadable segment that has been checked.
struct Segment {
    offset: u64,
    file_len: u64,
    memory: Range<u64>,
}

/// Loads the segments of an ELF kernel and finds its entry point.
pub(super) fn load(ram: &GuestRam, image: &Image<'_>) -> Result<Kernel> {
    let header = read_header(image)?;
    let mut segments = Vec::new();
    let mut pvh_entry = None;
    for index in 0..header.e_phnum {
        let at = u64::from(index) * size_of::<elf::Elf64_Phdr>() as u64;
        // The table was checked to lie in the file, so this cannot overflow.
        let phdr: elf::Elf64_Phdr = image.read_obj("a program header", header.e_phoff + at)?;
        match phdr.p_type {
            elf::PT_LOAD if phdr.p_memsz != 0 || phdr.p_filesz != 0 => {
                segments.push(check_segment(ram, image, usize::from(index), &phdr)?);
            }
            elf::PT_NOTE if pvh_entry.is_none() => pvh_entry = find_pvh_entry(image, &phdr)?,
            _ => {}
        }
    }
    check_together(image, &segments)?;
    let entry = match pvh_entry {
        Some(address) => Entry { protocol: Protocol::Pvh, address: GuestAddress(address) },
        None => Entry { protocol: Protocol::Linux64, address: GuestAddress(header.e_entry) },
    };
    check_entry(entry, &segments)?;

    for segment in &segments {
        let address = GuestAddress(segment.memory.start);
        image.read_into("a kernel segment", segment.offset, segment.file_len, ram, address)?;
    }

    let ram_end = low_ram_end(ram);
    let low = || segments.iter().map(|segment| &segment.memory).filter(|memory| memory.start < ram_end);
    let start = low().map(|memory| memory.start).min().unwrap_or(layout::HIGH_MEMORY_START.0);
    let end = low().map(|memory| memory.end).max().unwrap_or(start);
    Ok(Kernel { entry, extent: start..end, initrd_limit: ram_end, setup_header: None })
}

fn read_header(image: &Image<'_>) -> Result<elf::Elf64_Ehdr> {
    let header: elf::Elf64_Ehdr = image.read_obj("the ELF header", 0)?;
    let checks = [
        ("EI_CLASS", u64::from(header.e_ident[elf::EI_CLASS]), u64::from(elf::ELFCLASS64), "2 (64-bit)"),
        ("EI_DATA", u64::from(header.e_ident[elf::EI_DATA]), u64::from(elf::ELFDATA2LSB), "1 (little-endian)"),
        ("e_machine", u64::from(header.e_machine), u64::from(elf::EM_X86_64), "62 (x86-64)"),
        ("e_phentsize", u64::from(header.e_phentsize), size_of::<elf::Elf64_Phdr>() as u64, "56"),
    ];
    for (field, value, wanted, expected) in checks {
        if value != wanted {
            return Err(Error::ElfHeader { field, value, expected });
        }
    }
    if header.e_type != elf::ET_EXEC && header.e_type != elf::ET_DYN {
        let value = u64::from(header.e_type);
        return Err(Error::ElfHeader { field: "e_type", value, expected: "2 (executable) or 3 (shared)" });
    }
    if header.e_phnum == 0 {
        return Err(Error::ElfNothingToLoad);
    }
    if header.e_phnum > MAX_SEGMENTS {
        let value = u64::from(header.e_phnum);
        return Err(Error::ElfHeader { field: "e_phnum", value, expected: "at most 128" });
    }
    let table_len = u64::from(header.e_phnum) * u64::from(header.e_phentsize);
    image.check("the program header table", header.e_phoff, table_len)?;
    Ok(header)
}

fn check_segment(ram: &GuestRam, image: &Image<'_>, index: usize, phdr: &elf::Elf64_Phdr) -> Result<Segment> {
    let refuse =
        |problem| Error::ElfSegment { index, problem, paddr: phdr.p_paddr, filesz: phdr.p_filesz, memsz: phdr.p_memsz };
    if phdr.p_filesz > phdr.p_memsz {
        return Err(refuse("it is larger in the file than in memory"));
    }
    image.check("a kernel segment", phdr.p_offset, phdr.p_filesz)?;
    if phdr.p_paddr < layout::HIGH_MEMORY_START.0 {
        return Err(refuse("it would be loaded below 1 MiB, where the boot tables are"));
    }
    let end = phdr.p_paddr.checked_add(phdr.p_memsz).ok_or_else(|| refuse("its end wraps around"))?;
    let memory = phdr.p_paddr..end;
    if !in_one_region(ram, &memory) {
        return Err(Error::KernelOutsideRam { start: phdr.p_paddr, end, ram_end: low_ram_end(ram) });
    }
    Ok(Segment { offset: phdr.p_offset, file_len: phdr.p_filesz, memory })
}

/// What only holds for all segments at once. Overlapping ones have no defined contents, and unbounded
/// re-use of the same file bytes would let a small file cost gigabytes of reading.
fn check_together(image: &Image<'_>, segments: &[Segment]) -> Result<()> {
    if segments.is_empty() {
        return Err(Error::ElfNothingToLoad);
    }
    let total = segments.iter().fold(0u64, |sum, segment| sum.saturating_add(segment.file_len));
    image.check("all kernel segments together", 0, total)?;
    let mut order: Vec<usize> = (0..segments.len()).collect();
    order.sort_by_key(|&index| segments[index].memory.start);
    for pair in order.windows(2) {
        let [lower, upper] = [&segments[pair[0]], &segments[pair[1]]];
        if lower.memory.end > upper.memory.start {
            return Err(Error::ElfSegment {
                index: pair[1],
                problem: "it overlaps another loadable segment",
                paddr: upper.memory.start,
                filesz: upper.file_len,
                memsz: upper.memory.end - upper.memory.start,
            });
        }
    }
    Ok(())
}

fn check_entry(entry: Entry, segments: &[Segment]) -> Result<()> {
    let address = entry.address.0;
    let refuse = |problem| Err(Error::Entry { entry: address, problem });
    if !segments.iter().any(|segment| segment.memory.contains(&address)) {
        return refuse("it is not inside a loaded segment (a physical address is expected)");
    }
    if entry.protocol == Protocol::Linux64 && address >= layout::BOOT_IDENTITY_MAP_LEN {
        return refuse("the 64-bit boot protocol maps only the first GiB");
    }
    Ok(())
}

/// Looks through a note segment for the PVH entry point, a physical address below 4 GiB.
fn find_pvh_entry(image: &Image<'_>, phdr: &elf::Elf64_Phdr) -> Result<Option<u64>> {
    if phdr.p_filesz > MAX_NOTES_LEN {
        return Err(Error::PvhNote("its note segment is larger than 64 KiB"));
    }
    image.check("a note segment", phdr.p_offset, phdr.p_filesz)?;
    // Bounded just above.
    let mut notes = vec![0; phdr.p_filesz as usize];
    image.read_bytes("a note segment", phdr.p_offset, &mut notes)?;
    let mut rest = notes.as_slice();
    while let Some((header, after)) = rest.split_first_chunk::<12>() {
        let [name_len, desc_len, kind] = words(header);
        let note =
            Note::split(after, name_len, desc_len).ok_or(Error::PvhNote("a note runs past the end of its segment"))?;
        if kind == NOTE_PHYS32_ENTRY && note.name == b"Xen\0" {
            let entry = note.desc.first_chunk().ok_or(Error::PvhNote("its entry address is shorter than 4 bytes"))?;
            return Ok(Some(u64::from(u32::from_le_bytes(*entry))));
        }
        // At least the 12 header bytes are gone, so this ends.
        rest = note.rest;
    }
    Ok(None)
}

fn words(header: &[u8; 12]) -> [u32; 3] {
    let (words, _) = header.as_chunks::<4>();
    [0, 1, 2].map(|i| u32::from_le_bytes(words[i]))
}

/// The parts of one note after its header.
struct Note<'a> {
    name: &'a [u8],
    desc: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Note<'a> {
    fn split(bytes: &'a [u8], name_len: u32, desc_len: u32) -> Option<Self> {
        let name_len = usize::try_from(name_len).ok()?;
        let desc_len = usize::try_from(desc_len).ok()?;
        let name = bytes.get(..name_len)?;
        let desc_start = name_len.checked_next_multiple_of(NOTE_ALIGN)?;
        let desc_end = desc_start.checked_add(desc_len)?;
        let desc = bytes.get(desc_start..desc_end)?;
        // The last note's padding may be missing.
        let rest = desc_end.checked_next_multiple_of(NOTE_ALIGN).and_then(|next| bytes.get(next..)).unwrap_or_default();
        Some(Self { name, desc, rest })
    }
}

#[cfg(test)]
mod tests;
