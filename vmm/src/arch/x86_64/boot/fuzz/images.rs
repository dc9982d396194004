//! The smallest good kernel files, with every field open to damage.

use std::fs::File;
use std::io::Write;

/// Length of [`Elf::tiny`]'s code in bytes.
pub(crate) const CODE_LEN: usize = 0x200;
/// How much of an [`Elf`] with one note is headers and notes, in bytes.
pub(crate) const ELF_INTERESTING: usize = 64 + 2 * 56 + 20;

/// An open file with these contents.
pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("writing a temporary file");
    file
}

/// One ELF note, padded.
pub(crate) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut bytes = [name.len() as u32, desc.len() as u32, kind].map(u32::to_le_bytes).concat();
    for part in [name, desc] {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A program header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phdr {
    pub(crate) kind: u32,
    /// Relative to the code for the headers made here; taken as it is when nasty.
    pub(crate) offset: u64,
    pub(crate) paddr: u64,
    pub(crate) filesz: u64,
    pub(crate) memsz: u64,
}

impl Phdr {
    /// The code of [`Elf::tiny`], at 1 MiB, with bss up to two pages.
    pub(crate) fn code() -> Self {
        Self { kind: 1, offset: 0, paddr: 0x10_0000, filesz: CODE_LEN as u64, memsz: 0x2000 }
    }
}

/// An ELF file in pieces: header, program headers, notes, code.
#[derive(Debug, Clone)]
pub(crate) struct Elf {
    pub(crate) entry: u64,
    pub(crate) phdrs: Vec<Phdr>,
    pub(crate) notes: Vec<u8>,
    pub(crate) code: Vec<u8>,
}

impl Elf {
    /// One segment, no notes.
    pub(crate) fn tiny() -> Self {
        let code = b"KERNEL".iter().copied().cycle().take(CODE_LEN).collect();
        Self { entry: 0x10_0010, phdrs: vec![Phdr::code()], notes: Vec::new(), code }
    }

    /// One other segment.
    pub(crate) fn with_segment(phdr: Phdr) -> Self {
        Self { entry: phdr.paddr, phdrs: vec![phdr], ..Self::tiny() }
    }

    /// The file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut phdrs = self.phdrs.clone();
        if !self.notes.is_empty() {
            let filesz = self.notes.len() as u64;
            phdrs.push(Phdr { kind: 4, offset: 0, paddr: 0, filesz, memsz: filesz });
        }
        let notes_at = 64 + 56 * phdrs.len() as u64;
        let code_at = notes_at + self.notes.len() as u64;

        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
        bytes.extend(self.entry.to_le_bytes());
        bytes.extend(64u64.to_le_bytes()); // e_phoff
        bytes.extend([0; 8 + 4]); // e_shoff, e_flags
        for half in [64, 56, phdrs.len() as u16, 0, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        for phdr in &phdrs {
            let base = if phdr.kind == 4 { notes_at } else { code_at };
            bytes.extend(phdr.kind.to_le_bytes());
            bytes.extend([0; 4]); // p_flags
            for word in [phdr.offset.saturating_add(base), 0, phdr.paddr, phdr.filesz, phdr.memsz, 0] {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&self.notes);
        bytes.extend_from_slice(&self.code);
        bytes
    }
}

/// A bzImage with one setup sector, and bytes to overwrite in it.
#[derive(Debug, Clone)]
pub(crate) struct BzImage {
    pub(crate) patches: Vec<(usize, Vec<u8>)>,
}

impl BzImage {
    /// Boot protocol 2.15, relocatable, 64-bit, unpacking to 16 MiB and needing 3 MiB there.
    pub(crate) fn tiny() -> Self {
        let field = |at: usize, bytes: &[u8]| (at, bytes.to_vec());
        let code_len = 0x1000u32;
        Self {
            patches: vec![
                field(0x1f1, &[1]),
                field(0x1f4, &(code_len / 16).to_le_bytes()),
                field(0x1fe, &[0x55, 0xaa]),
                field(0x200, &[0xeb, 0x6a]),
                field(0x202, b"HdrS"),
                field(0x206, &[0x0f, 0x02]),
                field(0x211, &[0x01]),
                field(0x22c, &0x7fff_ffffu32.to_le_bytes()),
                field(0x230, &0x20_0000u32.to_le_bytes()),
                field(0x234, &[1]),
                field(0x236, &[0x03, 0x00]),
                field(0x258, &0x100_0000u64.to_le_bytes()),
                field(0x260, &(3u32 << 20).to_le_bytes()),
            ],
        }
    }

    /// The file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes.extend(b"CODE".iter().cycle().take(0x1000));
        for (at, patch) in &self.patches {
            bytes[*at..*at + patch.len()].copy_from_slice(patch);
        }
        bytes
    }
}
