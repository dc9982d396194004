//! virtio over PCI (virtio 1.3 §4.1): the functions on bus 0, and their registers by the names that they have on MMIO.
//!
//! Everything above speaks of registers as virtio-mmio has them; here they are found in the structures of a PCI function. There is no interrupt
//! status: what a device interrupted for is read from the pending bits of MSI-X, whose function is masked.

use crate::cpu;
use crate::mmio::{CONFIG_CHANGED, Window, reg};
use crate::tables::FAR_DEVICES;

/// The memory-mapped configuration space, and what it has for each slot.
pub const ECAM: u64 = 0xeec0_0000;
pub const SLOT: u64 = 0x8000;
pub const SLOTS: u64 = 32;
/// The host bridge in slot 0.
pub const HOST_BRIDGE: u32 = 0x0d57_8086;
/// virtio's vendor id, and the device id of a device of kind 0.
const VENDOR: u32 = 0x1af4;
const DEVICE_BASE: u32 = 0x1040;
/// Offsets in the configuration space.
pub const COMMAND: u64 = 0x04;
pub const BAR: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;
pub const CAP_MSIX: u8 = 0x11;
pub const CAP_VENDOR: u8 = 0x09;
/// What is read of a function that has gone.
const NOTHING: u64 = 0xff;
/// Answer at BARs, reach memory.
pub const COMMAND_ON: u16 = 6;
/// MSI-X is on, and all of its entries are masked or not.
pub const MSIX_MASKED: u16 = 0xc000;
pub const MSIX_OPEN: u16 = 0x8000;
/// Entries that are looked at here, and where each of them sends an interrupt that nobody takes: the first processor's local APIC is off.
const ENTRIES: u64 = 4;
pub const NOBODY: u64 = 0xfee0_0000;
const NO_MATTER: u64 = 0x40;
/// Length of BAR 0, and offsets in it.
pub const BAR_LEN: u64 = 0x8_0000;
pub const DEVICE: u64 = 0x4000;
pub const NOTIFY: u64 = 0x6000;
pub const TABLE: u64 = 0x8000;
pub const PENDING: u64 = 0x4_8000;

/// The registers by which a guest hears of slots that were filled, or should be emptied (ACPI, `PREG` in the DSDT).
pub mod hotplug {
    use crate::cpu;

    const FILLED: u16 = 0x620;
    const LEAVING: u16 = 0x624;
    const EJECT: u16 = 0x628;

    /// Takes note of slots that were filled.
    pub fn filled() -> u32 {
        take(FILLED)
    }

    /// Takes note of slots that should be emptied.
    pub fn leaving() -> u32 {
        take(LEAVING)
    }

    fn take(port: u16) -> u32 {
        let slots = cpu::in32(port);
        cpu::out32(port, slots);
        slots
    }

    /// Lets go of slots.
    pub fn eject(slots: u32) {
        cpu::out32(EJECT, slots);
    }
}

/// Whether there is a bus.
pub fn exists() -> bool {
    cpu::read32(ECAM) == HOST_BRIDGE
}

/// Whether these registers are a function's.
pub fn is_function(address: u64) -> bool {
    address >= FAR_DEVICES.0
}

/// The virtio functions by slot, switched on.
pub fn scan() -> impl Iterator<Item = Window> {
    (1..SLOTS).filter_map(function)
}

/// Whether there is a virtio function in a slot.
pub fn is_there(slot: u64) -> bool {
    cpu::read32(ECAM + slot * SLOT) & 0xffff == VENDOR
}

/// The virtio function in a slot, if there is one.
pub fn function(slot: u64) -> Option<Window> {
    let space = ECAM + slot * SLOT;
    let id = cpu::read32(space);
    if id & 0xffff != VENDOR {
        return None;
    }
    cpu::write16(space + COMMAND, COMMAND_ON);
    let address = u64::from(cpu::read32(space + BAR + 4)) << 32 | u64::from(cpu::read32(space + BAR) & !0xf);
    let window = Window { address, kind: (id >> 16).wrapping_sub(DEVICE_BASE) };
    // One that goes at this moment reads as all ones.
    if address < FAR_DEVICES.0 || address >= FAR_DEVICES.0 + FAR_DEVICES.1 || address % BAR_LEN != 0 {
        return None;
    }
    mask_interrupts(space, MSIX_MASKED);
    for entry in 0..ENTRIES {
        cpu::write64(address + TABLE + 16 * entry, NOBODY);
        cpu::write64(address + TABLE + 16 * entry + 8, NO_MATTER);
    }
    Some(window)
}

/// Where a function's first or next capability with this id is, looking from the link at `link`.
fn capability_from(space: u64, link: u64, id: u8) -> Option<u64> {
    let mut at = u64::from(cpu::read8(space + link));
    while at != 0 && at != NOTHING && cpu::read8(space + at) != id {
        at = cpu::read8(space + at + 1).into();
    }
    (at != 0 && at != NOTHING).then_some(at)
}

/// Offset of a function's last capability with this id.
pub fn last_capability(space: u64, id: u8) -> Option<u64> {
    let mut last = capability_from(space, CAPABILITIES, id)?;
    while let Some(next) = capability_from(space, last + 1, id) {
        last = next;
    }
    Some(last)
}

/// Writes MSI-X's message control.
pub fn mask_interrupts(space: u64, control: u16) {
    if let Some(at) = capability_from(space, CAPABILITIES, CAP_MSIX) {
        cpu::write16(space + at + 2, control);
    }
}

/// The configuration space of a function that is where it was from the start.
pub fn space(window: Window) -> u64 {
    ECAM + (window.address - FAR_DEVICES.0) / BAR_LEN % SLOTS * SLOT
}

/// Puts a function's memory somewhere, as a kernel does it: while it answers nowhere.
pub fn place(space: u64, base: u64) {
    cpu::write16(space + COMMAND, 0);
    cpu::write32(space + BAR, base as u32);
    cpu::write32(space + BAR + 4, (base >> 32) as u32);
    cpu::write16(space + COMMAND, COMMAND_ON);
}

/// Takes what is pending: it is sent, and nobody is there.
fn acknowledge(address: u64) {
    for control in [MSIX_OPEN, MSIX_MASKED] {
        mask_interrupts(space(Window { address, kind: 0 }), control);
    }
}

/// Reads a register.
pub fn read(window: Window, register: u64) -> u32 {
    let bar = window.address;
    match register {
        reg::MAGIC => 0x7472_6976,
        reg::VERSION => 2,
        reg::DEVICE_ID => window.kind,
        reg::DEVICE_FEATURES => cpu::read32(bar + 0x04),
        reg::QUEUE_NUM_MAX => cpu::read16(bar + 0x18).into(),
        reg::QUEUE_READY => cpu::read16(bar + 0x1c).into(),
        reg::STATUS => cpu::read8(bar + 0x14).into(),
        reg::CONFIG_GENERATION => cpu::read8(bar + 0x15).into(),
        reg::INTERRUPT_STATUS => {
            let pending = cpu::read64(bar + PENDING);
            u32::from(pending >> 1 != 0) | if pending & 1 != 0 { CONFIG_CHANGED } else { 0 }
        }
        reg::CONFIG.. => cpu::read32(bar + DEVICE + register - reg::CONFIG),
        _ => 0,
    }
}

/// Writes a register.
pub fn write(window: Window, register: u64, value: u32) {
    let bar = window.address;
    match register {
        reg::DEVICE_FEATURES_SEL => cpu::write32(bar, value),
        reg::DRIVER_FEATURES_SEL => cpu::write32(bar + 0x08, value),
        reg::DRIVER_FEATURES => cpu::write32(bar + 0x0c, value),
        reg::QUEUE_SEL => cpu::write16(bar + 0x16, value as u16),
        reg::QUEUE_NUM => cpu::write16(bar + 0x18, value as u16),
        reg::QUEUE_READY => {
            // Its interrupt, before it is there.
            let index = cpu::read16(bar + 0x16);
            cpu::write16(bar + 0x1a, index.wrapping_add(1));
            cpu::write16(bar + 0x1c, value as u16);
        }
        reg::INTERRUPT_ACK => acknowledge(bar),
        reg::QUEUE_NOTIFY => cpu::write16(bar + NOTIFY + 4 * u64::from(value & 0x3ff), value as u16),
        reg::STATUS => {
            if value & crate::mmio::status::DRIVER_OK != 0 {
                cpu::write16(bar + 0x10, 0);
            }
            cpu::write8(bar + 0x14, value as u8);
        }
        reg::QUEUE_DESC..=0xa4 => {
            let (area, half) = ((register - reg::QUEUE_DESC) / 0x10, register & 4);
            cpu::write32(bar + 0x20 + 8 * area + half, value);
        }
        reg::CONFIG.. => cpu::write32(bar + DEVICE + register - reg::CONFIG, value),
        _ => {}
    }
}
