//! The MADT: the local APICs and the I/O APIC.

use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};

use super::{AcpiInput, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::arch::layout;

/// Id of the only I/O APIC, as its own id register reads after reset.
const IOAPIC_ID: u8 = 0;
/// GSI of its first pin.
const IOAPIC_GSI_BASE: u32 = 0;

pub(super) fn build(input: &AcpiInput<'_>) -> MADT {
    // Both addresses are in the 32-bit hole.
    let local_apic = LocalInterruptController::Address(layout::LOCAL_APIC.0 as u32);
    let mut table = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    table.add_structure(IoApic::new(IOAPIC_ID, layout::IOAPIC.0 as u32, IOAPIC_GSI_BASE));
    for id in 0..input.vcpus {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    table
}
