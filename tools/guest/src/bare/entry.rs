//! The first instructions: from either boot protocol to ring 3.
//!
//! Hosts that run guest supervisor code through an emulator pay for every
//! instruction here, so the whole way is a dozen of them: control registers
//! are written as constants instead of read-modify-write, all tables are
//! prebuilt (see [`crate::tables`]), and even the `iretq` frame is a constant.
//!
//! After `iretq` the program runs in ring 3 with all ports allowed and interrupts
//! off, and never returns to ring 0: there is no IDT, so any exception is a
//! triple fault.

use core::arch::global_asm;

/// `bare_main`'s first argument when the second is a Linux zero page.
pub const BOOTED_BY_LINUX_PROTOCOL: u64 = 0;
/// `bare_main`'s first argument when the second is a PVH `start_info`.
pub const BOOTED_BY_PVH: u64 = 1;

/// CR0: paging, write protect, native FPU errors, monitor co-processor,
/// protection; emulation and task-switched clear, so SSE works.
pub const CR0: u32 = 0x8001_0033;
/// CR4: PAE, OSFXSR, OSXMMEXCPT.
pub const CR4: u32 = 0x620;
/// IA32_EFER's number.
pub const EFER: u32 = 0xc000_0080;
/// IA32_EFER: long mode enable.
pub const EFER_LME: u32 = 0x100;
/// RFLAGS in ring 3: the always-one bit and IOPL 3; interrupts off.
pub const RING3_FLAGS: u32 = 0x3002;

global_asm!(
    // Linux 64-bit boot protocol: long mode, identity mapped, RSI = zero page.
    ".section .text.entry, \"ax\", @progbits",
    ".code64",
    ".globl start64",
    "start64:",
    "    mov edi, {by_linux}",
    "    mov ebp, [rsi + 0x228]", // boot_params.cmd_line_ptr
    "2:",
    "    mov eax, offset page_map_level4",
    "    mov cr3, rax",
    "    mov eax, {cr4}",
    "    mov cr4, rax",
    "    mov eax, {cr0}",
    "    mov cr0, rax",
    "    lgdt [gdt_pointer]",
    "    lidt [no_idt]",
    "    mov eax, 0x38",
    "    ltr ax",
    // Does the command line begin with "mayfly.c" (of "mayfly.cpuid")?
    "    mov rax, {asks_for_cpuid}",
    "    cmp [rbp], rax",
    "    je 4f",
    "3:",
    "    mov esp, offset ring3_frame",
    "    iretq",
    "4:",
    "    mov ebp, offset cpuid_table",
    "5:",
    "    mov eax, [rbp]",
    "    mov ecx, [rbp + 4]",
    "    cpuid",
    "    mov [rbp + 8], eax",
    "    mov [rbp + 12], ebx",
    "    mov [rbp + 16], ecx",
    "    mov [rbp + 20], edx",
    "    add ebp, 24",
    "    cmp ebp, offset cpuid_table_end",
    "    jne 5b",
    "    jmp 3b",
    // PVH: 32-bit protected mode without paging, EBX = start_info.
    ".code32",
    ".globl start32",
    "start32:",
    "    mov eax, offset page_map_level4",
    "    mov cr3, eax",
    "    mov eax, {cr4}",
    "    mov cr4, eax",
    "    mov ecx, {efer}",
    "    mov eax, {lme}",
    "    xor edx, edx",
    "    wrmsr",
    "    mov eax, {cr0}",
    "    mov cr0, eax",
    "    lgdt [gdt_pointer]",
    "    mov edi, {by_pvh}",
    "    mov esi, ebx",
    "    mov ebp, [ebx + 24]", // hvm_start_info.cmdline_paddr
    "    .byte 0xea", // far jump into 64-bit code
    "    .long 2b",
    "    .short 0x10",
    ".code64",
    // XEN_ELFNOTE_PHYS32_ENTRY (18): where PVH loaders jump to.
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    "    .long 4, 8, 18",
    "    .asciz \"Xen\"",
    "    .quad start32",
    // What `iretq` pops: RIP, CS, RFLAGS, RSP, SS. The stack pointer is what
    // the C calling convention expects at a function's first instruction.
    ".section .data.tables, \"aw\", @progbits",
    ".balign 16",
    "ring3_frame:",
    "    .quad {main}, 0x33, {flags}, ring3_stack_end - 8, 0x2b",
    ".section .bss.stack, \"aw\", @nobits",
    ".balign 4096",
    "    .skip 262144",
    "ring3_stack_end:",
    ".text",
    asks_for_cpuid = const u64::from_le_bytes(*b"mayfly.c"),
    by_linux = const BOOTED_BY_LINUX_PROTOCOL,
    by_pvh = const BOOTED_BY_PVH,
    cr0 = const CR0,
    cr4 = const CR4,
    efer = const EFER,
    lme = const EFER_LME,
    flags = const RING3_FLAGS,
    main = sym crate::bare_main,
);
