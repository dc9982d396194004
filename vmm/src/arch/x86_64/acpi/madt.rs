//! The MADT: the local APICs and the I/O APIC.

use acpi_tables::madt::IoApic;
use acpi_tables::sdt::Sdt;
use zerocopy::IntoBytes;

use super::{AcpiInput, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::arch::layout;

/// Length of a table header and the two fields behind it, in bytes.
const HEADER_LEN: u32 = 44;
/// Id of the only I/O APIC, as its own id register reads after reset.
const IOAPIC_ID: u8 = 0;
/// GSI of its first pin.
const IOAPIC_GSI_BASE: u32 = 0;
/// Revision of a table whose processors are all there.
const REVISION: u8 = 1;
/// The first one that knows of [`ONLINE_CAPABLE`] (ACPI 6.3; Linux `acpi_parse_madt`).
const REVISION_ONLINE_CAPABLE: u8 = 5;

/// Processor local APIC structure (ACPI 6.5 §5.2.12.2).
const LOCAL_APIC: u8 = 0;
const LOCAL_APIC_LEN: u8 = 8;
/// It is there.
const ENABLED: u8 = 1 << 0;
/// It is not there and may come.
const ONLINE_CAPABLE: u8 = 1 << 1;

pub(super) fn build(input: &AcpiInput<'_>) -> Sdt {
    let max = input.hotplug_cpus.map_or(input.vcpus, |node| node.max.max(input.vcpus));
    let revision = if max > input.vcpus { REVISION_ONLINE_CAPABLE } else { REVISION };
    let mut table = Sdt::new(*b"APIC", HEADER_LEN, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    // In the 32-bit hole. Flags stay zero: there are no 8259s.
    table.write_u32(36, layout::LOCAL_APIC.0 as u32);
    table.append_slice(IoApic::new(IOAPIC_ID, layout::IOAPIC.0 as u32, IOAPIC_GSI_BASE).as_bytes());
    for id in 0..max {
        table.append_slice(&processor(id, id < input.vcpus));
    }
    table
}

/// The local APIC of a vCPU that is there, or may come.
pub(super) fn processor(id: u8, present: bool) -> [u8; LOCAL_APIC_LEN as usize] {
    [LOCAL_APIC, LOCAL_APIC_LEN, id, id, if present { ENABLED } else { ONLINE_CAPABLE }, 0, 0, 0]
}
