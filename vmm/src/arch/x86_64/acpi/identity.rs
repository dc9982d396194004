//! DSDT nodes of the VM generation id and the VM clock.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, Memory32Fixed, Name, Package, Path, ResourceTemplate, ZERO};

use super::IdentityNode;
use super::events::{Event, Meaning};
use crate::arch::layout::PAGE_SIZE;

const GENERATION_ID: &str = "\\_SB_.VGEN";
const CLOCK: &str = "\\_SB_.VCLK";

pub(super) fn append(aml: &mut Vec<u8>, node: IdentityNode) {
    generation_id(aml, node.generation_id);
    clock(aml, node.clock);
}

/// What their interrupts mean.
pub(super) fn events(node: IdentityNode) -> [Event; 2] {
    [(node.generation_id_gsi, GENERATION_ID), (node.clock_gsi, CLOCK)]
        .map(|(gsi, path)| Event { gsi, meanings: vec![Meaning::Changed(path)] })
}

/// As Microsoft's "Virtual Machine Generation ID" has it: `ADDR` is the address in two halves, lower one first. Linux
/// (`drivers/virt/vmgenid.c`) goes by `_HID` or `_CID`, Windows by `_CID` or `_DDN`.
fn generation_id(aml: &mut Vec<u8>, address: u32) {
    Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"VMGENCTR"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("ADDR"), &Package::new(vec![&address, &ZERO])),
        ],
    )
    .to_aml_bytes(aml);
}

/// As Linux (`drivers/ptp/ptp_vmclock.c`) expects it: one page, in `_CRS`. Guests have nothing to write there.
fn clock(aml: &mut Vec<u8>, address: u32) {
    Device::new(
        Path::new("VCLK"),
        vec![
            &Name::new(Path::new("_HID"), &"AMZNC10C"),
            &Name::new(Path::new("_CID"), &"VMCLOCK"),
            &Name::new(Path::new("_DDN"), &"VMCLOCK"),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(false, address, PAGE_SIZE as u32)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}
