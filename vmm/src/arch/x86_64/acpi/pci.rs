//! The DSDT node of the PCI bus: where its functions may have their memory, and how a guest learns of slots that were filled or should be
//! emptied, and lets go of one.
//!
//! Linux: `drivers/acpi/pci_root.c`, `drivers/pci/hotplug/acpiphp_glue.c`. The registers are those of [`devices::pci::hotplug`].

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, BufferData, Device, EISAName, Equal, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Local, Method, MethodCall, Name, Notify, ONE, OpRegion,
    OpRegionSpace, Path, ResourceTemplate, Return, Store, Uuid, ZERO,
};
use acpi_tables::{Aml, mcfg};
use devices::pci::bus::{CONFIG_PORT, CONFIG_PORTS, SLOTS};
use devices::pci::hotplug::PORTS;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Raw};
use crate::arch::layout;

/// The method that finds out which slots were filled, and which should be emptied.
pub(super) const SCAN: &str = "\\_SB_.PCI0.PSCN";
/// Device check and eject request (ACPI 6.5 §5.6.6).
const NOTIFY_DEVICE_CHECK: u8 = 1;
const NOTIFY_EJECT_REQUEST: u8 = 3;
/// What a `_DSM` of a PCI host bridge is called by (PCI Firmware 3.2 §4.6).
const DSM: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";
/// Its function that says whether the guest may move what was set up before it.
const DSM_KEEP: u8 = 5;

/// Where the configuration space is mapped.
pub(super) fn mcfg() -> mcfg::MCFG {
    let mut table = mcfg::MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.add_ecam(layout::PCI_MMCONFIG_START.0, 0, 0, 0);
    table
}

pub(super) fn append(aml: &mut Vec<u8>) {
    let bars_end = layout::PCI_BARS_START + layout::PCI_BARS_LEN - 1;
    let mut contents = Vec::new();
    Name::new(
        Path::new("_CRS"),
        &ResourceTemplate::new(vec![
            &AddressSpace::new_bus_number(0u16, 0),
            &IO::new(CONFIG_PORT, CONFIG_PORT, 1, CONFIG_PORTS as u8),
            &AddressSpace::new_memory(
                AddressSpaceCacheable::NotCacheable,
                true,
                layout::PCI_BARS_START,
                bars_end,
                None,
            ),
        ]),
    )
    .to_aml_bytes(&mut contents);
    keep(&mut contents);
    registers(&mut contents);
    for slot in 1..SLOTS {
        self::slot(&mut contents, slot);
    }
    notify(&mut contents);
    scan(&mut contents);
    Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(Path::new("_CCA"), &ONE),
            &Raw(contents),
        ],
    )
    .to_aml_bytes(aml);
}

/// `_DSM`: BARs stay where they are, so that a guest finds its devices where a snapshot of it has them, and needs no time to move them.
fn keep(aml: &mut Vec<u8>) {
    let dsm = Uuid::new(DSM);
    let is_ours = Equal::new(&Arg(0), &dsm);
    let (asks_which, asks_keep) = (Equal::new(&Arg(2), &ZERO), Equal::new(&Arg(2), &DSM_KEEP));
    let which = BufferData::new(vec![1 | 1 << DSM_KEEP]);
    let none = BufferData::new(vec![0]);
    Method::new(
        Path::new("_DSM"),
        4,
        false,
        vec![
            &If::new(
                &is_ours,
                vec![
                    &If::new(&asks_which, vec![&Return::new(&which)]),
                    &If::new(&asks_keep, vec![&Return::new(&ZERO)]),
                ],
            ),
            &Return::new(&none),
        ],
    )
    .to_aml_bytes(aml);
}

fn registers(aml: &mut Vec<u8>) {
    let len = PORTS as u8;
    OpRegion::new(Path::new("PREG"), OpRegionSpace::SystemIO, &layout::PCI_HOTPLUG_PORT, &len).to_aml_bytes(aml);
    Field::new(
        Path::new("PREG"),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"PCIU", 32), FieldEntry::Named(*b"PCID", 32), FieldEntry::Named(*b"PCEJ", 32)],
    )
    .to_aml_bytes(aml);
}

fn name(slot: u8) -> String {
    format!("S{slot:03X}")
}

/// A slot: where it is, what to call it, and how it is emptied.
fn slot(aml: &mut Vec<u8>, slot: u8) {
    let (bit, address) = (1u32 << slot, u32::from(slot) << 16);
    Device::new(
        Path::new(&name(slot)),
        vec![
            &Name::new(Path::new("_ADR"), &address),
            &Name::new(Path::new("_SUN"), &slot),
            &Method::new(Path::new("_EJ0"), 1, true, vec![&Store::new(&Path::new("PCEJ"), &bit)]),
        ],
    )
    .to_aml_bytes(aml);
}

/// `PNTF(slots, what)`: notifies the drivers of the slots whose bits are set.
fn notify(aml: &mut Vec<u8>) {
    let mut cases = Vec::new();
    for slot in 1..SLOTS {
        let (bit, path) = (1u32 << slot, Path::new(&name(slot)));
        And::new(&Local(0), &Arg(0), &bit).to_aml_bytes(&mut cases);
        let is_set = Equal::new(&Local(0), &bit);
        If::new(&is_set, vec![&Notify::new(&path, &Arg(1))]).to_aml_bytes(&mut cases);
    }
    Method::new(Path::new("PNTF"), 2, true, vec![&Raw(cases)]).to_aml_bytes(aml);
}

/// `PSCN()`: takes note of what the registers say, then notifies. What they say while it does so is said again by another interrupt.
fn scan(aml: &mut Vec<u8>) {
    let mut terms = Vec::new();
    for (local, register) in [(Local(0), "PCIU"), (Local(1), "PCID")] {
        let register = Path::new(register);
        Store::new(&local, &register).to_aml_bytes(&mut terms);
        Store::new(&register, &local).to_aml_bytes(&mut terms);
    }
    for (local, what) in [(Local(0), NOTIFY_DEVICE_CHECK), (Local(1), NOTIFY_EJECT_REQUEST)] {
        MethodCall::new(Path::new("PNTF"), vec![&local, &what]).to_aml_bytes(&mut terms);
    }
    Method::new(Path::new("PSCN"), 0, true, vec![&Raw(terms)]).to_aml_bytes(aml);
}
