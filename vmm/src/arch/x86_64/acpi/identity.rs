//! DSDT nodes of the VM generation id and the VM clock, and of the device that notifies their drivers.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, Equal, If, Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, ZERO,
};

use super::IdentityNode;
use super::dsdt::interrupt;
use crate::arch::layout::PAGE_SIZE;

const GENERATION_ID: &str = "\\_SB_.VGEN";
const CLOCK: &str = "\\_SB_.VCLK";
/// "Look at me": the status change code of the generation id's specification, which the clock's driver takes as well.
const CHANGED: u8 = 0x80;

pub(super) fn append(aml: &mut Vec<u8>, node: IdentityNode) {
    generation_id(aml, node.generation_id);
    clock(aml, node.clock);
    notifier(aml, node);
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

/// A generic event device (ACPI 6.5 §5.6.9): it has the interrupts, and `_EVT` says what each of them means.
fn notifier(aml: &mut Vec<u8>, node: IdentityNode) {
    let (generation_id, clock) = (Path::new(GENERATION_ID), Path::new(CLOCK));
    let argument = Arg(0);
    let changed = [
        (Equal::new(&argument, &node.generation_id_gsi), Notify::new(&generation_id, &CHANGED)),
        (Equal::new(&argument, &node.clock_gsi), Notify::new(&clock, &CHANGED)),
    ];
    let cases: Vec<If<'_>> = changed.iter().map(|(which, notify)| If::new(which, vec![notify])).collect();
    Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&interrupt(node.generation_id_gsi), &interrupt(node.clock_gsi)]),
            ),
            &Method::new(Path::new("_EVT"), 1, true, cases.iter().map(|case| case as &dyn Aml).collect()),
        ],
    )
    .to_aml_bytes(aml);
}
