//! G27 and G29: accesses that no driver makes, nonsense in the interrupt controllers, and the ways to end a machine.

use super::{Case, Lab, Outcome};
use crate::power::SLEEP_CONTROL;
use crate::{cpu, cpus, power, second};

pub const CASES: &[Case] = &[
    ("g27-crossing", crossing),
    ("g27-string-copy", string_copy),
    ("g27-sleep-garbage", sleep_garbage),
    ("g27-reset-garbage", reset_garbage),
    ("g27-panic-garbage", panic_garbage),
    ("g27-vcpu-garbage", vcpu_garbage),
    ("g29-ioapic-entries", ioapic_entries),
    ("g29-ioapic-registers", ioapic_registers),
    ("g29-eoi-storm", eoi_storm),
];

/// The I/O APIC: register select, window, and end of interrupt.
const IOAPIC: u64 = 0xfec0_0000;
const IOAPIC_WINDOW: u64 = IOAPIC + 0x10;
const IOAPIC_EOI: u64 = IOAPIC + 0x40;
/// The local APIC's end-of-interrupt register.
const LAPIC_EOI: u64 = 0xfee0_00b0;
const PINS: u32 = 24;
/// Bit of a redirection entry's low half: the pin is masked.
const MASKED: u32 = 1 << 16;

/// Cases the machine is not expected to survive.
pub const ENDINGS: &[Case] = &[
    ("g27-i8042-reset", |_| {
        power::reset();
        "survived"
    }),
    ("g27-triple-fault", |_| cpu::undefined_instruction()),
    ("g27-interrupt-storm", |_| {
        // The first one is already one too many without an IDT.
        for _ in 0..1000 {
            cpu::software_interrupt();
        }
        "survived"
    }),
    ("g27-fetch-device", |_| cpu::jump_to_device(0xc000_1000)),
    ("g27-fetch-hole", |_| cpu::jump_to_device(0xd000_0000)),
];

/// Accesses across the edge of a window, and of the whole bus.
fn crossing(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let base = block.window.address;
    for edge in [base, base + 0x1000] {
        cpu::read16(edge - 1);
        cpu::read32(edge - 2);
        cpu::read64(edge - 4);
        cpu::read64(edge - 7);
    }
    // Writes, but only to configuration space and behind: the window before
    // ours may be another device.
    cpu::write64(base + 0xffc, u64::MAX);
    cpu::write32(base + 0xfff, u32::MAX);
    if lab.read_ok(&mut block) { "ignored" } else { "read-failed" }
}

/// `rep movs` from and to a window's configuration space.
fn string_copy(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let config = block.window.config_space();
    let mut bytes = [0; 64];
    cpu::copy_from_device(&mut bytes, config);
    cpu::copy_to_device(config, &bytes);
    let capacity = u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
    lab.facts[0] = ("capacity", capacity);
    if lab.read_ok(&mut block) { "ignored" } else { "read-failed" }
}

/// The ACPI sleep registers: every value that is not "enter S5 now".
fn sleep_garbage(lab: &mut Lab<'_>) -> Outcome {
    for sleep_type in (0..8_u8).filter(|t| *t != 5) {
        cpu::out8(SLEEP_CONTROL, sleep_type << 2 | 1 << 5);
    }
    // S5 without the enable bit.
    cpu::out8(SLEEP_CONTROL, 5 << 2);
    for port in SLEEP_CONTROL..SLEEP_CONTROL + 8 {
        cpu::in8(port);
    }
    cpu::out8(SLEEP_CONTROL + 1, 0xff);
    lab.facts[0] = ("sleep_control", cpu::in8(SLEEP_CONTROL).into());
    "alive"
}

/// Keyboard controller commands other than reset, the CMOS, and the PCI reset
/// register that this machine does not have.
fn reset_garbage(lab: &mut Lab<'_>) -> Outcome {
    // 0xff pulses no line, and the output port of 0xd1 keeps the reset line high:
    // none of this asks for a reset.
    for command in [0x00, 0x20, 0x60, 0xa7, 0xa8, 0xaa, 0xd0, 0xd1, 0xd4, 0xff] {
        cpu::out8(0x64, command);
        cpu::out8(0x60, 0x03);
        cpu::in8(0x64);
        cpu::in8(0x60);
    }
    for register in 0..128 {
        cpu::out8(0x70, register);
        cpu::in8(0x71);
        cpu::out8(0x71, 0);
    }
    cpu::out8(0xcf9, 0x06);
    lab.facts[0] = ("i8042_status", cpu::in8(0x64).into());
    "alive"
}

/// The pvpanic port with every value, again and again, and at every width and alignment.
fn panic_garbage(lab: &mut Lab<'_>) -> Outcome {
    for _ in 0..16 {
        for value in 0..=u8::MAX {
            cpu::out8(power::PANIC, value);
        }
    }
    for port in power::PANIC - 4..power::PANIC + 4 {
        cpu::out16(port, 0xffff);
        cpu::out32(port, u32::MAX);
        cpu::in16(port);
        cpu::in32(port);
    }
    lab.facts[0] = ("panic_events", cpu::in8(power::PANIC).into());
    "alive"
}

/// The registers of vCPUs that come and go: every vCPU there is and is not, every value, at every width; and a start for each.
fn vcpu_garbage(lab: &mut Lab<'_>) -> Outcome {
    for index in 0..=u8::MAX {
        for value in [0, 0xff, 0xf1, cpus::EJECT, cpus::INSERTING | cpus::REMOVING, cpus::EJECT | cpus::INSERTING] {
            cpu::out8(cpus::SELECT, index);
            cpu::out8(cpus::STATUS, value);
        }
    }
    for port in cpus::SELECT - 4..cpus::SELECT + 6 {
        cpu::out16(port, 0x0801);
        cpu::out32(port, 0x0808_0801);
        cpu::in16(port);
        cpu::in32(port);
    }
    second::wake();
    let before = second::rounds();
    for _ in 0..lab.machine.command_line.number("rounds", 2000) {
        cpus::status(1);
    }
    lab.facts = [("first", cpus::status(0).into()), ("started", second::rounds() - before)];
    "alive"
}

fn ioapic_write(register: u32, value: u32) {
    cpu::write32(IOAPIC, register);
    cpu::write32(IOAPIC_WINDOW, value);
}

fn ioapic_read(register: u32) -> u32 {
    cpu::write32(IOAPIC, register);
    cpu::read32(IOAPIC_WINDOW)
}

/// Every pin, again and again, with any vector, destination, trigger and remote IRR; never as NMI, SMI or INIT, which would be the
/// guest's own end. Meanwhile the console and the drive raise interrupts.
fn ioapic_entries(lab: &mut Lab<'_>) -> Outcome {
    let mut seed = 0x2545_f491_u32;
    for _ in 0..lab.machine.command_line.number("rounds", 2000) {
        // xorshift32
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        let register = 0x10 + 2 * (seed >> 8) % (2 * PINS);
        let delivery = [0, 1, 7][(seed >> 16) as usize % 3] << 8;
        ioapic_write(register, seed & !0x700 | delivery);
        ioapic_write(register + 1, seed.rotate_left(9));
    }
    let shown = ioapic_read(0x10);
    for pin in 0..PINS {
        ioapic_write(0x10 + 2 * pin, MASKED);
    }
    lab.facts = [("version", ioapic_read(1).into()), ("entry", shown.into())];
    "alive"
}

/// Every register there is and is not, at every width.
fn ioapic_registers(_: &mut Lab<'_>) -> Outcome {
    for register in 0..256 {
        let old = ioapic_read(register);
        ioapic_write(register, old | MASKED);
        cpu::write8(IOAPIC_WINDOW, 0xff);
        cpu::write64(IOAPIC_WINDOW, u64::MAX);
        cpu::read16(IOAPIC_WINDOW);
    }
    for offset in (0..0x100).step_by(4).filter(|offset| *offset != 0x10) {
        cpu::write32(IOAPIC + offset, u32::MAX);
        cpu::read32(IOAPIC + offset);
    }
    for pin in 0..PINS {
        ioapic_write(0x10 + 2 * pin, MASKED);
    }
    "alive"
}

/// Interrupts ended that never began: all vectors at the I/O APIC, many at the local one.
fn eoi_storm(lab: &mut Lab<'_>) -> Outcome {
    for round in 0..lab.machine.command_line.number("rounds", 2000) {
        cpu::write32(IOAPIC_EOI, round as u32 & 0xff);
        cpu::write32(LAPIC_EOI, 0);
    }
    "alive"
}
