//! The FADT: hardware-reduced ACPI, a reset register, a sleep control register.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{AcpiInput, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::arch::layout;

/// `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11).
mod boot_arch {
    /// There are devices on an ISA bus.
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    /// There is a keyboard controller.
    pub(super) const I8042: u16 = 1 << 1;
    /// There is no VGA.
    pub(super) const NO_VGA: u16 = 1 << 2;
    /// There is no CMOS clock.
    pub(super) const NO_CMOS_RTC: u16 = 1 << 5;
}

pub(super) fn build(input: &AcpiInput<'_>, dsdt: u64) -> FADT {
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        // Set means "no fixed button": there are no fixed registers to press it in.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    let mut boot_arch = boot_arch::NO_VGA | boot_arch::NO_CMOS_RTC;
    if input.com1.is_some() || input.i8042.is_some() {
        boot_arch |= boot_arch::LEGACY_DEVICES;
    }
    if input.i8042.is_some() {
        boot_arch |= boot_arch::I8042;
        table = table.flag(Flags::ResetRegSup);
        table.reset_reg = port(layout::I8042_COMMAND_PORT);
        table.reset_value = layout::I8042_RESET;
    }
    table.iapc_boot_arch = boot_arch.into();
    table.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    table.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    table.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    table.finalize()
}

/// A one-byte I/O port.
fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}
