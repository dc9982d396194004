use super::*;
use acpi_tables::aml;

/// A table as it lies in guest RAM, its checksum verified.
struct Raw(Vec<u8>);

impl Raw {
    fn at(ram: &GuestRam, address: u64) -> Self {
        let len: u32 = ram.read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        assert_eq!(sum(&bytes), 0, "checksum of {:?}", String::from_utf8_lossy(&bytes[..4]));
        assert_eq!(&bytes[10..16], b"MAYFLY");
        assert_eq!(&bytes[16..24], b"MAYFLYVM");
        Self(bytes)
    }

    fn signature(&self) -> &[u8] {
        &self.0[..4]
    }

    fn number(&self, at: usize, len: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&self.0[at..at + len]);
        u64::from_le_bytes(bytes)
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
}

fn nodes(count: u32) -> Vec<VirtioNode> {
    (0..count).map(|i| VirtioNode { base: 0xc000_1000 + i * 0x1000, len: 0x1000, gsi: 5 + i }).collect()
}

fn input(vcpus: u8, virtio: &[VirtioNode]) -> AcpiInput<'_> {
    AcpiInput {
        vcpus,
        hotplug_cpus: None,
        pci: false,
        virtio,
        com1: Some(PortNode::COM1),
        i8042: Some(PortNode::I8042),
        identity: Some(IdentityNode::HERE),
        pvpanic: Some(layout::PVPANIC_PORT),
    }
}

/// Follows the pointers from the root as an operating system does: DSDT, FADT, MADT.
fn tables(input: &AcpiInput<'_>) -> (Raw, Raw, Raw) {
    let ram = ram();
    let root = write_tables(&ram, input).unwrap();
    assert_eq!(root, GuestAddress(0xe_0000));
    let mut rsdp = [0; 36];
    ram.read_slice(&mut rsdp, root).unwrap();
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp), rsdp[15]), (0, 0, 2));
    let xsdt = Raw::at(&ram, u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
    assert_eq!((xsdt.signature(), xsdt.0.len()), (&b"XSDT"[..], 36 + 2 * 8));
    let fadt = Raw::at(&ram, xsdt.number(36, 8));
    let madt = Raw::at(&ram, xsdt.number(44, 8));
    let dsdt = Raw::at(&ram, fadt.number(140, 8));
    (dsdt, fadt, madt)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn the_fadt_says_hardware_reduced_with_reset_and_sleep_registers() {
    let (_, fadt, _) = tables(&input(1, &[]));
    assert_eq!((fadt.signature(), fadt.0.len(), fadt.0[8]), (&b"FACP"[..], 276, 6));
    let flags = fadt.number(112, 4);
    assert_eq!(flags, 1 << 20 | 1 << 12 | 1 << 10 | 1 << 5 | 1 << 4 | 1);
    assert_eq!(fadt.number(109, 2), 0b10_0111, "legacy devices, 8042, no VGA, no CMOS clock");
    // GAS: I/O space, 8 bits, byte access, port.
    let port = |at| (fadt.0[at], fadt.0[at + 1], fadt.0[at + 3], fadt.number(at + 4, 8));
    assert_eq!(port(116), (1, 8, 1, 0x64));
    assert_eq!(fadt.0[128], 0xfe);
    assert_eq!(port(244), (1, 8, 1, 0x600));
    assert_eq!(port(256), (1, 8, 1, 0x601));
    assert_eq!(&fadt.0[268..276], b"MAYFLYVM");
}

#[test]
fn a_machine_without_a_keyboard_controller_has_no_reset_register() {
    let bare = AcpiInput {
        vcpus: 1,
        hotplug_cpus: None,
        pci: false,
        virtio: &[],
        com1: None,
        i8042: None,
        identity: None,
        pvpanic: None,
    };
    let (dsdt, fadt, _) = tables(&bare);
    assert_eq!(fadt.number(112, 4) & 1 << 10, 0);
    assert_eq!(fadt.number(109, 2), 0b10_0100);
    assert_eq!(fadt.number(120, 8), 0);
    assert!(!contains(&dsdt.0, b"COM1") && !contains(&dsdt.0, b"PS2_"));
    assert!(!contains(&dsdt.0, b"GED_") && !contains(&dsdt.0, b"QEMU0001"));
}

#[test]
fn the_madt_lists_the_ioapic_and_every_vcpu() {
    for vcpus in [1, 4, 32] {
        let (_, _, madt) = tables(&input(vcpus, &[]));
        assert_eq!((madt.signature(), madt.number(36, 4)), (&b"APIC"[..], 0xfee0_0000));
        let mut rest = &madt.0[44..];
        let mut entries = Vec::new();
        while let [_, len, ..] = rest {
            let (entry, after) = rest.split_at(usize::from(*len));
            entries.push(entry);
            rest = after;
        }
        assert!(rest.is_empty());
        assert_eq!(entries[0], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        let processors: Vec<_> = entries[1..].to_vec();
        assert_eq!(processors.len(), usize::from(vcpus));
        for (id, entry) in (0..).zip(processors) {
            assert_eq!(entry, [0, 8, id, id, 1, 0, 0, 0]);
        }
    }
}

#[test]
fn the_dsdt_describes_each_virtio_device() {
    let nodes = nodes(2);
    let (dsdt, _, _) = tables(&input(1, &nodes));
    assert_eq!((dsdt.signature(), dsdt.0[8]), (&b"DSDT"[..], 2));
    for node in &nodes {
        // Memory32Fixed: tag 0x86, length 9, writable; extended interrupt: tag 0x89, length 6, flags
        // consumer | edge, one interrupt (ACPI 6.5 §6.4.3).
        let mut resources = vec![0x86, 9, 0, 1];
        resources.extend(node.base.to_le_bytes());
        resources.extend(node.len.to_le_bytes());
        resources.extend([0x89, 6, 0, 0b0011, 1]);
        resources.extend(node.gsi.to_le_bytes());
        assert!(contains(&dsdt.0, &resources), "{node:x?}");
    }
    assert!(contains(&dsdt.0, b"V000\x08_HID\rLNRO0005\0\x08_UID"));
    assert!(contains(&dsdt.0, b"V001\x08_HID\rLNRO0005\0\x08_UID"));
    assert!(!contains(&dsdt.0, b"V002"));
    assert_eq!(dsdt.0.windows(4).filter(|w| w == b"_CCA").count(), 2);
}

#[test]
fn the_dsdt_describes_the_legacy_devices_and_off() {
    let (dsdt, _, _) = tables(&input(1, &[]));
    // EISA ids are compressed: PNP0501 and PNP0303.
    assert!(contains(&dsdt.0, b"COM1\x08_HID\x0c\x41\xd0\x05\x01"));
    assert!(contains(&dsdt.0, b"PS2_\x08_HID\x0c\x41\xd0\x03\x03"));
    // I/O port descriptors: 16-bit decode, min, max, alignment, length.
    assert!(contains(&dsdt.0, &[0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8, 0x89, 6, 0, 3, 1, 4, 0, 0, 0]));
    assert!(contains(&dsdt.0, &[0x47, 1, 0x60, 0, 0x60, 0, 1, 1, 0x47, 1, 0x64, 0, 0x64, 0, 1, 1]));
    // Name(_S5_, Package(4) { 5, 0, 0, 0 })
    assert!(contains(&dsdt.0, b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00"));
}

/// An extended interrupt descriptor: consumer | edge, one interrupt.
fn edge(gsi: u8) -> [u8; 9] {
    [0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0]
}

#[test]
fn the_dsdt_tells_where_the_generation_id_and_the_clock_are() {
    let (dsdt, _, _) = tables(&input(1, &[]));
    assert!(contains(&dsdt.0, b"VGEN\x08_HID\rVMGENCTR\0\x08_CID\rVM_Gen_Counter\0"));
    // Name(ADDR, Package(2) { 0xd0000, 0 })
    assert!(contains(&dsdt.0, b"\x08ADDR\x12\x08\x02\x0c\x00\x00\x0d\x00\x00"));
    assert!(contains(&dsdt.0, b"VCLK\x08_HID\rAMZNC10C\0\x08_CID\rVMCLOCK\0"));
    // Memory32Fixed, read-only: 0xd1000, a page.
    assert!(contains(&dsdt.0, &[0x86, 9, 0, 0, 0, 0x10, 0x0d, 0, 0, 0x10, 0, 0]));
}

#[test]
fn the_dsdt_says_what_the_last_two_interrupts_mean() {
    let (dsdt, _, _) = tables(&input(1, &[]));
    assert!(contains(&dsdt.0, b"GED_\x08_HID\rACPI0013\0"));
    assert!(contains(&dsdt.0, &[edge(22), edge(23)].concat()));
    // Method(_EVT, 1, Serialized), then for each interrupt: If (Arg0 == gsi) { Notify(\_SB_.NAME, 0x80) }.
    assert!(contains(&dsdt.0, b"_EVT\x09"));
    for (gsi, name) in [(22, "VGEN"), (23, "VCLK")] {
        let mut case = vec![0x93, 0x68, 0x0a, gsi, 0x86];
        case.extend(b"\\\x2e_SB_");
        case.extend(name.as_bytes());
        case.extend([0x0a, 0x80]);
        assert!(contains(&dsdt.0, &case), "{name}");
    }
}

/// A machine that boots with `vcpus` of at most `max`.
fn growing(vcpus: u8, max: u8) -> AcpiInput<'static> {
    let hotplug_cpus = Some(CpuNode { max, port: layout::CPU_HOTPLUG_PORT });
    AcpiInput { hotplug_cpus, ..input(vcpus, &[]) }
}

#[test]
fn vcpus_that_may_come_are_in_the_madt_and_not_enabled() {
    let processors = |madt: &Raw| madt.0[44 + 12..].chunks(8).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (_, _, madt) = tables(&growing(1, 3));
    assert_eq!(madt.0[8], 5, "the first revision that knows of online-capable processors");
    let entry = |id, flags| vec![0, 8, id, id, flags, 0, 0, 0];
    assert_eq!(processors(&madt), [entry(0, 1), entry(1, 2), entry(2, 2)]);
    // A machine that boots with all of its vCPUs has the table of one whose number stays.
    let (_, _, all) = tables(&growing(3, 3));
    let (_, _, fixed) = tables(&input(3, &[]));
    assert_eq!((all.0, fixed.0[8]), (fixed.0.clone(), 1));
}

#[test]
fn the_dsdt_describes_each_vcpu_that_may_come_and_go() {
    let (dsdt, _, _) = tables(&growing(1, 3));
    assert!(contains(&dsdt.0, b"\x5b\x80CREG\x01\x0b\x10\x06\x0a\x02"), "two ports at 0x610");
    for id in 0..3 {
        let mut node = format!("C00{id}\x08_HID\x0dACPI0007\0\x08_UID").into_bytes();
        // Small integers have opcodes of their own.
        node.extend(if id < 2 { vec![id] } else { vec![0x0a, id] });
        node.extend(b"\x08_MAT\x11\x0b\x0a\x08");
        node.extend([0, 8, id, id, 1, 0, 0, 0]);
        assert!(contains(&dsdt.0, &node), "{id}");
    }
    assert!(!contains(&dsdt.0, b"C003"));
    assert_eq!(dsdt.0.windows(4).filter(|name| name == b"_EJ0").count(), 2, "the first cannot be ejected");
    let (fixed, _, _) = tables(&input(3, &[]));
    assert!(!contains(&fixed.0, b"ACPI0007") && !contains(&fixed.0, b"CSCN"));
}

#[test]
fn one_interrupt_says_that_something_came_or_is_to_go() {
    let (dsdt, _, _) = tables(&growing(1, 2));
    assert!(contains(&dsdt.0, &[edge(22), edge(23), edge(3)].concat()));
    // If (Arg0 == 3) { \_SB_.CSCN () }
    assert!(contains(&dsdt.0, b"\x93\x68\x0a\x03\\\x2e_SB_CSCN"));
    assert_eq!(dsdt.0.windows(4).filter(|name| name == b"GED_").count(), 1);
}

#[test]
fn an_interrupt_may_mean_several_things() {
    use events::{Event, Meaning};
    let mut aml = Vec::new();
    let meanings = vec![Meaning::Scan("\\_SB_.ONE_"), Meaning::Scan("\\_SB_.TWO_")];
    events::append(&mut aml, &[Event { gsi: 3, meanings }]);
    assert!(contains(&aml, b"\x93\x68\x0a\x03\\\x2e_SB_ONE_\\\x2e_SB_TWO_"));
    aml.clear();
    events::append(&mut aml, &[]);
    assert!(aml.is_empty(), "no device without interrupts");
}

#[test]
fn the_dsdt_describes_the_pvpanic_port_and_its_methods() {
    let (dsdt, _, _) = tables(&input(1, &[]));
    assert!(contains(&dsdt.0, b"PANC\x08_HID\rQEMU0001\0"));
    assert!(contains(&dsdt.0, &[0x47, 1, 0x05, 0x05, 0x05, 0x05, 1, 1]));
    // OperationRegion(PREG, SystemIO, 0x505, 1)
    assert!(contains(&dsdt.0, b"\x5b\x80PREG\x01\x0b\x05\x05\x01"));
    // Method(RDPT, 0) { Return(PEVT) }, Method(WRPT, 1) { Store(Arg0, PEVT) }
    assert!(contains(&dsdt.0, b"RDPT\x08\xa4PEVT"));
    assert!(contains(&dsdt.0, b"WRPT\x09\x70\x68PEVT"));
}

#[test]
fn the_body_is_one_scope_as_long_as_it_says() {
    for count in [0, 1, 2, 19] {
        let nodes = nodes(count);
        let (dsdt, _, _) = tables(&input(1, &nodes));
        let body = &dsdt.0[36..];
        assert_eq!(body[0], 0x10, "ScopeOp");
        // PkgLength (ACPI 6.5 §20.2.4): the two top bits count the bytes that follow.
        let lead = body[1];
        let extra = usize::from(lead >> 6);
        let mut len = usize::from(if extra == 0 { lead & 0x3f } else { lead & 0xf });
        for i in 0..extra {
            len |= usize::from(body[2 + i]) << (4 + 8 * i);
        }
        let mut off = Vec::new();
        aml::Name::new("_S5_".into(), &aml::ZERO).to_aml_bytes(&mut off);
        assert_eq!(body[1 + len..][..5], off[..5], "{count} devices");
    }
}

#[test]
fn the_largest_machine_fits_with_room_to_spare() {
    let nodes = nodes(19);
    let ram = ram();
    write_tables(&ram, &AcpiInput { virtio: &nodes, ..growing(1, 32) }).unwrap();
}

#[test]
fn too_much_is_an_error() {
    let many = nodes(4097);
    assert!(matches!(write_tables(&ram(), &input(1, &many)), Err(Error::TooManyDevices(4097))));
    let e = write_tables(&ram(), &input(1, &many[..4096])).unwrap_err();
    assert!(matches!(e, Error::TooLong { .. }), "{e}");
    let tiny = GuestRam::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    assert!(matches!(write_tables(&tiny, &input(1, &[])), Err(Error::GuestMemory { address: 0xa_0000, .. })));
}

/// Writes the tables to files for a disassembler: `MAYFLY_ACPI_DUMP=dir cargo test -p vmm acpi -- --ignored`.
#[test]
#[ignore = "writes files; for looking at the tables with iasl -d"]
fn dump_for_a_disassembler() {
    let dir =
        std::path::PathBuf::from(std::env::var_os("MAYFLY_ACPI_DUMP").expect("MAYFLY_ACPI_DUMP names a directory"));
    let nodes = nodes(3);
    let (dsdt, fadt, madt) = tables(&AcpiInput { virtio: &nodes, ..growing(2, 4) });
    for (name, table) in [("dsdt", dsdt), ("facp", fadt), ("apic", madt)] {
        std::fs::write(dir.join(name).with_extension("dat"), table.0).expect("writing a table");
    }
}
