//! The MultiProcessor table (Intel MultiProcessor Specification 1.4), for kernels built without ACPI.
//!
//! Deprecated, but still the only way such a kernel finds more than one processor. It says what the MADT
//! says: the processors, one I/O APIC, and that ISA interrupt N is its pin N. Called by the machine room
//! beside [`acpi`](super::acpi).

use vm_memory::{Bytes, GuestMemoryError};

use super::layout;
use devices::ram::GuestRam;

/// APIC versions as the tables give them: an integrated local APIC, and a 24-pin I/O APIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// MP specification 1.4.
const SPEC_REVISION: u8 = 4;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const PROCESSOR_ENABLED: u8 = 1 << 0;
const PROCESSOR_BOOTSTRAP: u8 = 1 << 1;
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const ALL_LOCAL_APICS: u8 = 0xff;
const ISA_BUS: u8 = 0;

/// Length of the floating pointer structure, in bytes.
const POINTER_LEN: usize = 16;

/// Why the table could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Too many vCPUs for the space below 640 KiB.
    #[error("an MP table for {vcpus} vCPUs has {len} bytes, {max} fit", max = layout::MP_TABLE_MAX_LEN)]
    TooLong {
        /// vCPUs asked for.
        vcpus: u8,
        /// Length of the table in bytes.
        len: usize,
    },
    /// The machine has too little memory.
    #[error("writing the MP table below 640 KiB failed (machine memory too small?): {0}")]
    GuestMemory(#[from] GuestMemoryError),
}

/// Writes the table for `vcpus` processors with APIC ids from 0.
pub fn write(ram: &GuestRam, vcpus: u8) -> Result<(), Error> {
    let configuration = configuration(vcpus);
    let len = POINTER_LEN + configuration.len();
    if len as u64 > layout::MP_TABLE_MAX_LEN {
        return Err(Error::TooLong { vcpus, len });
    }
    let mut bytes = pointer().to_vec();
    bytes.extend(configuration);
    Ok(ram.write_slice(&bytes, layout::MP_TABLE)?)
}

/// The floating pointer structure (§4.1), directly followed by the configuration table.
fn pointer() -> [u8; POINTER_LEN] {
    let mut bytes = [0; POINTER_LEN];
    bytes[0..4].copy_from_slice(b"_MP_");
    // The layout keeps the table far below 4 GiB.
    let table = layout::MP_TABLE.0 as u32 + POINTER_LEN as u32;
    bytes[4..8].copy_from_slice(&table.to_le_bytes());
    bytes[8] = 1; // Length in paragraphs of 16 bytes.
    bytes[9] = SPEC_REVISION;
    // Feature bytes zero: there is a configuration table, and no IMCR (virtual wire mode).
    bytes[10] = checksum(&bytes);
    bytes
}

/// The configuration table (§4.2) with its entries in the order the specification wants.
fn configuration(vcpus: u8) -> Vec<u8> {
    // MP tables number all APICs from one space, and the processors have taken 0 up to here.
    let ioapic_id = vcpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut push = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = PROCESSOR_ENABLED | if id == 0 { PROCESSOR_BOOTSTRAP } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[ENTRY_PROCESSOR, id, LOCAL_APIC_VERSION, flags]);
        // Signature and feature flags stay zero: kernels ask CPUID.
        push(&entry);
    }
    push(&[ENTRY_BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let mut ioapic = [ENTRY_IOAPIC, ioapic_id, IOAPIC_VERSION, 1, 0, 0, 0, 0];
    ioapic[4..].copy_from_slice(&(layout::IOAPIC.0 as u32).to_le_bytes());
    push(&ioapic);
    for pin in 0..layout::IOAPIC_PINS {
        // Flags zero: polarity and trigger as the ISA bus has them, active high and edge.
        push(&[ENTRY_IO_INTERRUPT, INTERRUPT_VECTORED, 0, 0, ISA_BUS, pin, ioapic_id, pin]);
    }
    // LINT1 is NMI everywhere. There is no 8259, so no ExtINT on LINT0.
    push(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let mut table = Vec::with_capacity(44 + entries.len());
    table.extend_from_slice(b"PCMP");
    // At most 255 processors of 20 bytes: fits 16 bits.
    table.extend_from_slice(&((44 + entries.len()) as u16).to_le_bytes());
    table.extend_from_slice(&[SPEC_REVISION, 0]);
    table.extend_from_slice(b"MAYFLY  ");
    table.extend_from_slice(b"MICROVM     ");
    table.extend_from_slice(&[0; 6]); // No OEM table.
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&(layout::LOCAL_APIC.0 as u32).to_le_bytes());
    table.extend_from_slice(&[0; 4]); // No extended entries.
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    table
}

/// The byte that makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    fn table(vcpus: u8) -> (Vec<u8>, Vec<u8>) {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&ram, vcpus).unwrap();
        let mut pointer = vec![0; POINTER_LEN];
        ram.read_slice(&mut pointer, layout::MP_TABLE).unwrap();
        let address = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
        let len: u16 = ram.read_obj(GuestAddress(u64::from(address) + 4)).unwrap();
        let mut table = vec![0; usize::from(len)];
        ram.read_slice(&mut table, GuestAddress(u64::from(address))).unwrap();
        (pointer, table)
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    /// Walks the entries by their architectural lengths.
    fn entries(table: &[u8]) -> Vec<&[u8]> {
        let mut rest = &table[44..];
        let mut entries = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, after) = rest.split_at(if *kind == ENTRY_PROCESSOR { 20 } else { 8 });
            entries.push(entry);
            rest = after;
        }
        entries
    }

    #[test]
    fn both_checksums_are_right_at_every_size() {
        for vcpus in [1, 2, 7, 32] {
            let (pointer, table) = table(vcpus);
            assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
            assert_eq!((&table[..4], sum(&table)), (&b"PCMP"[..], 0));
            let declared = u16::from_le_bytes(table[34..36].try_into().unwrap());
            assert_eq!(entries(&table).len(), usize::from(declared));
        }
    }

    #[test]
    fn it_names_every_processor_and_pin() {
        let (_, table) = table(4);
        let entries = entries(&table);
        let of = |kind| entries.iter().filter(move |e| e[0] == kind).collect::<Vec<_>>();
        assert_eq!(
            of(ENTRY_PROCESSOR).iter().map(|e| (e[1], e[3])).collect::<Vec<_>>(),
            [(0, 3), (1, 1), (2, 1), (3, 1)]
        );
        assert_eq!(of(ENTRY_IOAPIC)[0][1..], [4, 0x11, 1, 0, 0, 0xc0, 0xfe]);
        let pins: Vec<_> = of(ENTRY_IO_INTERRUPT).iter().map(|e| (e[5], e[6], e[7])).collect();
        assert_eq!(pins, (0..24).map(|pin| (pin, 4, pin)).collect::<Vec<_>>());
        assert!(entries.is_sorted_by_key(|e| e[0]), "entries come sorted by type");
        assert_eq!(table[36..40], 0xfee0_0000u32.to_le_bytes());
    }

    #[test]
    fn the_largest_machine_fits_and_more_is_an_error() {
        assert!(POINTER_LEN + configuration(layout::MAX_VCPUS).len() <= layout::MP_TABLE_MAX_LEN as usize);
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        assert!(matches!(write(&ram, 255), Err(Error::TooLong { vcpus: 255, .. })));
        let tiny = GuestRam::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        assert!(matches!(write(&tiny, 1), Err(Error::GuestMemory(_))));
    }
}
