//! Page tables and descriptor table, complete in the file.
//!
//! Building them at run time would cost thousands of supervisor instructions;
//! the assembler builds them instead. The first 4 GiB are mapped to themselves
//! with 2 MiB pages (1 GiB pages are refused by some hosts), user-accessible
//! and writable, with the accessed and dirty bits already set so that no
//! processor has to write them back.
//!
//! The descriptor table has Linux's layout, so that ring-3 selectors are the
//! ones (0x33, 0x2b) every x86-64 hypervisor has seen before.

use core::arch::global_asm;

global_asm!(
    ".section .data.tables, \"aw\", @progbits",
    ".balign 4096",
    // Present, writable, user, accessed: 0x27.
    "page_map_level4:",
    "    .quad page_directory_pointers + 0x27",
    "    .fill 511, 8, 0",
    "page_directory_pointers:",
    "    .quad page_directories + 0x0027",
    "    .quad page_directories + 0x1027",
    "    .quad page_directories + 0x2027",
    "    .quad page_directories + 0x3027",
    "    .fill 508, 8, 0",
    // The same plus dirty and page size (2 MiB): 0xe7.
    "page_directories:",
    "    .set frame, 0xe7",
    "    .rept 2048",
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
    "descriptors_end:",
    "gdt_pointer:",
    "    .short descriptors_end - descriptors - 1",
    "    .quad descriptors",
    "no_idt:",
    "    .short 0",
    "    .quad 0",
    ".text",
);
