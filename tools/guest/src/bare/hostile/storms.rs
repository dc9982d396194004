//! G19 and G23: too much of everything: doorbells, undefined registers and
//! ports, serial output.

use super::{Case, Lab, Outcome};
use crate::cpu;
use crate::mmio::{WINDOW, reg};
use crate::pattern::Random;

/// COM1: interrupt enable, line control, modem control.
const COM1: u16 = 0x3f8;
const IER: u16 = COM1 + 1;
const LCR: u16 = COM1 + 3;
const MCR: u16 = COM1 + 4;
const SCRATCH: u16 = COM1 + 7;
/// Eight data bits, no parity, one stop bit.
const LCR_8N1: u8 = 3;
const LCR_DIVISOR: u8 = 0x80;
const MCR_LOOPBACK: u8 = 0x10;

pub const CASES: &[Case] = &[
    ("g19-kick-storm", kick_storm),
    ("g19-notify-unknown-queue", notify_unknown_queue),
    ("g19-undefined-registers", undefined_registers),
    ("g19-odd-widths", odd_widths),
    ("g19-unclaimed-memory", unclaimed_memory),
    ("g19-unclaimed-ports", unclaimed_ports),
    ("g23-serial-flood", serial_flood),
    ("g23-serial-registers", serial_registers),
];

/// Doorbells with nothing queued; `kicks` of them.
fn kick_storm(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let kicks = lab.machine.command_line.number("kicks", 10_000);
    for _ in 0..kicks {
        block.queue.ring();
    }
    lab.facts[0] = ("kicks", kicks);
    if lab.read_ok(&mut block) { "alive" } else { "read-failed" }
}

/// Doorbells of queues that do not exist.
fn notify_unknown_queue(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    for queue in [1, 2, 15, 255, 256, 65535, 0x1_0000, u32::MAX] {
        block.window.write(reg::QUEUE_NOTIFY, queue);
    }
    if lab.read_ok(&mut block) { "ignored" } else { "read-failed" }
}

/// Writes then reads every register offset that means nothing (and the
/// read-only ones), all in 32 bits.
fn undefined_registers(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let meaningful = |offset: u64| (0x10..0xb0).contains(&offset) && !(0x54..=0x5c).contains(&offset);
    let mut nonzero = 0;
    for offset in (0..WINDOW).step_by(4).filter(|o| !meaningful(*o)) {
        block.window.write(offset, 0xdead_beef);
        nonzero += u64::from(offset >= 0x200 && block.window.read(offset) != 0);
    }
    lab.facts[0] = ("nonzero", nonzero);
    if lab.read_ok(&mut block) { "ignored" } else { "read-failed" }
}

/// One-, two- and eight-byte accesses, aligned and not, to 32-bit registers.
fn odd_widths(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let base = block.window.address;
    // Not the driver's live registers themselves: identification, the hole
    // between them, and configuration space.
    for offset in [0x00, 0x01, 0x02, 0x03, 0x05, 0x0a, 0x55, 0xb1, 0xfe, 0x101, 0x103, 0x10a, 0x1f9, 0xff1] {
        cpu::read8(base + offset);
        cpu::read16(base + offset);
        cpu::read32(base + offset);
        cpu::read64(base + offset);
        cpu::write8(base + offset, 0xff);
        cpu::write16(base + offset, 0xffff);
        cpu::write32(base + offset, u32::MAX);
        cpu::write64(base + offset, u64::MAX);
    }
    // Half a status register is not a reset.
    cpu::write8(base + reg::STATUS, 0);
    cpu::write16(base + reg::STATUS, 0);
    if lab.read_ok(&mut block) { "ignored" } else { "read-failed" }
}

/// Device space nobody claimed.
fn unclaimed_memory(lab: &mut Lab<'_>) -> Outcome {
    let mut odd = 0;
    for address in [0xc008_0000_u64, 0xcfff_f000, 0xd000_0000, 0xe000_0ff8, 0xfeb0_0000] {
        cpu::write32(address, u32::MAX);
        let value = cpu::read32(address);
        odd += u64::from(value != 0 && value != u32::MAX);
        cpu::write64(address, 0);
        cpu::read8(address + 3);
    }
    lab.facts[0] = ("odd", odd);
    "alive"
}

/// Ports nobody claimed: all but the serial port, the keyboard controller and
/// the ACPI registers, sampled. Reads are all ones.
fn unclaimed_ports(lab: &mut Lab<'_>) -> Outcome {
    let step = lab.machine.command_line.number("port_step", 61) as usize;
    let claimed =
        |port: u16| (0x60..0x68).contains(&port) || (0x3f8..0x400).contains(&port) || (0x600..0x620).contains(&port);
    let (mut tried, mut not_ones) = (0, 0);
    for port in (0..0xffff_u16).step_by(step.max(1)).filter(|p| !claimed(*p)) {
        tried += 1;
        not_ones += u64::from(cpu::in8(port) != 0xff);
        cpu::out8(port, 0x5a);
        if port % 3 == 0 && !(0x5d..0x620).contains(&port) && port < 0xfff0 {
            cpu::in16(port);
            cpu::out16(port, 0x5a5a);
            cpu::in32(port);
            cpu::out32(port, 0x5a5a_5a5a);
        }
    }
    lab.facts = [("ports", tried), ("not_ones", not_ones)];
    "alive"
}

/// `bytes` of serial output in lines of dots.
fn serial_flood(lab: &mut Lab<'_>) -> Outcome {
    let bytes = lab.machine.command_line.number("bytes", 16_384);
    for i in 0..bytes {
        cpu::out8(COM1, if i % 64 == 63 { b'\n' } else { b'.' });
    }
    if !bytes.is_multiple_of(64) {
        cpu::out8(COM1, b'\n');
    }
    lab.facts[0] = ("bytes", bytes);
    "alive"
}

/// Random line, interrupt and modem control, with loopback data, then back to
/// normal: this very line must come out whole.
fn serial_registers(lab: &mut Lab<'_>) -> Outcome {
    let line = lab.machine.command_line;
    let (rounds, mut random) = (line.number("rounds", 1000), Random::new(line.number("seed", 1)));
    for _ in 0..rounds {
        let word = random.next();
        match word % 5 {
            0 => cpu::out8(IER, (word >> 8) as u8),
            1 => cpu::out8(LCR, (word >> 8) as u8),
            2 => cpu::out8(MCR, (word >> 8) as u8),
            3 => {
                // Data only while it loops back: the console stays readable.
                cpu::out8(LCR, LCR_8N1);
                cpu::out8(MCR, MCR_LOOPBACK);
                cpu::out8(COM1, (word >> 8) as u8);
                cpu::in8(COM1);
            }
            _ => {
                cpu::in8(COM1 + (word >> 8) as u16 % 8);
                cpu::out8(SCRATCH, (word >> 16) as u8);
            }
        }
    }
    // Divisor back to 115200 baud.
    cpu::out8(LCR, LCR_8N1 | LCR_DIVISOR);
    cpu::out8(COM1, 1);
    cpu::out8(IER, 0);
    cpu::out8(LCR, LCR_8N1);
    cpu::out8(MCR, 0);
    cpu::out8(IER, 0);
    lab.facts[0] = ("rounds", rounds);
    "alive"
}
