//! The ACPI tables: how a guest finds its processors, its interrupt controller and its devices, and how
//! it powers off.
//!
//! Hardware-reduced ACPI 6 (§4.1): no fixed hardware but a sleep control register. Tables lie one after
//! another in the system area, the root pointer at its traditional address. Called by the machine room
//! when all windows and GSIs are known; it only needs numbers, never devices. A new kind of table is a
//! builder beside `dsdt` and one line in [`write_tables`]; a new kind of DSDT node is one field of
//! [`AcpiInput`].

mod cpus;
mod dsdt;
mod events;
mod fadt;
mod identity;
mod madt;
mod pci;
mod pvpanic;

#[cfg(test)]
mod tests;

use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use devices::ram::GuestRam;

/// OEM id in every table: ours, six characters by luck.
const OEM_ID: [u8; 6] = *b"MAYFLY";
/// OEM table id in every table, and the hypervisor vendor id in the FADT.
const OEM_TABLE_ID: [u8; 8] = *b"MAYFLYVM";
/// Revision of our tables' contents.
const OEM_REVISION: u32 = 1;
/// ACPI wants no alignment; 16 bytes keep dumps readable.
const TABLE_ALIGN: u64 = 16;

/// A virtio-mmio device as the DSDT describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioNode {
    /// Guest-physical address of its register window, below 4 GiB.
    pub base: u32,
    /// Length of the window in bytes.
    pub len: u32,
    /// Its interrupt.
    pub gsi: u32,
}

/// An ISA device with I/O ports, as the DSDT describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortNode {
    /// First I/O port.
    pub port: u16,
    /// Its interrupt.
    pub gsi: u32,
}

impl PortNode {
    /// COM1 where every machine has it.
    pub const COM1: Self = Self { port: layout::COM1_PORT, gsi: layout::COM1_GSI };
    /// The keyboard controller where every machine has it.
    pub const I8042: Self = Self { port: layout::I8042_PORT, gsi: layout::I8042_GSI };
}

/// The pages that tell a guest whether it was restored from a snapshot, as the DSDT describes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentityNode {
    /// Guest-physical address of the VM generation id, below 4 GiB.
    pub generation_id: u32,
    /// Says that the generation id has changed.
    pub generation_id_gsi: u32,
    /// Guest-physical address of the VM clock's page, below 4 GiB.
    pub clock: u32,
    /// Says that the page has changed.
    pub clock_gsi: u32,
}

impl IdentityNode {
    /// Both where every machine has them.
    pub const HERE: Self = Self {
        generation_id: layout::GENERATION_ID.0 as u32,
        generation_id_gsi: layout::GENERATION_ID_GSI,
        clock: layout::VM_CLOCK.0 as u32,
        clock_gsi: layout::VM_CLOCK_GSI,
    };
}

/// vCPUs of which some may come and go, as the DSDT describes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuNode {
    /// Most vCPUs there can be; their APIC ids are 0 and up.
    pub max: u8,
    /// First port of the registers.
    pub port: u16,
}

/// What the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct AcpiInput<'a> {
    /// Number of vCPUs there are at boot; their APIC ids are 0 and up.
    pub vcpus: u8,
    /// All vCPUs, if some may come and go.
    pub hotplug_cpus: Option<CpuNode>,
    /// The machine has a PCI bus.
    pub pci: bool,
    /// virtio-mmio devices in the order of their `_UID`.
    pub virtio: &'a [VirtioNode],
    /// COM1, if the machine has one.
    pub com1: Option<PortNode>,
    /// The keyboard controller, if the machine has one. Without it there is no ACPI reset register.
    pub i8042: Option<PortNode>,
    /// The generation id and the clock, if the machine has them.
    pub identity: Option<IdentityNode>,
    /// The pvpanic port, if the machine has one.
    pub pvpanic: Option<u16>,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More than the space kept for them.
    #[error("the ACPI tables need {needed} bytes, {max} are kept for them: use fewer devices", max = layout::ACPI_TABLES_MAX_LEN)]
    TooLong {
        /// Bytes needed up to and including the table that did not fit.
        needed: u64,
    },
    /// The device list is longer than its names can count.
    #[error("{0} virtio devices are more than the DSDT can name (4096)")]
    TooManyDevices(usize),
    /// The machine has too little memory.
    #[error("writing ACPI tables at guest address {address:#x} failed (machine memory too small?): {source}")]
    GuestMemory {
        /// Where.
        address: u64,
        /// Why it failed.
        source: GuestMemoryError,
    },
}

/// Writes all tables and returns the address of the root pointer, for the boot protocol to pass on.
pub fn write_tables(ram: &GuestRam, input: &AcpiInput<'_>) -> Result<GuestAddress, Error> {
    let mut area = Area { ram, next: layout::ACPI_TABLES.0 };
    let dsdt = area.place(&dsdt::build(input)?)?;
    let fadt = area.place(&fadt::build(input, dsdt))?;
    let madt = area.place(&madt::build(input))?;
    let mcfg = if input.pci { Some(area.place(&pci::mcfg())?) } else { None };

    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fadt, madt].into_iter().chain(mcfg) {
        xsdt.add_entry(table);
    }
    let xsdt = area.place(&xsdt)?;
    area.write(layout::ACPI_RSDP.0, &Rsdp::new(OEM_ID, xsdt))?;
    Ok(layout::ACPI_RSDP)
}

/// Bytes that are AML already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The part of the system area that tables are placed in, lowest address first.
struct Area<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Area<'_> {
    /// Writes a table at the next free address and returns that address.
    fn place(&mut self, table: &dyn Aml) -> Result<u64, Error> {
        let address = self.next;
        let len = self.write(address, table)?;
        // No overflow: the area ends below 1 MiB.
        self.next = (address + len).next_multiple_of(TABLE_ALIGN);
        Ok(address)
    }

    fn write(&self, address: u64, table: &dyn Aml) -> Result<u64, Error> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let len = bytes.len() as u64;
        let start = layout::ACPI_TABLES.0;
        if address != layout::ACPI_RSDP.0 && address + len > start + layout::ACPI_TABLES_MAX_LEN {
            return Err(Error::TooLong { needed: address + len - start });
        }
        self.ram.write_slice(&bytes, GuestAddress(address)).map_err(|source| Error::GuestMemory { address, source })?;
        Ok(len)
    }
}
