//! Page tables and descriptor table, complete in the file.
//!
//! Building them at run time would cost thousands of supervisor instructions;
//! the assembler builds them instead. The first 4 GiB are mapped to themselves
//! with 2 MiB pages (1 GiB pages are refused by some hosts), user-accessible
//! and writable, with the accessed and dirty bits already set so that no
//! processor has to write them back. So are [`FAR`] stretches, where persistent
//! and hot-plugged memory is, and the registers of PCI functions.
//!
//! The descriptor table has Linux's layout, so that ring-3 selectors are the
//! ones (0x33, 0x2b) every x86-64 hypervisor has seen before. A task state
//! segment allows ring 3 every port: I/O privilege level 3 alone would do on
//! hardware, but hosts that emulate `iretq` may drop it.

use core::arch::global_asm;

/// Mapped memory above 4 GiB: start and length in bytes. 1 GiB at 256 GiB and 1 GiB at 512 GiB.
pub const FAR: [(u64, u64); 2] = [(256 << 30, 1 << 30), (512 << 30, 1 << 30)];
/// Where PCI functions have their registers: 1 GiB below 512 GiB.
pub const FAR_DEVICES: (u64, u64) = (511 << 30, 1 << 30);

/// Highest offset in the task state segment: one bit for each of the 65536
/// ports, and one byte more because the processor reads two at a time.
const TSS_LIMIT: u16 = 8192;

/// Pages of the tables.
const PAGES: u64 = 10;

unsafe extern "C" {
    static page_map_level4: u8;
}

/// Address of the first page of the tables, and how many there are.
pub fn pages() -> (u64, u64) {
    ((&raw const page_map_level4).addr() as u64, PAGES)
}

global_asm!(
    ".section .data.tables, \"aw\", @progbits",
    ".balign 4096",
    // Present, writable, user, accessed: 0x27.
    ".globl page_map_level4",
    "page_map_level4:",
    "    .quad page_directory_pointers + 0x27",
    "    .quad far_directory_pointers + 0x27",
    "    .fill 510, 8, 0",
    "page_directory_pointers:",
    "    .quad page_directories + 0x0027",
    "    .quad page_directories + 0x1027",
    "    .quad page_directories + 0x2027",
    "    .quad page_directories + 0x3027",
    "    .fill 252, 8, 0",
    "    .quad page_directories + 0x4027", // 256 GiB
    "    .fill 254, 8, 0",
    "    .quad page_directories + 0x6027", // 511 GiB
    "far_directory_pointers:",
    "    .quad page_directories + 0x5027", // 512 GiB
    "    .fill 511, 8, 0",
    // The same plus dirty and page size (2 MiB): 0xe7.
    "page_directories:",
    "    .set frame, 0xe7",
    "    .rept 2048",
    "    .quad frame",
    "    .set frame, frame + 0x200000",
    "    .endr",
    "    .set frame, {far_0} + 0xe7",
    "    .rept 512",
    "    .quad frame",
    "    .set frame, frame + 0x200000",
    "    .endr",
    "    .set frame, {far_1} + 0xe7",
    "    .rept 512",
    "    .quad frame",
    "    .set frame, frame + 0x200000",
    "    .endr",
    "    .set frame, {far_devices} + 0xe7",
    "    .rept 512",
    "    .quad frame",
    "    .set frame, frame + 0x200000",
    "    .endr",
    // Flat descriptors, accessed bit set.
    "descriptors:",
    "    .quad 0",
    "    .quad 0",
    "    .quad 0x00af9b000000ffff", // 0x10: ring-0 64-bit code
    "    .quad 0x00cf93000000ffff", // 0x18: ring-0 data
    "    .quad 0x00cffb000000ffff", // 0x23: ring-3 32-bit code
    "    .quad 0x00cff3000000ffff", // 0x2b: ring-3 data
    "    .quad 0x00affb000000ffff", // 0x33: ring-3 64-bit code
    // 0x38: the task state segment. Its base is cut in pieces by link.ld.
    "    .short {tss_limit}, tss_low",
    "    .byte tss_middle",
    ".globl task_descriptor_type",
    "task_descriptor_type:",
    "    .byte 0x89, 0, tss_high",
    "    .quad 0",
    "descriptors_end:",
    "gdt_pointer:",
    "    .short descriptors_end - descriptors - 1",
    "    .quad descriptors",
    "no_idt:",
    "    .short 0",
    "    .quad 0",
    // All zero, and so is the offset of its I/O permission bitmap: a bitmap
    // that starts at the segment's first byte and allows every port.
    ".section .bss.tss, \"aw\", @nobits",
    ".balign 16",
    ".globl task_state",
    "task_state:",
    "    .skip {tss_limit} + 1",
    ".text",
    tss_limit = const TSS_LIMIT,
    far_0 = const FAR[0].0,
    far_1 = const FAR[1].0,
    far_devices = const FAR_DEVICES.0,
);
