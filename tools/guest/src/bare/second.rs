//! A second processor, for races: it does one thing over and over while the first one does another.
//!
//! It is started the way firmware does it (Intel SDM 3A 9.4): INIT, then a start-up interrupt that names a page below 1 MiB, where the
//! few instructions of a trampoline lead from real mode to ring 3.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::dma::Dma;
use crate::{Machine, cpu};

/// Where the trampoline is put: a page that neither loader nor program uses.
const TRAMPOLINE: u64 = 0x4_0000;
/// The local APIC's interrupt command register, low and high half.
const ICR_LOW: u64 = 0xfee0_0300;
const ICR_HIGH: u64 = 0xfee0_0310;
/// The local APIC's spurious-interrupt vector register, and the value that enables the APIC.
const SPURIOUS: u64 = 0xfee0_00f0;
const APIC_ENABLED: u32 = 0x1ff;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
/// How long a processor may take to arrive, in milliseconds.
const PATIENCE_MS: u64 = 2000;

const IDLE: usize = 0;

/// What the second processor does: a `fn(u64, u64)`, or [`IDLE`].
static WORK: AtomicUsize = AtomicUsize::new(IDLE);
/// What it does it to.
static ARGUMENT: AtomicU64 = AtomicU64::new(0);
/// How often it has done it. The first count means that it is there.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    /// Type byte of the task state segment's descriptor.
    static task_descriptor_type: u8;
}

/// The second processor at work. It stops when this is dropped.
pub struct Second(());

impl Second {
    /// Has the second processor call `work(argument, round)` until the value is dropped. `None` if there is no second processor.
    pub fn start(machine: &Machine, work: fn(u64, u64), argument: u64) -> Option<Self> {
        ARGUMENT.store(argument, Ordering::Relaxed);
        WORK.store(work as usize, Ordering::Release);
        let before = ROUNDS.load(Ordering::Relaxed);
        if before == 0 {
            wake();
        }
        let deadline = machine.clock.deadline_ms(PATIENCE_MS);
        while ROUNDS.load(Ordering::Acquire) == before {
            if deadline.passed() {
                WORK.store(IDLE, Ordering::Release);
                return None;
            }
            cpu::pause();
        }
        Some(Self(()))
    }

    /// How often it has done its work, over all calls.
    pub fn rounds(&self) -> u64 {
        ROUNDS.load(Ordering::Relaxed)
    }
}

/// How often it has looked for work: it runs as long as that grows.
pub fn rounds() -> u64 {
    ROUNDS.load(Ordering::Acquire)
}

impl Drop for Second {
    fn drop(&mut self) {
        WORK.store(IDLE, Ordering::Release);
        // It may be in the middle of its work; two more looks at the board and it is not.
        let seen = ROUNDS.load(Ordering::Acquire);
        while ROUNDS.load(Ordering::Acquire) < seen + 2 {
            cpu::pause();
        }
    }
}

/// What the second processor is to do once, and how far it is.
struct Errand<'a> {
    work: &'a mut (dyn FnMut() + Send),
    state: AtomicUsize,
}

const WAIT: usize = 0;
const GO: usize = 1;
const DONE: usize = 2;

/// Does `here` on this processor and `there` on the second one, at the same time. `false` if there is no second one; then neither is done.
pub fn side_by_side(machine: &Machine, there: &mut (dyn FnMut() + Send), here: impl FnOnce()) -> bool {
    let errand = Errand { work: there, state: AtomicUsize::new(WAIT) };
    let Some(second) = Second::start(machine, run_errand, (&raw const errand).addr() as u64) else { return false };
    errand.state.store(GO, Ordering::Release);
    here();
    while errand.state.load(Ordering::Acquire) != DONE {
        cpu::pause();
    }
    drop(second);
    true
}

fn run_errand(errand: u64, _round: u64) {
    let errand = errand as *mut Errand<'_>;
    // SAFETY: `side_by_side` keeps it until this processor is at work on nothing, and leaves `work` to it.
    let (state, work) = unsafe { (&(*errand).state, &raw mut (*errand).work) };
    if state.load(Ordering::Acquire) == GO {
        // SAFETY: as above.
        unsafe { (*work)() };
        state.store(DONE, Ordering::Release);
    }
}

/// Sends it an INIT and a start-up interrupt.
pub fn wake() {
    let first = (&raw const trampoline).addr() as u64;
    let len = (&raw const trampoline_end).addr() as u64 - first;
    // The image is ours too, but reading it this way keeps to one kind of access.
    let code = Dma::left_by_loader(first, len).bytes();
    Dma::left_by_loader(TRAMPOLINE, len).put(0, code);
    // Loading the task register marks the segment busy, and a busy one cannot be loaded. Both processors may share it: it only says that
    // all ports are allowed.
    let kind = (&raw const task_descriptor_type).addr() as u64;
    Dma::left_by_loader(kind, 1).write8(0, 0x89);
    // Enabling it is also when KVM looks again at which processors there are.
    cpu::write32(SPURIOUS, APIC_ENABLED);
    for command in [INIT, STARTUP | (TRAMPOLINE >> 12) as u32] {
        cpu::write32(ICR_HIGH, 1 << 24);
        cpu::write32(ICR_LOW, command);
    }
}

/// Entered in ring 3 by the second processor.
extern "C" fn second_main() -> ! {
    let mut round = 0;
    loop {
        let work = WORK.load(Ordering::Acquire);
        if work == IDLE {
            cpu::pause();
        } else {
            // SAFETY: anything but IDLE was made from a `fn(u64, u64)` in `start`.
            let work = unsafe { core::mem::transmute::<usize, fn(u64, u64)>(work) };
            work(ARGUMENT.load(Ordering::Relaxed), round);
            round += 1;
        }
        ROUNDS.fetch_add(1, Ordering::Release);
    }
}

global_asm!(
    // Runs at TRAMPOLINE, whatever it is linked at: real mode, CS = TRAMPOLINE / 16.
    ".section .rodata.trampoline, \"a\", @progbits",
    ".code16",
    ".globl trampoline",
    "trampoline:",
    "    .byte 0xeb, 6", // jmp over the six bytes that follow
    "    .short descriptors_end - descriptors - 1",
    "    .long descriptors",
    "    cli",
    "    mov ax, cs",
    "    mov ds, ax",
    "    .byte 0x66, 0x0f, 0x01, 0x16", // lgdt [2], 32-bit base
    "    .short 2",
    "    mov eax, offset page_map_level4",
    "    mov cr3, eax",
    "    mov eax, {cr4}",
    "    mov cr4, eax",
    "    mov ecx, {efer}",
    "    mov eax, {lme}",
    "    xor edx, edx",
    "    wrmsr",
    // From real mode straight to long mode (AMD APM 2, 14.6.1).
    "    mov eax, {cr0}",
    "    mov cr0, eax",
    "    .byte 0x66, 0xea", // far jump, 32-bit offset
    "    .long second64",
    "    .short 0x10",
    ".globl trampoline_end",
    "trampoline_end:",
    ".section .text.second, \"ax\", @progbits",
    ".code64",
    "second64:",
    "    lidt [no_idt]",
    "    mov eax, 0x38",
    "    ltr ax",
    "    mov esp, offset second_frame",
    "    iretq",
    ".section .data.tables, \"aw\", @progbits",
    ".balign 16",
    "second_frame:",
    "    .quad {main}, 0x33, {flags}, second_stack_end - 8, 0x2b",
    ".section .bss.stack, \"aw\", @nobits",
    ".balign 4096",
    "    .skip 16384",
    "second_stack_end:",
    ".text",
    cr0 = const crate::entry::CR0,
    cr4 = const crate::entry::CR4,
    efer = const crate::entry::EFER,
    lme = const crate::entry::EFER_LME,
    flags = const crate::entry::RING3_FLAGS,
    main = sym second_main,
);
