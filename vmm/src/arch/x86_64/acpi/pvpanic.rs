//! DSDT node of the pvpanic port, with the methods that its specification wants (QEMU's `docs/specs/pvpanic.rst`).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, Method, Name, OpRegion,
    OpRegionSpace, Path, ResourceTemplate, Return, Store,
};

/// Number of ports, and bytes of the region.
const LEN: u8 = 1;

pub(super) fn append(aml: &mut Vec<u8>, port: u16) {
    let events = Path::new("PEVT");
    Device::new(
        Path::new("PANC"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&IO::new(port, port, 1, LEN)])),
            &OpRegion::new(Path::new("PREG"), OpRegionSpace::SystemIO, &port, &LEN),
            &Field::new(
                Path::new("PREG"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                vec![FieldEntry::Named(*b"PEVT", 8)],
            ),
            &Method::new(Path::new("RDPT"), 0, true, vec![&Return::new(&events)]),
            &Method::new(Path::new("WRPT"), 1, true, vec![&Store::new(&events, &Arg(0))]),
        ],
    )
    .to_aml_bytes(aml);
}
