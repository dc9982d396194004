//! `mode=hello`, what a person sees in the demo, and `mode=probe`, the same
//! facts for programs.

use crate::block::{Block, Options};
use crate::dma::Dma;
use crate::mmio::{Window, kind, reg};
use crate::virtqueue::Piece;
use crate::{Machine, cpu, cpuid, power, say};

/// Where this machine has its VM generation id and its VM clock; operating systems ask ACPI.
const GENERATION_ID: u64 = 0xd_0000;
const VM_CLOCK: u64 = 0xd_1000;

/// Prints the greeting, the machine, its devices, and the first drive's start.
pub fn run(machine: &mut Machine) {
    let mut text = [0; 48];
    say!("");
    say!("  Hello from inside a Mayfly microVM.");
    say!("");
    let mut vendor_text = [0; 12];
    // Some hosts present no brand string.
    let processor = match brand(&mut text) {
        "" => vendor(&mut vendor_text),
        brand => brand,
    };
    say!("  processor  {processor}");
    say!("  memory     {} MiB", machine.boot.ram_bytes() >> 20);
    match machine.clock.khz() {
        0 => {}
        khz => say!("  clock      {}.{:03} GHz time-stamp counter", khz / 1_000_000, khz / 1000 % 1000),
    }
    for window in machine.bus.scan() {
        let (queues, size) = queues(window);
        say!(
            "  device     {} at {:#x}: {queues} x {size} descriptors, features {:#x}",
            name(window.kind),
            window.address,
            window.offered()
        );
    }
    if let Some((capacity, first)) = first_drive(machine) {
        say!("  disk       {} KiB, begins with {first:02x?}", capacity / 2);
    }
    say!("");
}

/// Prints boot facts and one line per device.
pub fn probe(machine: &mut Machine) {
    let mut text = [0; 12];
    say!(
        "boot={} ram_bytes={} tsc_khz={} vendor={}",
        machine.boot.protocol,
        machine.boot.ram_bytes(),
        machine.clock.khz(),
        vendor(&mut text)
    );
    for range in machine.boot.ranges() {
        say!("range_start={:#x} range_len={:#x} range_ram={}", range.start, range.len, u8::from(range.is_ram));
    }
    for window in machine.bus.scan() {
        let (queues, size) = queues(window);
        say!(
            "device={} id={} address={:#x} vendor_id={:#x} queues={queues} queue_max={size} features={:#x}",
            name(window.kind),
            window.kind,
            window.address,
            window.read(reg::VENDOR_ID),
            window.offered()
        );
    }
    for [leaf, subleaf, a, b, c, d] in cpuid::collected() {
        say!("cpuid={leaf:#x} sub={subleaf} eax={a:#x} ebx={b:#x} ecx={c:#x} edx={d:#x}");
    }
    say!("command_line_len={}", machine.command_line.0.len());
    let id = Dma::left_by_loader(GENERATION_ID, 16);
    say!("generation_id={:#x} high={:#x}", id.read64(0), id.read64(8));
    let clock = Dma::left_by_loader(VM_CLOCK, 112);
    say!("clock_magic={:#x} clock_flags={:#x}", clock.read32(0), clock.read64(24));
    say!("panic_events={:#x}", cpu::in8(power::PANIC));
}

/// Number of queues and the first one's largest size.
fn queues(window: Window) -> (u32, u32) {
    let count = (0..16).take_while(|i| window.queue_max(*i) != 0).count() as u32;
    (count, window.queue_max(0))
}

/// A device's short name.
fn name(id: u32) -> &'static str {
    match id {
        kind::NET => "net",
        kind::BLOCK => "block",
        4 => "rng",
        5 => "balloon",
        19 => "vsock",
        24 => "mem",
        27 => "pmem",
        _ => "unknown",
    }
}

/// Capacity in sectors and the first eight bytes of the first drive.
fn first_drive(machine: &mut Machine) -> Option<(u64, [u8; 8])> {
    let window = machine.bus.find(kind::BLOCK, 0)?;
    let mut block = Block::start(machine, window, Options::PLAIN).ok()?;
    let buffer = machine.arena.take(512, 512);
    let answer = block.run(machine.clock, crate::block::request::IN, 0, &[Piece::writable(buffer)])?;
    (answer.status == 0).then(|| (block.capacity, buffer.read64(0).to_le_bytes()))
}

/// The vendor string of CPUID leaf 0.
fn vendor(text: &mut [u8; 12]) -> &str {
    let [_, b, c, d] = cpuid::cpuid(0, 0);
    for (part, word) in text.chunks_exact_mut(4).zip([b, d, c]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    str::from_utf8(text).unwrap_or("?")
}

/// The brand string of CPUID leaves 0x8000_0002 to 4.
fn brand(text: &mut [u8; 48]) -> &str {
    for (part, leaf) in text.chunks_exact_mut(16).zip(0x8000_0002..) {
        for (word, value) in part.chunks_exact_mut(4).zip(cpuid::cpuid(leaf, 0)) {
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    str::from_utf8(text).unwrap_or("?").trim_matches(['\0', ' '])
}
