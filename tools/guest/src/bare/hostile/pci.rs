//! G28: interrupts with messages of the guest's own making, configuration spaces written all over, and registers as only functions have them.

use super::{Case, Lab, Outcome, geometry, refused_start};
use crate::block::{Block, Options, request};
use crate::bring_up::reset;
use crate::cpu;
use crate::mmio::Window;
use crate::pci::{self, BAR, COMMAND, ECAM, HOST_BRIDGE, PENDING, SLOT, SLOTS, TABLE};
use crate::virtqueue::Piece;

/// For cases: what ends one early is its outcome, too.
macro_rules! attempt {
    ($what:expr) => {
        match $what {
            Ok(value) => value,
            Err(outcome) => return outcome,
        }
    };
}

mod bars;

pub use bars::{CASES as BAR_CASES, RACES};

pub const CASES: &[Case] = &[
    ("g28-foreign-messages", foreign_messages),
    ("g28-no-such-vector", no_such_vector),
    ("g28-mask-storm", mask_storm),
    ("g28-reset-while-unmasked", reset_while_unmasked),
    ("g28-pending-writes", pending_writes),
    ("g28-table-widths", table_widths),
    ("g28-configuration-writes", configuration_writes),
    ("g28-configuration-ports", configuration_ports),
    ("g28-window-garbage", window_garbage),
    ("g28-hotplug-ports", hotplug_ports),
    ("g28-status-widths", status_widths),
    ("g28-rewrite-addresses", |lab| rewrite(lab, rewrite_addresses)),
    ("g28-rewrite-halves", |lab| rewrite(lab, rewrite_halves)),
    ("g28-rewrite-vectors", |lab| rewrite(lab, rewrite_vectors)),
];

/// The old ports.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const HOTPLUG: u16 = 0x620;
const ONES: u32 = u32::MAX;

/// The drive, which must be a function.
fn function(lab: &Lab<'_>) -> Result<(Window, u64), Outcome> {
    let window = lab.drive().ok_or("skipped-no-drive")?;
    if !pci::is_function(window.address) {
        return Err("skipped-no-bus");
    }
    Ok((window, pci::space(window)))
}

/// The drive at work, and its configuration space.
fn live(lab: &mut Lab<'_>) -> Result<(Block, u64), Outcome> {
    let (_, space) = function(lab)?;
    let block = lab.block_with(Options { depth: 64, ..Options::PLAIN })?;
    Ok((block, space))
}

/// `ignored` if an ordinary read works.
fn still_works(lab: &mut Lab<'_>, block: &mut Block) -> Outcome {
    if lab.read_ok(block) { "ignored" } else { "read-failed" }
}

/// Reads so many times the same sector, all at once.
fn submit_many(lab: &mut Lab<'_>, block: &mut Block) {
    let data = lab.buffer(512);
    for slot in 0..block.depth {
        block.submit(slot, request::IN, 0, &[Piece::writable(data)]);
    }
}

/// Waits for all of them. How many came.
fn collect(lab: &Lab<'_>, block: &mut Block) -> u64 {
    let mut answers = 0;
    while answers < u64::from(block.depth) && block.wait(lab.machine.clock, 2000).is_some() {
        answers += 1;
    }
    answers
}

/// An entry of the MSI-X table, not masked.
fn entry(window: Window, vector: u64, address: u64, data: u32) {
    let at = window.address + TABLE + 16 * vector;
    cpu::write32(at, address as u32);
    cpu::write32(at + 4, (address >> 32) as u32);
    cpu::write32(at + 8, data);
    cpu::write32(at + 12, 0);
}

/// Interrupts that are writes to memory, to other devices, or to nowhere.
fn foreign_messages(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, space) = attempt!(live(lab));
    let marker = lab.buffer(4096);
    // The device may interrupt.
    block.queue.avail.write16(0, 0);
    let mut failed = 0;
    for address in
        [marker.address(), 0, 0xfec0_0000, 0xfedf_fffc, 0xfef0_0000, 0x1_fee0_0000, ECAM, block.window.address, !3]
    {
        for vector in 0..2 {
            entry(block.window, vector, address, 0x6d6d_0040);
        }
        pci::mask_interrupts(space, pci::MSIX_OPEN);
        failed += u64::from(!lab.read_ok(&mut block));
        pci::mask_interrupts(space, pci::MSIX_MASKED);
    }
    lab.facts[0] = ("failed", failed);
    match (failed, marker.bytes().iter().all(|byte| *byte == 0)) {
        (0, true) => "ignored",
        (_, false) => "written",
        _ => "read-failed",
    }
}

/// Vectors behind the end of the table are none (§4.1.5.1.2), and the table has nothing there.
fn no_such_vector(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, space) = attempt!(live(lab));
    let bar = block.window.address;
    let Some(at) = pci::last_capability(space, pci::CAP_MSIX) else { return "no-capability" };
    let count = (cpu::read16(space + at + 2) & 0x7ff) + 1;
    let mut kept = 0;
    for vector in [count, count + 1, 0x7ff, 0x8000, 0xfffe] {
        for register in [0x10, 0x1a] {
            cpu::write16(bar + register, vector);
            kept += u64::from(cpu::read16(bar + register) != 0xffff);
        }
    }
    for vector in (count.into()..0x4000_u64).step_by(61) {
        entry(block.window, vector, pci::NOBODY, 0x40);
        kept += u64::from(cpu::read32(bar + TABLE + 16 * vector) != 0);
    }
    lab.facts = [("vectors", count.into()), ("kept", kept)];
    if kept == 0 { still_works(lab, &mut block) } else { "accepted" }
}

/// Vectors masked, unmasked and sent elsewhere while requests complete.
fn mask_storm(lab: &mut Lab<'_>) -> Outcome {
    let rounds = lab.machine.command_line.number("rounds", 30);
    let (mut block, space) = attempt!(live(lab));
    let table = block.window.address + TABLE;
    block.queue.avail.write16(0, 0);
    let mut answers = 0;
    for round in 0..rounds {
        let mark = lab.machine.arena.mark();
        submit_many(lab, &mut block);
        block.queue.kick();
        for n in 0..30 {
            // A fixed interrupt with any vector and any destination: nobody takes it.
            entry(
                block.window,
                n % 2,
                pci::NOBODY | (round + n) << 12 & 0xf_f000,
                0x20 + ((round * 7 + n) % 0xd0) as u32,
            );
            cpu::write32(table + 16 * (n % 2) + 12, n as u32 & 1);
            pci::mask_interrupts(space, [pci::MSIX_OPEN, pci::MSIX_MASKED, 0, pci::MSIX_OPEN][n as usize % 4]);
        }
        answers += collect(lab, &mut block);
        lab.machine.arena.rewind(mark);
    }
    lab.facts[0] = ("answers", answers);
    // What comes while all are masked waits.
    pci::mask_interrupts(space, pci::MSIX_MASKED);
    let works = lab.read_ok(&mut block);
    let waits = cpu::read64(block.window.address + PENDING);
    entry(block.window, 1, pci::NOBODY, 0x40);
    pci::mask_interrupts(space, pci::MSIX_OPEN);
    let sent = cpu::read64(block.window.address + PENDING);
    lab.facts[1] = ("waits", waits);
    match (works, waits & 2, sent & 2) {
        (true, 2, 0) if answers == rounds * u64::from(block.depth) => "alive",
        (false, ..) => "read-failed",
        _ => "lost",
    }
}

/// Resets with requests in flight and all interrupts open.
fn reset_while_unmasked(lab: &mut Lab<'_>) -> Outcome {
    for round in 0..lab.machine.command_line.number("rounds", 30) {
        let mark = lab.machine.arena.mark();
        let (mut block, space) = attempt!(live(lab));
        block.queue.avail.write16(0, 0);
        entry(block.window, 0, pci::NOBODY, 0x40);
        entry(block.window, 1, pci::NOBODY, 0x41);
        submit_many(lab, &mut block);
        block.queue.kick();
        pci::mask_interrupts(space, pci::MSIX_OPEN);
        if reset(block.window, lab.machine.clock).is_err() {
            return "reset-hangs";
        }
        entry(block.window, 1, pci::NOBODY, 0x42);
        if cpu::read64(block.window.address + PENDING) != 0 {
            lab.facts[0] = ("round", round);
            return "late-completion";
        }
        lab.machine.arena.rewind(mark);
    }
    "alive"
}

/// Pending bits are not for writing.
fn pending_writes(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, _) = attempt!(live(lab));
    let pending = block.window.address + PENDING;
    let before = cpu::read64(pending);
    for at in (0..64).chain((64..0x3_8000).step_by(0xff1)) {
        cpu::write8(pending + at, 0xff);
        cpu::write16(pending + at, 0xffff);
        cpu::write32(pending + at, ONES);
        cpu::write64(pending + at, u64::MAX);
    }
    if cpu::read64(pending) == before { still_works(lab, &mut block) } else { "accepted" }
}

/// The table has double words and quadruple words, aligned: everything else is nothing.
fn table_widths(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, _) = attempt!(live(lab));
    let table = block.window.address + TABLE;
    entry(block.window, 0, pci::NOBODY, 0x40);
    let before = [cpu::read64(table), cpu::read64(table + 8)];
    for at in 0..16 {
        cpu::write8(table + at, 0xa5);
        cpu::write16(table + at, 0xa5a5);
        if at % 4 != 0 {
            cpu::write32(table + at, ONES);
        }
        if at % 8 != 0 {
            cpu::write64(table + at, u64::MAX);
        }
        cpu::read8(table + at);
        cpu::read16(table + at);
        cpu::read32(table + at);
        cpu::read64(table + at);
    }
    let same = before == [cpu::read64(table), cpu::read64(table + 8)];
    if same { still_works(lab, &mut block) } else { "accepted" }
}

/// Writes one place of a configuration space with every width.
fn scribble(at: u64, value: u32) {
    cpu::write8(at, value as u8);
    cpu::write16(at, value as u16);
    cpu::write32(at, value);
    cpu::read8(at);
    cpu::read16(at);
    cpu::read32(at);
}

/// Whether the bus is as it was; puts the function back to its place.
fn unharmed(lab: &mut Lab<'_>, space: u64, home: u64, functions: u64) -> Outcome {
    pci::place(space, home);
    pci::mask_interrupts(space, pci::MSIX_MASKED);
    let id = cpu::read32(space);
    lab.facts = [("id", id.into()), ("functions", functions)];
    // Whatever went through the window of the configuration space, a reset mends it.
    let mut block = attempt!(lab.block());
    let same = cpu::read32(ECAM) == HOST_BRIDGE && id == 0x1042_1af4 && count_functions() == functions;
    if same { still_works(lab, &mut block) } else { "accepted" }
}

fn count_functions() -> u64 {
    (1..SLOTS).filter(|slot| pci::is_there(*slot)).count() as u64
}

/// All of a function's configuration space, that of the host bridge, of functions that do not exist, of an empty slot and of other buses.
fn configuration_writes(lab: &mut Lab<'_>) -> Outcome {
    let (block, space) = attempt!(live(lab));
    let (home, functions) = (block.window.address, count_functions());
    for value in [ONES, 0, 0xa5a5_a5a5] {
        for at in 0..0x100 {
            scribble(space + at, value);
            scribble(ECAM + at, value);
        }
        for at in (0x100..0x1000).step_by(0x3b) {
            scribble(space + at, value);
        }
        for function in 1..8 {
            for at in [0, COMMAND, BAR, 0x40, 0xff1] {
                scribble(space + 0x1000 * function + at, value);
            }
        }
        for at in (0..SLOT).step_by(0x101) {
            scribble(ECAM + (SLOTS - 1) * SLOT + at, value);
        }
        // Buses 1, 2 and the last one below the I/O APIC.
        for at in [0x10_0000, 0x20_0000, 0xff0_0000] {
            scribble(ECAM + at + COMMAND, value);
            scribble(ECAM + at + SLOT + BAR, value);
        }
    }
    unharmed(lab, space, home, functions)
}

/// The same by the old ports, all of them at every width.
fn configuration_ports(lab: &mut Lab<'_>) -> Outcome {
    let (block, space) = attempt!(live(lab));
    let (home, functions) = (block.window.address, count_functions());
    let slot = ((space - ECAM) / SLOT) as u32;
    let mut seed = 0x2545_f491_u32;
    for round in 0..lab.machine.command_line.number("rounds", 2000) as u32 {
        // xorshift32
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        let address = match round % 4 {
            // All of the function; one of its siblings; another bus; anything.
            0 | 1 => 1 << 31 | slot << 11 | seed & 0xff,
            2 => 1 << 31 | (seed & 0x7) << 8 | slot << 11 | seed >> 8 & 0xff | (round & 1) << 16,
            _ => seed,
        };
        cpu::out32(ADDRESS, address);
        let port = DATA + (seed >> 12 & 3) as u16;
        match seed >> 16 & 7 {
            0 => cpu::out8(port, seed as u8),
            1 => cpu::out16(port, seed as u16),
            2 | 3 => cpu::out32(port, seed),
            4 => drop(cpu::in8(port)),
            5 => drop(cpu::in16(port)),
            6 => drop(cpu::in32(port)),
            _ => {
                // Never the reset register of another machine, 0xcf9, with a reset in it.
                cpu::out8(ADDRESS, seed as u8);
                cpu::out16(ADDRESS, seed as u16);
                cpu::in16(ADDRESS + 1);
                cpu::in32(ADDRESS + 2);
            }
        }
    }
    cpu::out32(ADDRESS, 1 << 31 | slot << 11);
    if cpu::in32(DATA) != 0x1042_1af4 {
        return "accepted";
    }
    unharmed(lab, space, home, functions)
}

/// The window in the configuration space (§4.1.4.9) with any BAR, offset and length.
fn window_garbage(lab: &mut Lab<'_>) -> Outcome {
    let (block, space) = attempt!(live(lab));
    let (home, functions) = (block.window.address, count_functions());
    let Some(at) = pci::last_capability(space, pci::CAP_VENDOR) else { return "no-capability" };
    let window = space + at;
    let offsets = [0, 0x12, 0x14, 0x16, 0x4000, 0x6000, 0x8000, 0x4_8000, 0x7_fffc, 0x7_ffff, 0x8_0000, ONES - 3, ONES];
    for bar in [0, 1, 5, 6, 0xff] {
        for offset in offsets {
            for len in [0, 1, 2, 3, 4, 8, ONES] {
                cpu::write8(window + 4, bar);
                cpu::write32(window + 8, offset);
                cpu::write32(window + 12, len);
                // Never a reset: that is another case.
                cpu::write8(window + 16, 0xa5);
                cpu::write16(window + 16, 0xa5a5);
                cpu::write32(window + 16, 0xa5a5_a5a5);
                cpu::write8(window + 19, 0xa5);
                cpu::read8(window + 16);
                cpu::read16(window + 17);
                cpu::read32(window + 16);
            }
        }
    }
    // It still does what it is there for.
    cpu::write8(window + 4, 0);
    cpu::write32(window + 8, 0x12);
    cpu::write32(window + 12, 2);
    if cpu::read16(window + 16) != cpu::read16(home + 0x12) {
        return "lost";
    }
    unharmed(lab, space, home, functions)
}

/// Slots let go of that nobody asked for, again and again, and everything else that the registers of comings and goings are not made for.
fn hotplug_ports(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, _) = attempt!(live(lab));
    let functions = count_functions();
    for round in 0..lab.machine.command_line.number("rounds", 300) {
        for port in (HOTPLUG..HOTPLUG + 12).step_by(4) {
            cpu::out32(port, ONES);
            cpu::out32(port, 1 << (round % 32));
        }
    }
    for port in HOTPLUG - 1..HOTPLUG + 13 {
        cpu::out8(port, 0xff);
        cpu::out16(port, 0xffff);
        cpu::out32(port, ONES);
        cpu::in8(port);
        cpu::in16(port);
        cpu::in32(port);
    }
    lab.facts[0] = ("functions", functions);
    if count_functions() == functions && lab.read_ok(&mut block) { "kept" } else { "lost" }
}

/// The status is one byte. Written as more, or out of order, it is not written.
fn status_widths(lab: &mut Lab<'_>) -> Outcome {
    let (window, _) = attempt!(function(lab));
    let block = match Block::prepare(lab.machine, window, Options::PLAIN) {
        Ok(block) => block,
        Err(refusal) => return super::refusal(refusal),
    };
    let status = block.window.address + 0x14;
    // Everything but DRIVER_OK is there by now: more of it than a byte, less of it than before, and bits that do not exist.
    cpu::write16(status, 0x000f);
    cpu::write32(status, 0x0000_000f);
    cpu::write64(block.window.address + 0x10, 0x0f00_0000_0000_0000 | 0xf << 32);
    cpu::write16(status - 1, 0x0f00);
    for value in [4, 5, 7, 0x1f, 0x2f, 0x10, 8] {
        cpu::write8(status, value);
    }
    refused_start(window).unwrap_or("accepted")
}

/// [`geometry::rewrite`] with registers as only PCI has them.
fn rewrite(lab: &mut Lab<'_>, spoil: fn(Window, u64)) -> Outcome {
    attempt!(function(lab));
    geometry::rewrite(lab, spoil)
}

/// Sizes, addresses of 64 bits, and the enable bit (CVE-2026-5747).
fn rewrite_addresses(window: Window, elsewhere: u64) {
    let bar = window.address;
    for size in [2, 0, 0xffff] {
        cpu::write16(bar + 0x18, size);
    }
    for register in [0x20, 0x28, 0x30] {
        cpu::write64(bar + register, elsewhere);
    }
    for enable in [0, 1, 2] {
        cpu::write16(bar + 0x1c, enable);
    }
}

/// Halves and other pieces of them, and of two at a time.
fn rewrite_halves(window: Window, elsewhere: u64) {
    let bar = window.address;
    for register in (0x18..0x38).step_by(4) {
        cpu::write32(bar + register, elsewhere as u32);
    }
    for register in 0x18..0x38 {
        cpu::write8(bar + register, 0x40);
        cpu::write16(bar + register, 0x4000);
        cpu::write64(bar + register, elsewhere);
    }
}

/// A driver may change which vector is a queue's at any time; the queue goes on.
fn rewrite_vectors(window: Window, _: u64) {
    for vector in [0, 1, 2, 0xffff, 0x7ff, 1] {
        cpu::write16(window.address + 0x10, vector);
        cpu::write16(window.address + 0x1a, vector);
    }
}
