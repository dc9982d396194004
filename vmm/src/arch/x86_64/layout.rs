//! The guest-physical address map, I/O ports and interrupt numbers of the x86_64 machine.
//!
//! Images and tools rely on these numbers, so they are a contract: changing one changes what existing
//! guests see. Everything else in `vmm` takes its addresses from here; nothing here depends on anything.

use vm_memory::GuestAddress;

/// One kibibyte, in bytes.
const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
const GIB: u64 = 1 << 30;

/// Size of a guest page, in bytes.
pub const PAGE_SIZE: u64 = 4 * KIB;

// --- Low memory: what the monitor writes for the boot processor -----------------------------------

/// The boot GDT: four descriptors of 8 bytes, which is all that fits below [`BOOT_IDT`].
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
/// The boot IDT: one empty entry, so that an early exception is a triple fault and not a wild jump.
pub const BOOT_IDT: GuestAddress = GuestAddress(0x520);
/// PVH `hvm_start_info`.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// PVH module list (the initrd).
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// PVH memory map. Shares its page with [`ZERO_PAGE`]: a guest is booted by one protocol or the other.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
/// Linux `boot_params` ("zero page"), one page.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Initial stack pointer; the stack grows down towards the end of the zero page.
pub const BOOT_STACK_POINTER: GuestAddress = GuestAddress(0x8ff0);
/// Top level of the boot page tables.
pub const BOOT_PML4: GuestAddress = GuestAddress(0x9000);
/// Second level of the boot page tables.
pub const BOOT_PDPT: GuestAddress = GuestAddress(0xa000);
/// Third level of the boot page tables: 512 pages of 2 MiB.
pub const BOOT_PD: GuestAddress = GuestAddress(0xb000);
/// How far the boot page tables map guest-physical addresses one to one, in bytes.
pub const BOOT_IDENTITY_MAP_LEN: u64 = GIB;

/// The kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x20000);
/// Room for the command line, in bytes, including its terminating NUL.
pub const COMMAND_LINE_MAX_LEN: usize = 2048;

/// End of conventional memory; from here to 1 MiB the guest is told not to use RAM.
pub const SYSTEM_AREA_START: GuestAddress = GuestAddress(0x9_fc00);
/// The MP table, in the last KiB below 640 KiB, which is one of the places kernels search.
pub const MP_TABLE: GuestAddress = SYSTEM_AREA_START;
/// Room for the MP table, in bytes.
pub const MP_TABLE_MAX_LEN: u64 = KIB;
/// First ACPI table (DSDT, FADT, MADT, XSDT and whatever comes later follow each other).
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xa_0000);
/// Room for ACPI tables, in bytes. What lies between their end and [`ACPI_RSDP`] is kept for pages
/// that ACPI points to.
pub const ACPI_TABLES_MAX_LEN: u64 = 0x3_0000;
/// The VM generation id, alone on its page.
pub const GENERATION_ID: GuestAddress = GuestAddress(0xd_0000);
/// The page of the VM clock.
pub const VM_CLOCK: GuestAddress = GuestAddress(GENERATION_ID.0 + PAGE_SIZE);
/// The ACPI root pointer, where kernels that get no pointer find it by scanning.
pub const ACPI_RSDP: GuestAddress = GuestAddress(0xe_0000);

/// Start of high memory: the lowest address a kernel may be loaded at.
pub const HIGH_MEMORY_START: GuestAddress = GuestAddress(MIB);

// --- RAM and the holes in it -------------------------------------------------------------------------

/// End of the first RAM region and start of the 32-bit hole.
pub const MMIO32_START: u64 = 3 * GIB;
/// End of the 32-bit hole; RAM continues here.
pub const MMIO32_END: u64 = 4 * GIB;
/// End of the second RAM region and start of the 64-bit hole.
pub const MMIO64_START: u64 = 256 * GIB;
/// End of the 64-bit hole; RAM continues here.
pub const MMIO64_END: u64 = 512 * GIB;

/// Persistent memory: from here on, one region after another, to [`PMEM_END`].
pub const PMEM_START: u64 = MMIO64_START;
/// End of persistent memory.
pub const PMEM_END: u64 = PCI_BARS_START;
/// The memory of PCI functions: the end of the 64-bit hole.
pub const PCI_BARS_START: u64 = MMIO64_END - PCI_BARS_LEN;
/// Its length in bytes.
pub const PCI_BARS_LEN: u64 = GIB;
/// Unit in which persistent memory is placed and measured, in bytes: what Linux can add `struct page`s for
/// (`SUBSECTION_SIZE`), and a huge page.
pub const PMEM_ALIGN: u64 = 2 * MIB;

/// Alignment of the hot-pluggable region, in bytes: the largest unit in which Linux adds memory on x86
/// (`memory_block_size_bytes`). What is not aligned to it Linux cannot use.
pub const HOTPLUG_ALIGN: u64 = 2 * GIB;

// --- The 32-bit hole ---------------------------------------------------------------------------------

/// The boot timer: a guest writes one byte here to log how long its boot took.
pub const BOOT_TIMER: GuestAddress = GuestAddress(MMIO32_START);
/// First virtio-mmio window.
pub const VIRTIO_MMIO_START: GuestAddress = GuestAddress(MMIO32_START + PAGE_SIZE);
/// Length of one virtio-mmio window, in bytes. The guest names it `4K` on its command line.
pub const VIRTIO_MMIO_LEN: u64 = PAGE_SIZE;
/// PCI configuration space (ECAM). Nobody answers there without PCI, but it is always announced as reserved.
pub const PCI_MMCONFIG_START: GuestAddress = GuestAddress(0xeec0_0000);
/// Length of what is kept for the PCI configuration space, in bytes: one segment of 256 buses, of which there is one.
pub const PCI_MMCONFIG_LEN: u64 = 256 * MIB;
/// The I/O APIC's registers.
pub const IOAPIC: GuestAddress = GuestAddress(0xfec0_0000);
/// Length of the I/O APIC's register window, in bytes.
pub const IOAPIC_LEN: u64 = PAGE_SIZE;
/// The local APIC's registers, as every vCPU sees its own.
pub const LOCAL_APIC: GuestAddress = GuestAddress(0xfee0_0000);
/// Three pages KVM needs on Intel processors without unrestricted guest (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: GuestAddress = GuestAddress(0xfffb_d000);
/// One page KVM needs for the same reason (`KVM_SET_IDENTITY_MAP_ADDR`), just after the TSS pages.
pub const KVM_IDENTITY_MAP: GuestAddress = GuestAddress(KVM_TSS.0 + 3 * PAGE_SIZE);

// --- I/O ports -----------------------------------------------------------------------------------------

/// First port of COM1, a 16550A.
pub const COM1_PORT: u16 = 0x3f8;
/// Number of ports of COM1.
pub const COM1_PORTS: u8 = 8;
/// First port of the i8042 keyboard controller (data); commands and status are at `+4`.
pub const I8042_PORT: u16 = 0x60;
/// Number of ports the i8042 claims.
pub const I8042_PORTS: u8 = 5;
/// The i8042's command port: 0xfe written here resets the machine.
pub const I8042_COMMAND_PORT: u16 = I8042_PORT + 4;
/// The i8042 command that pulses the reset line.
pub const I8042_RESET: u8 = 0xfe;
/// ACPI sleep control register (hardware-reduced ACPI 6.5 §4.8.3.7): how a guest powers off.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register, directly after the control register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The sleep type our `\_S5_` package gives for "off".
pub const SLEEP_TYPE_S5: u8 = 5;
/// What a guest writes to [`SLEEP_CONTROL_PORT`] to power off: SLP_TYP in bits 2–4, SLP_EN in bit 5.
pub const SLEEP_S5_VALUE: u8 = (SLEEP_TYPE_S5 << 2) | (1 << 5);

/// First port by which a guest hears of PCI slots that were filled or should be emptied.
pub const PCI_HOTPLUG_PORT: u16 = 0x620;
/// First port of the registers for vCPUs that come and go.
pub const CPU_HOTPLUG_PORT: u16 = 0x610;
/// Number of those ports.
pub const CPU_HOTPLUG_PORTS: u8 = 2;

/// The port by which a guest kernel tells that it panicked (pvpanic).
pub const PVPANIC_PORT: u16 = 0x505;

// --- Interrupts ------------------------------------------------------------------------------------------

/// Number of I/O APIC pins, and so of GSIs that are not MSI routes.
pub const IOAPIC_PINS: u8 = 24;
/// Number of GSIs, and so of routes, that KVM knows (`KVM_MAX_IRQ_ROUTES`). Those that are no pins are for MSI-X vectors.
pub const MAX_GSIS: u16 = 4096;
/// GSI of the keyboard controller.
pub const I8042_GSI: u32 = 1;
/// GSI by which a guest hears that something came or is to go.
pub const HOTPLUG_GSI: u32 = 3;
/// GSI of COM1.
pub const COM1_GSI: u32 = 4;
/// First GSI given to a virtio-mmio device.
pub const VIRTIO_GSI_FIRST: u32 = 5;
/// Last GSI given to a virtio-mmio device.
pub const VIRTIO_GSI_LAST: u32 = IOAPIC_PINS as u32 - 1;

/// GSI of the VM generation id. The last two pins are taken by it and the VM clock, whatever else there is.
pub const GENERATION_ID_GSI: u32 = IOAPIC_PINS as u32 - 2;
/// GSI of the VM clock.
pub const VM_CLOCK_GSI: u32 = IOAPIC_PINS as u32 - 1;

/// Most vCPUs a machine may have.
pub const MAX_VCPUS: u8 = 32;

/// The RAM regions of a machine with `mem_size_bytes` of memory, lowest first: up to 3 GiB, then from
/// 4 GiB to 256 GiB, then from 512 GiB on.
///
/// The lengths always add up to `mem_size_bytes`. Zero bytes give no region. Any size is accepted:
/// whether the host can provide it is for the mapping to find out.
#[must_use]
pub fn ram_regions(mem_size_bytes: usize) -> Vec<(GuestAddress, usize)> {
    // The last part has no upper bound of its own.
    const PARTS: [(u64, usize); 3] =
        [(0, MMIO32_START as usize), (MMIO32_END, (MMIO64_START - MMIO32_END) as usize), (MMIO64_END, usize::MAX)];
    let mut left = mem_size_bytes;
    let mut regions = Vec::with_capacity(PARTS.len());
    for (start, room) in PARTS {
        let len = left.min(room);
        if len == 0 {
            break;
        }
        regions.push((GuestAddress(start), len));
        left -= len;
    }
    regions
}

/// Where a persistent-memory region of this length (a multiple of [`PMEM_ALIGN`]) goes beside others, of which `taken` has starts and lengths:
/// the lowest gap. `None` when there is none.
#[must_use]
pub fn pmem_place(taken: &[(u64, u64)], len: u64) -> Option<GuestAddress> {
    let mut taken: Vec<_> = taken.to_vec();
    taken.sort_unstable();
    let mut next = PMEM_START;
    for (start, taken) in taken {
        if next.checked_add(len)? <= start {
            break;
        }
        next = next.max(start.checked_add(taken)?);
    }
    next.checked_add(len).filter(|end| *end <= PMEM_END).map(|_| GuestAddress(next))
}

/// Whether a persistent-memory region of this length could be there.
#[must_use]
pub fn is_pmem_place(start: u64, len: u64) -> bool {
    start >= PMEM_START && start.is_multiple_of(PMEM_ALIGN) && start.checked_add(len).is_some_and(|end| end <= PMEM_END)
}

/// Where the hot-pluggable region of a machine with `mem_size_bytes` of memory starts: behind the 64-bit hole and behind all
/// of the memory it boots with, at a multiple of [`HOTPLUG_ALIGN`] and of `block_len` (a power of two). `None` when
/// there is no such address.
///
/// It never follows RAM directly: a buffer that begins in the one and ends in the other would be in no region.
#[must_use]
pub fn hotplug_start(mem_size_bytes: u64, block_len: u64) -> Option<GuestAddress> {
    let ram = ram_regions(usize::try_from(mem_size_bytes).ok()?);
    let above = match ram.last() {
        Some((start, len)) if start.0 >= MMIO64_END => start.0.checked_add(*len as u64)?.checked_add(PAGE_SIZE)?,
        _ => MMIO64_END,
    };
    above.checked_next_multiple_of(HOTPLUG_ALIGN.max(block_len)).map(GuestAddress)
}

/// The window of virtio-mmio slot `slot` (0 is the first device) and its GSI, or `None` when there is
/// no GSI left for it.
#[must_use]
pub fn virtio_mmio_slot(slot: usize) -> Option<(GuestAddress, u32)> {
    let slot = u32::try_from(slot).ok()?;
    let gsi = VIRTIO_GSI_FIRST.checked_add(slot)?;
    (gsi <= VIRTIO_GSI_LAST).then(|| (GuestAddress(VIRTIO_MMIO_START.0 + u64::from(slot) * VIRTIO_MMIO_LEN), gsi))
}

// The map must not overlap itself.
const _: () = {
    assert!(BOOT_GDT.0 + 4 * 8 <= BOOT_IDT.0);
    assert!(PVH_START_INFO.0 + 56 <= PVH_MODULES.0);
    assert!(PVH_MODULES.0 + 32 <= PVH_MEMORY_MAP.0);
    assert!(ZERO_PAGE.0 + PAGE_SIZE <= BOOT_STACK_POINTER.0);
    assert!(BOOT_STACK_POINTER.0 <= BOOT_PML4.0);
    assert!(BOOT_PML4.0 + PAGE_SIZE == BOOT_PDPT.0 && BOOT_PDPT.0 + PAGE_SIZE == BOOT_PD.0);
    assert!(BOOT_PD.0 + PAGE_SIZE <= COMMAND_LINE.0);
    assert!(COMMAND_LINE.0 + COMMAND_LINE_MAX_LEN as u64 <= SYSTEM_AREA_START.0);
    assert!(MP_TABLE.0 + MP_TABLE_MAX_LEN <= ACPI_TABLES.0);
    assert!(ACPI_TABLES.0 + ACPI_TABLES_MAX_LEN <= GENERATION_ID.0);
    assert!(GENERATION_ID.0.is_multiple_of(PAGE_SIZE) && VM_CLOCK.0.is_multiple_of(PAGE_SIZE));
    assert!(VM_CLOCK.0 + PAGE_SIZE <= ACPI_RSDP.0);
    assert!(ACPI_RSDP.0 + 36 <= HIGH_MEMORY_START.0);
    let slots = (VIRTIO_GSI_LAST - VIRTIO_GSI_FIRST + 1) as u64;
    assert!(VIRTIO_MMIO_START.0 + slots * VIRTIO_MMIO_LEN <= PCI_MMCONFIG_START.0);
    assert!(PCI_MMCONFIG_START.0 + PCI_MMCONFIG_LEN <= IOAPIC.0);
    assert!(IOAPIC.0 + IOAPIC_LEN <= LOCAL_APIC.0 && LOCAL_APIC.0 + PAGE_SIZE <= KVM_TSS.0);
    assert!(KVM_IDENTITY_MAP.0 + PAGE_SIZE <= MMIO32_END);
    assert!(COM1_GSI < VIRTIO_GSI_FIRST && I8042_GSI < VIRTIO_GSI_FIRST && HOTPLUG_GSI < VIRTIO_GSI_FIRST);
    assert!(HOTPLUG_GSI != COM1_GSI && HOTPLUG_GSI != I8042_GSI);
    assert!(SLEEP_STATUS_PORT < CPU_HOTPLUG_PORT);
    // APIC ids are one byte in the MADT and the MP table, and 255 is the broadcast id.
    assert!(MAX_VCPUS < 255);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_machines_have_one_region() {
        assert!(ram_regions(0).is_empty());
        assert_eq!(ram_regions(128 << 20), [(GuestAddress(0), 128 << 20)]);
        assert_eq!(ram_regions(3 << 30), [(GuestAddress(0), 3 << 30)]);
    }

    #[test]
    fn large_machines_skip_both_holes() {
        assert_eq!(ram_regions((3 << 30) + 4096), [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 4096)]);
        let low_parts = (3 + 252) << 30;
        assert_eq!(ram_regions(low_parts).len(), 2);
        assert_eq!(
            ram_regions(low_parts + (1 << 30)),
            [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 252 << 30), (GuestAddress(512 << 30), 1 << 30)]
        );
    }

    #[test]
    fn persistent_memory_fills_the_hole_and_no_more() {
        let first = 256 << 30;
        let place = |taken: &[(u64, u64)], len: u64| pmem_place(taken, len).map(|at| at.0);
        assert_eq!(place(&[], 2 << 20), Some(first));
        assert_eq!(place(&[(first, 4 << 20)], 2 << 20), Some(first + (4 << 20)));
        assert_eq!(place(&[], 255 << 30), Some(first));
        assert_eq!(place(&[(first, 255 << 30)], 2 << 20), None);
        assert_eq!(place(&[], u64::MAX), None);
        // A gap is used if it is large enough, whatever the order in which the others came.
        let others = [(first + (6 << 20), 2 << 20), (first, 2 << 20)];
        assert_eq!(place(&others, 4 << 20), Some(first + (2 << 20)));
        assert_eq!(place(&others, 6 << 20), Some(first + (8 << 20)));
    }

    #[test]
    fn hot_pluggable_memory_is_behind_everything() {
        let start = |mem_gib: u64, block_gib: u64| hotplug_start(mem_gib << 30, block_gib << 30).map(|at| at.0 >> 30);
        assert_eq!([start(1, 1), start(255, 1), start(256, 1)], [Some(512), Some(512), Some(514)]);
        // RAM up to 514 GiB, and a gap.
        assert_eq!([start(257, 1), start(258, 1), start(256, 1 << 10)], [Some(516), Some(516), Some(1024)]);
        assert_eq!(hotplug_start(u64::MAX, 1), None);
    }

    #[test]
    fn virtio_slots_run_out_with_the_gsis() {
        assert_eq!(virtio_mmio_slot(0), Some((GuestAddress(0xc000_1000), 5)));
        assert_eq!(virtio_mmio_slot(1), Some((GuestAddress(0xc000_2000), 6)));
        assert_eq!(virtio_mmio_slot(18), Some((GuestAddress(0xc001_3000), 23)));
        assert_eq!(virtio_mmio_slot(19), None);
        assert_eq!(virtio_mmio_slot(usize::MAX), None);
    }

    #[test]
    fn powering_off_is_one_known_byte() {
        assert_eq!(SLEEP_S5_VALUE, 0x34);
    }

    proptest! {
        #[test]
        fn regions_add_up_and_avoid_the_holes(size in any::<usize>()) {
            let regions = ram_regions(size);
            prop_assert_eq!(regions.iter().map(|(_, len)| len).sum::<usize>(), size);
            for (start, len) in regions {
                let (start, end) = (u128::from(start.0), u128::from(start.0) + len as u128);
                for (hole_start, hole_end) in [(MMIO32_START, MMIO32_END), (MMIO64_START, MMIO64_END)] {
                    prop_assert!(end <= u128::from(hole_start) || start >= u128::from(hole_end));
                }
            }
        }
    }
}
