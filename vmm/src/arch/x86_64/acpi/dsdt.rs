//! The DSDT: the devices, and what "off" is called.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::events::{self, Event, Meaning};
use super::{AcpiInput, Error, OEM_ID, OEM_REVISION, OEM_TABLE_ID, PortNode, VirtioNode, cpus, identity, pci, pvpanic};
use crate::arch::layout;

/// DSDT revision 2: integers are 64 bits wide.
const REVISION: u8 = 2;
/// Length of a table header in bytes.
const HEADER_LEN: u32 = 36;
/// Device names are `V` and three hexadecimal digits.
const MAX_VIRTIO: usize = 0x1000;

pub(super) fn build(input: &AcpiInput<'_>) -> Result<Sdt, Error> {
    if input.virtio.len() > MAX_VIRTIO {
        return Err(Error::TooManyDevices(input.virtio.len()));
    }
    let mut aml = Vec::new();
    for (uid, node) in (0..).zip(input.virtio) {
        virtio(&mut aml, uid, *node);
    }
    if let Some(node) = input.com1 {
        com1(&mut aml, node);
    }
    if let Some(node) = input.i8042 {
        keyboard(&mut aml, node);
    }
    let mut events = Vec::new();
    if let Some(node) = input.identity {
        identity::append(&mut aml, node);
        events.extend(identity::events(node));
    }
    // What comes and goes while the machine runs, whatever it is: one interrupt, and a method for each kind of thing.
    let mut scans = Vec::new();
    if let Some(node) = input.hotplug_cpus {
        cpus::append(&mut aml, node);
        scans.push(Meaning::Scan(cpus::SCAN));
    }
    if input.pci {
        pci::append(&mut aml);
        scans.push(Meaning::Scan(pci::SCAN));
    }
    if !scans.is_empty() {
        events.push(Event { gsi: layout::HOTPLUG_GSI, meanings: scans });
    }
    events::append(&mut aml, &events);
    if let Some(port) = input.pvpanic {
        pvpanic::append(&mut aml, port);
    }
    let mut body = Scope::raw(Path::new("_SB_"), aml);
    power_off(&mut body);

    let mut table = Sdt::new(*b"DSDT", HEADER_LEN, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    Ok(table)
}

/// A virtio-mmio device (`drivers/virtio/virtio_mmio.c` matches `LNRO0005`). `_CCA` says that its DMA is
/// coherent, without which kernels refuse or bounce.
fn virtio(aml: &mut Vec<u8>, uid: u32, node: VirtioNode) {
    Device::new(
        Path::new(&format!("V{uid:03X}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_CCA"), &ONE),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, node.base, node.len), &interrupt(node.gsi)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn com1(aml: &mut Vec<u8>, node: PortNode) {
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &IO::new(node.port, node.port, 1, layout::COM1_PORTS),
                    &interrupt(node.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The keyboard controller. Its two ports are listed one by one, as drivers expect.
fn keyboard(aml: &mut Vec<u8>, node: PortNode) {
    let command = node.port + (layout::I8042_COMMAND_PORT - layout::I8042_PORT);
    Device::new(
        Path::new("PS2_"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0303")),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &IO::new(node.port, node.port, 1, 1),
                    &IO::new(command, command, 1, 1),
                    &interrupt(node.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// `\_S5_`: the sleep type a guest writes to the sleep control register to power off.
fn power_off(aml: &mut Vec<u8>) {
    Name::new(Path::new("_S5_"), &Package::new(vec![&layout::SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO])).to_aml_bytes(aml);
}

/// Edge-triggered, active high, not shared: how every interrupt of this machine is wired.
pub(super) fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
