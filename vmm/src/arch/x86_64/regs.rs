//! The state vCPU 0 starts in, and the tables in guest RAM that state refers to.
//!
//! Only the boot processor gets this; the others wait in KVM for INIT and SIPI. The functions write
//! guest RAM and return `kvm-bindings` structs; the vCPU room applies them with `KVM_SET_*`.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::boot::{Entry, Protocol};
use super::layout;
use devices::ram::GuestRam;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 always reads as one (Intel SDM 1, 3.4.3); interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// `__BOOT_CS` of the Linux boot protocol.
const SELECTOR_CODE: u16 = 0x10;
/// `__BOOT_DS` of the Linux boot protocol.
const SELECTOR_DATA: u16 = 0x18;
/// Our task state segment. It takes the one slot left, since the protocol fixes the other two.
const SELECTOR_TSS: u16 = 0x08;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_2M: u64 = 1 << 7;
const ENTRIES_PER_TABLE: u64 = 512;

/// Writing the boot tables failed: the machine has too little memory for them.
#[derive(Debug, thiserror::Error)]
#[error("writing {what} at guest address {address:#x} failed (machine memory too small?): {source}")]
pub struct Error {
    /// What was being written.
    pub what: &'static str,
    /// Where.
    pub address: u64,
    /// Why it failed.
    pub source: GuestMemoryError,
}

/// What vCPU 0 is set to before it first runs.
#[derive(Debug, Clone, Copy)]
pub struct BootState {
    /// For `KVM_SET_REGS`.
    pub regs: kvm_regs,
    /// For `KVM_SET_SREGS`.
    pub sregs: kvm_sregs,
    /// For `KVM_SET_FPU`.
    pub fpu: kvm_fpu,
}

/// Writes the GDT, the IDT and (for 64-bit entry) the page tables, and returns the state that uses them.
///
/// `sregs` is what `KVM_GET_SREGS` returned for the fresh vCPU: what the protocols leave open (the APIC
/// base above all) stays as it is.
pub fn boot_state(ram: &GuestRam, entry: Entry, sregs: kvm_sregs) -> Result<BootState, Error> {
    let segments = Segments::new(entry.protocol);
    write_gdt(ram, &segments)?;
    if entry.protocol == Protocol::Linux64 {
        write_page_tables(ram)?;
    }
    Ok(BootState { regs: regs(entry), sregs: special(entry.protocol, &segments, sregs), fpu: fpu() })
}

fn regs(entry: Entry) -> kvm_regs {
    let mut regs = kvm_regs { rflags: RFLAGS_RESERVED, rip: entry.address.0, ..Default::default() };
    match entry.protocol {
        // PVH leaves the stack to the guest.
        Protocol::Pvh => regs.rbx = layout::PVH_START_INFO.0,
        Protocol::Linux64 => {
            regs.rsi = layout::ZERO_PAGE.0;
            regs.rsp = layout::BOOT_STACK_POINTER.0;
            regs.rbp = layout::BOOT_STACK_POINTER.0;
        }
    }
    regs
}

/// The x87 and SSE state after a reset and `FNINIT` (Intel SDM 3A, table 10-1).
fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

fn special(protocol: Protocol, segments: &Segments, mut sregs: kvm_sregs) -> kvm_sregs {
    sregs.gdt = kvm_dtable { base: layout::BOOT_GDT.0, limit: 4 * 8 - 1, ..Default::default() };
    sregs.idt = kvm_dtable { base: layout::BOOT_IDT.0, limit: 8 - 1, ..Default::default() };
    sregs.cs = segments.code;
    sregs.ds = segments.data;
    sregs.es = segments.data;
    sregs.fs = segments.data;
    sregs.gs = segments.data;
    sregs.ss = segments.data;
    sregs.tr = segments.tss;
    match protocol {
        Protocol::Pvh => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr3 = 0;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
        Protocol::Linux64 => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::BOOT_PML4.0;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
    }
    sregs
}

/// The flat segments of one protocol.
struct Segments {
    code: kvm_segment,
    data: kvm_segment,
    tss: kvm_segment,
}

impl Segments {
    fn new(protocol: Protocol) -> Self {
        let long = u8::from(protocol == Protocol::Linux64);
        let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
        Self {
            // Type 11: code, readable, accessed. VMX entry checks want "accessed" (Intel SDM 3C, 27.3.1.2).
            code: kvm_segment { selector: SELECTOR_CODE, type_: 11, l: long, db: 1 - long, ..flat },
            // Type 3: data, writable, accessed.
            data: kvm_segment { selector: SELECTOR_DATA, type_: 3, db: 1, ..flat },
            // Type 11 of a system segment: busy TSS. 0x67 is its architectural minimum, asked for by PVH.
            tss: kvm_segment { selector: SELECTOR_TSS, type_: 11, limit: 0x67, present: 1, ..Default::default() },
        }
    }
}

/// The GDT entry for a segment (Intel SDM 3A, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags =
        u64::from(segment.avl) | u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

fn write_gdt(ram: &GuestRam, segments: &Segments) -> Result<(), Error> {
    let mut table = [0u64; 4];
    for segment in [&segments.tss, &segments.code, &segments.data] {
        table[usize::from(segment.selector / 8)] = descriptor(segment);
    }
    write(ram, "the boot GDT", layout::BOOT_GDT, &bytes_of(table))?;
    write(ram, "the boot IDT", layout::BOOT_IDT, &[0; 8])
}

/// Maps the first GiB one to one with 2 MiB pages, as the 64-bit protocol asks for (kernel, zero page
/// and command line must be mapped). 1 GiB pages would be one entry, but not every host offers them.
fn write_page_tables(ram: &GuestRam) -> Result<(), Error> {
    let upper = |table: GuestAddress| (table.0 | PAGE_PRESENT_WRITABLE).to_le_bytes();
    write(ram, "the boot PML4", layout::BOOT_PML4, &upper(layout::BOOT_PDPT))?;
    write(ram, "the boot PDPT", layout::BOOT_PDPT, &upper(layout::BOOT_PD))?;
    let entry = |index: u64| (index << 21) | PAGE_PRESENT_WRITABLE | PAGE_2M;
    write(ram, "the boot page directory", layout::BOOT_PD, &bytes_of((0..ENTRIES_PER_TABLE).map(entry)))
}

fn bytes_of(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn write(ram: &GuestRam, what: &'static str, address: GuestAddress, bytes: &[u8]) -> Result<(), Error> {
    ram.write_slice(bytes, address).map_err(|source| Error { what, address: address.0, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(protocol: Protocol) -> (GuestRam, BootState) {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let fresh = kvm_sregs { apic_base: 0xfee0_0900, cr0: 0x6000_0010, cr8: 3, ..Default::default() };
        let entry = Entry { protocol, address: GuestAddress(0x100_0200) };
        let state = boot_state(&ram, entry, fresh).unwrap();
        (ram, state)
    }

    /// Walks the page tables as the processor would.
    fn translate(ram: &GuestRam, cr3: u64, address: u64) -> Option<u64> {
        let mut table = cr3;
        for (shift, level) in [(39, 4), (30, 3), (21, 2)] {
            let entry: u64 = ram.read_obj(GuestAddress(table + (address >> shift & 511) * 8)).unwrap();
            if entry & 1 == 0 {
                return None;
            }
            let base = entry & 0x000f_ffff_ffff_f000;
            if level == 2 {
                assert_ne!(entry & PAGE_2M, 0);
                return Some(base | (address & 0x1f_ffff));
            }
            table = base;
        }
        None
    }

    #[test]
    fn linux_starts_in_long_mode_with_the_first_gib_mapped() {
        let (ram, state) = state(Protocol::Linux64);
        assert_eq!((state.regs.rip, state.regs.rsi), (0x100_0200, 0x7000));
        assert_eq!((state.regs.rsp, state.regs.rflags), (0x8ff0, 2));
        let sregs = state.sregs;
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8000_0011, 0x20, 0x500));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.selector, sregs.ds.selector), (1, 0, 0x10, 0x18));
        for address in [0, 0x7000, 0x20000, 0x10_0200, 0x1234_5678, 0x3fff_ffff] {
            assert_eq!(translate(&ram, sregs.cr3, address), Some(address));
        }
        assert_eq!(translate(&ram, sregs.cr3, 0x4000_0000), None);
    }

    #[test]
    fn pvh_starts_in_flat_protected_mode_without_paging() {
        let (ram, state) = state(Protocol::Pvh);
        assert_eq!((state.regs.rip, state.regs.rbx, state.regs.rflags), (0x100_0200, 0x6000, 2));
        let sregs = state.sregs;
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit), (0, 1, 0xffff_ffff));
        assert_eq!((sregs.tr.type_, sregs.tr.limit, sregs.tr.s), (11, 0x67, 0));
        let pml4: u64 = ram.read_obj(layout::BOOT_PML4).unwrap();
        assert_eq!(pml4, 0, "no page tables are written");
    }

    #[test]
    fn what_the_protocols_leave_open_stays() {
        let (_, state) = state(Protocol::Pvh);
        assert_eq!((state.sregs.apic_base, state.sregs.cr8), (0xfee0_0900, 3));
        assert_eq!((state.fpu.fcw, state.fpu.mxcsr), (0x37f, 0x1f80));
    }

    #[test]
    fn the_gdt_says_what_the_registers_say() {
        // Literal descriptors: flat code 64, flat code 32, flat data, TSS.
        for (protocol, code) in [(Protocol::Linux64, 0x00af_9b00_0000_ffff), (Protocol::Pvh, 0x00cf_9b00_0000_ffff_u64)]
        {
            let (ram, state) = state(protocol);
            let entries: [u64; 4] =
                [0, 1, 2, 3].map(|i| ram.read_obj(GuestAddress(state.sregs.gdt.base + i * 8)).unwrap());
            assert_eq!(entries, [0, 0x0000_8b00_0000_0067, code, 0x00cf_9300_0000_ffff]);
            assert_eq!(state.sregs.gdt.limit, 31);
            assert_eq!((state.sregs.idt.base, state.sregs.idt.limit), (0x520, 7));
        }
    }

    #[test]
    fn a_machine_without_memory_is_an_error() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let entry = Entry { protocol: Protocol::Linux64, address: GuestAddress(0x100_0000) };
        let e = boot_state(&ram, entry, kvm_sregs::default()).unwrap_err();
        assert_eq!((e.what, e.address), ("the boot PML4", 0x9000));
    }
}
