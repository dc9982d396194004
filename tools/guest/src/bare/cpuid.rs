//! CPUID as the VMM presents it.
//!
//! Where guest user code runs on the bare processor (KVM-PVM), CPUID in ring 3
//! shows the host. So when the command line *begins* with `mayfly.cpuid`, the
//! entry stub asks in ring 0, once, and leaves the answers in this table.
//! Without that word the stub saves the time, and ring 3 asks.

use core::arch::{asm, global_asm};

/// Leaf, subleaf, then EAX, EBX, ECX, EDX.
type Entry = [u32; 6];

/// Number of leaves in the table below.
const LEAVES: usize = 16;

unsafe extern "C" {
    static cpuid_table: [Entry; LEAVES];
}

global_asm!(
    ".section .data.tables, \"aw\", @progbits",
    ".balign 4",
    ".globl cpuid_table",
    "cpuid_table:",
    ".irp leaf, 0x0, 0x1, 0x7, 0x15, 0x16, 0x40000000, 0x40000001, 0x40000010, 0x80000000, 0x80000002, 0x80000003, 0x80000004, 0x80000007, 0x80000008",
    "    .long \\leaf, 0, 0, 0, 0, 0",
    ".endr",
    "    .long 0xb, 0, 0, 0, 0, 0",
    "    .long 0xb, 1, 0, 0, 0, 0",
    ".globl cpuid_table_end",
    "cpuid_table_end:",
    ".text",
);

/// The answers from ring 0; empty if the stub was not asked to collect them.
pub fn collected() -> &'static [Entry] {
    // SAFETY: the stub wrote the table before Rust code started; nobody since.
    let table: &'static [Entry; LEAVES] = unsafe { &cpuid_table };
    // Leaf 0 names at least one basic leaf on every 64-bit processor.
    if table[0][2] == 0 { &[] } else { table }
}

/// One leaf as `[eax, ebx, ecx, edx]`.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let found = collected().iter().find(|e| e[0] == leaf && e[1] == subleaf);
    match found {
        Some(&[_, _, a, b, c, d]) => [a, b, c, d],
        None => ask(leaf, subleaf),
    }
}

fn ask(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: CPUID touches registers only; RBX, which the compiler keeps for
    // itself, is saved around it.
    unsafe {
        asm!(
            "mov {b:r}, rbx",
            "cpuid",
            "xchg {b:r}, rbx",
            b = out(reg) b,
            inout("eax") leaf => a,
            inout("ecx") subleaf => c,
            out("edx") d,
            options(nomem, nostack, preserves_flags),
        )
    }
    [a, b, c, d]
}

/// Cycles of the time-stamp counter per millisecond if CPUID says so:
/// hypervisor leaf 0x4000_0010, else the crystal leaf 0x15, else 0x16.
pub fn tsc_khz() -> Option<u64> {
    let hypervisor = cpuid(1, 0)[2] & (1 << 31) != 0;
    if hypervisor && cpuid(0x4000_0000, 0)[0] >= 0x4000_0010 {
        let khz = cpuid(0x4000_0010, 0)[0];
        if khz != 0 {
            return Some(khz.into());
        }
    }
    let highest = cpuid(0, 0)[0];
    if highest >= 0x15 {
        let [denominator, numerator, crystal_hz, _] = cpuid(0x15, 0);
        if denominator != 0 && numerator != 0 && crystal_hz != 0 {
            let hz = u64::from(crystal_hz) * u64::from(numerator) / u64::from(denominator);
            return Some(hz / 1000);
        }
    }
    if highest >= 0x16 {
        let base_mhz = cpuid(0x16, 0)[0] & 0xffff;
        if base_mhz != 0 {
            return Some(u64::from(base_mhz) * 1000);
        }
    }
    None
}
